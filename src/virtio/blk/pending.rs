//! A request on its way to a thread of the disk's own, and back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::sliced::{Finished, SlicedRequest};
use crate::copy::Segments;
use crate::disk::executor::{Task, TaskName};
use crate::disk::{DirectTransfer, Disk, DiskError};
use crate::limits::bounds::MAX_QUICK_WRITE_BYTES;
use crate::throttle::Kind;
use crate::virtio::queue::HeldStatus;

/// A request that is run by a thread of the disk's own, and room for what it needs, which is made once (D7) and used again.
///
/// It *moves* to that thread, and comes back by [`Completions`]: nothing of it is shared. The guest's memory stays mapped as
/// long as it is there.
#[derive(Debug)]
pub struct PendingRequest {
    pub(super) request: SlicedRequest,
    result: Option<Result<(), DiskError>>,
    /// The kernel has done it by itself.
    is_direct: bool,
}

impl Default for PendingRequest {
    fn default() -> Self {
        Self { request: SlicedRequest::whole(), result: None, is_direct: false }
    }
}

impl PendingRequest {
    /// What it is about.
    pub fn span(&self) -> Span {
        let TaskName { operation, offset, len_bytes } = self.request.name();
        let is_change = self.request.is_change();
        Span { offset, len_bytes, is_change, is_long: is_change && operation != "write" }
    }

    /// How limits count it: its kind, and its bytes.
    pub fn for_limits(&self) -> (Kind, u64) {
        self.request.for_limits()
    }

    /// What it has written to guest memory, and where its status will be.
    pub fn writable(&self) -> Option<(Segments<'_>, &HeldStatus)> {
        self.request.writable()
    }

    /// Whether the kernel has done it by itself; not any more, when this was asked.
    pub(super) const fn take_direct(&mut self) -> bool {
        std::mem::replace(&mut self.is_direct, false)
    }

    /// Takes what has become of it; `None`, and it is as if it had never been taken, if it was not done to its end.
    pub(super) fn take_finished(&mut self) -> Option<Finished> {
        match self.result.take() {
            Some(result) => self.request.finish(result),
            None => {
                self.request.abandon();
                None
            }
        }
    }
}

/// The bytes of the disk that a request is about, and what it does to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    offset: u64,
    len_bytes: u64,
    is_change: bool,
    /// A discard, or zeroes.
    is_long: bool,
}

impl Span {
    /// That of a transfer.
    pub(super) const fn of_transfer(offset: u64, len_bytes: usize, is_change: bool) -> Self {
        Self { offset, len_bytes: len_bytes as u64, is_change, is_long: false }
    }

    /// Where they begin.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes.
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether one of the two has to wait for the other, so that all happens as if one were done after the other.
    pub fn excludes(&self, other: &Self) -> bool {
        let ends_before = |one: &Self, two: &Self| one.offset.saturating_add(one.len_bytes) <= two.offset;
        let overlap = !ends_before(self, other) && !ends_before(other, self);
        self.is_long || other.is_long || (self.is_change || other.is_change) && overlap
    }
}

/// Requests of one ring that have come back, in the order in which they were done.
#[derive(Debug, Default)]
pub struct Completions {
    done: Mutex<Vec<(u64, Box<PendingRequest>)>>,
    /// Whether there are any.
    has_some: AtomicBool,
    /// What is not begun is not to be done any more.
    is_abandoned: AtomicBool,
}

impl Completions {
    /// Whether some have come back. Costs one load.
    #[inline]
    pub fn has_some(&self) -> bool {
        self.has_some.load(Ordering::Acquire)
    }

