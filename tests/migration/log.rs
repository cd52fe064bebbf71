//! The front-end's end of the dirty log, and what it is compared with.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::MemfdFlags;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::common::frontend::Session;
use crate::common::frontend::memory::{Memory, Span};

/// What one bit stands for.
pub(super) const PAGE: u64 = 4096;

/// Pages by their number.
pub(super) type Pages = BTreeSet<u64>;

/// A log in shared memory.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    mapping: MmapRegion,
    bytes: u64,
}

impl Log {
    /// An empty log of as many bytes; its file is longer.
    pub(super) fn new(bytes: u64) -> Self {
        let file = File::from(rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(bytes + 2 * PAGE).unwrap();
        let place = FileOffset::new(file.try_clone().unwrap(), 0);
        let mapping = MmapRegion::from_file(place, (bytes + 2 * PAGE) as usize).unwrap();
        Self { file, mapping, bytes }
    }

    /// A log of all of `memory`.
    pub(super) fn of(memory: &Memory) -> Self {
        let ends = memory.spans().into_iter().map(|Span { guest_start, bytes }| guest_start + bytes);
        Self::new(ends.max().unwrap().div_ceil(PAGE * 8))
    }

    /// Gives it to the back-end, in place of the one before.
    pub(super) fn announce(&self, session: &Session) {
        let region = VhostUserDirtyLogRegion {
            mmap_size: self.bytes,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        session.ask(|control| control.set_log_base(0, Some(region))).unwrap();
    }

    /// What is marked. Nothing must be behind the log's end.
    pub(super) fn pages(&self) -> Pages {
        let mut bytes = vec![0; (self.bytes + 2 * PAGE) as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap_or_default();
        let behind = &bytes[self.bytes as usize..];
        assert!(behind.iter().all(|byte| *byte == 0), "marks behind the log's end");
        let marked = |page: &u64| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1;
        (0..self.bytes * 8).filter(marked).collect()
    }

    /// What is marked, and is not any more: as QEMU reads it while the guest runs.
    pub(super) fn take(&self) -> Pages {
        let bits = self.mapping.as_volatile_slice();
        let mut pages = Pages::new();
        for word in 0..self.bytes.div_ceil(8) {
            let taken =
                bits.get_atomic_ref::<AtomicU64>(word as usize * 8).unwrap().swap(0, Ordering::SeqCst);
            let taken = u64::from_le(taken);
            pages.extend((0..64).filter(|bit| taken >> bit & 1 == 1).map(|bit| word * 64 + bit));
        }
        pages
    }

    /// Takes its bytes away.
    pub(super) fn truncate(&self) {
        self.file.set_len(0).unwrap();
    }

    /// Its file.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The pages of so many bytes at an address.
pub(super) fn pages_of(address: u64, bytes: u64) -> std::ops::RangeInclusive<u64> {
    address / PAGE..=(address + bytes - 1) / PAGE
}

/// All that is in memory.
#[derive(Debug)]
pub(super) struct Snapshot(Vec<(Span, Vec<u8>)>);

impl Snapshot {
    /// As it is now.
    pub(super) fn of(memory: &Memory) -> Self {
        let read = |span: Span| (span, memory.read(span.guest_start, span.bytes as usize));
        Self(memory.spans().into_iter().map(read).collect())
    }

    /// Copies pages again.
    pub(super) fn update(&mut self, memory: &Memory, pages: &Pages) {
        for (span, bytes) in &mut self.0 {
            let first = span.guest_start / PAGE;
            for page in pages.range(first..first + span.bytes / PAGE) {
                let at = ((page - first) * PAGE) as usize;
                bytes[at..at + PAGE as usize].copy_from_slice(&memory.read(page * PAGE, PAGE as usize));
            }
        }
    }

    /// The pages in which `later` differs.
    pub(super) fn changes(&self, later: &Self) -> Pages {
        let mut pages = Pages::new();
        for ((span, before), (_, after)) in self.0.iter().zip(&later.0) {
            let both = before.chunks(PAGE as usize).zip(after.chunks(PAGE as usize));
            let numbered = (span.guest_start / PAGE..).zip(both);
            pages.extend(numbered.filter(|(_, (before, after))| before != after).map(|(page, _)| page));
        }
        pages
    }
}
