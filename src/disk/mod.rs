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
//! sys ranges kept_file symlinks inode backing_path
//! lock durability media executor
//! space
//! failure
//! mapping
//! mapped file block
//! overlay
//! backing
//! open
//! ```

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::copy::{self, PrefetchHint, Segments};

mod backing;
mod backing_path;
mod block;
mod durability;
mod error;
pub mod executor;
mod failure;
mod file;
mod inode;
mod kept_file;
mod lock;
mod mapped;
mod mapping;
mod media;
mod open;
mod overlay;
mod ranges;
mod space;
mod symlinks;
mod sys;
#[cfg(test)]
pub(crate) mod testing;

pub use backing::{Backing, count_huge_pages};
pub use backing_path::BackingPath;
pub use block::BlockDisk;
pub use durability::flush::{Flusher, Ticket};
pub use error::{DiskError, GrowError};
pub use file::FileDisk;
pub use inode::Inode;
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
pub use media::storage::{Storage, StorageKind, StorageLayer};
pub use open::describe::{Description, describe};
pub use open::error::OpenError;
pub use open::open;
pub use open::options::{OpenOptions, Opened, OverlayOptions};
pub use open::policy::{DeepFlush, DiscardPolicy, UnknownWord};
pub use open::preview::{Preview, preview};
pub use overlay::in_file::{BaseStamp, OverlayFileError, prepare as prepare_overlays};
pub use overlay::{InFile, InMemory, Overlay, Upper};
pub use symlinks::Symlinks;

/// Size, block size and access of a disk: fixed while it is served, but the size may grow.
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

/// What a completed and flushed write survives; the last three are libpmem2's granularities.
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

/// A read or a write that the kernel can do by itself, past the page cache.
#[derive(Debug, Clone, Copy)]
pub struct DirectTransfer<'a> {
    /// Opened with `O_DIRECT`.
    pub file: BorrowedFd<'a>,
    /// In bytes of the file.
    pub offset: u64,
    /// What is filled, or stored.
    pub data: Segments<'a>,
    /// Which of both.
    pub is_write: bool,
}

