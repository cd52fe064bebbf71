//! The messages of a postcopy migration in an order that they should not come in, or with something missing.

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::moved::{Moved, content, daemon, sectors};
use crate::common::MIB;
use crate::common::daemon::Place;
use crate::common::frontend::memory::{Memory, Span, USER_BASE};
use crate::common::frontend::message::{
    ADD_MEM_REG, POSTCOPY_ADVISE, POSTCOPY_END, POSTCOPY_LISTEN, SET_MEM_TABLE,
};
use crate::common::frontend::pages::{PAGE, can_wait};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::wire::{REPLY, VERSION, Verdict};
use crate::common::frontend::{Options, SPANS, Session, assert_refused, settle};
use crate::common::wait_for;

/// Where a region is added.
const FREE: u64 = 0x10_0000_0000;

fn ordinary_disk_works(session: &Session) {
    assert_eq!(session.ring(0, 64).run(&Request::read(0, 512)).status, OK);
}

#[test]
fn each_message_has_its_time() {
    if !can_wait() {
        return;
    }
    let daemon = daemon(Place::Tmpfs).start();
    let mut session = Session::open(&daemon.socket(0), &SPANS);
    session.negotiate(&Options::default());
    let wire = &session.wire;
    assert_eq!(wire.tell(POSTCOPY_LISTEN, &[], &[]), Verdict::Nack, "not advised");
    assert_eq!(wire.tell(POSTCOPY_END, &[], &[]), Verdict::Nack, "not advised");

    // The migration may come to nothing, begin anew, or end before it needs any of this.
    for _ in 0..2 {
        session.ask(|control| control.postcopy_advise()).unwrap();
    }
    // An end is always answered.
    assert!(wire.send(POSTCOPY_END, VERSION, &[], &[]));
    let answer = wire.receive().unwrap();
    assert_eq!((answer.code, answer.flags, answer.value()), (POSTCOPY_END, VERSION | REPLY, 0));
    assert_eq!(wire.tell(POSTCOPY_END, &[], &[]), Verdict::Nack, "it has ended");
    assert_eq!(wire.tell(POSTCOPY_LISTEN, &[], &[]), Verdict::Nack, "it has ended");

    session.share_memory();
    session.ask(|control| control.postcopy_advise()).unwrap();
    assert_eq!(
        wire.tell(POSTCOPY_LISTEN, &[], &[]),
        Verdict::Nack,
        "memory is there that may have been used"
    );
    ordinary_disk_works(&session);
    let fd = session.memory.fd();
    assert_eq!(wire.tell(POSTCOPY_LISTEN, &[], &[fd]), Verdict::Nack, "a descriptor");
    session.wire.hang_up();

    let moved = Moved::announced(&daemon, 0);
    assert_eq!(moved.session.wire.tell(POSTCOPY_LISTEN, &[], &[]), Verdict::Nack, "twice");
    assert!(
        moved.session.wire.ask(POSTCOPY_ADVISE, &[], &[]).is_none(),
        "it is under way, and there is no way to say so"
    );
}

/// A userfaultfd belongs to the whole process: without `postcopy=on` no front-end is handed one, whatever it asks for.
#[test]
fn nobody_is_handed_a_userfaultfd_who_was_not_meant_to() {
    let daemon = crate::common::daemon::Setup::new(Place::Tmpfs).disk("size=16M").disk("size=16M").start();
    let mut session = Session::open(&daemon.socket(0), &SPANS);
    session.negotiate(&Options::default());
    let offered = session.ask(|control| control.get_protocol_features()).unwrap();
    assert!(!offered.contains(VhostUserProtocolFeatures::PAGEFAULT));
    // It claims to have negotiated it all the same.
    session.ask(|control| control.set_protocol_features(VhostUserProtocolFeatures::all())).unwrap();
    assert!(session.wire.ask(POSTCOPY_ADVISE, &[], &[]).is_none(), "a userfaultfd");
    daemon.wait_for_log("was not negotiated");
    ordinary_disk_works(&Session::connect(&daemon.socket(0)));
}

