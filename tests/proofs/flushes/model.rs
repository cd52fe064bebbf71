//! Writers, flushes and syncs of one disk, each thread loom's. The page cache and the media are numbers: a write stores the
//! next one, a sync copies what it sees. Whoever has a flush answered must find on the media what it wrote.

use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::task::{Wake, Waker};

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::flush::Flusher;
use super::syncs::Syncs;
use crate::check::explore;
use crate::disk::{Disk, DiskError};
use crate::sync::Event;

/// What two writers have written, and what a sync has made last.
#[derive(Debug)]
struct Media {
    cache: [AtomicUsize; 2],
    media: [AtomicUsize; 2],
    /// Pages that a sync has lost: the kernel says so to one of those who sync at the time, and once.
    error: AtomicBool,
}

impl Media {
    fn new(fails: bool) -> Self {
        let none = || [AtomicUsize::new(0), AtomicUsize::new(0)];
        Self { cache: none(), media: none(), error: AtomicBool::new(fails) }
    }

    fn write(&self, writer: usize, number: usize) {
        self.cache[writer].store(number, Ordering::Relaxed);
    }

    fn has(&self, writer: usize) -> usize {
        self.media[writer].load(Ordering::Acquire)
    }

    fn sync(&self) -> io::Result<()> {
        let is_lost = self.error.swap(false, Ordering::AcqRel);
        if is_lost {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        for (cache, media) in self.cache.iter().zip(&self.media) {
            media.fetch_max(cache.load(Ordering::Relaxed), Ordering::AcqRel);
        }
        Ok(())
    }
}

/// Two writers, each of which writes and has a flush answered at once where that can be, `rounds` times.
pub fn answered_at_once(rounds: usize, preemptions: usize) -> Result<usize, String> {
    explore(preemptions, move || {
        let shared = Arc::new((Syncs::new("sync", false), Media::new(false)));
        let other = shared.clone();
        let thread = loom::thread::spawn(move || write_and_flush(&other.0, &other.1, 1, rounds));
        write_and_flush(&shared.0, &shared.1, 0, rounds);
        thread.join().unwrap();
    })
}

fn write_and_flush(syncs: &Syncs, media: &Media, writer: usize, rounds: usize) {
    for number in 1..=rounds {
        media.write(writer, number);
        syncs.wrote();
        let answer = syncs.try_answer().unwrap_or_else(|| syncs.sync(|| media.sync()));
        assert!(answer.is_ok());
        assert!(
            media.has(writer) >= number,
            "a flush was answered, and what was written before is not on the media"
        );
    }
}

/// Two flushes at once, of which the kernel tells one that pages are lost: neither may succeed.
pub fn lost_pages(preemptions: usize) -> Result<usize, String> {
    explore(preemptions, || {
        let shared = Arc::new((Syncs::new("sync", true), Media::new(true)));
        let flush = |shared: &(Syncs, Media)| shared.0.sync(|| shared.1.sync()).is_err();
        let other = shared.clone();
        let thread = loom::thread::spawn(move || flush(&other));
        let here = flush(&shared);
        assert!(here & thread.join().unwrap(), "a flush succeeded, and the pages before it are lost");
    })
}

/// A disk whose every flush is a sync.
#[derive(Debug)]
struct SyncedDisk(Media);

impl Disk for SyncedDisk {
    fn flush(&self) -> Result<(), DiskError> {
        self.0.sync().map_err(|source| DiskError::Sync { operation: "sync", source })
    }
}

/// Wakes a worker that sleeps.
struct EventWaker(Arc<Event>);

impl Wake for EventWaker {
    fn wake(self: Arc<Self>) {
        self.0.signal();
    }
}

/// A flusher that is not dropped where a model has failed: loom's threads are none any more then.
#[derive(Clone)]
struct Shared(ManuallyDrop<Arc<Flusher<SyncedDisk>>>);

impl Drop for Shared {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

/// Two rings that write, have a flush begun, and sleep until they are woken, `rounds` times. If pages are lost, no flush that
/// waits for them succeeds, nor any later.
pub fn flusher(rings: usize, rounds: usize, fails: bool, preemptions: usize) -> Result<usize, String> {
    explore(preemptions, move || {
        let disk = Arc::new(SyncedDisk(Media::new(fails)));
        let flusher = Shared(ManuallyDrop::new(Arc::new(Flusher::new(disk.clone()))));
        let others: Vec<_> = (1..rings)
            .map(|ring| {
                let (disk, flusher) = (disk.clone(), flusher.clone());
                loom::thread::spawn(move || {
                    let flusher = flusher;
                    ring_flushes(&disk, &flusher.0, ring, rounds, fails);
                })
            })
            .collect();
        ring_flushes(&disk, &flusher.0, 0, rounds, fails);
        others.into_iter().for_each(|thread| thread.join().unwrap());
        drop(flusher);
    })
}

fn ring_flushes(disk: &SyncedDisk, flusher: &Flusher<SyncedDisk>, ring: usize, rounds: usize, fails: bool) {
    let event = Arc::new(Event::new());
    let waker = Waker::from(Arc::new(EventWaker(event.clone())));
    for number in 1..=rounds {
        disk.0.write(ring, number);
        let ticket = flusher.begin(&waker, true);
        let answer = loop {
            if let Some(answer) = flusher.poll(ticket) {
                break answer;
            }
            event.wait();
        };
        assert_eq!(answer.is_err(), fails, "a flush that should have failed, or should not have");
        assert!(fails || disk.0.has(ring) >= number, "a flush was answered by a sync that began before it");
    }
}
