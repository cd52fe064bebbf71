//! The space of a file: allocated, given back, zeroed by the file system.

use std::fs::File;
use std::io;

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, retry_on_intr};

/// Make sure that every byte has its space.
pub(super) const ALLOCATE: FallocateFlags = FallocateFlags::empty();

/// Give the space back; the bytes read as zeroes.
pub(super) const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// Let the bytes read as zeroes and keep their space.
pub(super) const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// Does `what` to `len` bytes at `offset`; `false` when this file system cannot.
///
/// # Errors
/// The error of `fallocate(2)`.
pub(super) fn fallocate(file: &File, what: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
    if len == 0 {
        return Ok(true); // the system calls that an error
    }
    match retry_on_intr(|| rustix::fs::fallocate(file, what, offset, len)) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
