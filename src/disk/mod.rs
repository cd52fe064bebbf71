//! Disks: bytes on media, and what it takes for them to survive.
//!
//! Four words are kept apart here:
//! - *fence*: stores issued so far are ordered before stores issued later (one `sfence` a batch);
//! - *persist*: a write has reached what the backing promises to keep ([`Durability`]);
//! - *flush*: the request of a guest that everything acknowledged before it must persist;
//! - *drain*: requests already fetched from a ring are finished and published.
//!
//! Its parts, the lowest first: each may import what is in the lines above it, and nothing else (`ci/borders` reads this).
//!
//! ```text
//! error
//! mod
//! sys ranges kept_file symlinks backing_path
//! lock durability media
//! space
//! failure
//! mapping
//! mapped file block
//! backing
//! open
//! ```

use std::fmt;

use crate::copy::{self, PrefetchHint, Segments};

mod backing;
mod backing_path;
mod block;
mod durability;
mod error;
mod failure;
mod file;
mod kept_file;
mod lock;
mod mapped;
mod mapping;
mod media;
mod open;
mod ranges;
mod space;
mod symlinks;
mod sys;

pub use backing::{Backing, count_huge_pages};
pub use backing_path::BackingPath;
pub use block::BlockDisk;
pub use durability::flush::{Flusher, Ticket};
pub use error::{DiskError, GrowError};
pub use file::FileDisk;
pub(crate) use kept_file::KeptFile;
pub use lock::holder::Holder;
pub use lock::{BackingFile, FileLock, LockError, LockMode, UnknownLockMode};
pub use mapped::MappedDisk;
#[cfg(test)]
pub(crate) use mapped::emulated::EmulatedMedia;
pub use mapped::populate::Populated;
pub use mapping::Mapping;
pub use media::Media;
pub use media::kind::{BackingKind, FileKind, FileSystem};
pub use media::region::Region;
pub use open::describe::{Description, describe};
pub use open::error::OpenError;
pub use open::open;
pub use open::options::{OpenOptions, Opened};
pub use open::policy::{DeepFlush, DiscardPolicy, UnknownWord};
pub use symlinks::Symlinks;

/// What a disk is made of: fixed while it is served, but that it may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes, a multiple of `block_bytes`.
    pub capacity_bytes: u64,
    /// Logical block size in bytes that guests are told: 512 or 4096.
    pub block_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
}

impl Geometry {
    /// Whether `len` bytes at `offset` may be written.
    #[inline]
    fn check_write(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        match offset.checked_add(len) {
            _ if self.read_only => Err(DiskError::ReadOnly { offset, len }),
            Some(end) if end <= self.capacity_bytes => Ok(()),
            _ => Err(DiskError::OutOfRange { offset, len, capacity_bytes: self.capacity_bytes }),
        }
    }
}

/// How far a completed and flushed write is safe; the model is libpmem2's granularity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Lost with the machine (tmpfs, memfd, hugetlbfs).
    Volatile,
    /// Safe once the page cache has been synchronised (fdatasync, msync).
    Page,
    /// Safe once its cache lines are flushed and a fence is passed.
    CacheLine,
    /// Safe once a fence is passed: the CPU's caches are inside the power-fail domain.
    Byte,
}

impl Durability {
    /// Whether a guest must flush for its writes to persist, or should at least be able to.
    #[must_use]
    pub const fn needs_flush(self) -> bool {
        matches!(self, Self::Volatile | Self::Page)
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volatile => "volatile (lost with the machine)",
            Self::Page => "page (safe after a flush)",
            Self::CacheLine => "cache line (safe once completed)",
            Self::Byte => "byte (safe once completed, caches are protected)",
        })
    }
}

