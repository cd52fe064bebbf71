//! A daemon that is killed is replaced by another one, which goes on with the rings where they stand in guest memory.

use std::time::Duration;

use crate::common::MIB;
use crate::common::daemon::{Daemon, Place as Backing, Setup};
use crate::common::frontend::load::{LOAD_SECTORS, Load};
use crate::common::frontend::memory::Memory;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::packed::{AVAILABLE, USED};
use crate::common::frontend::ring::{Ring, Vring};
use crate::common::frontend::{EVENT_IDX, Options, Session, assert_refused};
use crate::common::{Random, pattern};

fn daemon(backing: Backing) -> Daemon {
    Setup::new(backing).disk("size=16M").start()
}

/// The front-end connects again, with the memory that its guest has always had.
fn come_back(daemon: &Daemon, options: &Options, memory: &Memory) -> Session {
    let mut session = Session::open(&daemon.socket(0), &options.spans);
    session.memory = memory.clone();
    session.negotiate(options);
    session.share_memory();
    session
}

/// Which base a front-end sends when it comes back.
#[derive(Debug, Clone, Copy)]
enum Base {
    /// That of the first start: nothing at all.
    First,
    /// How far the device came (QEMU with a split ring).
    Used,
    /// How far the driver came (Cloud Hypervisor).
    Available,
}

impl Base {
    fn of(self, ring: &Ring) -> u32 {
        match self {
            Self::First => 0,
            Self::Used => ring.used_base(),
            Self::Available => ring.available_base(),
        }
    }
}

/// Writes and reads of the same places: whatever is done twice, or not at all, or out of order, is seen.
fn requests(random: &mut Random) -> Vec<Request> {
    let bytes = pattern(random.next(), 64 << 10);
    let pairs = (0..120_u64).flat_map(|number| {
        let sector = number % 7 * 64;
        [Request::write(sector, &bytes[number as usize..][..32 << 10]), Request::read(sector, 32 << 10)]
    });
    pairs.chain([Request::flush()]).collect()
}

/// The answers are those of a device that did all requests in order, and each of them once.
fn assert_done(ring: &mut Ring, requests: &[Request], heads: &[u16], what: &str) {
    let mut written = &[][..];
    for (number, (request, head)) in requests.iter().zip(heads).enumerate() {
        let used = ring.wait();
        assert_eq!(used.head, *head, "{what}: request {number} is lost, done twice or out of order");
        let answer = ring.answer(request, used);
        assert_eq!(answer.status, OK, "{what}: request {number}");
        if request.payload.is_empty() {
            assert!(
                answer.data.is_empty() || answer.data == written,
                "{what}: request {number} reads otherwise"
            );
        } else {
            written = &request.payload;
        }
    }
    assert_eq!(ring.next_used(), None, "{what}: more was done than was asked for");
}

fn kill_at_any_moment(backing: Backing, base: Base, options: &Options) {
    let mut random = Random::new(7);
    let mut daemon = daemon(backing);
    let mut session = Session::connect_with(&daemon.socket(0), options);
    let memory = session.memory.clone();
    let mut ring = session.ring(0, 1024);
    let mut halfway = 0;
    for round in 0..6 {
        let requests = requests(&mut random);
        let heads: Vec<u16> = requests.iter().map(|request| ring.submit(request)).collect();
        ring.kick.signal();
        std::thread::sleep(Duration::from_micros(random.below(1000)));
        let setup = daemon.kill();
        drop(session);
        let left = ring.available_index().wrapping_sub(ring.used_index());
        halfway += usize::from(left > 0 && usize::from(left) < requests.len());
        daemon = setup.start();
        session = come_back(&daemon, options, &memory);
        let base = base.of(&ring);
        if round % 2 == 0 { session.start(&ring, base) } else { session.start_base_last(&ring, base) }
            .unwrap();
        assert_done(&mut ring, &requests, &heads, &format!("{backing:?}, {options:?}, round {round}"));
    }
    println!("{backing:?}, {base:?}, packed {}: killed amid a batch {halfway} times", options.packed);
}

#[test]
fn whatever_base_a_front_end_sends_a_killed_daemon_loses_nothing() {
    for options in Options::both_kinds() {
        for base in [Base::First, Base::Used, Base::Available] {
            kill_at_any_moment(Backing::Tmpfs, base, &options);
        }
    }
}

#[test]
fn a_killed_daemon_loses_nothing_without_event_indices_or_behind_flushes() {
    for options in Options::both_kinds() {
        let without = Options { features: !EVENT_IDX, ..options.clone() };
        kill_at_any_moment(Backing::Tmpfs, Base::First, &without);
        kill_at_any_moment(Backing::FileSystem, Base::Available, &options);
    }
}

/// The driver does not notice: it goes on with what it does while nobody is there.
#[test]
fn a_daemon_is_killed_under_load() {
    for options in Options::both_kinds() {
        let mut random = Random::new(3);
        let mut daemon = daemon(Backing::Tmpfs);
        let mut session = Session::connect_with(&daemon.socket(0), &options);
        let memory = session.memory.clone();
        let loads =
            [0, 1].map(|index| Load::start(session.ring(index, 256), u64::from(index) * LOAD_SECTORS));
        for _ in 0..8 {
            loads.iter().for_each(Load::wait_for_progress);
            std::thread::sleep(Duration::from_micros(random.below(2000)));
            daemon = daemon.kill().start();
            session = come_back(&daemon, &options, &memory);
            loads.iter().for_each(|load| session.start(&load.vring, 0).unwrap());
        }
        for load in loads {
            load.stop();
        }
    }
}

/// What a back-end does that writes to the first descriptor of a chain only (as DPDK): uses one that begins here.
fn use_elsewhere(place: &Vring, slot: u16, wrap: bool, id: u16, bytes: u32) {
    let at = place.descriptors + u64::from(slot) * 16;
    place.memory.write(at + 8, &bytes.to_le_bytes());
    place.memory.write(at + 12, &id.to_le_bytes());
    place.memory.store_u16(at + 14, if wrap { AVAILABLE | USED } else { 0 });
}

/// Another back-end has driven a packed ring between two of our times, with chains of three descriptors; a front-end
/// that does not say how far it came is told so.
#[test]
fn a_packed_ring_that_another_back_end_drove_goes_on_at_the_base() {
    let daemon = daemon(Backing::Tmpfs);
    let options = Options { packed: true, ..Options::default() };
    let session = Session::connect_with(&daemon.socket(0), &options);
    let mut ring = session.ring(0, 16);
    let read = Request::read(0, 4096);
    assert_eq!(ring.run(&Request::write(MIB / 512, &pattern(5, 512))).status, OK);
    // Over the ring's end as well.
    for round in 0_u16..20 {
        assert_eq!(ring.run(&read).status, OK);
        let stale = session.stop(&ring);
        assert_eq!(stale, ring.used_base());
        let (slot, wrap) = ((stale & 0x7fff) as u16, stale & 0x8000 != 0);
        for number in 0..1 + round % 3 {
            let head = ring.submit(&read);
            let at = slot + number * 3;
            let wrap = wrap ^ (at / 16 == 1);
            use_elsewhere(&ring, at % 16, wrap, head, 0);
            assert_eq!(ring.next_used().map(|used| used.head), Some(head), "round {round}");
        }
        if stale != 0 {
            assert_refused("a stale base", session.start(&ring, stale));
            daemon.wait_for_log("another back-end has used the ring beyond");
            session.stop(&ring);
        }
        session.start(&ring, ring.used_base()).unwrap();
    }
    assert_eq!(ring.run(&Request::read(MIB / 512, 512)).data, pattern(5, 512));
}
