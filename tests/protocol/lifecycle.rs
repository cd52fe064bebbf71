//! Stopped, paused, reset, negotiated anew and cut off at any moment of a session's life, under load.

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};

use super::{assert_works, daemon, with_disks};
use crate::common::frontend::features::DISCARD;
use crate::common::frontend::load::{LOAD_SECTORS, Load};
use crate::common::frontend::memory::{Memory, Span};
use crate::common::frontend::message::{RESET_OWNER, SET_LOG_BASE, SET_VRING_ENABLE};
use crate::common::frontend::request::Request;
use crate::common::frontend::ring::Ring;
use crate::common::frontend::wire::{VERSION, Verdict};
use crate::common::frontend::{LOG_ALL, Options, RING_PACKED, Session, settle};

/// A busy ring 0, and a busy ring 1.
fn two_loads(session: &Session) -> [Load; 2] {
    [0, 1].map(|index| Load::start(session.ring(index, 256), u64::from(index) * LOAD_SECTORS))
}

#[test]
fn a_ring_is_paused_and_goes_on_under_load() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let [paused, other] = two_loads(&session);
        for round in 0..40 {
            paused.wait_for_progress();
            session.enable(&paused.vring, false).unwrap();
            if round % 10 == 0 {
                // What was done before is counted by now.
                settle();
                let before = paused.done();
                settle();
                assert_eq!(paused.done(), before, "a paused ring goes on");
            }
            other.wait_for_progress();
            session.enable(&paused.vring, true).unwrap();
        }
        paused.stop();
        other.stop();
    }
}

/// Both rings, in any order and also twice the same, without regard to the answers.
#[test]
fn a_storm_of_enabling_and_disabling_loses_nothing() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let loads = two_loads(&session);
        for round in 0..2000_u32 {
            let state = [round / 2 % 2, u32::from(round % 5 < 2)].map(u32::to_le_bytes);
            assert!(session.wire.send(SET_VRING_ENABLE, VERSION, state.as_flattened(), &[]));
            if round % 200 == 0 {
                loads.iter().for_each(|load| session.enable(&load.vring, true).unwrap());
                loads.iter().for_each(Load::wait_for_progress);
            }
        }
        loads.iter().for_each(|load| session.enable(&load.vring, true).unwrap());
        for load in loads {
            load.stop();
        }
    }
}

#[test]
fn features_are_negotiated_anew_under_load() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let loads = two_loads(&session);
        for round in 0..40 {
            let features = if round % 2 == 0 { session.features & !DISCARD } else { session.features };
            session.ask(|control| control.set_features(features)).unwrap();
            loads.iter().for_each(Load::wait_for_progress);
        }
        for load in loads {
            load.stop();
        }
    }
}

/// The driver has not noticed: its requests are where they were, and the front-end starts the same rings again. It
/// says that they were never used, which is not so.
fn reset_under_load(reset: fn(&Session)) {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let loads = two_loads(&session);
        for round in 0..40 {
            loads.iter().for_each(Load::wait_for_progress);
            reset(&session);
            if round % 10 == 0 {
                settle();
                let before = loads.each_ref().map(Load::done);
                settle();
                assert_eq!(loads.each_ref().map(Load::done), before, "a ring goes on after a reset");
            }
            loads.iter().for_each(|load| session.start(&load.vring, 0).unwrap());
        }
        for load in loads {
            load.stop();
        }
    }
}

#[test]
fn a_device_is_reset_under_load_and_its_rings_go_on() {
    reset_under_load(|session| {
        session.ask(|control| control.reset_device()).unwrap();
        session.ask(|control| control.set_features(session.features)).unwrap();
    });
}

#[test]
fn the_owner_is_reset_under_load_and_the_rings_go_on() {
    reset_under_load(|session| assert_eq!(session.wire.tell(RESET_OWNER, &[], &[]), Verdict::Ack));
}

