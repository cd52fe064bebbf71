//! What `--log debug` shows of a session, and what a refusal says whatever is logged.

use super::with_disks;
use crate::common::frontend::Session;
use crate::common::frontend::message::{GET_INFLIGHT_FD, SET_VRING_NUM};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::wire::{VERSION, Verdict};

/// The lines of the log with all of these parts.
fn lines<'a>(log: &'a str, parts: &[&str]) -> Vec<&'a str> {
    log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).collect()
}

/// A session that does something, and something wrong.
fn session(daemon: &crate::common::daemon::Daemon) {
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(3, 64);
    assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
    session.config(0, 60).unwrap();
    assert_eq!(session.stop(&ring), 1);
    let bad_size = [3_u32, 48].map(u32::to_le_bytes);
    assert_eq!(session.wire.tell(SET_VRING_NUM, bad_size.as_flattened(), &[]), Verdict::Nack);
    // Nobody asked to be told.
    assert!(session.wire.send(SET_VRING_NUM, VERSION, &[0; 7], &[]));
    assert!(session.wire.ask(GET_INFLIGHT_FD, &[0; 24], &[]).is_none());
}

#[test]
fn every_message_has_a_line_with_its_sizes_and_its_answer() {
    let daemon = with_disks(&[""]).arg("--log=debug").start();
    session(&daemon);
    let log = daemon.stop_for_log();
    for parts in [
        &["GET_FEATURES", "bytes=0", "descriptors=0", "answer=\"0x", "session=0"][..],
        &["SET_MEM_TABLE", "bytes=72", "descriptors=2", "needs_reply=true", "answer=\"ok\""],
        &["SET_VRING_KICK", "ring=3", "bytes=8", "descriptors=1", "answer=\"ok\""],
        &["GET_CONFIG", "bytes=72", "answer=\"72 bytes\""],
        &["GET_VRING_BASE", "ring=3", "answer=\"0x100000003\""],
        &["SET_VRING_NUM", "ring=3", "answer=\"refused: ", "queue size 48 is not a power of two"],
        &[
            "SET_VRING_NUM",
            "bytes=7",
            "needs_reply=false",
            "answer=\"refused: its payload has 7 bytes, not 8\"",
        ],
        &["GET_INFLIGHT_FD", "answer=\"hangs up: GET_INFLIGHT_FD: "],
    ] {
        assert_eq!(lines(&log, &[&["DEBUG message "], parts].concat()).len(), 1, "{parts:?}");
    }
}

/// Whatever a front-end waits for is answered, or its connection ends, and the log says why.
#[test]
fn no_message_is_left_without_an_answer_and_a_line() {
    const SET_PROTOCOL_FEATURES: u32 = 16;
    let daemon = with_disks(&[""]).arg("--log=debug").start();
    let mut session = Session::connect(&daemon.socket(0));
    let (mut sent, mut closed) = (0, 0);
    for code in (0..=45).filter(|code| *code != SET_PROTOCOL_FEATURES) {
        for bytes in [0, 1, 8, 40, 4096] {
            sent += 1;
            if session.wire.ask(code, &vec![0; bytes], &[]).is_none() {
                closed += 1;
                session = Session::connect(&daemon.socket(0));
            }
        }
    }
    assert!(closed > 0, "some can be refused in no other way");
    session.wire.hang_up();
    let log = daemon.stop_for_log();
    let unnamed = lines(&log, &["DEBUG message ", "needs_reply=true", "answer=\"not asked for\""]);
    assert_eq!(unnamed, [""; 0]);
    let hung_up = lines(&log, &["DEBUG message ", "answer=\"hangs up: ", ": "]);
    assert_eq!(hung_up.len(), closed);
    assert!(lines(&log, &["DEBUG message "]).len() > sent, "those of the negotiations come besides");
}

#[test]
fn features_and_rings_are_shown_in_words() {
    let daemon = with_disks(&[""]).arg("--log=debug").start();
    session(&daemon);
    let log = daemon.stop_for_log();
    let one = |parts: &[&str]| assert_eq!(lines(&log, parts).len(), 1, "{parts:?}");
    one(&["DEBUG features are negotiated", "FLUSH", "CONFIG_WCE", "EVENT_IDX PROTOCOL_FEATURES VERSION_1"]);
    one(&["DEBUG protocol features are negotiated", "MQ", "REPLY_ACK", "CONFIGURE_MEM_SLOTS"]);
    one(&["DEBUG a ring starts", "ring=3 kind=Split size=64 base=0 event_idx=true indirect=true"]);
    one(&["DEBUG a ring stops", "ring=3 base=1"]);
}

#[test]
fn a_refusal_says_sizes_without_being_asked_and_nothing_else_is_shown() {
    let daemon = with_disks(&[""]).start();
    session(&daemon);
    let log = daemon.stop_for_log();
    assert_eq!(lines(&log, &["DEBUG"]), [""; 0]);
    let refused = lines(&log, &["WARN message refused", "SET_VRING_NUM"]);
    let [size, body] = refused.as_slice() else { panic!("{refused:?}") };
    assert!(size.contains("bytes=8 descriptors=0") && size.contains("queue size 48"), "{size}");
    assert!(body.contains("bytes=7 descriptors=0") && body.contains("not 8"), "{body}");
}
