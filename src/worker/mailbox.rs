//! How the control plane reaches a worker: a queue, a flag for a worker that looks, and an eventfd for one that
//! sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::any_ring::AnyRing;
use super::ring::RingKey;
use crate::disk::Disk;
use crate::virtio::blk::{Counters, Device};

/// What a ring has done since it was started.
pub type RingCount<D> = (Arc<Device<D>>, Counters);

/// What a worker can be asked.
#[derive(Debug)]
pub(super) enum Command<D: Disk> {
    /// Own this ring and look at it once; if its kick descriptor cannot be watched, drop it.
    Attach(AnyRing<D>, SyncSender<std::io::Result<()>>),
    /// Give this ring back, with everything fetched from it published.
    Detach(RingKey, SyncSender<Option<AnyRing<D>>>),
    /// Say what each ring has done, and of which device it is; the sender is dropped when all have been named.
    Count(Sender<RingCount<D>>),
    /// End the thread; rings still owned are dropped.
    Stop,
}

/// What wakes a worker, whether it sleeps or looks at its rings.
#[derive(Debug)]
#[repr(align(64))] // a worker reads it in every round: nothing that others write may share its cache line
pub(super) struct Bell {
    has_rung: AtomicBool,
    event: EventFd,
}

impl Bell {
    /// Wakes the worker.
    pub(super) fn ring(&self) {
        self.has_rung.store(true, Ordering::Release);
        // Only a full counter can fail, and that wakes as well.
        let _ = self.event.write(1);
    }

    /// Whether it was rung since the last time this said so.
    #[inline]
    pub(super) fn has_rung(&self) -> bool {
        self.is_ringing() && self.has_rung.swap(false, Ordering::Acquire)
    }

    /// Whether [`has_rung`](Self::has_rung) would say so.
    #[inline]
    pub(super) fn is_ringing(&self) -> bool {
        self.has_rung.load(Ordering::Relaxed)
    }

    /// What is written when it is rung, and never read: to be waited for by its edge.
    pub(super) const fn event(&self) -> &EventFd {
        &self.event
    }
}

/// Of a ring that waits for a flush.
impl std::task::Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }
}

/// The control plane's end.
#[derive(Debug)]
pub(super) struct Mailbox<D: Disk> {
    commands: Sender<Command<D>>,
    bell: Arc<Bell>,
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Inbox<D: Disk> {
    pub(super) commands: Receiver<Command<D>>,
    pub(super) bell: Arc<Bell>,
}

/// Both ends of a new mailbox.
///
/// # Errors
/// No descriptor is left.
pub(super) fn mailbox<D: Disk>() -> std::io::Result<(Mailbox<D>, Inbox<D>)> {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let bell = Arc::new(Bell { has_rung: AtomicBool::new(false), event });
    let (sender, receiver) = channel();
    let mailbox = Mailbox { commands: sender, bell: bell.clone() };
    Ok((mailbox, Inbox { commands: receiver, bell }))
}

impl<D: Disk> Mailbox<D> {
    /// Leaves a command and wakes the worker. If the worker is gone the command is dropped, and with it the
    /// sender on which an answer is awaited.
    pub(super) fn post(&self, command: Command<D>) {
        // It can only fail when there is nobody to wake.
        let _ = self.commands.send(command);
        self.bell.ring();
    }
}
