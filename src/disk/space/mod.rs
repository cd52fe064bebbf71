//! The space of a file: allocated, given back, zeroed by the file system, and persisted.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

use crate::disk::space::cgroup::MemoryLimit;
use crate::disk::{BackingKind, FileSystem, sys};

#[cfg(test)]
use crate::copy::recording::{self, Synced, Syncing};

pub(in crate::disk) mod cgroup;
pub(super) mod growth;

/// Make sure that every byte has its space.
pub(in crate::disk) const ALLOCATE: FallocateFlags = FallocateFlags::empty();

/// Leave the length of the file as it is.
pub(in crate::disk) const KEEP_SIZE: FallocateFlags = FallocateFlags::KEEP_SIZE;

/// Give the space back; the bytes read as zeroes.
pub(in crate::disk) const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// Let the bytes read as zeroes and keep their space.
pub(in crate::disk) const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// Have space that is shared with other files copied, so that every byte has its own.
pub(in crate::disk) const UNSHARE: FallocateFlags =
    FallocateFlags::UNSHARE_RANGE.union(FallocateFlags::KEEP_SIZE);

/// Bytes of the space that a file has, wherever in it (`st_blocks` of stat(2), which counts units of 512 bytes).
pub(in crate::disk) fn allocated_bytes(metadata: &Metadata) -> u64 {
    metadata.blocks().saturating_mul(512)
}

/// Why a write may need space that it does not find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::disk) enum SpaceNeed {
    /// Nothing was there yet.
    Hole,
    /// It is shared with another file, and so has to be copied.
    Shared,
    /// The file system writes everything to new places, or has its reasons.
    Unknown,
}

impl SpaceNeed {
    /// What this byte of a file lacks, if it has no space of its own.
    pub(in crate::disk) fn at(file: &File, offset: u64) -> Option<Self> {
        // Offsets of the open file are nobody's business: all I/O names its own.
        let is_hole = rustix::fs::seek(file, SeekFrom::Hole(offset)).is_ok_and(|hole| hole == offset);
        let is_shared = || shared_bytes(file, offset..offset.saturating_add(1)) != 0;
        match is_hole {
            true => Some(Self::Hole),
            false => is_shared().then_some(Self::Shared),
        }
    }
}

/// Bytes of this part of the file that other files have as well; none where the file system does not know.
pub(in crate::disk) fn shared_bytes(file: &File, part: Range<u64>) -> u64 {
    sys::shared_bytes(file, part).unwrap_or(0)
}

/// Does `what` to `len` bytes at `offset`; `false` when this file system cannot.
///
/// # Errors
/// The error of `fallocate(2)`.
pub(in crate::disk) fn fallocate(
    file: &File,
    what: FallocateFlags,
    offset: u64,
    len: u64,
) -> io::Result<bool> {
    if len == 0 {
        return Ok(true); // the system calls that an error
    }
    match retry_on_intr(|| rustix::fs::fallocate(file, what, offset, len)) {
        Ok(()) => {
            #[cfg(test)]
            if !ALLOCATE.union(KEEP_SIZE).contains(what) {
                recording::zeroed_file(offset, len);
            }
            Ok(true)
        }
        // EINVAL is what some in user space (fuse2fs) call that; there is nothing else that it could be about.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// As [`fallocate`] for the first bytes, part by part, until it `should_stop`.
///
/// # Errors
/// As above; `Interrupted` when it was stopped. Parts before stay as they are then.
pub(in crate::disk) fn fallocate_parts(
    file: &File,
    what: FallocateFlags,
    len: u64,
    part_bytes: u64,
    should_stop: impl Fn() -> bool,
) -> io::Result<bool> {
    let mut at = 0;
    while at < len {
        let part = part_bytes.max(1).min(len - at);
        if !fallocate(file, what, at, part)? {
            return Ok(false);
        }
        at += part;
        if at < len && should_stop() {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    Ok(true)
}

/// Gives every byte of a part its space, and leaves the length as it is where the file system can do that: `false` when
/// it cannot preallocate. NFS only knows the kind that makes a shorter file longer.
///
/// # Errors
/// The error of `fallocate(2)`.
pub(in crate::disk) fn allocate(file: &File, part: Range<u64>) -> io::Result<bool> {
    let len = part.end.saturating_sub(part.start);
    Ok(fallocate(file, KEEP_SIZE, part.start, len)? || fallocate(file, ALLOCATE, part.start, len)?)
}

/// The limit that keeps this process from having so many bytes of a file in memory, if one does, with the page tables for
/// them. (Huge pages have limits of their own, which allocations fail at.)
pub(in crate::disk) fn memory_limit(file: &File, bytes: u64) -> Option<MemoryLimit> {
    const PAGE_TABLE_SHARE: u64 = 512;
    let kind = BackingKind::of(&rustix::fs::fstatfs(file).ok()?);
    let needed_bytes = bytes.saturating_add(bytes / PAGE_TABLE_SHARE);
    match kind {
        BackingKind::Tmpfs | BackingKind::Ramfs if bytes != 0 => {
            MemoryLimit::tightest().filter(|limit| limit.room_bytes < needed_bytes)
        }
        _ => None,
    }
}

/// What a file is on.
pub(in crate::disk) fn file_system(file: &File) -> Option<FileSystem> {
    Some(FileSystem::of(&rustix::fs::fstatfs(file).ok()?))
}

/// Bytes that this user could still allocate beside the file, where the file system knows.
pub(in crate::disk) fn free_bytes(file: &File) -> Option<u64> {
    let statvfs = rustix::fs::fstatvfs(file).ok().filter(|it| it.f_blocks != 0)?;
    Some(statvfs.f_bavail.saturating_mul(statvfs.f_frsize))
}

/// Bytes that nobody has, also those that are set aside for root: more cannot be had. None where the file system does
/// not know.
pub(in crate::disk) fn unused_bytes(file: &File) -> Option<u64> {
    let statvfs = rustix::fs::fstatvfs(file).ok().filter(|it| it.f_blocks != 0)?;
    Some(statvfs.f_bfree.saturating_mul(statvfs.f_frsize))
}

/// Bytes of this part of the file that nobody has written to: at least as many as have no space yet. None where the
/// file system does not know. Moves the offset of the open file.
pub(in crate::disk) fn hole_bytes(file: &File, part: Range<u64>) -> u64 {
    let (mut at, mut bytes) = (part.start, 0_u64);
    while at < part.end {
        // ENXIO: no data up to the end of the file.
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(part.end),
            Err(Errno::NXIO) => part.end,
            Err(_) => return bytes,
        };
        bytes = bytes.saturating_add(data.saturating_sub(at));
        match rustix::fs::seek(file, SeekFrom::Hole(data)) {
            Ok(hole) if hole > data => at = hole,
            _ => return bytes,
        }
    }
    bytes
}

/// Waits until the bytes of the file are on its media, and what it takes to find them there.
///
/// # Errors
/// The error of `fdatasync(2)`.
pub(in crate::disk) fn sync_data(file: &File) -> io::Result<()> {
    #[cfg(test)]
    let _recorded = Syncing::start(Synced::Everything);
    file.sync_data()
}
