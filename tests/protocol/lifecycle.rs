//! Stopped, paused, negotiated anew and cut off at any moment of a session's life, under load.

use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::{assert_works, daemon, with_disks};
use crate::common::frontend::load::{LOAD_SECTORS, Load};
use crate::common::frontend::request::Request;
use crate::common::frontend::ring::Ring;
use crate::common::frontend::{PROTOCOL_FEATURES, SPANS, Session, VERSION_1, settle};

/// Feature bit: sectors can be discarded.
const DISCARD: u64 = 1 << 13;

#[test]
fn a_ring_is_paused_and_goes_on_under_load() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let paused = Load::start(session.ring(0, 256), 0);
    let other = Load::start(session.ring(1, 256), LOAD_SECTORS);
    let enable = |enable| session.ask(|control| control.set_vring_enable(0, enable)).unwrap();
    for round in 0..40 {
        paused.wait_for_progress();
        enable(false);
        if round % 10 == 0 {
            // What was done before is counted by now.
            settle();
            let before = paused.done();
            settle();
            assert_eq!(paused.done(), before, "a paused ring goes on");
        }
        other.wait_for_progress();
        enable(true);
    }
    paused.stop();
    other.stop();
}

#[test]
fn features_are_negotiated_anew_under_load() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let loads = [0, 1].map(|index| Load::start(session.ring(index, 256), u64::from(index) * LOAD_SECTORS));
    for round in 0..40 {
        let features = if round % 2 == 0 { session.features & !DISCARD } else { session.features };
        session.ask(|control| control.set_features(features)).unwrap();
        loads.iter().for_each(Load::wait_for_progress);
    }
    for load in loads {
        load.stop();
    }
}

/// A message of a session's start, and what is done with the ring after it.
type Step = fn(&mut Frontend, &mut Ring) -> vhost::Result<()>;

/// Everything that a front-end says from the first message until its guest is stopped.
const LIFE: [Step; 14] = [
    |control, _| control.get_features().map(drop),
    |control, _| control.set_owner(),
    |control, _| control.get_protocol_features().map(drop),
    |control, _| control.set_protocol_features(VhostUserProtocolFeatures::MQ),
    |control, _| control.set_features(VERSION_1 | PROTOCOL_FEATURES),
    |control, ring| control.set_mem_table(&ring.memory.announcement()).map(drop),
    |control, ring| control.set_vring_num(0, ring.size),
    |control, _| control.set_vring_base(0, 0),
    |control, ring| control.set_vring_err(0, &ring.err.current()),
    |control, ring| control.set_vring_call(0, &ring.call.current()),
    |control, ring| control.set_vring_kick(0, &ring.kick.current()),
    |control, _| control.set_vring_enable(0, true),
    |_, ring| {
        ring.submit(&Request::read(0, 4096));
        ring.kick.ring();
        Ok(())
    },
    |control, _| control.get_vring_base(0).map(drop),
];

#[test]
fn a_front_end_may_die_after_any_message() {
    let daemon = with_disks(&["", ""]).start();
    let bystander = Session::connect(&daemon.socket(1));
    let load = Load::start(bystander.ring(0, 64), 0);
    for said in 0..=LIFE.len() {
        let session = Session::open(&daemon.socket(0), &SPANS);
        let mut ring = Ring::new(&session.memory, 0, 64, false);
        for (number, step) in LIFE.iter().take(said).enumerate() {
            session.ask(|control| step(control, &mut ring)).unwrap();
            // The addresses need the table that came before.
            if number == 7 {
                session.set_addresses(&ring).unwrap();
            }
        }
        drop(session);
        assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
        load.wait_for_progress();
    }
    load.stop();
}
