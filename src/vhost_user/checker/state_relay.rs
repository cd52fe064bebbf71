//! Reads or writes a device's state through the front-end's descriptor, which may block for ever: in a checker that does
//! nothing else any more, on behalf of the daemon.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::packet;
use crate::vhost_user::device_state::STATE_BYTES;

/// The daemon's orders: to write the state that follows, or to read one to its end.
pub(in crate::vhost_user) const SAVE: u8 = b's';
pub(in crate::vhost_user) const LOAD: u8 = b'l';

/// The state that was read, or nothing after a write; or why it failed.
#[derive(Debug)]
pub(in crate::vhost_user) struct StateAnswer(pub(in crate::vhost_user) io::Result<Vec<u8>>);

impl StateAnswer {
    fn send(&self, to: &OwnedFd) {
        let (error, bytes) = match &self.0 {
            Ok(bytes) => (0, bytes.as_slice()),
            Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), &[][..]),
        };
        // Fails when the daemon has given the transfer up.
        let _ = packet::send(to, &[&error.to_ne_bytes(), bytes].concat(), &[]);
    }

    /// The answer, if it has come by now.
    ///
    /// # Errors
    /// None has come, or none will: the process has ended.
    pub(in crate::vhost_user) fn receive(from: &OwnedFd) -> io::Result<Self> {
        let (bytes, _) = packet::receive(from.as_fd(), 2 * STATE_BYTES, RecvFlags::DONTWAIT)?;
        let Some((error, bytes)) = bytes.split_first_chunk() else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        Ok(Self(match i32::from_ne_bytes(*error) {
            0 => Ok(bytes.to_owned()),
            error => Err(io::Error::from_raw_os_error(error)),
        }))
    }
}

/// Does what the daemon orders through `relay`. It may block for ever in `file`; the process is killed with the spawner then.
pub(super) fn transfer(file: &OwnedFd, relay: &OwnedFd) {
    let Ok((order, _)) = packet::receive(relay.as_fd(), 2 * STATE_BYTES, RecvFlags::empty()) else { return };
    let outcome = match order.split_first() {
        Some((&SAVE, state)) => save(file, relay, state).map(|()| Vec::new()),
        Some((&LOAD, _)) => load(file, relay),
        _ => return,
    };
    StateAnswer(outcome).send(relay);
}

fn save(file: &OwnedFd, relay: &OwnedFd, mut left: &[u8]) -> io::Result<()> {
    while !left.is_empty() {
        await_ready(file, PollFlags::OUT, relay)?;
        match rustix::io::write(file, left) {
            Ok(0) => return Err(Errno::NOSPC.into()),
            Ok(count) => left = left.get(count..).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads to the end, or one byte more than a state has: longer ones are refused.
fn load(file: &OwnedFd, relay: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut state = Vec::new();
    let mut part = [0; STATE_BYTES];
    while state.len() <= STATE_BYTES {
        await_ready(file, PollFlags::IN, relay)?;
        match rustix::io::read(file, &mut part[..]) {
            Ok(0) => break,
            Ok(count) => state.extend_from_slice(part.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    state.truncate(STATE_BYTES + 1);
    Ok(state)
}

/// Waits until something can be read or written, or has gone wrong, which the attempt will tell.
fn await_ready(file: &OwnedFd, what: PollFlags, relay: &OwnedFd) -> io::Result<()> {
    let mut both = [PollFd::new(file, what), PollFd::new(relay, PollFlags::IN)];
    poll(&mut both, None)?;
    let [_, given_up] = both;
    // The daemon sends nothing after its order: it has closed the relay.
    if given_up.revents().is_empty() { Ok(()) } else { Err(Errno::CANCELED.into()) }
}
