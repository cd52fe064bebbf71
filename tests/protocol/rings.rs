//! Rings started, stopped and started again, and rings that cannot be started.

use vhost::VhostBackend;

use super::{assert_works, daemon};
use crate::common::frontend::memory::Span;
use crate::common::frontend::message::{GET_VRING_BASE, SET_VRING_BASE, SET_VRING_NUM};
use crate::common::frontend::request::{IOERR, OK, Request};
use crate::common::frontend::ring::{NO_STATUS, Ring, WRITE};
use crate::common::frontend::wire::Verdict;
use crate::common::frontend::{Options, RING_PACKED, Session, assert_refused, settle};
use crate::common::process::Process;
use crate::common::wait_for;

fn state(index: u32, number: u32) -> Vec<u8> {
    [index, number].map(u32::to_le_bytes).as_flattened().to_vec()
}

/// The status byte of the request in this slot of a ring.
fn status(ring: &Ring, slot: usize) -> u8 {
    ring.memory.read(ring.buffers(slot).status, 1)[0]
}

/// Which base a front-end sends when it starts a ring again.
#[derive(Debug, Clone, Copy)]
enum Base {
    /// What was returned when the ring stopped (QEMU).
    Returned,
    /// The guest's available index (Cloud Hypervisor).
    Available,
    /// A number that never was anywhere.
    Nonsense,
}

#[test]
fn a_stopped_ring_has_published_what_it_took_and_goes_on_there() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, 1024);
        let slots = ring.slots();
        let read = Request::read(0, 32 << 10);
        let mut stopped_halfway = 0;
        for round in 0..60_u32 {
            let heads: Vec<u16> = (0..slots).map(|_| ring.submit(&read)).collect();
            ring.kick.signal();
            for _ in 0..round * 200 {
                std::hint::spin_loop();
            }
            let first = ring.used_index();
            let base = session.stop(&ring);
            let used = ring.used_index();
            assert_eq!(ring.used_base(), base, "round {round}: the reply came before the ring was at rest");
            let done = slots - usize::from(ring.available_index().wrapping_sub(used));
            stopped_halfway += usize::from(done > 0 && done < slots);
            for slot in 0..slots {
                let expected = if slot < done { OK } else { NO_STATUS };
                let at = (usize::from(heads[0]) / 4 + slot) % slots;
                assert_eq!(
                    status(&ring, at),
                    expected,
                    "round {round}, request {slot} of {done} done, {first}"
                );
            }
            if round % 16 == 0 {
                ring.kick.signal();
                settle();
                assert_eq!(ring.used_index(), used, "round {round}: the ring runs on");
            }
            let base = match [Base::Returned, Base::Available, Base::Nonsense][round as usize % 3] {
                Base::Returned => base,
                Base::Available => ring.available_base(),
                Base::Nonsense => base.wrapping_add(12_345),
            };
            if round % 2 == 0 { session.start(&ring, base) } else { session.start_base_last(&ring, base) }
                .unwrap();
            for head in heads {
                let used = ring.wait();
                assert_eq!(used.head, head, "round {round}: requests complete once and in order");
                assert_eq!(ring.answer(&read, used).status, OK);
            }
            assert_eq!(ring.next_used(), None, "round {round}: something was done twice");
        }
        println!("stopped halfway in {stopped_halfway} rounds");
    }
}

#[test]
fn indices_wrap_around() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.new_ring(0, 1024);
        // As after 65 400 requests.
        ring.begin_at(u16::MAX - 135);
        session.start(&ring, ring.used_base()).unwrap();
        for sector in 0..200 {
            assert_works(&mut ring, sector * 8);
        }
        let base = session.stop(&ring);
        assert_eq!(base, ring.available_base());
        assert!(ring.available_index() < 1024);
    }
}

#[test]
fn rings_of_every_size_work() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        for (index, size) in
            [4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 16_384, 32_768].into_iter().enumerate()
        {
            let mut ring = session.ring(index as u16, size);
            for sector in 0..300 {
                assert_works(&mut ring, sector * 8);
            }
        }
    }
}

/// As crosvm asks for by default.
#[test]
fn a_ring_of_32768_takes_as_many_chains_and_no_memory_before() {
    const SIZE: u16 = 32_768;
    let daemon = daemon("");
    for options in Options::both_kinds() {
        let spans = vec![Span { guest_start: 0, bytes: 2 << 30 }];
        let session = Session::connect_with(&daemon.socket(0), &Options { spans, ..options });
        drop(session.ring(0, 128));
        let before = Process(daemon.pid()).anonymous_bytes();
        let mut rings: Vec<Ring> = (1..4).map(|index| session.ring(index, SIZE)).collect();
        let grown = Process(daemon.pid()).anonymous_bytes().saturating_sub(before);
        assert!(grown < 3 * (128 << 10), "{grown} bytes for three rings that nobody uses");
        let ring = &mut rings[0];
        for round in 0..3 {
            let heads: Vec<u16> = (0..ring.slots()).map(|_| ring.submit(&Request::get_id())).collect();
            ring.kick.signal();
            for head in heads {
                let used = ring.wait();
                assert_eq!((used.head, used.bytes), (head, 21), "round {round}");
            }
            let base = session.stop(ring);
            assert_eq!(base, ring.used_base(), "round {round}");
            session.start(ring, 0).unwrap();
        }
        assert_works(ring, 8);
    }
}

