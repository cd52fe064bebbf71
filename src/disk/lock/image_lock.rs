//! The locks by which QEMU tells other processes how it uses an image ("image locking", `block/file-posix.c`, since QEMU
//! 2.10): on single bytes, one for each permission that it uses, one for each that it grants to nobody else.
//!
//! `flock(2)` does not see them. Cloud Hypervisor locks the whole file in the same manner (since v47), and so does a
//! client of NFS in the eyes of its server, whatever it was asked for.

use std::fs::File;
use std::io;

use crate::disk::sys::{self, ByteLock, FoundLock};

/// A byte is locked here by whoever uses a permission.
const USED_BASE: u64 = 100;

/// A byte is locked here by whoever grants a permission to nobody.
const UNSHARED_BASE: u64 = 200;

/// QEMU's `BLK_PERM_CONSISTENT_READ`.
const CONSISTENT_READ: u64 = 0;

/// QEMU's `BLK_PERM_WRITE`.
const WRITE: u64 = 1;

/// QEMU's `BLK_PERM_RESIZE`.
const RESIZE: u64 = 3;

/// What nobody else may do meanwhile: as for a disk of QEMU's without `share-rw`.
const UNSHARED: [u64; 2] = [WRITE, RESIZE];

/// What a disk needs.
const fn used(read_only: bool) -> &'static [u64] {
    match read_only {
        true => &[CONSISTENT_READ],
        false => &[CONSISTENT_READ, WRITE],
    }
}

/// Takes the locks of a reader or of a writer; `false`, and none is taken, when what somebody else does or forbids is in
/// the way. Call it without holding them: else they are gone after `false`.
///
/// # Errors
/// The error of `fcntl(2)`.
pub(in crate::disk) fn try_acquire(file: &File, read_only: bool) -> io::Result<bool> {
    let acquired = lock(file, read_only).and_then(|locked| Ok(locked && is_compatible(file, read_only)?));
    if !matches!(acquired, Ok(true)) {
        // Ignored: the error to report, or the refusal, came before.
        let _ = release(file);
    }
    acquired
}

/// Gives the locks back.
///
/// # Errors
/// The error of `fcntl(2)`.
pub(in crate::disk) fn release(file: &File) -> io::Result<()> {
    sys::lock_bytes(file, USED_BASE..UNSHARED_BASE + RESIZE + 1, ByteLock::None).map(drop)
}

/// Whether an error says that there are no such locks on this file system.
pub(in crate::disk) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTTY))
}

/// Whether there are such locks on this file system.
pub(in crate::disk) fn is_supported(file: &File) -> bool {
    !sys::conflicting_lock(file, USED_BASE).is_err_and(|error| is_unsupported(&error))
}

fn lock(file: &File, read_only: bool) -> io::Result<bool> {
    let used = used(read_only).iter().map(|permission| USED_BASE + permission);
    let unshared = UNSHARED.iter().map(|permission| UNSHARED_BASE + permission);
    for byte in used.chain(unshared) {
        if !sys::lock_bytes(file, byte..byte + 1, ByteLock::Shared)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether nobody forbids what is used here, or does what is forbidden here.
fn is_compatible(file: &File, read_only: bool) -> io::Result<bool> {
    let forbidden = used(read_only).iter().map(|permission| UNSHARED_BASE + permission);
    let done = UNSHARED.iter().map(|permission| USED_BASE + permission);
    for byte in forbidden.chain(done) {
        let found = sys::conflicting_lock(file, byte)?;
        if found.is_some_and(|lock| !(read_only && is_reader_of_all(lock))) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether it is the lock of one who reads the file and locks all of it: it says nothing of single permissions.
const fn is_reader_of_all(lock: FoundLock) -> bool {
    lock.is_shared && lock.start < USED_BASE
}
