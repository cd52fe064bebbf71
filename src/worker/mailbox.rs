//! How the control plane reaches a worker: a queue, a flag for a worker that polls, and an eventfd for one that sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread::ThreadId;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::any_ring::AnyRing;
use super::report::RingReport;
use super::ring::RingKey;
use crate::disk::Disk;
use crate::virtio::blk::{Counters, Device};

/// What a ring has done since it was started: which one, and of which device.
pub type RingCount<D> = (Arc<Device<D>>, RingKey, Counters);

/// What a worker can be asked.
#[derive(Debug)]
pub(super) enum Command<D: Disk> {
    /// Own this ring and poll it once; if its kick descriptor cannot be watched, drop it.
    Attach(AnyRing<D>, SyncSender<std::io::Result<()>>),
    /// Give this ring back, with everything fetched from it published.
    Detach(RingKey, SyncSender<Option<AnyRing<D>>>),
    /// Say what each ring has done, which one that is, and of which device; the sender is dropped when all have been named.
    Count(Sender<RingCount<D>>),
    /// The same, with all that is to be seen of a ring.
    Report(Sender<RingReport<D>>),
    /// Limit each ring as its device says by now; the sender is dropped when that is done.
    RenewLimits(Sender<()>),
    /// Say which requests of each ring are slow and have not ended.
    TellSlow,
    /// End the thread, and say which one that is; rings still owned are dropped.
    Stop(SyncSender<ThreadId>),
}

/// Wakes a worker, whether it sleeps or polls its rings.
#[derive(Debug)]
#[repr(align(64))] // a worker reads it in every round: nothing that others write may share its cache line
pub(super) struct EventWaker {
    is_woken: AtomicBool,
    event: EventFd,
}

impl EventWaker {
    /// Wakes the worker.
    pub(super) fn wake(&self) {
        self.is_woken.store(true, Ordering::Release);
        // Only a full counter can fail, and that wakes as well.
        let _ = self.event.write(1);
    }

    /// Has the worker look at once, where it is this one that is running.
    pub(super) fn nudge(&self) {
        self.is_woken.store(true, Ordering::Relaxed);
    }

    /// Whether the worker was woken since this last returned true.
    #[inline]
    pub(super) fn take_wake(&self) -> bool {
        self.is_woken() && self.is_woken.swap(false, Ordering::Acquire)
    }

    /// Whether [`take_wake`](Self::take_wake) would return true.
    #[inline]
    pub(super) fn is_woken(&self) -> bool {
        self.is_woken.load(Ordering::Relaxed)
    }

    /// The eventfd that is written to and never read: to be waited for edge-triggered (epoll(7)).
    pub(super) const fn event(&self) -> &EventFd {
        &self.event
    }
}

/// For a ring that waits for a flush.
impl std::task::Wake for EventWaker {
    fn wake(self: Arc<Self>) {
        Self::wake(&self);
    }
}

/// The control plane's end.
#[derive(Debug)]
pub(super) struct Mailbox<D: Disk> {
    commands: Sender<Command<D>>,
    waker: Arc<EventWaker>,
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Inbox<D: Disk> {
    pub(super) commands: Receiver<Command<D>>,
    pub(super) waker: Arc<EventWaker>,
}

/// Both ends of a new mailbox.
///
/// # Errors
/// No descriptor is left.
pub(super) fn mailbox<D: Disk>() -> std::io::Result<(Mailbox<D>, Inbox<D>)> {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let waker = Arc::new(EventWaker { is_woken: AtomicBool::new(false), event });
    let (sender, receiver) = channel();
    let mailbox = Mailbox { commands: sender, waker: waker.clone() };
    Ok((mailbox, Inbox { commands: receiver, waker }))
}

impl<D: Disk> Mailbox<D> {
    /// Leaves a command and wakes the worker. If the worker is gone the command is dropped, and with it the
    /// sender on which an answer is awaited.
    pub(super) fn post(&self, command: Command<D>) {
        // It can only fail when there is nobody to wake.
        let _ = self.commands.send(command);
        self.waker.wake();
    }
}
