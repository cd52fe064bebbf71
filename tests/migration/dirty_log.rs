//! The dirty log holds every page of guest memory that changed.

use vhost::vhost_user::VhostUserFrontend;

use super::log::{Log, PAGE, Pages, Snapshot, pages_of};
use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::chains::{self, SECTORS, SPANS, Tables};
use crate::common::frontend::load::Load;
use crate::common::frontend::memory::{Memory, Span};
use crate::common::frontend::message::SET_LOG_BASE;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::{DESCRIPTOR_BYTES, Ring, WRITE};
use crate::common::frontend::wire::{Verdict, Wire};
use crate::common::frontend::{EVENT_IDX, LOG_ALL, Options, Session, settle};
use crate::common::process::Process;
use crate::common::{Random, pattern, wait_for};

/// The used ring has several pages.
const SIZE: u16 = 1024;

/// A daemon with one disk full of random bytes, a little smaller than what is asked for.
pub(super) fn daemon(place: Place) -> Daemon {
    let setup = Setup::new(place).disk("");
    std::fs::write(setup.image(0), pattern(1, (SECTORS as usize - 64) * 512)).unwrap();
    setup.start()
}

/// A front-end that has not switched the log on yet.
fn connect(daemon: &Daemon, features: u64) -> Session {
    connect_with(daemon, features, false)
}

pub(super) fn connect_with(daemon: &Daemon, features: u64, packed: bool) -> Session {
    let options =
        Options { features: features & !LOG_ALL, packed, spans: SPANS.to_vec(), ..Options::default() };
    Session::connect_with(&daemon.socket(0), &options)
}

/// Switches the log on, as QEMU does it: the log itself, the features, then the rings.
pub(super) fn switch_on(session: &mut Session, log: &Log, rings: &[&Ring]) {
    log.announce(session);
    session.set_features(session.features | LOG_ALL);
    for ring in rings {
        session.set_addresses_and_log(ring, Some(ring.used)).unwrap();
    }
}

/// What the device writes of a ring: the used ring, or the descriptors and the device area.
fn used_pages(ring: &Ring) -> Pages {
    let size = u64::from(ring.size);
    if ring.is_packed() {
        let descriptors = pages_of(ring.descriptors, size * DESCRIPTOR_BYTES);
        descriptors.chain(pages_of(ring.used, 4)).collect()
    } else {
        pages_of(ring.used, 6 + size * 8).collect()
    }
}

/// A ring whose areas are in pages of their own.
fn started_ring(session: &Session) -> Ring {
    let ring = Ring::on_pages(&session.memory, 0, SIZE, session.features);
    session.start(&ring, 0).unwrap();
    ring
}

fn missing(changed: &Pages, marked: &Pages) -> Vec<String> {
    changed.difference(marked).map(|page| format!("{:#x}", page * PAGE)).collect()
}

/// Rounds of random requests. In each, the log may be replaced under way, once or more often.
fn random_rounds(place: Place, features: u64) {
    [false, true].into_iter().for_each(|packed| random_rounds_of(place, features, packed));
}

fn random_rounds_of(place: Place, features: u64, packed: bool) {
    let daemon = daemon(place);
    let mut session = connect_with(&daemon, features, packed);
    let mut ring = started_ring(&session);
    let (tables, mut random) = (Tables::new(&ring), Random::new(features));
    let mut logs = vec![Log::of(&session.memory)];
    switch_on(&mut session, &logs[0], &[&ring]);
    // The available index.
    let by_driver: Pages = pages_of(ring.available, 4).collect();
    let mut payload_pages = 0;
    for round in 0..20 {
        let count = 1 + random.below(u64::from(Tables::chains(&ring))) as u16;
        let writable = chains::lay_out(&mut ring, &mut random, count, &tables);
        let may_change: Pages = writable.iter().flat_map(|(address, len)| pages_of(*address, *len)).collect();
        logs[0].take();
        let before = Snapshot::of(&session.memory);
        ring.make_available();
        ring.kick.signal();
        for _ in 0..random.below(3) {
            logs.push(Log::of(&session.memory));
            logs.last().unwrap().announce(&session);
        }
        wait_for("all are done", || (ring.used_index() == ring.available_index()).then_some(()));
        session.enable(&ring, false).unwrap();
        while ring.next_used().is_some() {}
        let changed = before.changes(&Snapshot::of(&session.memory));
        let marked: Pages = logs.iter().flat_map(Log::pages).collect();
        let missed = missing(&changed.difference(&by_driver).copied().collect(), &marked);
        assert!(missed.is_empty(), "packed {packed}, round {round}: {missed:?} changed and are not marked");
        let may_change: Pages = may_change.union(&used_pages(&ring)).copied().collect();
        let excess = missing(&marked, &may_change);
        assert!(
            excess.is_empty(),
            "packed {packed}, round {round}: {excess:?} are marked and nobody writes there"
        );
        payload_pages += changed.difference(&used_pages(&ring)).count();
        logs.drain(..logs.len() - 1);
        session.enable(&ring, true).unwrap();
    }
    assert!(payload_pages > 1000, "hardly anything was read: {payload_pages} pages");
}

