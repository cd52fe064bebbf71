//! Why bytes of a mapping were not there.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use rustix::fs::SeekFrom;

use super::{DiskError, HUGE_PAGE_BYTES};

/// What was not there when it was to be copied.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum Loss {
    #[error("guest memory is lost (its file was truncated, or a page of it went bad)")]
    GuestMemory,
    #[error(
        "{}: the file was truncated to {file_bytes} bytes while {len_bytes} are served; make it as long again \
         and restore what is missing", file.display()
    )]
    Truncated { file: PathBuf, file_bytes: u64, len_bytes: u64 },
    #[error(
        "{}: no space is left on its file system for the hole at byte {offset}; free some, or preallocate",
        file.display()
    )]
    Full { file: PathBuf, offset: u64 },
    #[error(
        "{}: this process may not write to byte {offset} of a file; raise its limit (ulimit -f, LimitFSIZE= of the \
         service)", file.display()
    )]
    Limited { file: PathBuf, offset: u64 },
    #[error("{}: the media failed at byte {offset}", file.display())]
    Media { file: PathBuf, offset: u64 },
}

impl Loss {
    /// Why bytes could not be written to a file at this offset, where an error of the system says too little.
    pub(in super::super) fn of_write(file: &File, offset: u64, error: io::Error) -> io::Error {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => io::Error::other(Self::Full { file: path_of(file), offset }),
            Some(libc::EFBIG) => io::Error::other(Self::Limited { file: path_of(file), offset }),
            _ => error,
        }
    }

    /// Where the media has failed, in bytes of the disk, if that is what an error says.
    pub(in super::super) fn of_media(error: &DiskError) -> Option<u64> {
        let DiskError::Io { source, .. } = error else { return None };
        match source.get_ref()?.downcast_ref::<Self>()? {
            Self::Media { offset, .. } => Some(*offset),
            Self::GuestMemory | Self::Truncated { .. } | Self::Full { .. } | Self::Limited { .. } => None,
        }
    }
}

/// The path of an open file, as the kernel knows it now.
pub(super) fn path_of(file: &File) -> PathBuf {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(&link).unwrap_or_else(|_| link.into())
}

/// Whether a byte is not there because its file system has no space for it: it is in a hole, and what could be had
/// is less than a huge page. (Of what has its space, the media is to blame, however full the file system is.)
pub(super) fn has_no_space(file: &File, offset: u64) -> bool {
    // Offsets of the open file are nobody's business: all I/O names its own.
    let is_hole = rustix::fs::seek(file, SeekFrom::Hole(offset)).is_ok_and(|hole| hole == offset);
    // Some is set aside: what is free is not all to be had.
    let is_full = rustix::fs::fstatvfs(file)
        .is_ok_and(|it| it.f_blocks > 0 && it.f_bavail.saturating_mul(it.f_frsize) < HUGE_PAGE_BYTES as u64);
    is_hole && is_full
}
