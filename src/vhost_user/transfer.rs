//! A device's state on its way through the descriptor of `SET_DEVICE_STATE_FD`.
//!
//! The other end may be slow, or may never come: so it is read or written by a thread of its own, which ends when
//! nobody wants the result any more.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;

use vhost::vhost_user::message::VhostTransferStateDirection as Direction;

use super::device_state::{DeviceState, STATE_BYTES};
use super::session::{Session, SessionError};
use crate::disk::Disk;
use crate::thread;

/// How long `CHECK_DEVICE_STATE` waits for an end that should have come: the front-end has written all there is,
/// or read it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a state did not come through.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("no thread: {0}")]
    Spawn(io::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it has no end within {PATIENCE:?}: the front-end has not closed its side")]
    Endless,
    #[error("it was given up")]
    Cancelled,
}

/// One state under way. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Transfer {
    outcome: Receiver<Result<Vec<u8>, TransferError>>,
    cancel: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Transfer {
    /// Writes a state, and closes the descriptor.
    pub(super) fn save(to: File, state: [u8; STATE_BYTES]) -> Result<Self, TransferError> {
        make_nonblocking(&to)?;
        Self::start(move |cancel| {
            let mut left = state.as_slice();
            while !left.is_empty() {
                await_ready(&to, PollFlags::OUT, cancel)?;
                match (&to).write(left) {
                    Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                    Ok(count) => left = left.get(count..).unwrap_or_default(),
                    Err(error) => ignore_if_transient(error)?,
                }
            }
            Ok(Vec::new())
        })
    }

    /// Reads a state to its end, or to where it is longer than any.
    pub(super) fn load(from: File) -> Result<Self, TransferError> {
        make_nonblocking(&from)?;
        Self::start(move |cancel| {
            let mut state = Vec::new();
            let mut part = [0; STATE_BYTES];
            while state.len() <= STATE_BYTES {
                await_ready(&from, PollFlags::IN, cancel)?;
                match (&from).read(&mut part) {
                    Ok(0) => break,
                    Ok(count) => state.extend_from_slice(part.get(..count).unwrap_or_default()),
                    Err(error) => ignore_if_transient(error)?,
                }
            }
            Ok(state)
        })
    }

    /// Waits for its end: what was read, or nothing after a save.
    pub(super) fn finish(self) -> Result<Vec<u8>, TransferError> {
        match self.outcome.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(TransferError::Endless),
            Err(RecvTimeoutError::Disconnected) => Err(TransferError::Cancelled),
        }
    }

    fn start(
        work: impl FnOnce(BorrowedFd<'_>) -> Result<Vec<u8>, TransferError> + Send + 'static,
    ) -> Result<Self, TransferError> {
        let cancel = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?;
        let cancelled = cancel.try_clone()?;
        let (sender, outcome) = sync_channel(1);
        let run = move || {
            let result = work(cancelled.as_fd());
            // Nobody may want it any more.
            let _ = sender.send(result);
        };
        let thread = thread::spawn("device-state", run);
        Ok(Self { outcome, cancel, thread: Some(thread.map_err(TransferError::Spawn)?) })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Cannot fail: the counter is far from full.
        let _ = rustix::io::write(&self.cancel, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Nobody else uses our end of it.
fn make_nonblocking(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK)?)
}

impl<D: Disk> Session<D> {
    /// Begins to save or load the device's state. Another one that is under way is given up.
    ///
    /// # Errors
    /// A ring runs: what is saved would not be what it is then.
    pub(super) fn begin_transfer(&self, direction: Direction, file: File) -> Result<(), SessionError> {
        let mut state = self.state();
        if !state.running().is_empty() {
            return Err(SessionError::StateOfRunning);
        }
        let transfer = match direction {
            Direction::SAVE => {
                let device = &self.context.device;
                Transfer::save(file, DeviceState::of(device, state.features, self.cache.chosen()).to_bytes())
            }
            Direction::LOAD => Transfer::load(file),
        };
        state.transfer = Some((direction, transfer?));
        Ok(())
    }

    /// Ends it, and says whether the device can go on with what was loaded. An empty state is that of a device
    /// that has none (Cloud Hypervisor).
    ///
    /// # Errors
    /// What went wrong with it, or that there was none.
    pub(super) fn end_transfer(&self) -> Result<(), SessionError> {
        let (direction, transfer) = self.state().transfer.take().ok_or(SessionError::NoTransfer)?;
        let bytes = transfer.finish()?;
        if direction == Direction::SAVE || bytes.is_empty() {
            return Ok(());
        }
        let loaded = DeviceState::from_bytes(&bytes)?;
        loaded.check(&self.context.device)?;
        if let Some(writeback) = loaded.writeback {
            self.cache.set_writeback(writeback);
        }
        Ok(())
    }
}

/// Waits until something can be read or written, or has gone wrong, which the attempt will tell.
fn await_ready(file: &File, what: PollFlags, cancel: BorrowedFd<'_>) -> Result<(), TransferError> {
    let mut both = [PollFd::new(file, what), PollFd::from_borrowed_fd(cancel, PollFlags::IN)];
    match poll(&mut both, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(io::Error::from(error).into()),
    }
    let [_, cancelled] = both;
    if cancelled.revents().is_empty() { Ok(()) } else { Err(TransferError::Cancelled) }
}

fn ignore_if_transient(error: io::Error) -> Result<(), TransferError> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error.into()),
    }
}
