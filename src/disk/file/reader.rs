//! How a file behind the page cache is read.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::copy::{self, PrefetchHint, Segments};
use crate::disk::error::failed;
use crate::disk::failure::{IoFailure, truncated_before};
use crate::disk::{DiskError, Mapping, sys};

/// How the bytes are reached.
#[derive(Debug)]
pub(super) enum Reader {
    /// By loads from a mapping, which is never writable, whatever the disk is.
    Mapped(Mapping),
    /// By `preadv(2)`: a server of FUSE asks for that (`direct_io`), 9p has no shared mappings without a cache. Bytes served.
    Preadv(AtomicU64),
}

impl Reader {
    pub(super) fn new(file: &File, len_bytes: u64) -> io::Result<Self> {
        match Mapping::new(file, len_bytes, true) {
            Ok(mapping) => Ok(Self::Mapped(mapping)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => {
                Ok(Self::Preadv(AtomicU64::new(len_bytes)))
            }
            Err(error) => Err(error),
        }
    }

    /// Bytes served.
    #[inline]
    pub(super) fn len_bytes(&self) -> u64 {
        match self {
            Self::Mapped(mapping) => mapping.len_bytes(),
            Self::Preadv(len_bytes) => len_bytes.load(Ordering::Acquire),
        }
    }

    /// As [`Mapping::grow`].
    pub(super) fn grow(&self, target: u64) -> io::Result<()> {
        match self {
            Self::Mapped(mapping) => mapping.grow(target)?,
            Self::Preadv(len_bytes) => drop(len_bytes.fetch_max(target, Ordering::Release)),
        }
        Ok(())
    }

    #[inline]
    pub(super) fn prefetch_hint(&self, offset: u64) -> PrefetchHint {
        match self {
            Self::Mapped(mapping) => mapping.prefetch_hint(offset),
            Self::Preadv(_) => PrefetchHint::NONE,
        }
    }

    /// Reads, and waits for media if it must.
    ///
    /// Not through the mapping: a fault there reads what is around, too (127 KiB for 4 KiB, measured), and one at a time.
    pub(super) fn read(&self, file: &File, offset: u64, into: Segments<'_>) -> Result<(), DiskError> {
        match self {
            Self::Mapped(mapping) => {
                mapping.check(offset, into.total_bytes() as u64)?;
                copy::touch(into);
                // Where that fails, the mapping knows best why.
                let read = sys::preadv_all(file.as_fd(), offset, into);
                read.or_else(|_| mapping.read(offset, into, PrefetchHint::NONE))
            }
            Self::Preadv(_) => self.preadv(file, offset, into),
        }
    }

    #[inline(never)]
    fn preadv(&self, file: &File, offset: u64, into: Segments<'_>) -> Result<(), DiskError> {
        let len = into.total_bytes() as u64;
        self.check_end(file, offset, len)?;
        copy::touch(into);
        sys::preadv_all(file.as_fd(), offset, into)
            .map_err(|error| failed("preadv", offset, len)(IoFailure::of_error(file, Some(offset), error)))
    }

    /// As [`Mapping::check_end`], and that they are inside.
    #[inline]
    pub(super) fn check_end(&self, file: &File, offset: u64, len: u64) -> Result<(), DiskError> {
        let len_bytes = match self {
            Self::Mapped(mapping) => return mapping.check_end(offset, len),
            Self::Preadv(len_bytes) => len_bytes.load(Ordering::Acquire),
        };
        match offset.checked_add(len) {
            Some(end) if end <= len_bytes => match truncated_before(file, end, len_bytes) {
                Some(failure) if len != 0 => {
                    Err(failed("using the file", offset, len)(io::Error::other(failure)))
                }
                _ => Ok(()),
            },
            _ => Err(DiskError::OutOfRange { offset, len, capacity_bytes: len_bytes }),
        }
    }

    /// Takes the file out of the page cache, as far as nobody else has it mapped.
    pub(super) fn forget_cached(&self, file: &File) {
        if let Self::Mapped(mapping) = self {
            // Of what is in page tables nothing is taken out.
            let _ = mapping.dont_need(0..mapping.len_bytes());
        }
        // Without a page cache there is nothing to take out.
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }

    /// Forgets what the kernel has announced of pages of the page cache.
    pub(super) fn forget_announced(&self) {
        if let Self::Mapped(mapping) = self {
            // Of no use here: a read of such a page fails by itself.
            drop(mapping.announced());
        }
    }
}
