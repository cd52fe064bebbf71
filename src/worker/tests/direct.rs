//! Requests that the kernel does by itself, and what becomes of those that it does not do.

use std::fs::File;
use std::num::NonZeroU16;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{disk, guest, ring, status};
use crate::copy::{PrefetchHint, Segments};
use crate::disk::testing::pass_on;
use crate::disk::{DirectTransfer, Disk, DiskError, MappedDisk};
use crate::worker::{Polling, Pool, RingKey};

/// How long a step may take on a machine that is busy.
const STEP_TIME: Duration = Duration::from_secs(60);

/// How often writes came about.
#[derive(Debug, Default)]
struct Writes {
    by_kernel: AtomicUsize,
    by_threads: AtomicUsize,
}

/// A disk whose transfers the kernel may do by itself, with this file.
#[derive(Debug)]
struct DirectDisk {
    disk: MappedDisk,
    file: File,
    writes: Arc<Writes>,
}

impl Disk for DirectDisk {
    pass_on!(disk: geometry, durability, read, try_flush, flush, discard, write_zeroes);
    fn may_wait(&self) -> bool {
        true
    }
    fn has_direct(&self) -> bool {
        true
    }
    fn direct<'a>(&'a self, offset: u64, data: Segments<'a>, is_write: bool) -> Option<DirectTransfer<'a>> {
        Some(DirectTransfer { file: self.file.as_fd(), offset, data, is_write })
    }
    fn transferred(&self, _: u64, _: u64, is_write: bool) {
        assert!(is_write);
        self.writes.by_kernel.fetch_add(1, Ordering::SeqCst);
    }
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        self.writes.by_threads.fetch_add(1, Ordering::SeqCst);
        self.disk.write(offset, from, next)
    }
}

/// Has a guest's write done with that file. Returns how often the kernel and threads did it.
fn write_with(file: File, polling: Polling) -> (usize, usize) {
    let pool = Pool::new(NonZeroU16::new(1), polling);
    let (guest, writes) = (guest(1), Arc::<Writes>::default());
    let ring = ring(DirectDisk { disk: disk(), file, writes: writes.clone() }, &guest, 0);
    let device = ring.device().clone();
    let id = pool.attach(ring, None).unwrap();
    let since = Instant::now();
    while status(&guest) != 0 {
        assert!(since.elapsed() < STEP_TIME, "it is not answered");
        std::thread::yield_now();
    }
    let ring = pool.detach(id, RingKey { session: 0, index: 0 }).unwrap();
    assert_eq!((ring.base(), device.unfinished().0), (1, 0));
    let by_kernel = writes.by_kernel.load(Ordering::SeqCst);
    assert_eq!(ring.counters().direct, by_kernel as u64);
    pool.stop();
    (by_kernel, writes.by_threads.load(Ordering::SeqCst))
}

#[test]
fn what_the_kernel_does_by_itself_takes_no_thread_and_what_it_does_not_takes_one() {
    for polling in [Polling::Never, Polling::DEFAULT, Polling::Always] {
        let null = |write| File::options().read(true).write(write).open("/dev/null").unwrap();
        assert_eq!(write_with(null(true), polling), (1, 0), "it takes whatever is written");
        assert_eq!(write_with(null(false), polling), (0, 1), "it cannot be begun: opened for reading");
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(write_with(full, polling), (0, 1), "it fails");
        let memory = File::from(rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(1 << 16).unwrap();
        assert_eq!(
            write_with(memory, polling),
            (1, 0),
            "it knows of nothing that does not wait, and is begun all the same"
        );
        // Not each file system writes without waiting for its locks.
        let (by_kernel, by_threads) = write_with(tempfile::tempfile().unwrap(), polling);
        assert_eq!(by_kernel + by_threads, 1);
    }
}
