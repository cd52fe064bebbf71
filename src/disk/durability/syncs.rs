//! When a flush needs a system call, and what becomes of the others when one fails.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{PoisonError, RwLock};

use crate::copy;
use crate::disk::DiskError;

/// The state of a backing that is made durable by system calls: whether anything was written since the last
/// one began, how many run, and whether one has failed.
///
/// Why a flush that is answered at once loses nothing:
/// - A write sets `dirty` when it has finished, a sync clears it before it starts, and each has a full fence
///   between its two steps, which non-temporal stores do not pass either. So for every write either the sync
///   sees the bytes, or it does not clear the flag that the write has set or found set. A write that finishes
///   during a sync leaves `dirty` set.
/// - A sync counts itself in `in_flight` before it clears `dirty`, and leaves only when its outcome is known.
///   Who finds `dirty` clear therefore finds that sync in `in_flight` until it is over, provided that `dirty` is
///   read first. The other way round, a sync could begin between the two reads and clear the flag, and the flush
///   would be answered while that sync still runs.
/// - The kernel reports lost pages once, to one of those who sync, and takes them for clean afterwards. So after a
///   failure every later flush fails as well.
#[derive(Debug)]
#[repr(align(64))] // all workers read `dirty` with every write: nothing else may share its cache line
pub(in crate::disk) struct Syncs {
    dirty: AtomicBool,
    in_flight: AtomicU32,
    failed: AtomicBool,
    /// Shared while a sync runs, until its outcome is in `failed`.
    syncing: RwLock<()>,
    /// How errors call the sync.
    operation: &'static str,
}

impl Syncs {
    /// `dirty` at first where a process before this one may have left something unwritten.
    pub(in crate::disk) fn new(operation: &'static str, dirty: bool) -> Self {
        Self {
            dirty: AtomicBool::new(dirty),
            in_flight: AtomicU32::new(0),
            failed: AtomicBool::new(false),
            syncing: RwLock::new(()),
            operation,
        }
    }

    /// A write has finished.
    #[inline]
    pub(in crate::disk) fn wrote(&self) {
        // Non-temporal stores too: the batch's fence comes too late for a sync that begins before it.
        copy::full_fence();
        // A store only where it changes something: otherwise the cache line stays shared between the workers.
        if !self.dirty.load(Ordering::Relaxed) {
            self.dirty.store(true, Ordering::SeqCst);
        }
    }

    /// Whether a sync runs.
    #[inline]
    pub(in crate::disk) fn is_syncing(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) != 0
    }

    /// The answer to a flush, where it takes no system call.
    #[inline]
    pub(in crate::disk) fn try_answer(&self) -> Option<Result<(), DiskError>> {
        if self.failed.load(Ordering::Acquire) {
            return Some(Err(self.lost()));
        }
        // In this order: see above.
        if self.dirty.load(Ordering::SeqCst) || self.in_flight.load(Ordering::SeqCst) != 0 {
            return None;
        }
        Some(if self.failed.load(Ordering::Acquire) { Err(self.lost()) } else { Ok(()) })
    }

    /// Calls `sync`, which must make everything written so far durable, unless that is so already.
    pub(in crate::disk) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> Result<(), DiskError> {
        if let Some(answer) = self.try_answer() {
            return answer;
        }
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let _in_flight = InFlight(&self.in_flight);
        {
            let _syncing = self.syncing.read().unwrap_or_else(PoisonError::into_inner);
            self.dirty.store(false, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            sync()
                .inspect_err(|_| self.failed.store(true, Ordering::Release))
                .map_err(|source| DiskError::Sync { operation: self.operation, source })?;
        }
        // A sync at the same time may have been given the error about our pages: wait for its outcome.
        drop(self.syncing.write());
        if self.failed.load(Ordering::Acquire) { Err(self.lost()) } else { Ok(()) }
    }

    #[cold]
    fn lost(&self) -> DiskError {
        let cause = format!("an earlier {} failed, data may be lost; restart the disk", self.operation);
        DiskError::Sync { operation: self.operation, source: io::Error::other(cause) }
    }
}

