//! Flushes that take a system call: done on a thread of their own, several at once.
//!
//! A sync covers only what had finished *before it began*. So flushes are numbered as they are asked for; a
//! sync answers those up to the number it saw when it started, and none that came later, although its result
//! may be there when they are polled: what was written after the sync began may not have persisted.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::disk::{Disk, DiskError};
use crate::limits::thread;
use crate::log::{Cause, LogLimit};
use crate::sandbox::ThreadKind;

/// A flush that has been asked for; see [`Flusher::poll`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[must_use = "nobody else looks whether the flush is done"]
pub struct Ticket(u64);

/// The flushes of one disk. Its thread starts with the first one that cannot be answered at once, and ends
/// when this value is dropped.
#[derive(Debug)]
pub struct Flusher<D: Disk> {
    shared: Arc<Shared<D>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    log_limit: LogLimit,
}

#[derive(Debug)]
struct Shared<D> {
    disk: Arc<D>,
    /// Flushes up to this number are done.
    finished: AtomicU64,
    /// A sync has failed. Linux reports that once only, so that later syncs say nothing about the writes before it.
    has_failed: AtomicBool,
    requests: Mutex<PendingFlushes>,
    changed: Condvar,
    first_write_hook: Mutex<Option<FirstWriteHook>>,
}

/// What is done after the first sync of somebody who has written.
struct FirstWriteHook(Box<dyn FnOnce() + Send>);

impl fmt::Debug for FirstWriteHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FirstWriteHook")
    }
}

/// What the thread has to do.
#[derive(Debug, Default)]
struct PendingFlushes {
    /// Number of the last flush asked for.
    last: u64,
    /// Who waits.
    wakers: Vec<Waker>,
    /// Flushes up to this number are those of the last sync that has begun, and when it did.
    syncing: (u64, Option<Instant>),
    /// One of those who have asked has written.
    has_written: bool,
    is_stopping: bool,
}

impl<D: Disk> Flusher<D> {
    /// The flushes of `disk`.
    pub fn new(disk: Arc<D>) -> Self {
        let shared = Shared {
            disk,
            finished: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
            requests: Mutex::default(),
            changed: Condvar::new(),
            first_write_hook: Mutex::new(None),
        };
        Self { shared: Arc::new(shared), thread: Mutex::new(None), log_limit: LogLimit::default() }
    }

    /// Calls `then` after the first successful sync that was asked for by somebody who has written, before anybody is told of
    /// that success.
    pub fn after_first_write(&self, then: impl FnOnce() + Send + 'static) {
        *self.shared.first_write_hook() = Some(FirstWriteHook(Box::new(then)));
    }

    /// Asks for everything that was written before this call to persist. `waker` is woken when it is worth polling again.
    /// `has_written`: whether the caller has written. That a sync is needed does not say so: the first flush makes one for
    /// what processes before this one may have left unwritten.
    pub fn begin(&self, waker: &Waker, has_written: bool) -> Ticket {
        let mut requests = self.shared.requests();
        requests.has_written |= has_written;
        requests.last = requests.last.wrapping_add(1);
        let ticket = Ticket(requests.last);
        requests.wakers.push(waker.clone());
        drop(requests);
        self.shared.changed.notify_one();
        self.ensure_thread();
        ticket
    }

    /// Whether one was asked for that is not done.
    #[cfg(test)]
    pub(crate) fn is_asked(&self) -> bool {
        !self.is_done(Ticket(self.shared.requests().last))
    }

    /// Since when a sync runs, if one does.
    pub fn unfinished(&self) -> Option<Instant> {
        let (covered, since) = self.shared.requests().syncing;
        since.filter(|_| !self.is_done(Ticket(covered)))
    }

    /// Whether a flush is done. Costs one load.
    #[inline]
    pub fn is_done(&self, ticket: Ticket) -> bool {
        self.shared.finished.load(Ordering::Acquire) >= ticket.0
    }

    /// Whether a flush is done, and how.
    ///
    /// # Errors
    /// A sync failed, this one or one before: every flush fails from then on.
    pub fn poll(&self, ticket: Ticket) -> Option<Result<(), DiskError>> {
        if !self.is_done(ticket) {
            return None;
        }
        Some(match self.shared.has_failed.load(Ordering::Acquire) {
            false => Ok(()),
            true => {
                let source = std::io::Error::other("a sync of this disk has failed");
                Err(DiskError::Sync { operation: "flush", source })
            }
        })
    }

    fn ensure_thread(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_some() {
            return;
        }
        let shared = self.shared.clone();
        match thread::spawn(ThreadKind::Flusher, "flusher", move || shared.run()) {
            Ok(handle) => *thread = Some(handle),
            Err(error) => {
                if let Some(suppressed) = self.log_limit.admit(Cause::Flush) {
                    tracing::warn!(%error, suppressed, "no thread for a flush: the worker waits for it");
                }
                self.shared.sync();
            }
        }
    }
}

impl<D: Disk> Drop for Flusher<D> {
    fn drop(&mut self) {
        self.shared.requests().is_stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // Ignored: a panic there is in the log, and nobody waits for a flush of this disk any more.
            // A flusher that has panicked has said so itself; there is nobody left to answer.
            let _ = thread.join();
        }
    }
}

