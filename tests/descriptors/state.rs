//! A device's state through a descriptor that blocks: it is given up in time, with a reason.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{bystander, connect, two_disks};
use crate::common::frontend::Session;
use crate::common::frontend::handover::Outcome;
use crate::common::frontend::message::{CHECK_DEVICE_STATE, SET_DEVICE_STATE_FD};
use crate::common::frontend::wire::{NEED_REPLY, VERSION};
use crate::common::full_pipe;

/// The longest that a state is waited for, for a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
pub enum Direction {
    Save = 0,
    Load = 1,
}

/// `SET_DEVICE_STATE_FD`.
pub fn begin(session: &Session, direction: Direction, fd: BorrowedFd<'_>) -> Outcome {
    let payload = u64::to_le_bytes(direction as u64);
    let answer = session.wire.ask(SET_DEVICE_STATE_FD, &payload, &[fd]).unwrap();
    if answer.value() == 0x100 { Outcome::Taken } else { Outcome::Refused }
}

/// `CHECK_DEVICE_STATE`: whether it has come through.
pub fn check(session: &Session) -> bool {
    let start = Instant::now();
    let answer = session.wire.ask(CHECK_DEVICE_STATE, &[], &[]).unwrap();
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    answer.value() == 0
}

/// Of each kind, one that blocks; and what keeps it so.
fn blocking() -> Vec<(&'static str, Direction, OwnedFd, OwnedFd)> {
    let (reader, writer) = full_pipe();
    let (empty, unused) = std::io::pipe().unwrap();
    let (unread, peer) = UnixStream::pair().unwrap();
    while rustix::net::send(&unread, &[0; 4096], rustix::net::SendFlags::DONTWAIT).is_ok() {}
    while rustix::net::send(&unread, &[0], rustix::net::SendFlags::DONTWAIT).is_ok() {}
    let (silent, other) = UnixStream::pair().unwrap();
    vec![
        ("a full pipe", Direction::Save, writer, reader),
        ("an empty pipe", Direction::Load, empty.into(), unused.into()),
        ("a full socket", Direction::Save, unread.into(), peer.into()),
        ("a silent socket", Direction::Load, silent.into(), other.into()),
    ]
}

#[test]
fn what_blocks_is_given_up_and_the_session_goes_on() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    for (what, direction, fd, _kept) in &blocking() {
        let session = connect(&daemon);
        assert_eq!(begin(&session, *direction, fd.as_fd()), Outcome::Taken, "{what}");
        load.wait_for_progress();
        assert!(!check(&session), "{what}");
        session.config(0, 8).unwrap();
    }
    daemon.wait_for_log("the device's state: it did not end within");
    load.stop();
    daemon.stop();
}

/// Whether it is being waited for or not.
#[test]
fn nothing_of_it_holds_up_the_end_of_the_daemon() {
    for is_checked in [false, true] {
        let daemon = two_disks();
        let kept = blocking();
        let sessions: Vec<_> = kept
            .iter()
            .map(|(what, direction, fd, _)| {
                let session = connect(&daemon);
                assert_eq!(begin(&session, *direction, fd.as_fd()), Outcome::Taken, "{what}");
                if is_checked {
                    assert!(session.wire.send(CHECK_DEVICE_STATE, VERSION | NEED_REPLY, &[], &[]));
                }
                session
            })
            .collect();
        let start = Instant::now();
        daemon.stop();
        // Less than what a state is waited for, of which there are four.
        assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
        drop(sessions);
    }
}
