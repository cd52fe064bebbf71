//! What is offered, and what becomes of it when it is acknowledged.

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::{assert_works, daemon};
use crate::common::frontend::features::{
    BLK_SIZE, CONFIG_WCE, DISCARD, FLUSH, IN_ORDER, MQ, RO, SEG_MAX, TOPOLOGY, WRITE_ZEROES,
};
use crate::common::frontend::message::{GET_FEATURES, GET_PROTOCOL_FEATURES};
use crate::common::frontend::request::Request;
use crate::common::frontend::wire::Wire;
use crate::common::frontend::{
    EVENT_IDX, INDIRECT_DESC, Options, PROTOCOL_FEATURES, RING_PACKED, SPANS, Session, VERSION_1, settle,
};

const LOG_ALL: u64 = 1 << 26;

/// Offered by every disk, beside packed rings.
const ALWAYS: u64 = SEG_MAX
    | BLK_SIZE
    | FLUSH
    | TOPOLOGY
    | CONFIG_WCE
    | INDIRECT_DESC
    | EVENT_IDX
    | PROTOCOL_FEATURES
    | VERSION_1
    | IN_ORDER
    | LOG_ALL;

fn offered(options: &str) -> u64 {
    let daemon = daemon(options);
    let wire = Wire::connect(&daemon.socket(0));
    wire.ask(GET_FEATURES, &[], &[]).unwrap().value()
}

#[test]
fn virtio_features_are_exactly_those_that_exist() {
    assert_eq!(offered(""), ALWAYS | RING_PACKED | MQ | DISCARD | WRITE_ZEROES);
    assert_eq!(offered("block-size=4096"), ALWAYS | RING_PACKED | MQ | DISCARD | WRITE_ZEROES);
}

#[test]
fn a_read_only_disk_says_so_and_offers_nothing_that_writes() {
    assert_eq!(offered("readonly=on"), ALWAYS | RING_PACKED | MQ | RO);
}

#[test]
fn protocol_features_are_exactly_those_that_exist() {
    let daemon = daemon("");
    let wire = Wire::connect(&daemon.socket(0));
    wire.ask(GET_FEATURES, &[], &[]).unwrap();
    let offered = wire.ask(GET_PROTOCOL_FEATURES, &[], &[]).unwrap().value();
    let expected = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::DEVICE_STATE
        | VhostUserProtocolFeatures::RESET_DEVICE;
    assert_eq!(offered, expected.bits());
}

#[test]
fn queues_and_memory_slots_are_counted() {
    let with_default = daemon("");
    let session = Session::connect(&with_default.socket(0));
    assert_eq!(session.ask(|control| control.get_queue_num()).unwrap(), 64);
    assert_eq!(session.ask(|control| control.get_max_mem_slots()).unwrap(), 509);
    let with_three = daemon("queues=3");
    let session = Session::connect(&with_three.socket(0));
    assert_eq!(session.ask(|control| control.get_queue_num()).unwrap(), 3);
}

#[test]
fn acknowledged_bits_that_were_not_offered_are_ignored() {
    let daemon = daemon("");
    let mut session = Session::open(&daemon.socket(0), &SPANS);
    session.negotiate(&Options::default());
    let every_bit = VhostUserProtocolFeatures::from_bits_retain(u64::MAX);
    session.ask(|control| control.set_protocol_features(every_bit)).unwrap();
    session.ask(|control| control.set_features(!RING_PACKED)).unwrap();
    session.share_memory();
    assert_works(&mut session.ring(0, 64), 0);
}

#[test]
fn sessions_work_without_version_1_and_without_protocol_features() {
    let daemon = daemon("");
    for without in [VERSION_1, PROTOCOL_FEATURES, VERSION_1 | PROTOCOL_FEATURES, !0] {
        println!("without {without:#x}");
        let options = Options { features: !without, ..Options::default() };
        let session = Session::connect_with(&daemon.socket(0), &options);
        assert_works(&mut session.ring(0, 64), 0);
        assert_works(&mut session.ring(1, 8), 8);
    }
}

#[test]
fn features_can_be_negotiated_anew_on_a_live_connection() {
    let daemon = daemon("");
    for mut session in Session::of_each_kind(&daemon.socket(0)) {
        let kind = session.features & RING_PACKED;
        let mut ring = session.ring(0, 64);
        assert_works(&mut ring, 0);
        for without in [EVENT_IDX, EVENT_IDX | INDIRECT_DESC | VERSION_1, 0] {
            println!("without {without:#x}");
            let base = session.stop(&ring);
            session.set_features(ALWAYS & !without | kind);
            ring.event_idx = without & EVENT_IDX == 0;
            ring.set_calls(true);
            session.share_memory();
            session.start(&ring, base).unwrap();
            assert_works(&mut ring, 8);
        }
    }
}

#[test]
fn a_reset_device_waits_for_its_rings_and_keeps_memory_and_protocol_features() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut rings = [session.ring(0, 64), session.ring(1, 64)];
        for round in 0..3 {
            for ring in &mut rings {
                assert_works(ring, round * 8);
            }
            session.ask(|control| control.reset_device()).unwrap();
            for ring in &mut rings {
                // The memory is not the device's any more.
                let used = ring.used_index();
                ring.submit(&Request::flush());
                ring.kick.signal();
                settle();
                assert_eq!(ring.used_index(), used, "a ring runs on after a reset");
                ring.reset();
                // Neither the memory table nor the protocol features come again: QEMU sends changes only.
                session.ask(|control| control.set_features(session.features)).unwrap();
                session.start(ring, 0).unwrap();
            }
        }
    }
}

#[test]
fn reset_owner_leaves_the_connection_usable() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, 64);
        assert_works(&mut ring, 0);
        session.ask(|control| control.reset_owner()).unwrap();
        ring.reset();
        session.stop(&ring);
        session.start(&ring, 0).unwrap();
        assert_works(&mut ring, 0);
    }
}