impl<D: Disk> Shared<D> {
    fn run(&self) {
        loop {
            let mut requests = self.requests();
            while requests.last == self.finished.load(Ordering::Relaxed) && !requests.is_stopping {
                requests = self.changed.wait(requests).unwrap_or_else(PoisonError::into_inner);
            }
            if requests.is_stopping {
                return;
            }
            drop(requests);
            self.sync();
        }
    }

    /// One sync, for every flush asked for by now.
    fn sync(&self) {
        let (covered, wakers, has_written) = {
            let mut requests = self.requests();
            requests.syncing = (requests.last, Some(Instant::now()));
            (requests.last, std::mem::take(&mut requests.wakers), requests.has_written)
        };
        match self.disk.flush() {
            Ok(()) if has_written => {
                let first_write_hook = self.first_write_hook().take();
                if let Some(FirstWriteHook(then)) = first_write_hook {
                    then();
                }
            }
            Ok(()) => {}
            Err(error) if !self.has_failed.swap(true, Ordering::AcqRel) => {
                tracing::error!(%error, "a sync failed; every flush of this disk fails from now on");
            }
            Err(_) => {}
        }
        self.finished.store(covered, Ordering::Release);
        for waker in wakers {
            waker.wake();
        }
    }

    fn first_write_hook(&self) -> MutexGuard<'_, Option<FirstWriteHook>> {
        self.first_write_hook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn requests(&self) -> MutexGuard<'_, PendingFlushes> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::{PrefetchHint, Segments};
    use crate::disk::{Durability, Geometry};
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A disk whose syncs begin and end when the test says so.
    #[derive(Debug)]
    struct StepwiseDisk {
        began: Mutex<Sender<()>>,
        end: Mutex<Receiver<Result<(), ()>>>,
    }

    impl Disk for StepwiseDisk {
        fn geometry(&self) -> Geometry {
            Geometry { capacity_bytes: 0, block_bytes: 512, read_only: false }
        }
        fn durability(&self) -> Durability {
            Durability::Page
        }
        fn read(&self, _: u64, _: Segments<'_>, _: PrefetchHint) -> Result<(), DiskError> {
            Err(DiskError::Unsupported)
        }
        fn write(&self, _: u64, _: Segments<'_>, _: PrefetchHint) -> Result<(), DiskError> {
            Err(DiskError::Unsupported)
        }
        fn fence(&self) {}
        fn try_flush(&self) -> Option<Result<(), DiskError>> {
            None
        }
        fn flush(&self) -> Result<(), DiskError> {
            self.began.lock().unwrap().send(()).unwrap();
            self.end.lock().unwrap().recv().unwrap().map_err(|()| DiskError::Unsupported)
        }
        fn discard(&self, _: u64, _: u64) -> Result<(), DiskError> {
            Err(DiskError::Unsupported)
        }
        fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<u64, DiskError> {
            Err(DiskError::Unsupported)
        }
    }

    struct ChannelWaker(Mutex<Sender<()>>);

    impl std::task::Wake for ChannelWaker {
        fn wake(self: Arc<Self>) {
            self.0.lock().unwrap().send(()).unwrap();
        }
    }

    struct Fixture {
        flusher: Flusher<StepwiseDisk>,
        began: Receiver<()>,
        end: Sender<Result<(), ()>>,
        waker: Waker,
        woken: Receiver<()>,
    }

    fn fixture() -> Fixture {
        let ((began_in, began), (end, end_out), (wake, woken)) = (channel(), channel(), channel());
        let disk = StepwiseDisk { began: Mutex::new(began_in), end: Mutex::new(end_out) };
        let waker = Waker::from(Arc::new(ChannelWaker(Mutex::new(wake))));
        Fixture { flusher: Flusher::new(Arc::new(disk)), began, end, waker, woken }
    }

    #[test]
    fn a_sync_answers_no_flush_that_was_asked_for_after_it_began() {
        let Fixture { flusher, began, end, waker, woken } = fixture();
        let first = flusher.begin(&waker, true);
        began.recv().unwrap();
        let late = flusher.begin(&waker, true);
        let later = flusher.begin(&waker, true);
        assert!(flusher.poll(first).is_none());
        end.send(Ok(())).unwrap();
        woken.recv().unwrap();
        assert!(flusher.poll(first).unwrap().is_ok());
        assert!(flusher.poll(late).is_none(), "it was asked for while the sync ran");
        began.recv().unwrap();
        assert!(flusher.poll(late).is_none());
        end.send(Ok(())).unwrap();
        woken.recv().unwrap();
        woken.recv().unwrap();
        assert!(flusher.poll(late).unwrap().is_ok());
        assert!(flusher.poll(later).unwrap().is_ok(), "one sync answers all that waited");
        assert!(began.try_recv().is_err(), "and no further one is made");
    }

    #[test]
    fn a_failed_sync_fails_every_flush_from_then_on() {
        let Fixture { flusher, began, end, waker, woken } = fixture();
        for outcome in [Err(()), Ok(())] {
            let ticket = flusher.begin(&waker, true);
            began.recv().unwrap();
            end.send(outcome).unwrap();
            woken.recv().unwrap();
            assert!(flusher.poll(ticket).unwrap().is_err());
        }
    }
}