/// As QEMU migrates: what is marked is copied while requests are under way, until they end.
fn copy_under_load(place: Place) {
    [false, true].into_iter().for_each(|packed| copy_under_load_of(place, packed));
}

fn copy_under_load_of(place: Place, packed: bool) {
    let daemon = daemon(place);
    let mut session = connect_with(&daemon, u64::MAX, packed);
    let mut ring = started_ring(&session);
    let (tables, mut random) = (Tables::new(&ring), Random::new(2));
    let log = Log::of(&session.memory);
    switch_on(&mut session, &log, &[&ring]);
    let mut copy = Snapshot::of(&session.memory);
    let mut copies = 0;
    for round in 0..12 {
        let count = Tables::chains(&ring);
        chains::lay_out(&mut ring, &mut random, count, &tables);
        // What this side writes is marked by whoever runs the guest.
        copy.update(&session.memory, &used_pages(&ring));
        ring.make_available();
        ring.kick.signal();
        while ring.used_index() != ring.available_index() {
            let pages = log.take();
            copies += pages.len();
            copy.update(&session.memory, &pages);
        }
        session.enable(&ring, false).unwrap();
        while ring.next_used().is_some() {}
        let pages = log.take();
        copies += pages.len();
        copy.update(&session.memory, &pages);
        let differing = copy.changes(&Snapshot::of(&session.memory));
        let data = chains::DATA.iter().flat_map(|zone| pages_of(zone.guest_start, zone.bytes));
        let ours: Pages = data.chain(used_pages(&ring)).collect();
        let lost: Vec<&u64> = differing.intersection(&ours).collect();
        assert!(
            lost.is_empty(),
            "packed {packed}, round {round}: pages {lost:x?} are not copied as they are"
        );
        session.enable(&ring, true).unwrap();
    }
    assert!(copies > 1000, "hardly anything was copied: {copies} pages");
}

#[test]
fn a_copy_made_under_load_is_complete() {
    copy_under_load(Place::Tmpfs);
}

#[test]
fn a_copy_made_behind_flushes_is_complete() {
    copy_under_load(Place::FileSystem);
}

#[test]
fn it_holds_what_changed_in_a_disk_in_memory() {
    random_rounds(Place::Tmpfs, u64::MAX);
}

#[test]
fn it_holds_what_changed_without_event_indices() {
    random_rounds(Place::Tmpfs, !EVENT_IDX);
}

/// Flushes take time there: statuses come later than data.
#[test]
fn it_holds_what_changed_behind_flushes() {
    random_rounds(Place::FileSystem, u64::MAX);
}

#[test]
fn it_can_be_replaced_under_load() {
    let daemon = daemon(Place::Tmpfs);
    for packed in [false, true] {
        let mut session = connect_with(&daemon, u64::MAX, packed);
        let rings = [session.ring(0, 64), session.ring(1, 64)];
        let mut logs = vec![Log::of(&session.memory)];
        switch_on(&mut session, &logs[0], &[&rings[0], &rings[1]]);
        let mut marked = Pages::new();
        let [first, mut second] = rings;
        let load = Load::start(first, 0);
        for round in 0..20 {
            logs.push(Log::of(&session.memory));
            logs.last().unwrap().announce(&session);
            // From the answer on nobody writes to the one before.
            let old = logs.remove(0);
            let seen = old.pages();
            let read = Request::read(2048 + round, 4096);
            assert_eq!(second.run(&read).status, OK);
            load.wait_for_progress();
            assert_eq!(old.pages(), seen, "the log before is still written to");
            marked.extend(seen);
        }
        let first = load.stop();
        for ring in [&first, &second] {
            session.stop(ring);
        }
        marked.extend(logs.iter().flat_map(Log::pages));
        // The load writes from the first eight slots and reads to the others.
        for slot in 0..16 {
            let frame = first.buffers(slot);
            let data = if slot < 8 { frame.status } else { frame.data };
            for (part, address) in [("data", data), ("status", frame.status)] {
                let missed = missing(&pages_of(address, 1).collect(), &marked);
                assert!(missed.is_empty(), "the {part} of slot {slot} is not marked: {missed:?}");
            }
        }
    }
}