/// More descriptors than a chain may have cost that request.
#[test]
fn a_chain_of_more_than_1024_descriptors_fails_alone() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, 2048);
        for (data, expected) in [(1022, OK), (1023, IOERR), (1500, IOERR)] {
            let frame = ring.buffers(0);
            ring.memory.write(frame.header, &Request::read(0, 512).header());
            ring.memory.fill(frame.status, 1, NO_STATUS);
            let data = vec![(frame.data, 512, WRITE); data];
            let parts = [vec![(frame.header, 16, 0)], data, vec![(frame.status, 1, WRITE)]].concat();
            ring.chain(0, &parts);
            ring.kick.signal();
            ring.wait();
            assert_eq!(ring.memory.read(frame.status, 1), [expected], "{} descriptors", parts.len());
            assert_works(&mut ring, 8);
        }
    }
}

#[test]
fn all_64_rings_work_at_once() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut rings: Vec<Ring> = (0..64).map(|index| session.ring(index, 64)).collect();
        for ring in &mut rings {
            ring.submit(&Request::read(0, 4096));
        }
        rings.iter().for_each(|ring| ring.kick.signal());
        for ring in &mut rings {
            assert_eq!(ring.wait().bytes, 4097);
        }
        for ring in &mut rings {
            assert_works(ring, 8 * u64::from(ring.index));
        }
    }
}

#[test]
fn a_disabled_ring_waits() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, 64);
        for round in 0..5 {
            assert_works(&mut ring, 0);
            session.enable(&ring, false).unwrap();
            let used = ring.used_index();
            let head = ring.submit(&Request::read(0, 512));
            ring.kick.signal();
            settle();
            assert_eq!(ring.used_index(), used, "round {round}: a disabled ring runs");
            session.enable(&ring, true).unwrap();
            assert_eq!(ring.wait().head, head);
        }
    }
}

#[test]
fn a_ring_that_was_never_enabled_waits() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.new_ring(0, 64);
        ring.submit(&Request::read(0, 512));
        session.ask(|control| control.set_vring_num(0, 64)).unwrap();
        session.set_addresses(&ring).unwrap();
        session.ask(|control| control.set_vring_base(0, 0)).unwrap();
        session.set_events(&ring).unwrap();
        ring.kick.signal();
        settle();
        assert_eq!(ring.used_index(), 0);
        session.enable(&ring, true).unwrap();
        ring.wait();
        assert_works(&mut ring, 0);
    }
}

#[test]
fn stopping_a_ring_that_does_not_run_is_answered() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, 64);
        assert_works(&mut ring, 0);
        let base = session.stop(&ring);
        assert_eq!(base, ring.available_base());
        assert_eq!(session.stop(&ring), base, "once more");
        let never_started = session.new_ring(9, 64);
        session.stop(&never_started);
        session.start(&ring, base).unwrap();
        assert_works(&mut ring, 0);
    }
}

/// A ring's numbers may change while it stands still, but not under it.
#[test]
fn messages_to_a_running_ring_do_not_disturb_it() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, 64);
        assert_works(&mut ring, 0);
        let _ = session.ask(|control| control.set_vring_base(0, 999));
        assert_works(&mut ring, 0);
        let _ = session.set_addresses(&ring);
        assert_works(&mut ring, 0);
        let _ = session.ask(|control| control.set_vring_num(0, 64));
        assert_works(&mut ring, 0);
        session.enable(&ring, true).unwrap();
        assert_works(&mut ring, 0);
        assert_refused("no size", session.ask(|control| control.set_vring_num(0, 0)));
        assert_works(&mut ring, 0);
        // A front-end that resumes from a snapshot says everything again on the same connection.
        session.start_base_last(&ring, ring.available_base()).unwrap();
        assert_works(&mut ring, 0);
    }
}

#[test]
fn requests_complete_that_were_available_before_the_ring_started() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.new_ring(0, 64);
        let heads: Vec<u16> = (0..ring.slots()).map(|_| ring.submit(&Request::read(0, 512))).collect();
        session.start(&ring, 0).unwrap();
        wait_for("all of them are done", || (ring.used_index() == ring.available_index()).then_some(()));
        for head in heads {
            assert_eq!(ring.wait().head, head);
        }
        assert!(!ring.kick.is_signalled(), "nobody has kicked");
    }
}

/// Where a packed ring stands takes 32 bits: what was taken, and what was used, each with its wrap counter.
#[test]
fn the_base_of_a_packed_ring_has_32_bits_and_that_of_a_split_one_16() {
    let daemon = daemon("");
    for (packed, base, expected) in [
        (true, 0x8005_8003, 0x8005_8003),
        (true, 0x0001_0001, 0x0001_0001),
        (true, 0, 0),
        (false, 0x8005_8003, 0x8003),
    ] {
        let options = Options { packed, ..Options::default() };
        let session = Session::connect_with(&daemon.socket(0), &options);
        assert_eq!(session.features & RING_PACKED != 0, packed);
        assert_eq!(session.wire.tell(SET_VRING_BASE, &state(0, base), &[]), Verdict::Ack);
        let answer = session.wire.ask(GET_VRING_BASE, &state(0, 0), &[]).unwrap();
        assert_eq!(answer.payload, state(0, expected), "base {base:#x}, packed {packed}");
    }
}

#[test]
fn packed_rings_need_no_power_of_two() {
    let daemon = daemon("");
    let options = Options { packed: true, ..Options::default() };
    let session = Session::connect_with(&daemon.socket(0), &options);
    for size in [1, 3, 100, 1023, 1024, 1025, 32767, 32768] {
        assert_eq!(session.wire.tell(SET_VRING_NUM, &state(0, size), &[]), Verdict::Ack, "size {size}");
    }
    for size in [0, 32769, 65535, 65536, 65536 + 64, u32::MAX] {
        assert_eq!(session.wire.tell(SET_VRING_NUM, &state(0, size), &[]), Verdict::Nack, "size {size}");
    }
}
