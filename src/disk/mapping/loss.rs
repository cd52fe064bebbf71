//! Why bytes of a mapping were not there.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use super::super::space::{self, Lacking};
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
    #[error("{}: no space is left on its file system {}", file.display(), needed_for(*lacking, *offset))]
    Full { file: PathBuf, offset: u64, lacking: Lacking },
    #[error(
        "{}: this process may not write to byte {offset} of a file; raise its limit (ulimit -f, LimitFSIZE= of the \
         service)", file.display()
    )]
    Limited { file: PathBuf, offset: u64 },
    #[error(
        "{}: its device is gone (it was reconfigured, or its driver was taken from it); mend that, and start the daemon \
         again", file.display()
    )]
    Gone { file: PathBuf },
    #[error("{}: the media failed at byte {offset}", file.display())]
    Media { file: PathBuf, offset: u64 },
}

impl Loss {
    /// Why bytes could not be written to a file at this offset, where an error of the system says too little.
    pub(in super::super) fn of_write(file: &File, offset: u64, error: io::Error) -> io::Error {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                let lacking = Lacking::at(file, offset).unwrap_or(Lacking::Unknown);
                io::Error::other(Self::Full { file: path_of(file), offset, lacking })
            }
            Some(libc::EFBIG) => io::Error::other(Self::Limited { file: path_of(file), offset }),
            _ => error,
        }
    }

    /// Where the media has failed, in bytes of the disk, if that is what an error says.
    pub(in super::super) fn of_media(error: &DiskError) -> Option<u64> {
        let DiskError::Io { source, .. } = error else { return None };
        match source.get_ref()?.downcast_ref::<Self>()? {
            Self::Media { offset, .. } => Some(*offset),
            Self::GuestMemory
            | Self::Truncated { .. }
            | Self::Full { .. }
            | Self::Limited { .. }
            | Self::Gone { .. } => None,
        }
    }
}

/// The path of an open file, as the kernel knows it now.
pub(super) fn path_of(file: &File) -> PathBuf {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(&link).unwrap_or_else(|_| link.into())
}

/// What space was needed for, and what helps.
fn needed_for(lacking: Lacking, offset: u64) -> String {
    match lacking {
        Lacking::Hole => format!("for the hole at byte {offset}; free some, or preallocate"),
        Lacking::Shared => {
            format!("to copy what it shares with another file at byte {offset}; free some, or copy it before")
        }
        Lacking::Unknown => format!("for a write at byte {offset}; free some"),
    }
}

/// What a byte that is not there lacks because its file system has no space for it: it is in a hole, or shared, and what
/// could be had is less than a huge page. (Of what has its space, the media is to blame, however full the file system is.)
pub(in super::super) fn lacks_space(file: &File, offset: u64) -> Option<Lacking> {
    // Some is set aside: what is free is not all to be had.
    let is_full = space::free_bytes(file).is_some_and(|bytes| bytes < HUGE_PAGE_BYTES as u64);
    is_full.then(|| Lacking::at(file, offset))?
}
