//! Messages that are no messages: each is refused, none is left unanswered, no one else is disturbed.

use std::os::fd::AsFd;

use super::{assert_works, daemon, with_disks};
use crate::common::frontend::load::Load;
use crate::common::frontend::message::SET_PROTOCOL_FEATURES;
use crate::common::frontend::wire::{NEED_REPLY, REPLY, VERSION, Verdict, Wire};
use crate::common::frontend::{SPANS, Session};
use crate::common::process::Process;
use crate::common::wait_for;

/// Largest number of a message that the specification knows of.
const LAST_CODE: u32 = 44;

/// Messages whose answer has a form of its own, so that there is no way to refuse them but to hang up.
const QUESTIONS: [u32; 15] = [1, 6, 11, 15, 17, 24, 26, 28, 31, 36, 40, 41, 42, 43, 44];

#[test]
fn unknown_messages_are_refused_and_the_connection_lives() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    for code in [0, 45, 46, 100, 0x8000_0000, u32::MAX] {
        for bytes in [0, 1, 8, 4096] {
            let verdict = session.wire.tell(code, &vec![0xff; bytes], &[]);
            assert_eq!(verdict, Verdict::Nack, "message {code} of {bytes} bytes");
            assert!(session.wire.send(code, VERSION, &vec![0xff; bytes], &[]));
        }
        assert_works(&mut ring, 0);
    }
}

#[test]
fn no_message_of_a_wrong_size_is_left_unanswered() {
    let daemon = with_disks(&["", ""]).start();
    let bystander = Session::connect(&daemon.socket(1));
    let load = Load::start(bystander.ring(0, 64), 0);
    let mut session = Session::connect(&daemon.socket(0));
    for code in 1..=LAST_CODE {
        for bytes in [0, 1, 4, 7, 8, 9, 12, 16, 39, 40, 41, 72, 4096] {
            // An acknowledgement can hardly be expected of a session that has just been told to send none.
            if (code, bytes) == (SET_PROTOCOL_FEATURES, 8) {
                continue;
            }
            let verdict = session.wire.ask(code, &vec![0; bytes], &[]).map(|answer| answer.payload);
            let may_close = QUESTIONS.contains(&code);
            assert!(verdict.is_some() || may_close, "message {code} of {bytes} bytes closed the connection");
            if verdict.is_none() {
                session = Session::connect(&daemon.socket(0));
            }
        }
    }
    load.stop();
    drop(session);
    assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
}

#[test]
fn what_is_no_message_at_all_closes_the_connection() {
    let daemon = daemon("");
    let header = |code: u32, flags: u32, bytes: u32| {
        let fields = [code, flags, bytes].map(u32::to_le_bytes);
        fields.as_flattened().to_vec()
    };
    for (what, bytes) in [
        ("one byte too many", [header(8, VERSION | NEED_REPLY, 4097), vec![0; 4097]].concat()),
        ("64 KiB", header(8, VERSION | NEED_REPLY, 65_536)),
        ("4 GiB", header(5, VERSION | NEED_REPLY, u32::MAX)),
        ("unknown and 4 GiB", header(99, VERSION | NEED_REPLY, u32::MAX)),
        ("version 0", header(1, NEED_REPLY, 0)),
        ("version 2", header(1, 2 | NEED_REPLY, 0)),
        ("version 3", header(1, 3 | NEED_REPLY, 0)),
        ("an answer to nothing", [header(8, VERSION | REPLY, 8), vec![0; 8]].concat()),
        ("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("noise", vec![0xff; 64]),
    ] {
        let session = Session::connect(&daemon.socket(0));
        let mut ring = session.ring(0, 64);
        assert_works(&mut ring, 0);
        session.wire.send_bytes(&bytes, &[]);
        // An answer may come first, but then the connection ends.
        while session.wire.receive().is_some() {}
        println!("{what}: closed");
    }
    assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let daemon = daemon("");
    let process = Process(daemon.pid());
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    assert_works(&mut ring, 0);
    let fds = process.fds();
    let file = std::fs::File::open("/dev/null").unwrap();
    for count in [1, 2, 8, 31, 32, 33, 64] {
        let files = vec![file.as_fd(); count];
        // SET_OWNER, SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE, unknown.
        let payloads: [(u32, &[u8]); 5] = [
            (3, &[]),
            (8, &[0, 0, 0, 0, 64, 0, 0, 0]),
            (10, &[0; 8]),
            (18, &[0, 0, 0, 0, 1, 0, 0, 0]),
            (77, &[0; 8]),
        ];
        for (code, payload) in payloads {
            println!("message {code} with {count} descriptors");
            let verdict = session.wire.tell(code, payload, &files);
            assert_ne!(verdict, Verdict::Closed, "message {code} with {count} descriptors");
        }
        // SET_MEM_TABLE, SET_VRING_KICK, ADD_MEM_REG.
        for (code, bytes) in [(5, 8), (12, 8), (37, 40)] {
            let mut payload = vec![0; bytes];
            payload[0] = if code == 12 { 63 } else { 1 };
            println!("message {code} with {count} descriptors");
            let verdict = session.wire.tell(code, &payload, &files);
            assert_ne!(verdict, Verdict::Closed, "message {code} with {count} descriptors");
        }
        let stopped = Wire::encode(11, VERSION, &[63, 0, 0, 0, 0, 0, 0, 0]);
        session.wire.send_bytes(&stopped, &[]);
        session.wire.receive().unwrap();
        assert_works(&mut ring, 0);
    }
    wait_for("all of them are closed", || (process.fds() <= fds).then_some(()));
}

/// Messages that make sense, but not yet, not any more, or not in this order.
#[test]
fn messages_may_come_in_any_order() {
    let daemon = daemon("");
    let session = Session::open(&daemon.socket(0), &SPANS);
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    // Nothing is negotiated: no answers, and no memory.
    for (code, payload) in [(8, [0, 0, 0, 0, 64, 0, 0, 0]), (10, [0; 8]), (18, [0, 0, 0, 0, 1, 0, 0, 0])] {
        assert!(session.wire.send(code, VERSION, &payload, &[]));
    }
    for code in [12, 13, 14] {
        assert!(session.wire.send(code, VERSION, &[0; 8], &[event.as_fd()]));
    }
    let base = session.wire.ask(11, &[0; 8], &[]).unwrap();
    assert_eq!(base.payload, [0; 8]);
    let mut session = session;
    session.negotiate(&crate::common::frontend::Options::default());
    session.share_memory();
    assert_works(&mut session.ring(0, 64), 0);
}