#[test]
fn nothing_of_it_is_to_be_had_unless_it_is_negotiated() {
    let daemon = daemon(Place::Tmpfs).start();
    let protocol = VhostUserProtocolFeatures::all().difference(VhostUserProtocolFeatures::PAGEFAULT);
    let session = Session::connect_with(&daemon.socket(0), &Options { protocol, ..Options::default() });
    assert_eq!(session.wire.tell(POSTCOPY_LISTEN, &[], &[]), Verdict::Nack);
    assert_eq!(session.wire.tell(POSTCOPY_END, &[], &[]), Verdict::Nack);
    ordinary_disk_works(&session);
    assert!(session.wire.ask(POSTCOPY_ADVISE, &[], &[]).is_none());
}

/// Its rings have threads of their own, so long as pages are missing: that is for one at a time.
#[test]
fn one_front_end_at_a_time_comes_before_its_memory() {
    if !can_wait() {
        return;
    }
    let daemon = daemon(Place::Tmpfs).start();
    // Its migration came to its end before; QEMU says nothing of it then.
    let _before = Moved::advised(&daemon, 0);
    let first = Moved::new(&daemon, 0);
    let other = Moved::advised(&daemon, 0);
    assert_eq!(other.session.wire.tell(POSTCOPY_LISTEN, &[], &[]), Verdict::Nack);
    daemon.wait_for_log("another front-end of the disk is migrating");
    drop(first);
    wait_for("its turn", || {
        (other.session.wire.tell(POSTCOPY_LISTEN, &[], &[]) == Verdict::Ack).then_some(())
    });
}

/// QEMU sends the advice with every migration that may become postcopy; most come to their end before.
#[test]
fn a_migration_that_ends_before_it_becomes_postcopy_is_an_ordinary_one() {
    if !can_wait() {
        return;
    }
    let daemon = daemon(Place::Tmpfs).start();
    let moved = Moved::advised(&daemon, 0);
    moved.session.share_memory();
    let mut ring = moved.session.ring(0, 64);
    let read = ring.run(&Request::read(8, 4096));
    assert!(read.status == OK && read.data == sectors(&content(), 8, 4096));
    assert!(moved.pages.wanted_within(std::time::Duration::ZERO).is_none());
    let Moved { session, pages, .. } = moved;
    drop(pages);
    assert_eq!(ring.run(&Request::read(8, 4096)).status, OK);
    assert_eq!(session.wire.tell(POSTCOPY_END, &[], &[]), Verdict::Ack);
    assert_eq!(ring.run(&Request::read(8, 4096)).status, OK);
}

#[test]
fn no_ring_runs_before_the_front_end_knows_where_memory_is() {
    if !can_wait() {
        return;
    }
    let daemon = daemon(Place::Tmpfs).start();
    let mut moved = Moved::announced(&daemon, 0);
    let mut ring = moved.ring(0);
    ring.submit(&Request::read(8, 4096));
    moved.session.start(&ring, 0).unwrap();
    settle();
    assert!(moved.pages.wanted_within(std::time::Duration::ZERO).is_none(), "a page is touched");
    assert_eq!(moved.session.wire.tell(SET_MEM_TABLE, &1_u64.to_ne_bytes(), &[]), Verdict::Nack, "a failure");
    settle();
    assert!(moved.pages.wanted_within(std::time::Duration::ZERO).is_none(), "a page is touched");
    moved.acknowledge();
    moved.serve(&mut ring, 1);
    assert_eq!(ring_status(&moved, &ring), OK);
}

/// The status of the first request, which has been done.
fn ring_status(moved: &Moved, ring: &Ring) -> u8 {
    moved.session.memory.read(ring.buffers(0).status, 1)[0]
}