/// Bytes that can be read, written and persisted.
///
/// Every method may be called by several workers at once. Offsets and lengths are bytes and multiples of
/// nothing: block rules are the caller's. An implementation checks its own bounds again, since a mistake
/// there would be a memory error.
///
/// Pages of guest memory may be missing until they are touched, for as long as a front-end likes. An implementation that
/// takes a lock, or has the kernel copy, [touches](copy::touch) them first.
///
/// A write is visible to every later read once it returns. It persists when a [`flush`](Disk::flush) that
/// began after its [`fence`](Disk::fence) has returned, or at that fence where
/// [`durability`](Disk::durability) is at least [`Durability::CacheLine`].
///
/// A write that the power failed before may be there in part, also inside of a sector: mapped persistent
/// media takes 8 aligned bytes as a whole, and where two segments meet at a place that is no multiple of 8,
/// in the cache line around it, not even these (`crash` shows such states). Whole sectors take a layer above.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Size, block size, access.
    fn geometry(&self) -> Geometry;

    /// Looks how long the backing is by now, and serves the new part of one that has grown; answers how many
    /// bytes are served. What was served before is so all the while. It may take long (space is allocated),
    /// and no worker calls it.
    ///
    /// # Errors
    /// [`GrowError`]; the size is the same as before then.
    fn rescan_size(&self) -> Result<u64, GrowError> {
        Ok(self.geometry().capacity_bytes)
    }

    /// What offset and length of everything that is asked of it must be multiples of, in bytes: at most a block. Firmware
    /// and small drivers read single sectors whatever they are told of blocks.
    fn unit_bytes(&self) -> u32 {
        self.geometry().block_bytes
    }

    /// What the backing promises.
    fn durability(&self) -> Durability;

    /// What a guest is told at first of the cache: that it must flush (`writeback` is 1, VIRTIO 1.2 §5.2.4),
    /// or that each completed write persists.
    fn initial_writeback(&self) -> bool {
        self.durability().needs_flush()
    }

    /// What offset and length of a discard should be multiples of, in bytes.
    fn discard_alignment_bytes(&self) -> u64 {
        4096
    }

    /// Bytes that the media takes when `len` bytes are written at `offset`, where that is known: whole cache
    /// lines of mapped media, otherwise as many as are handed over.
    ///
    /// It depends on its arguments only, so that a worker can add it up for its own rings: a counter here
    /// would be a cache line that all of them write.
    #[inline]
    fn media_written_bytes(&self, offset: u64, len: u64) -> u64 {
        let _ = offset;
        len
    }

    /// Where the byte at `offset`, which need not be inside the disk, is read from or written to, as far as that is known
    /// and may be touched.
    #[inline]
    fn prefetch_hint(&self, offset: u64) -> PrefetchHint {
        let _ = offset;
        PrefetchHint::NONE
    }

    /// Fills `into` with the bytes at `offset`. What lies at `next` is likely to be needed after it: an implementation that
    /// copies memory prefetches it, others ignore it.
    ///
    /// # Errors
    /// As [`DiskError`]; `into` may have been filled in part.
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError>;

    /// Stores `from` at `offset`; `next` is as in [`read`](Self::read).
    ///
    /// # Errors
    /// As [`DiskError`]; the range may have been written in part.
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError>;

    /// Orders every write so far before whatever is stored next: called once a batch, before its
    /// completions are published. A disk that needs more than the CPU's fence says so.
    #[inline]
    fn fence(&self) {
        copy::store_fence();
    }

    /// Answers a flush if that takes no system call: nothing was written since the last one that is over, and
    /// none is under way, or a fence is all that is needed. `None` when it takes a [`flush`](Self::flush).
    ///
    /// The answer holds for what was [fenced](Self::fence) when it is passed on: a ring does that once for all
    /// answers of a batch.
    fn try_flush(&self) -> Option<Result<(), DiskError>>;

    /// Makes every write that finished before the call persist, and waits for it.
    ///
    /// # Errors
    /// As [`DiskError`]; nothing is known about the writes then.
    fn flush(&self) -> Result<(), DiskError>;

    /// The bytes are no longer needed; they may read as zeroes or as before.
    ///
    /// # Errors
    /// As [`DiskError`].
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// Whether zeroes whose space may be given back take little time, however many: they are only noted down.
    fn has_fast_zero(&self) -> bool {
        false
    }

    /// The bytes shall read as zeroes; with `unmap` their space may be given back. Returns how many bytes the
    /// media takes for it: none where the file system only notes that they are zero.
    ///
    /// # Errors
    /// As [`DiskError`].
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError>;
}