#[test]
fn memory_that_is_added_is_logged() {
    let daemon = daemon(Place::Tmpfs);
    for packed in [false, true] {
        let mut session = connect_with(&daemon, u64::MAX, packed);
        let mut ring = session.ring(0, 64);
        let far = 1 << 33;
        let log = Log::new((far + (2 << 20)) / PAGE / 8);
        switch_on(&mut session, &log, &[&ring]);
        let extra = Memory::new(&[Span { guest_start: far, bytes: 1 << 20 }]);
        session.ask(|control| control.add_mem_region(&extra.announcement()[0])).unwrap();
        let frame = ring.buffers(0);
        ring.memory.write(frame.header, &Request::read(0, 4096).header());
        let data = (far + 8 * PAGE + 100, 4096, WRITE);
        ring.chain(0, &[(frame.header, 16, 0), data, (frame.status, 1, WRITE)]);
        ring.kick.signal();
        ring.wait();
        session.stop(&ring);
        let added: Vec<u64> = log.pages().into_iter().filter(|page| *page >= far / PAGE).collect();
        assert_eq!(added, [far / PAGE + 8, far / PAGE + 9]);
        assert!(log.pages().contains(&(frame.status / PAGE)));
    }
}

#[test]
fn nothing_is_marked_while_it_is_off() {
    let daemon = daemon(Place::Tmpfs);
    for packed in [false, true] {
        let mut session = connect_with(&daemon, u64::MAX, packed);
        let mut ring = session.ring(0, 64);
        let read = Request::read(0, 4096);
        let log = Log::of(&session.memory);
        log.announce(&session);
        session.set_addresses_and_log(&ring, Some(ring.used)).unwrap();
        assert_eq!(ring.run(&read).status, OK);
        settle();
        assert_eq!(log.pages(), Pages::new(), "LOG_ALL is not acknowledged");

        session.set_features(session.features | LOG_ALL);
        assert_eq!(ring.run(&read).status, OK);
        session.set_features(session.features & !LOG_ALL);
        let marked = log.pages();
        let frame = ring.buffers(1);
        for page in [frame.data, frame.status, ring.used].map(|address| address / PAGE) {
            assert!(marked.contains(&page), "{:#x} is not marked", page * PAGE);
        }

        for _ in 0..16 {
            assert_eq!(ring.run(&read).status, OK);
        }
        settle();
        assert_eq!(log.pages(), marked, "LOG_ALL is not acknowledged any more");
        let next = Log::of(&session.memory);
        switch_on(&mut session, &next, &[]);
        session.set_addresses(&ring).unwrap();
        let blank = next.pages().len();
        assert_eq!(ring.run(&read).status, OK);
        session.stop(&ring);
        assert!(next.pages().len() > blank, "it can be switched on again");
        assert_eq!(log.pages(), marked, "the one before is gone for good");
    }
}

/// The used ring is logged where the front-end says, and only if it says so.
#[test]
fn the_used_ring_is_logged_at_its_own_address() {
    let daemon = daemon(Place::Tmpfs);
    let mut session = connect(&daemon, u64::MAX);
    let mut ring = session.ring(0, SIZE);
    let log = Log::of(&session.memory);
    switch_on(&mut session, &log, &[]);
    assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
    session.set_addresses(&ring).unwrap();
    assert!(log.pages().is_disjoint(&used_pages(&ring)), "F_LOG is not set");
    let elsewhere = 14 << 20;
    session.set_addresses_and_log(&ring, Some(elsewhere)).unwrap();
    assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
    session.stop(&ring);
    assert!(log.pages().is_disjoint(&used_pages(&ring)));
    assert!(log.pages().contains(&(elsewhere / PAGE)));
}

#[test]
fn a_log_that_is_too_short_does_no_harm() {
    let daemon = daemon(Place::Tmpfs);
    let mut session = connect(&daemon, u64::MAX);
    let mut ring = session.ring(0, 64);
    let frame = ring.buffers(0);
    // It ends right behind the page of the status byte; the data is in the page after that.
    let end = (frame.status / PAGE + 1).next_multiple_of(8);
    let log = Log::new(end / 8);
    switch_on(&mut session, &log, &[&ring]);
    for _ in 0..40 {
        assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
    }
    session.enable(&ring, false).unwrap();
    assert!(log.pages().contains(&(frame.status / PAGE)));
    session.enable(&ring, true).unwrap();
    for (what, address) in [("beyond", 1 << 50), ("at the end", u64::MAX - 8)] {
        session.set_addresses_and_log(&ring, Some(address)).unwrap();
        assert_eq!(ring.run(&Request::read(0, 4096)).status, OK, "a used ring {what}");
    }
}