/// Bytes that can be read, written and persisted.
///
/// # Who calls
/// Several workers at once, any method but [`rescan_size`](Disk::rescan_size), which the control plane calls. Offsets and
/// lengths are bytes, multiples of [`unit_bytes`](Disk::unit_bytes): larger blocks are the caller's rule. An implementation
/// checks bounds again, since a mistake there would be a memory error.
///
/// Pages of guest memory may be missing until they are touched, for as long as a front-end likes. An implementation that
/// takes a lock, or has the kernel copy, [touches](copy::touch) them first.
///
/// # Visibility
/// A write, and zeroes, are visible to every read that begins after the call has returned. Calls that overlap in time and
/// in bytes may see and leave a mix of both.
///
/// # Persistence
/// What a write has stored persists, as far as [`durability`](Disk::durability) promises,
/// - where that is [`Durability::CacheLine`] or [`Durability::Byte`]: when the [`fence`](Disk::fence) after it has returned;
/// - otherwise: when a [`flush`](Disk::flush) that began after it had returned has returned `Ok`, or a
///   [`try_flush`](Disk::try_flush) after it has answered `Ok`. After a flush that failed nothing is known.
///
/// The same holds for zeroes; a discard promises nothing.
///
/// # Power failure
/// A write that had not persisted may be there in part, also inside of a sector: mapped persistent media takes 8 aligned
/// bytes as a whole; in the cache line around a place where two segments meet at no multiple of 8, not even these. (The
/// tests of `tools::crash` make such states.) A file system or a database above must expect torn sectors.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Size, block size, access.
    fn geometry(&self) -> Geometry;

    /// Reads the length of the backing again, and serves the new part of one that has grown; returns how many bytes are
    /// served. What was served before is so all the while. It may take long (space is allocated).
    ///
    /// # Errors
    /// [`GrowError`]; the size is the same as before then.
    fn rescan_size(&self) -> Result<u64, GrowError> {
        Ok(self.geometry().capacity_bytes)
    }

    /// Offsets and lengths must be multiples of this, in bytes. It may be less than a block: firmware and small drivers read
    /// single sectors, whatever block size they are told.
    fn unit_bytes(&self) -> u32 {
        self.geometry().block_bytes
    }

    /// What the backing promises.
    fn durability(&self) -> Durability;

    /// The first value of `writeback` in the configuration space (VIRTIO 1.2 §5.2.4): `true`, the guest must flush;
    /// `false`, each completed write persists.
    fn initial_writeback(&self) -> bool {
        self.durability().needs_flush()
    }

    /// Offset and length of a discard should be multiples of this, in bytes: the rest keeps its space.
    fn discard_alignment_bytes(&self) -> u64 {
        4096
    }

    /// Bytes that are written to the media when `len` bytes are written at `offset`: whole cache lines of mapped media,
    /// otherwise `len`.
    ///
    /// It depends on its arguments only, so that each worker can add it up for its own rings: a counter here would be a
    /// cache line that all of them write.
    #[inline]
    fn media_written_bytes(&self, offset: u64, len: u64) -> u64 {
        let _ = offset;
        len
    }

    /// The address of the byte at `offset`, to be prefetched; none where `offset` is outside, there is no mapping, or media is
    /// bad, which not even a prefetch may touch.
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

    /// Whether what is asked of it may wait for media, for as long as that likes: then nobody calls
    /// [`read`](Self::read), [`write`](Self::write), [`discard`](Self::discard) or [`write_zeroes`](Self::write_zeroes) who
    /// has something else to do. (A [`flush`](Self::flush) may always.) It does not change.
    fn may_wait(&self) -> bool {
        false
    }

    /// Whether changes of the same disk that are made at the same time only wait for each other.
    fn changes_exclude_each_other(&self) -> bool {
        false
    }

    /// Whether a [`write`](Self::write) now is hardly more than a copy into the page cache, although it
    /// [may wait](Self::may_wait): then a thread may do it that somebody relieves if it does wait.
    fn writes_are_quick(&self) -> bool {
        false
    }

    /// Whether any of its transfers can be [direct](Self::direct). It does not change.
    fn has_direct(&self) -> bool {
        false
    }

    /// A read or a write that somebody else may have the kernel do, in place of [`read`](Self::read) and
    /// [`write`](Self::write): if it succeeds with all bytes, [`transferred`](Self::transferred) is called; otherwise, it is done
    /// as always. `None` where that is not possible.
    fn direct<'a>(&'a self, offset: u64, data: Segments<'a>, is_write: bool) -> Option<DirectTransfer<'a>> {
        let _ = (offset, data, is_write);
        None
    }

    /// Such a transfer was done.
    fn transferred(&self, offset: u64, len: u64, is_write: bool) {
        let _ = (offset, len, is_write);
    }

    /// As [`read`](Self::read), if that succeeds without waiting for media. Returns whether it was done; if not, a part of
    /// `into` may be filled.
    fn try_read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> bool {
        let _ = (offset, into, next);
        false
    }

    /// Whether the media can be [told](Self::announce) of reads of so many bytes.
    fn can_announce(&self, len: u64) -> bool {
        let _ = len;
        false
    }

    /// These bytes are about to be [read](Self::read): has the media begin with that. It may wait for media.
    fn announce(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// As [`read`](Self::read) of what was announced, if that need not be waited for any more. Returns whether it was done; if
    /// not, a part of `into` may be filled.
    fn read_announced(&self, offset: u64, into: Segments<'_>) -> bool {
        let _ = (offset, into);
        false
    }

    /// Another machine may have written to what this disk is made of: what has been read before is to be read anew. No call of
    /// this disk is under way, but [`rescan_size`](Self::rescan_size).
    fn forget_cached(&self) {}

    /// Called once a turn, before requests are [tried](Self::try_read).
    fn begin_turn(&self) {}

    /// A driver starts a ring, at its beginning or where the ring `goes_on`; `is_first`: no other ring of the disk runs. Returns
    /// whether the disk has lost what that driver has written: then its requests fail until it begins anew.
    fn ring_starts(&self, ring: u16, goes_on: bool, is_first: bool) -> bool {
        let _ = (ring, goes_on, is_first);
        false
    }

    /// Orders every write so far before whatever is stored next: called once a batch, before its completions are published.
    /// The CPU's store fence, unless an implementation needs more.
    #[inline]
    fn fence(&self) {
        copy::store_fence();
    }

    /// Whether a flush takes nothing but the [`fence`](Self::fence) after the writes it covers: [`try_flush`](Self::try_flush)
    /// always answers `Ok`. It stays so while the disk is served.
    fn flushes_by_fence(&self) -> bool {
        false
    }

    /// Answers a flush where that takes no system call: a fence is all that is needed, or nothing was written since a flush
    /// that is over, and none runs. `None` when it takes a [`flush`](Self::flush).
    ///
    /// The caller [fences](Self::fence) before it passes the answer on: a ring does so once a batch.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
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

    /// Whether [`write_zeroes`](Self::write_zeroes) with `unmap` takes little time, however many bytes: the file system only
    /// notes them down ("fast zero" of NBD).
    fn has_fast_zero(&self) -> bool {
        false
    }

    /// Makes the bytes read as zeroes; with `unmap` their space may be given back. Returns how many bytes are written to the
    /// media for it: none where the file system only notes them down.
    ///
    /// # Errors
    /// As [`DiskError`].
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError>;
}