/// As when a guest starts another kernel: other rings, of the other kind, on the same connection, while the requests of
/// those before are under way.
#[test]
fn the_kind_of_the_rings_is_negotiated_anew_under_load() {
    let daemon = daemon("");
    let mut session =
        Session::connect_with(&daemon.socket(0), &Options { packed: true, ..Options::default() });
    for round in 0..12 {
        let mut rings = [0, 1].map(|index| session.ring(index, 64));
        for ring in &mut rings {
            assert_works(ring, u64::from(ring.index) * 8);
            (0..ring.slots()).for_each(|_| _ = ring.submit(&Request::read(0, 32 << 10)));
            ring.kick.signal();
        }
        match round % 3 {
            0 => session.ask(|control| control.reset_device()).unwrap(),
            _ => rings.iter().for_each(|ring| assert_eq!(session.stop(ring), ring.used_base(), "{round}")),
        }
        let before = rings.each_ref().map(Ring::used_index);
        session.set_features(session.features ^ RING_PACKED);
        let mut other = session.ring(0, 64);
        assert_works(&mut other, 0);
        session.stop(&other);
        assert_eq!(rings.each_ref().map(Ring::used_index), before, "a ring that was stopped goes on");
    }
}

/// A message, or what is done with the ring between two of them.
type Step = fn(&Session, &mut Ring) -> vhost::Result<()>;

/// Everything that a front-end says from the first message until its guest has left.
const LIFE: [Step; 25] = [
    |session, _| session.ask(|control| control.get_features()).map(drop),
    |session, _| session.ask(|control| control.set_owner()),
    |session, _| session.ask(|control| control.get_protocol_features()).map(drop),
    |session, _| {
        session.ask(|control| control.set_protocol_features(VhostUserProtocolFeatures::all()))?;
        session.ask(|control| control.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY));
        Ok(())
    },
    |session, _| session.ask(|control| control.get_queue_num()).map(drop),
    |session, _| session.ask(|control| control.get_max_mem_slots()).map(drop),
    |session, _| session.config(0, 60).map(drop),
    |session, _| session.ask(|control| control.set_features(session.features)),
    |session, _| session.ask(|control| control.set_mem_table(&session.memory.announcement())).map(drop),
    |session, _| session.ask(|control| control.add_mem_region(&hot_memory().announcement()[0])).map(drop),
    |session, _| session.ask(|control| control.set_config(32, VhostUserConfigFlags::WRITABLE, &[1])),
    |session, ring| session.ask(|control| control.set_vring_num(0, ring.size)),
    |session, _| session.ask(|control| control.set_vring_base(0, 0)),
    |session, ring| session.set_addresses(ring),
    |session, ring| session.ask(|control| control.set_vring_err(0, &ring.err.current())),
    |session, ring| session.ask(|control| control.set_vring_call(0, &ring.call.current())),
    |session, ring| session.ask(|control| control.set_vring_kick(0, &ring.kick.current())),
    |session, ring| {
        ring.submit(&Request::read(0, 4096));
        ring.kick.signal();
        session.enable(ring, true)
    },
    |session, _| {
        let log = Memory::new(&[Span { guest_start: 0, bytes: 1 << 20 }]);
        let place = [1_u64 << 20, 0].map(u64::to_le_bytes);
        assert!(session.wire.ask(SET_LOG_BASE, place.as_flattened(), &[log.fd()]).is_some());
        session.ask(|control| control.set_features(session.features | LOG_ALL))
    },
    |session, ring| session.set_addresses_and_log(ring, Some(ring.used)),
    |session, _| session.ask(|control| control.remove_mem_region(&hot_memory().announcement()[0])),
    |session, ring| session.enable(ring, false),
    |session, _| session.ask(|control| control.get_vring_base(0)).map(drop),
    |session, ring| session.start(ring, 0),
    |session, _| session.ask(|control| control.reset_device()),
];

/// A slot that comes and goes.
fn hot_memory() -> Memory {
    Memory::new(&[Span { guest_start: 1 << 40, bytes: 1 << 20 }])
}

#[test]
fn a_front_end_may_die_after_any_message() {
    let daemon = with_disks(&["", ""]).start();
    let bystander = Session::connect(&daemon.socket(1));
    let load = Load::start(bystander.ring(0, 64), 0);
    for options in Options::both_kinds() {
        let features = Session::connect_with(&daemon.socket(0), &options).features & !LOG_ALL;
        for said in 0..=LIFE.len() {
            let mut session = Session::open(&daemon.socket(0), &options.spans);
            session.features = features;
            let mut ring = session.new_ring(0, 64);
            for (number, step) in LIFE.iter().take(said).enumerate() {
                let done = step(&session, &mut ring);
                assert!(done.is_ok(), "step {number}: {done:?}");
            }
            drop(session);
            let next = Session::connect_with(&daemon.socket(0), &options);
            assert_works(&mut next.ring(0, 64), 0);
            load.wait_for_progress();
        }
    }
    load.stop();
}