/// Memory that is plugged in comes with a whole table anew: there are no memory slots beside postcopy.
#[test]
fn memory_may_be_announced_anew() {
    if !can_wait() {
        return;
    }
    let daemon = daemon(Place::Tmpfs).start();
    let mut moved = Moved::new(&daemon, 0);
    let mut ring = moved.ring(0);
    ring.submit(&Request::read(8, 4096));
    moved.session.start(&ring, 0).unwrap();
    moved.serve(&mut ring, 1);

    let (here, used) = (moved.session.memory.clone(), ring.used);
    let extra = Memory::new(&[Span { guest_start: FREE, bytes: MIB }]);
    let table = [here.announcement(), extra.announcement()].concat();
    let bases = moved.session.ask(|control| control.set_mem_table(&table)).unwrap().unwrap();
    moved.pages.forget_places();
    for (region, base) in table.iter().zip(bases) {
        moved.pages.mapped(region.guest_phys_addr, region.memory_size, base);
    }
    ring.memory = here.clone();
    ring.next_used().unwrap();
    ring.memory = moved.source.clone();
    let frame = ring.buffers(1);
    for page in [frame.header, frame.data] {
        moved.pages.bring(page);
    }
    ring.memory = here.clone();
    ring.submit(&Request::read(16, 4096));
    ring.kick.signal();
    settle();
    assert_eq!(here.load_u16(used + 2), 1, "it runs before the acknowledgement");
    moved.acknowledge();
    moved.serve_all(|| here.load_u16(used + 2) == 2);
}

/// As without it: what a table does not count is ignored.
#[test]
fn a_table_may_have_room_for_more_regions_than_it_has() {
    if !can_wait() {
        return;
    }
    let daemon = daemon(Place::Tmpfs).start();
    let moved = Moved::advised(&daemon, 0);
    moved.session.ask(|control| control.postcopy_listen()).unwrap();
    let region = [FREE, PAGE, USER_BASE, 0];
    let body = words(&[&[1][..], &region, &[0; 4]].concat());
    let memory = Memory::new(&[Span { guest_start: FREE, bytes: PAGE }]);
    let answer = moved.session.wire.ask(SET_MEM_TABLE, &body, &[memory.fd()]).unwrap();
    assert_eq!(answer.payload.len(), 40, "one region");
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The specification of autumn 2026 forbids the two together.
#[test]
fn there_are_no_memory_slots_beside_it() {
    if !can_wait() {
        return;
    }
    let daemon = daemon(Place::Tmpfs).start();
    let mut session = Session::open(&daemon.socket(0), &SPANS);
    session.negotiate(&Options::default());
    let offered = session.ask(|control| control.get_protocol_features()).unwrap();
    let slots = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    assert_eq!(
        offered & (slots | VhostUserProtocolFeatures::PAGEFAULT),
        VhostUserProtocolFeatures::PAGEFAULT
    );
    session.share_memory();
    let fd = session.memory.fd();
    assert_eq!(session.wire.tell(ADD_MEM_REG, &[0; 40], &[fd]), Verdict::Nack);
    ordinary_disk_works(&session);
}

#[test]
fn regions_that_cannot_be_waited_for_are_refused() {
    if !can_wait() {
        return;
    }
    let daemon = daemon(Place::Tmpfs).start();
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.set_len(PAGE).unwrap();
    let region = [FREE, PAGE, USER_BASE, 0];
    for (what, code, body) in [
        ("an ordinary file", SET_MEM_TABLE, words(&[&[1][..], &region].concat())),
        ("part of a region", SET_MEM_TABLE, words(&[1, FREE, PAGE])),
        ("fewer than said", SET_MEM_TABLE, words(&[&[2][..], &region].concat())),
        ("nothing", SET_MEM_TABLE, Vec::new()),
    ] {
        let moved = Moved::advised(&daemon, 0);
        moved.session.ask(|control| control.postcopy_listen()).unwrap();
        let answer = moved.session.wire.ask(code, &body, &[std::os::fd::AsFd::as_fd(&file)]);
        assert_eq!(answer, None, "{what}: there is no way to refuse it but to hang up");
    }
    // As it was before.
    let session = Session::connect(&daemon.socket(0));
    ordinary_disk_works(&session);
    daemon.wait_for_log("cannot be waited for");
    daemon.wait_for_log("hugetlbfs");
    assert_refused("a listen without advice", session.ask(|control| control.postcopy_listen()));
}
