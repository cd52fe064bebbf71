//! A device's state on its way through the descriptor of `SET_DEVICE_STATE_FD`.
//!
//! The other end may be slow, may never come, or may hold up whoever touches it: so it is read or written by the
//! [process that received it](crate::vhost_user::checker), and what is here is a socket to that.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;

use super::STATE_BYTES;
use crate::limits::bounds::{CHECKER_TIMEOUT, STATE_TIMEOUT};
use crate::vhost_user::checker::{LOAD, SAVE, StateAnswer};

/// Why a state did not come through.
#[derive(Debug, thiserror::Error)]
pub(in crate::vhost_user) enum TransferError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(
        "it did not end within {STATE_TIMEOUT:?}: the front-end has not closed its side, or the descriptor that it sent blocks"
    )]
    Endless,
    #[error("it was abandoned")]
    Cancelled,
    #[error("the Unix socket that it is to be written to is no stream, or something waits in it to be read")]
    NotWritable,
}

/// One state under way. Dropping it gives it up.
#[derive(Debug)]
pub(in crate::vhost_user) struct Transfer(OwnedFd);

impl Transfer {
    /// Writes a state.
    pub(in crate::vhost_user) fn save(
        through: OwnedFd,
        state: &[u8; STATE_BYTES],
    ) -> Result<Self, TransferError> {
        Self::start(through, &[&[SAVE], state.as_slice()].concat())
    }

    /// Reads a state to its end, or to where it is longer than any.
    pub(in crate::vhost_user) fn load(through: OwnedFd) -> Result<Self, TransferError> {
        Self::start(through, &[LOAD])
    }

    /// Returns once nothing that came with the descriptor can outlive this.
    fn start(through: OwnedFd, order: &[u8]) -> Result<Self, TransferError> {
        let sent = rustix::net::send(&through, order, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        sent.map_err(io::Error::from)?;
        let transfer = Self(through);
        match transfer.await_answer(CHECKER_TIMEOUT, None) {
            Ok(_) => Ok(transfer),
            Err(TransferError::Io(error)) if error.raw_os_error() == Some(libc::EBUSY) => {
                Err(TransferError::NotWritable)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for its end: what was read, or nothing after a save. Not longer than there is a front-end.
    pub(in crate::vhost_user) fn finish(
        self,
        front_end: Option<&UnixStream>,
    ) -> Result<Vec<u8>, TransferError> {
        self.await_answer(STATE_TIMEOUT, front_end)
    }

    fn await_answer(
        &self,
        patience: Duration,
        front_end: Option<&UnixStream>,
    ) -> Result<Vec<u8>, TransferError> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut waits = vec![PollFd::new(&self.0, PollFlags::IN)];
            waits.extend(front_end.map(|stream| PollFd::new(stream, PollFlags::RDHUP)));
            match poll(&mut waits, Some(&Timespec::try_from(left).unwrap_or_default())) {
                Ok(0) => return Err(TransferError::Endless),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
                Ok(_) => {}
            }
            if waits.first().is_some_and(|waits| !waits.revents().is_empty()) {
                return Ok(StateAnswer::receive(&self.0)?.0?);
            }
            return Err(TransferError::Cancelled);
        }
    }
}
