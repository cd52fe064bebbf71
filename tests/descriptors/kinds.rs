//! What is said of a descriptor that is not taken, and of the processes that receive descriptors. What each message takes is a
//! part of the table of hostile cases (`hostile`).

use std::fs::File;
use std::os::fd::AsFd;

use rustix::process::{Pid, Signal, kill_process};

use super::{blocking_event, bystander, connect, two_disks};
use crate::common::frontend::handover::{Outcome, hand_over};
use crate::common::frontend::message::{SET_LOG_BASE, SET_MEM_TABLE, SET_VRING_CALL, SET_VRING_KICK};
use crate::common::frontend::wire::{VERSION, Wire};
use crate::common::process::Process;
use crate::common::wait_for;

/// One of each, slowly enough for the limit on lines.
#[test]
fn a_refusal_names_what_came_and_what_is_taken() {
    let daemon = two_disks();
    let null = File::open("/dev/null").unwrap();
    for (message, words) in [
        (SET_VRING_KICK, "the kick is /dev/null (a character device); an eventfd is taken"),
        (SET_VRING_CALL, "the call is /dev/null (a character device); an eventfd or a Unix socket is taken"),
        (SET_MEM_TABLE, "guest memory is /dev/null (a character device); a memfd, a file on tmpfs"),
        (SET_LOG_BASE, "the dirty log is /dev/null (a character device); a memfd"),
    ] {
        let session = connect(&daemon);
        assert_eq!(hand_over(&session, message, null.as_fd()), Outcome::Refused);
        daemon.wait_for_log(words);
    }
}

/// With each of them as many as a message may have: what is beyond that does not stay.
#[test]
fn a_message_in_pieces_has_no_more_descriptors_than_another() {
    const PIECES: usize = 100;
    const MOST: usize = 32;
    let daemon = two_disks();
    let session = connect(&daemon);
    let event = blocking_event();
    let process = Process(daemon.pid());
    let before = process.fds();
    let message = Wire::encode(SET_MEM_TABLE, VERSION, &[0; 4 * PIECES]);
    for byte in message.iter().take(PIECES) {
        assert!(session.wire.send_bytes(&[*byte], &[event.as_fd(); MOST]));
    }
    // What was sent has been received.
    wait_for("all pieces are received", || (process.fds() >= before + MOST).then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(process.fds() <= before + 2 * MOST, "{} descriptors, {before} before", process.fds());
    drop(session);
    wait_for("all are closed", || (process.fds() <= before).then_some(()));
}

/// Killed by hand, or for want of memory.
#[test]
fn the_processes_that_receive_descriptors_are_replaced() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    for _ in 0..2 {
        let checkers = Process(daemon.pid()).descendants();
        assert_eq!(checkers.len(), 2, "one makes them, one is at work");
        for checker in checkers {
            let pid = Pid::from_raw(checker.cast_signed()).unwrap();
            // The second may be gone with the first.
            let _ = kill_process(pid, Signal::KILL);
        }
        let is_gone = || Process(daemon.pid()).descendants().len() <= 1;
        wait_for("they are gone", || is_gone().then_some(()));
        let session = connect(&daemon);
        assert_eq!(hand_over(&session, SET_VRING_CALL, blocking_event().as_fd()), Outcome::Taken);
        load.wait_for_progress();
    }
    load.stop();
    daemon.stop();
}
