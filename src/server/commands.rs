//! What the acceptor's thread is asked to do while it runs, and how it answers.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::disks::DiskNumber;
use super::stopper::Stopper;
use crate::disk::Disk;
use crate::vhost_user::{ClosedByChecker, DiskSocket, SessionContext};

/// The socket that one disk's front-ends connect to.
#[derive(Debug)]
pub(super) struct DiskListener<D: Disk> {
    pub(super) socket: DiskSocket,
    pub(super) context: Arc<SessionContext<D>>,
}

impl<D: Disk> DiskListener<D> {
    pub(super) fn copy_of_socket(&self) -> Option<ClosedByChecker<OwnedFd>> {
        let DiskSocket::Listening(socket) = &self.socket else { return None };
        ClosedByChecker::listener(socket.as_fd(), self.context.checker.clone()).ok()
    }
}

/// What it is asked for.
#[derive(Debug)]
pub(super) enum Command<D: Disk> {
    /// Let front-ends of one more disk in.
    Add { number: DiskNumber, listener: DiskListener<D>, answer: Sender<io::Result<()>> },
    /// Let nobody in to these disks any more.
    Close {
        numbers: Vec<DiskNumber>,
        /// Only if no front-end is connected to any of them.
        only_unused: bool,
        answer: Sender<Closing>,
    },
    /// Hang up on all front-ends of a disk. The answer is on how many.
    HangUp { number: DiskNumber, answer: Sender<usize> },
}

/// How far disks are from being left by everybody: an answer for each that has come so far.
#[derive(Debug)]
pub(super) enum Closing {
    /// So many are connected to this one; nothing was done.
    Refused(DiskNumber, usize),
    /// Its socket is closed, but for this copy: what was sent to it is closed by the checker.
    Closed(Option<ClosedByChecker<OwnedFd>>),
    /// Its last front-end has left.
    Left,
}

/// The server has stopped, or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped;

/// Sends commands from any thread.
#[derive(Debug)]
pub(super) struct Commands<D: Disk> {
    sender: Sender<Command<D>>,
    stopper: Stopper,
}

impl<D: Disk> Commands<D> {
    pub(super) const fn new(sender: Sender<Command<D>>, stopper: Stopper) -> Self {
        Self { sender, stopper }
    }

    /// Sends a command that has this to answer to.
    ///
    /// # Errors
    /// [`Stopped`].
    pub(super) fn send<A>(
        &self,
        command: impl FnOnce(Sender<A>) -> Command<D>,
    ) -> Result<Receiver<A>, Stopped> {
        let (answer, answered) = channel();
        self.sender.send(command(answer)).map_err(|_| Stopped)?;
        self.stopper.wake();
        Ok(answered)
    }
}
