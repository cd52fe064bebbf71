//! How the control plane reaches a worker: a queue and an eventfd to wake it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::ring::{Ring, RingKey};
use crate::disk::Disk;

/// What a worker can be asked.
#[derive(Debug)]
pub(super) enum Command<D: Disk> {
    /// Own this ring and look at it once; if its kick descriptor cannot be watched, drop it.
    Attach(Box<Ring<D>>, SyncSender<std::io::Result<()>>),
    /// Give this ring back, with everything fetched from it published.
    Detach(RingKey, SyncSender<Option<Box<Ring<D>>>>),
    /// End the thread; rings still owned are dropped.
    Stop,
}

/// The control plane's end.
#[derive(Debug)]
pub(super) struct Mailbox<D: Disk> {
    commands: Sender<Command<D>>,
    wake: Arc<EventFd>,
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Inbox<D: Disk> {
    pub(super) commands: Receiver<Command<D>>,
    pub(super) wake: Arc<EventFd>,
}

/// Both ends of a new mailbox.
///
/// # Errors
/// No descriptor is left.
pub(super) fn mailbox<D: Disk>() -> std::io::Result<(Mailbox<D>, Inbox<D>)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, receiver) = channel();
    let mailbox = Mailbox { commands: sender, wake: wake.clone() };
    Ok((mailbox, Inbox { commands: receiver, wake }))
}

impl<D: Disk> Mailbox<D> {
    /// Leaves a command and wakes the worker. If the worker is gone the command is dropped, and with it the
    /// sender on which an answer is awaited.
    pub(super) fn post(&self, command: Command<D>) {
        // Both can only fail when there is nobody to wake.
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }
}

/// Wakes a worker whose ring waits for a flush.
#[derive(Debug)]
pub(super) struct WorkerWaker(pub(super) Arc<EventFd>);

impl std::task::Wake for WorkerWaker {
    fn wake(self: Arc<Self>) {
        // Only a full counter can fail, and that wakes as well.
        let _ = self.0.write(1);
    }
}