/// One sync less, also if it panics.
struct InFlight<'a>(&'a AtomicU32);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn syncs() -> Syncs {
        Syncs::new("fdatasync", false)
    }

    fn eio() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }

    #[test]
    fn only_what_was_written_is_synced() {
        let syncs = syncs();
        let mut count = 0;
        assert!(matches!(syncs.try_answer(), Some(Ok(()))));
        syncs.sync(|| panic!("nothing to do")).unwrap();
        for round in 1..3 {
            syncs.wrote();
            assert!(syncs.try_answer().is_none());
            syncs
                .sync(|| {
                    count += 1;
                    Ok(())
                })
                .unwrap();
            assert!(matches!(syncs.try_answer(), Some(Ok(()))));
            syncs
                .sync(|| {
                    count += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(count, round);
        }
        assert!(Syncs::new("fdatasync", true).try_answer().is_none(), "left over by the process before");
    }

    #[test]
    fn while_a_sync_runs_nothing_is_answered_at_once() {
        let syncs = syncs();
        syncs.wrote();
        syncs
            .sync(|| {
                assert!(syncs.try_answer().is_none(), "popped while another's sync runs");
                syncs.wrote();
                Ok(())
            })
            .unwrap();
        assert!(syncs.try_answer().is_none(), "a write finished while the sync ran");
        syncs.sync(|| Ok(())).unwrap();
        assert!(matches!(syncs.try_answer(), Some(Ok(()))));
    }

    #[test]
    fn after_a_failed_sync_every_flush_fails() {
        let syncs = syncs();
        syncs.wrote();
        let error = syncs.sync(eio).unwrap_err();
        assert_eq!(error.to_string(), "fdatasync: Input/output error (os error 5)");
        for _ in 0..3 {
            syncs.wrote();
            for answer in [syncs.try_answer().unwrap(), syncs.sync(|| Ok(()))] {
                let error = answer.unwrap_err();
                assert!(error.to_string().contains("an earlier fdatasync failed"), "{error}");
            }
        }
    }

    /// The kernel gives an error to one of two syncs at the same time: both flushes must fail.
    #[test]
    fn a_flush_waits_for_the_outcome_of_another_sync() {
        let syncs = syncs();
        syncs.wrote();
        let (entered_tx, entered) = mpsc::channel();
        let (synced_tx, synced) = mpsc::channel();
        thread::scope(|scope| {
            let syncs = &syncs;
            let failing = scope.spawn(move || {
                syncs.sync(|| {
                    entered_tx.send(()).unwrap();
                    synced.recv().unwrap();
                    thread::yield_now();
                    eio()
                })
            });
            entered.recv().unwrap();
            let other = syncs.sync(|| {
                synced_tx.send(()).unwrap();
                Ok(())
            });
            assert!(other.is_err(), "the other sync had the error");
            assert!(failing.join().unwrap().is_err());
        });
    }

    /// Writers count up what they have written; whoever has a flush answered must find at least that on the
    /// media, to which only a sync copies.
    #[test]
    fn no_flush_is_answered_before_its_writes_are_on_the_media() {
        const WRITERS: usize = 3;
        let syncs = syncs();
        let cache: [AtomicU64; WRITERS] = Default::default();
        let media: [AtomicU64; WRITERS] = Default::default();
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (syncs, cache, media) = (&syncs, &cache, &media);
                scope.spawn(move || {
                    for number in 1..20_000 {
                        cache[writer].store(number, Ordering::Relaxed);
                        syncs.wrote();
                        let answer = match number % 3 {
                            0 => continue,
                            1 => syncs.try_answer(),
                            _ => None,
                        };
                        answer
                            .unwrap_or_else(|| {
                                syncs.sync(|| {
                                    let seen: Vec<u64> =
                                        cache.iter().map(|it| it.load(Ordering::Relaxed)).collect();
                                    thread::yield_now();
                                    for (place, number) in media.iter().zip(seen) {
                                        place.fetch_max(number, Ordering::Relaxed);
                                    }
                                    Ok(())
                                })
                            })
                            .unwrap();
                        assert!(media[writer].load(Ordering::SeqCst) >= number, "writer {writer}");
                    }
                });
            }
        });
    }
}