/// The marks are lost, and with them the migration. However far apart the pages are that are written to then, the daemon
/// has as many mappings as before, and other disks go on.
#[test]
fn a_log_that_is_truncated_ends_its_session_only() {
    let setup = Setup::new(Place::Tmpfs).disk("").disk("");
    for index in 0..2 {
        std::fs::write(setup.image(index), pattern(1, 16 << 20)).unwrap();
    }
    let mut daemon = setup.start();
    let other = Session::connect(&daemon.socket(1));
    let load = Load::start(other.ring(0, 64), 0);
    load.wait_for_progress();
    for packed in [false, true] {
        let mut session = connect_with(&daemon, u64::MAX, packed);
        // Each is marked in a page of its own.
        let regions: Vec<Memory> = (1..=8_u64).map(|far| one_page(far << 40)).collect();
        for region in &regions {
            session.ask(|control| control.add_mem_region(&region.announcement()[0])).unwrap();
        }
        let mut ring = session.ring(0, 64);
        let log = Log::new((9 << 40) / PAGE / 8);
        switch_on(&mut session, &log, &[&ring]);
        assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
        let before = Process(daemon.pid()).all_mappings();
        log.truncate();
        let frame = ring.buffers(0);
        ring.memory.write(frame.header, &Request::read(0, 4096).header());
        for (head, region) in (0..).step_by(4).zip(&regions) {
            let data = (region.spans()[0].guest_start, 4096, WRITE);
            ring.prepare(head, &[(frame.header, 16, 0), data, (frame.status, 1, WRITE)]);
        }
        ring.make_available();
        ring.kick.signal();
        ring.err.wait("the ring is broken");
        let after = Process(daemon.pid()).all_mappings();
        assert!(after <= before + 4, "packed {packed}: {before} mappings before, {after} after");
        wait_for("the daemon hangs up", || session.wire.receive().is_none().then_some(()));
        daemon.wait_for_log("the dirty log is lost");
        load.wait_for_progress();
    }
    load.stop();
    daemon.assert_alive();
    daemon.stop();
}

fn one_page(guest_start: u64) -> Memory {
    Memory::new(&[Span { guest_start, bytes: PAGE }])
}

#[test]
fn logs_that_are_not_there_are_refused() {
    let mut daemon = daemon(Place::Tmpfs);
    let session = connect(&daemon, u64::MAX);
    let mut ring = session.ring(0, 64);
    let log = Log::new(PAGE);
    let (file_bytes, null) = (3 * PAGE, std::fs::File::open("/dev/null").unwrap());
    let body = |size: u64, offset: u64| [size, offset].map(u64::to_le_bytes).as_flattened().to_vec();
    for (what, body, is_there) in [
        ("a good one", body(file_bytes, 0), true),
        ("a good part", body(PAGE, PAGE), true),
        ("longer than its file", body(file_bytes + 1, 0), false),
        ("over the end of its file", body(file_bytes, PAGE), false),
        ("behind its file", body(8, 1 << 40), false),
        ("no bytes", body(0, 0), false),
        ("over the end of all numbers", body(u64::MAX, PAGE), false),
        ("offset inside a page", body(8, 512), false),
        ("half a message", body(PAGE, 0)[..8].to_vec(), false),
    ] {
        let other = connect(&daemon, u64::MAX);
        let answer = other.wire.ask(SET_LOG_BASE, &body, &[log.fd()]);
        assert_eq!(answer.is_some(), is_there, "{what}");
    }
    for fds in [vec![], vec![log.fd(), log.fd()], vec![std::os::fd::AsFd::as_fd(&null)]] {
        let other = connect(&daemon, u64::MAX);
        assert_eq!(other.wire.tell(SET_LOG_BASE, &body(PAGE, 0), &fds), Verdict::Closed, "{fds:?}");
    }
    let without = Wire::connect(&daemon.socket(0));
    assert_eq!(without.tell(SET_LOG_BASE, &body(PAGE, 0), &[log.fd()]), Verdict::Closed, "not negotiated");
    assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
    daemon.assert_alive();
}
