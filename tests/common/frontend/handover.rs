//! Messages that hand over a descriptor, with a payload that makes sense.

use std::os::fd::BorrowedFd;
use std::path::Path;

use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::memory::Span;
use super::message::{
    ADD_MEM_REG, SET_BACKEND_REQ_FD, SET_DEVICE_STATE_FD, SET_LOG_BASE, SET_MEM_TABLE, SET_VRING_CALL,
    SET_VRING_ERR, SET_VRING_KICK,
};
use super::wire::{NEED_REPLY, VERSION};
use super::{Options, Session};

/// All of them.
pub const ALL: [u32; 8] = [
    SET_MEM_TABLE,
    SET_LOG_BASE,
    SET_VRING_KICK,
    SET_VRING_CALL,
    SET_VRING_ERR,
    SET_BACKEND_REQ_FD,
    ADD_MEM_REG,
    SET_DEVICE_STATE_FD,
];

/// Bytes of memory, or of a log, that a message speaks of.
pub const BYTES: u64 = 1 << 20;

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was taken.
    Taken,
    /// It was not.
    Refused,
}

/// The payload that makes sense with a message.
fn payload(message: u32) -> Vec<u8> {
    let words: &[u64] = match message {
        // One region, padding; guest address, bytes, user address, offset.
        SET_MEM_TABLE => &[1, 1 << 40, BYTES, 1 << 40, 0],
        ADD_MEM_REG => &[0, 1 << 40, BYTES, 1 << 40, 0],
        SET_LOG_BASE => &[BYTES, 0],
        // Direction: save.
        SET_DEVICE_STATE_FD => &[0],
        SET_BACKEND_REQ_FD => &[],
        _ => &[0],
    };
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Hands over a descriptor.
pub fn hand_over(session: &Session, message: u32, fd: BorrowedFd<'_>) -> Outcome {
    assert!(session.wire.send(message, VERSION | NEED_REPLY, &payload(message), &[fd]));
    match session.wire.receive() {
        // There is no way to say no to who sets a log, but to hang up.
        None => Outcome::Refused,
        Some(answer) => match (message, answer.payload.len(), answer.payload.get(..8)) {
            (SET_LOG_BASE, 16, _) => Outcome::Taken,
            (SET_DEVICE_STATE_FD, 8, Some(value)) if value == 0x100_u64.to_le_bytes() => Outcome::Taken,
            (_, 8, Some(value)) if value == [0; 8] => Outcome::Taken,
            _ => Outcome::Refused,
        },
    }
}

/// A front-end with everything that a message needs, and no memory yet.
pub fn connect(socket: &Path) -> Session {
    let protocol = VhostUserProtocolFeatures::all();
    let spans = vec![Span { guest_start: 0, bytes: 1 << 20 }];
    let mut session = Session::open(socket, &spans);
    session.negotiate(&Options { protocol, spans, ..Options::default() });
    session
}
