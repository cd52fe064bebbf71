//! Requests on media that may make one wait: what takes no waiting is done at once, the rest is begun, and comes back done.

use std::sync::Arc;
use std::task::Waker;

use super::cache::CacheMode;
use super::counters::{Counters, Effect};
use super::device::Device;
use super::execute::{Done, Outcome, Progress, counted};
use super::pending::{Completions, PendingRequest, RequestTask, Span};
use super::request::{ErrorStatus, Operation, parse};
use crate::copy::{self, PrefetchHint};
use crate::disk::Disk;
use crate::disk::executor::{Claim, Task as _};
use crate::log::Cause;
use crate::virtio::queue::{Chain, RingError};

/// What is before a request in its ring.
#[derive(Debug)]
pub struct Predecessors<F> {
    /// Whether a transfer need not wait for one of them.
    pub is_free: F,
    /// Whether all are done.
    pub are_done: bool,
}

impl<D: Disk> Device<D> {
    /// Does what a chain asks if that takes no waiting, or prepares `pending` to be [submitted](Self::submit):
    /// [`Progress::Sliced`] then.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn begin(
        &self,
        chain: Chain<'_>,
        cache: &CacheMode,
        counters: &mut Counters,
        pending: &mut PendingRequest,
        before: Predecessors<impl Fn(&Span) -> bool>,
    ) -> Result<Progress, RingError> {
        let Chain { head, header, flaw, readable, writable, status, data_bytes } = chain;
        let operation = match flaw {
            None => parse(&header, readable, writable, &self.limits()),
            Some(_) => Err(ErrorStatus::IoError),
        };
        let done: Option<Outcome> = match &operation {
            Ok(Operation::Read { offset, into }) => {
                let is_free = (before.is_free)(&Span::of_transfer(*offset, into.total_bytes(), false));
                let is_read = is_free && self.disk().try_read(*offset, *into, PrefetchHint::NONE);
                is_read.then(|| {
                    let bytes = into.total_bytes() as u64;
                    counters.count(Effect::Read(bytes));
                    Ok(Done::Counted(bytes))
                })
            }
            Ok(Operation::Write { .. } | Operation::Discard { .. } | Operation::WriteZeroes { .. }) => None,
            Ok(Operation::Flush) => {
                cache.saw_flush();
                Some(match self.disk().try_flush().filter(|_| before.are_done) {
                    Some(Ok(())) => Ok(counted(Effect::Flushed, counters)),
                    Some(Err(error)) => Err(self.failed("flush", &error)),
                    None => Ok(Done::Unflushed(Effect::Flushed)),
                })
            }
            Ok(Operation::GetId { into }) => {
                let bytes = copy::store_slice(*into, &self.identity().serial);
                counters.count(Effect::Other);
                Some(Ok(Done::Counted(bytes as u64)))
            }
            Err(error) => Some(Err(*error)),
        };
        match (done, operation) {
            (None, Ok(operation)) => {
                self.begin_slices(&operation, head, status, data_bytes, &mut pending.request, counters)
            }
            (Some(outcome), _) => Self::complete(outcome, head, data_bytes, counters, status),
            (None, Err(error)) => Self::complete(Err(error), head, data_bytes, counters, status),
        }
    }

    /// What is to be done of a request that was prepared. It comes back by `completions`, with this number, and `waker` is woken
    /// then.
    pub fn task(
        &self,
        request: Box<PendingRequest>,
        number: u64,
        completions: &Arc<Completions>,
        waker: &Waker,
    ) -> RequestTask<D> {
        let (completions, waker) = (completions.clone(), waker.clone());
        RequestTask { disk: self.shared_disk().clone(), request, number, completions, waker }
    }

    /// Has threads of the disk's own do all of these.
    pub fn submit(&self, tasks: &mut Vec<RequestTask<D>>) {
        if tasks.is_empty() {
            return;
        }
        let Err(error) = self.threads().submit(tasks) else { return };
        if let Some(suppressed) = self.log_limit().admit(Cause::NoThread) {
            let disk = &self.identity().name;
            tracing::warn!(disk, %error, suppressed, "no thread for a request: the worker waits for it");
        }
        for mut task in tasks.drain(..) {
            while let Some(rest) = task.run() {
                task = rest;
            }
        }
    }

    /// Does [quick](RequestTask::is_quick) tasks, whose waker is not woken; or has threads do them, if they would have to wait.
    pub fn do_quick(&self, tasks: &mut Vec<RequestTask<D>>) {
        let Some(first) = tasks.first() else { return };
        match self.threads().claim(first.name(), tasks.len()) {
            None => self.submit(tasks),
            Some(_claim) => tasks.drain(..).for_each(RequestTask::run_unheard),
        }
    }

    /// The right to have the kernel do some by itself; as `Threads::claim`.
    pub fn claim(&self, tasks: &[RequestTask<D>]) -> Option<Claim<RequestTask<D>>> {
        // They are noted one by one.
        self.threads().claim(tasks.first()?.name(), 0)
    }

    /// Notes one that the kernel does by itself among those that are not done. Returns where.
    pub fn note(&self, task: &RequestTask<D>) -> usize {
        self.threads().note(task.name())
    }

    /// The kernel has done what was noted there, or does not.
    pub fn forget(&self, note: usize) {
        self.threads().forget(note);
    }

    /// Says what became of a request that has come back; `None` if it was not done to its end.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn complete_pending(
        &self,
        pending: &mut PendingRequest,
        cache: &CacheMode,
        counters: &mut Counters,
    ) -> Result<Option<Progress>, RingError> {
        counters.direct = counters.direct.wrapping_add(u64::from(pending.take_direct()));
        let Some(finished) = pending.take_finished() else { return Ok(None) };
        self.finish(finished, cache, counters).map(Some)
    }
}
