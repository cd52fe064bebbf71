//! Connections that say nothing, or not all of what they have begun to say: they make room for who comes.

use std::time::{Duration, Instant};

use super::{assert_works, with_disks};
use crate::common::frontend::Session;
use crate::common::frontend::message::{GET_FEATURES, SET_VRING_NUM};
use crate::common::frontend::wire::{HEADER_BYTES, VERSION, Wire};
use crate::common::process::Process;

/// Front-ends of one disk at the same time.
const PLACES: usize = 16;

/// Connections that have sent so much of a message.
fn stalled(socket: &std::path::Path, length: usize, count: usize) -> Vec<Wire> {
    let message = Wire::encode(SET_VRING_NUM, VERSION, &[0; 8]);
    let stall = |_| {
        let wire = Wire::connect(socket);
        wire.send_bytes(&message[..length], &[]);
        wire
    };
    (0..count).map(stall).collect()
}

#[test]
fn who_says_nothing_makes_room_for_who_comes() {
    for length in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 7] {
        let daemon = with_disks(&[""]).start();
        let silent = stalled(&daemon.socket(0), length, PLACES + 3);
        let front_end = Session::connect(&daemon.socket(0));
        assert_works(&mut front_end.ring(0, 64), 0);
        // Who has said something stays, however many come.
        let more = stalled(&daemon.socket(0), length, 3 * PLACES);
        assert_works(&mut front_end.ring(1, 64), 0);
        assert!(silent[0].receive().is_none(), "the oldest ones are hung up on ({length} bytes)");
        let second = Session::connect(&daemon.socket(0));
        assert_eq!(second.config(0, 60).unwrap().len(), 60);
        daemon.wait_for_log("is closed to make room");
        drop((silent, more));
        daemon.stop();
    }
}

#[test]
fn places_are_for_those_who_speak() {
    let daemon = with_disks(&[""]).start();
    let sessions: Vec<Session> = (0..PLACES).map(|_| Session::connect(&daemon.socket(0))).collect();
    // One more finds no place: all others have said something.
    assert!(Wire::connect(&daemon.socket(0)).ask(GET_FEATURES, &[], &[]).is_none());
    daemon.wait_for_log("is turned away");
    for session in &sessions {
        assert_eq!(session.config(0, 60).unwrap().len(), 60);
    }
    daemon.stop();
}

#[test]
fn a_connection_that_says_nothing_costs_no_thread() {
    let daemon = with_disks(&[""]).start();
    daemon.wait_for_log("mapped in huge pages");
    let process = Process(daemon.pid());
    let before = process.threads();
    let silent = stalled(&daemon.socket(0), HEADER_BYTES - 1, PLACES);
    assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
    // A worker, and at most the session.
    assert!(process.threads() <= before + 2, "{} threads, {before} before", process.threads());
    drop(silent);
}

/// A place is not kept by a message that never ends.
#[test]
fn a_message_that_never_ends_is_given_up() {
    const LIMIT: Duration = Duration::from_secs(10);
    let daemon = with_disks(&[""]).start();
    let wire = Wire::connect(&daemon.socket(0));
    let message = Wire::encode(SET_VRING_NUM, VERSION, &[0; 256]);
    let start = Instant::now();
    // A byte now and then is not enough.
    for piece in message.chunks(HEADER_BYTES).take(1).chain(message[HEADER_BYTES..].chunks(1)) {
        if !wire.send_bytes(piece, &[]) {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    daemon.wait_for_log("a message was begun and not completed within 10 s");
    assert!(start.elapsed() >= LIMIT, "it had {:?} only", start.elapsed());
    // Silence between messages may take as long as it likes.
    assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
}
