//! Eventfds replaced on rings that run, and when they are written to.

use vhost::VhostBackend;

use super::{assert_works, daemon};
use crate::common::Random;
use crate::common::frontend::event_fd::{SharedEventFd, event};
use crate::common::frontend::load::{LOAD_SECTORS, Load};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::{EVENT_IDX, Options, RING_PACKED, Session, settle};

/// Both kinds of rings, with entries that say when to notify and without.
fn all() -> impl Iterator<Item = Options> {
    let both = |features| Options::both_kinds().map(|options| Options { features, ..options });
    [u64::MAX, !EVENT_IDX].into_iter().flat_map(both)
}

fn renew_kick(session: &Session, kick: &SharedEventFd) {
    kick.replace(|kick| session.ask(|control| control.set_vring_kick(0, kick)).unwrap());
}

fn renew_call(session: &Session, call: &SharedEventFd) {
    call.replace(|call| session.ask(|control| control.set_vring_call(0, call)).unwrap());
}

#[test]
fn setting_the_call_event_notifies_once() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, 64);
        ring.call.wait("the first call event was set");
        settle();
        assert!(!ring.call.is_signalled(), "and once only");
        assert_works(&mut ring, 0);
        ring.call.take();
        renew_call(&session, &ring.call);
        ring.call.wait("another call event was set");
        settle();
        assert!(!ring.call.is_signalled(), "and once only");
        assert_works(&mut ring, 0);
    }
}

#[test]
fn setting_the_kick_event_is_a_kick() {
    let daemon = daemon("");
    for options in all() {
        let session = Session::connect_with(&daemon.socket(0), &options);
        let mut ring = session.ring(0, 64);
        assert_works(&mut ring, 0);
        for _ in 0..20 {
            // Available, but not kicked.
            let head = ring.submit(&Request::read(0, 512));
            renew_kick(&session, &ring.kick);
            assert_eq!(ring.wait().head, head);
            assert!(!ring.kick.is_signalled());
            assert_works(&mut ring, 0);
        }
    }
}

#[test]
fn a_kick_that_was_not_taken_yet_survives_a_new_event() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, 64);
        for _ in 0..500 {
            let head = ring.submit(&Request::read(0, 512));
            ring.kick.signal();
            renew_kick(&session, &ring.kick);
            assert_eq!(ring.wait().head, head);
        }
    }
}

#[test]
fn events_are_replaced_under_load_without_losing_a_notification() {
    let daemon = daemon("");
    for options in all() {
        let session = Session::connect_with(&daemon.socket(0), &options);
        let load = Load::start(session.ring(0, 128), 0);
        let witness = Load::start(session.ring(1, 128), LOAD_SECTORS);
        for round in 0..400 {
            match round % 3 {
                0 => renew_kick(&session, &load.vring.kick),
                1 => renew_call(&session, &load.vring.call),
                _ => session.ask(|control| control.set_vring_err(0, &event())).unwrap(),
            }
            if round % 20 == 0 {
                load.wait_for_progress();
            }
        }
        load.stop();
        witness.stop();
    }
}

#[test]
fn the_error_event_in_force_is_notified() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, 64);
        let mut other = session.ring(1, 64);
        assert_works(&mut ring, 0);
        assert!(!ring.err.is_signalled());
        let before = ring.err.current();
        ring.err.replace(|err| session.ask(|control| control.set_vring_err(0, err)).unwrap());
        ring.break_it();
        ring.err.wait("the ring breaks");
        assert!(before.read().is_err(), "the event before was notified");
        assert!(!other.err.is_signalled());
        assert_works(&mut other, 0);

        ring.reset();
        session.stop(&ring);
        session.start(&ring, 0).unwrap();
        assert_works(&mut ring, 0);
        assert!(!ring.err.is_signalled());
    }
}

#[test]
fn a_driver_that_wants_no_notification_gets_none() {
    let daemon = daemon("");
    for options in all() {
        let session = Session::connect_with(&daemon.socket(0), &options);
        // A split ring with event indices has no word for it.
        if session.features & (EVENT_IDX | RING_PACKED) == EVENT_IDX {
            continue;
        }
        let mut ring = session.ring(0, 64);
        assert_works(&mut ring, 0);
        ring.set_calls(false);
        ring.call.take();
        let request = Request::read(0, 512);
        ring.submit(&request);
        ring.kick.signal();
        let used = crate::common::wait_for("the read is done", || ring.next_used());
        assert_eq!(ring.answer(&request, used).status, OK);
        settle();
        assert!(!ring.call.is_signalled());
        ring.set_calls(true);
        assert_works(&mut ring, 0);
    }
}

#[test]
fn with_event_indices_the_driver_is_notified_at_the_entry_it_names() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, 64);
        // Over the end of a packed ring, too: two chains of three descriptors, and three of three.
        for _ in 0..10 {
            assert_works(&mut ring, 0);
            // The third completion from here.
            ring.name_event(2, 3);
            ring.call.take();
            for done in 1..=3_u16 {
                ring.submit(&Request::read(0, 512));
                ring.kick.signal();
                crate::common::wait_for("the read is done", || ring.next_used());
                if done < 3 {
                    settle();
                    assert!(!ring.call.is_signalled(), "notified at completion {done}");
                }
            }
            ring.call.wait("the third completion");
        }
    }
}

/// The device polls the ring once more after it has asked for kicks: a request that came in between is not kicked.
#[test]
fn a_driver_that_kicks_only_when_asked_never_waits_in_vain() {
    const REQUESTS: usize = 20_000;
    let daemon = daemon("");
    for options in all() {
        let session = Session::connect_with(&daemon.socket(0), &options);
        let mut ring = session.ring(0, 64);
        let mut random = Random::new(1);
        let request = Request::read(0, 512);
        let mut under_way = 0;
        for _ in 0..REQUESTS {
            // From just before the device falls asleep to just after it.
            for _ in 0..random.below(3000) {
                std::hint::spin_loop();
            }
            ring.submit(&request);
            ring.notify();
            under_way += 1;
            while under_way > 0 && (under_way == ring.slots() || random.one_in(2)) {
                assert_eq!(ring.wait().bytes, 513);
                under_way -= 1;
            }
        }
    }
}

/// Neither missing events nor a missing error event is a mistake.
#[test]
fn rings_run_without_call_and_error_events() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.new_ring(0, 64);
        session.ask(|control| control.set_vring_num(0, 64)).unwrap();
        session.set_addresses(&ring).unwrap();
        session.ask(|control| control.set_vring_base(0, 0)).unwrap();
        session.ask(|control| control.set_vring_kick(0, &ring.kick.current())).unwrap();
        session.enable(&ring, true).unwrap();
        let request = Request::read(0, 512);
        for _ in 0..3 {
            ring.submit(&request);
            ring.kick.signal();
            let used = crate::common::wait_for("the read is done", || ring.next_used());
            assert_eq!(ring.answer(&request, used).status, OK);
        }
        // Bit 8 says that there is no descriptor: the driver polls.
        const SET_VRING_CALL: u32 = 13;
        const SET_VRING_ERR: u32 = 14;
        let no_descriptor = 0x100_u64.to_le_bytes();
        for code in [SET_VRING_CALL, SET_VRING_ERR] {
            let verdict = session.wire.tell(code, &no_descriptor, &[]);
            assert_eq!(verdict, crate::common::frontend::wire::Verdict::Ack);
        }
        ring.submit(&request);
        ring.kick.signal();
        crate::common::wait_for("the read is done", || ring.next_used());
    }
}