    /// What no thread has begun comes back as it is.
    pub fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Release);
    }

    fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Acquire)
    }

    /// Those that have come back since, with their numbers, in place of what is in `out`.
    pub fn take(&self, out: &mut Vec<(u64, Box<PendingRequest>)>) {
        out.clear();
        let mut done = self.done();
        self.has_some.store(false, Ordering::Release);
        std::mem::swap(&mut *done, out);
    }

    /// Returns whether there were none: who takes them is about to look otherwise.
    fn push(&self, number: u64, request: Box<PendingRequest>) -> bool {
        let mut done = self.done();
        done.push((number, request));
        !self.has_some.swap(true, Ordering::AcqRel)
    }

    fn done(&self) -> MutexGuard<'_, Vec<(u64, Box<PendingRequest>)>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request on its way.
#[derive(Debug)]
pub struct RequestTask<D: Disk> {
    pub(super) disk: Arc<D>,
    pub(super) request: Box<PendingRequest>,
    /// Which one it is, to its ring.
    pub(super) number: u64,
    pub(super) completions: Arc<Completions>,
    pub(super) waker: Waker,
}

impl<D: Disk> RequestTask<D> {
    /// Whether it is most likely done in a moment, although it may wait: a short write.
    pub fn is_quick(&self) -> bool {
        let TaskName { operation, len_bytes, .. } = self.name();
        operation == "write" && len_bytes <= MAX_QUICK_WRITE_BYTES
    }

    /// The transfer that it is, if the kernel can do it by itself.
    pub fn direct(&self) -> Option<DirectTransfer<'_>> {
        self.request.request.direct(&*self.disk)
    }

    /// Waits for the guest's memory that it is about. False if it is lost, or if nobody wants it to be done any more.
    pub fn is_still_wanted(&self) -> bool {
        !self.completions.is_abandoned() && self.request.request.touch_all()
    }

    /// The kernel has done it. Somebody is woken for whom it is the first, but not who looks at `here`.
    pub fn transferred(mut self, here: &Arc<Completions>) {
        if let Some(DirectTransfer { offset, data, is_write, .. }) = self.direct() {
            self.disk.transferred(offset, data.total_bytes() as u64, is_write);
        }
        (self.request.result, self.request.is_direct) = (Some(Ok(())), true);
        if self.completions.push(self.number, self.request) && !Arc::ptr_eq(&self.completions, here) {
            self.waker.wake();
        }
    }

    /// Does it, or a step of it. Returns what is left, or else whether somebody is to be woken, and who.
    fn step(mut self) -> Result<(bool, Waker), Self> {
        if !self.completions.is_abandoned() {
            self.request.result = self.request.request.run_step(&*self.disk);
            if self.request.result.is_none() {
                return Err(self);
            }
        }
        Ok((self.completions.push(self.number, self.request), self.waker))
    }

    /// Does a transfer, and wakes nobody.
    pub(super) fn run_unheard(self) {
        // A transfer is one step.
        let _ = self.step();
    }
}

impl<D: Disk> Task for RequestTask<D> {
    fn is_exclusive(&self) -> bool {
        self.disk.changes_exclude_each_other() && self.request.request.is_change()
    }

    fn name(&self) -> TaskName {
        self.request.request.name()
    }

    fn can_be_announced(&self) -> bool {
        let TaskName { operation, len_bytes, .. } = self.name();
        operation == "read" && self.disk.can_announce(len_bytes)
    }

    fn announce(&self) {
        let TaskName { offset, len_bytes, .. } = self.name();
        if !self.completions.is_abandoned() {
            self.disk.announce(offset, len_bytes);
        }
    }

    fn try_run(mut self) -> Result<Option<Waker>, Self> {
        if !self.can_be_announced() || self.completions.is_abandoned() {
            return Err(self);
        }
        if !self.request.request.try_run(&*self.disk) {
            return Err(self);
        }
        self.request.result = Some(Ok(()));
        let is_first = self.completions.push(self.number, self.request);
        Ok(is_first.then_some(self.waker))
    }

    fn run(self) -> Option<Self> {
        match self.step() {
            Ok((true, waker)) => waker.wake(),
            Ok((false, _)) => {}
            Err(rest) => return Some(rest),
        }
        None
    }
}
