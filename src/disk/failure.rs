//! Why bytes of a mapping were not there.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use crate::disk::DiskError;
use crate::disk::FileSystem;
use crate::disk::space::{self, SpaceNeed};

/// A file system with less free space than a huge page is full: some is set aside, so that what is free is not all to be had.
const FULL_BELOW_BYTES: u64 = 2 << 20;

/// What was not there when it was to be copied.
#[derive(Debug, thiserror::Error)]
pub(in crate::disk) enum IoFailure {
    #[error("guest memory is lost (its file was truncated, or a page of it went bad)")]
    GuestMemory,
    #[error(
        "{}: the file was truncated to {file_bytes} bytes while {len_bytes} are served; make it as long again \
         and restore what is missing", file.display()
    )]
    Truncated { file: PathBuf, file_bytes: u64, len_bytes: u64 },
    #[error("{}: no space is left on its file system {}", file.display(), needed_for(*need, *offset))]
    Full { file: PathBuf, offset: u64, need: SpaceNeed },
    #[error(
        "{}: this process may not write to byte {offset} of a file; raise its limit (ulimit -f, LimitFSIZE= of the \
         service)", file.display()
    )]
    Limited { file: PathBuf, offset: u64 },
    #[error(
        "{}: its device is gone (it was reconfigured, or has lost its driver); repair that, and start the daemon \
         again", file.display()
    )]
    Gone { file: PathBuf },
    #[error("{}: the media failed at byte {offset}", file.display())]
    Media { file: PathBuf, offset: u64 },
    #[error(
        "{}: the file server{} failed{} ({cause}); check that it runs, can be reached and has the file, mount it again if \
         need be, and start the daemon again", file.display(), named(*file_system), at(*offset)
    )]
    Server { file: PathBuf, file_system: Option<FileSystem>, offset: Option<u64>, cause: String },
    #[error(
        "{}: a quota of its user, group or project is used up{}; raise it, or free what counts against it",
        file.display(), at(*offset)
    )]
    Quota { file: PathBuf, offset: Option<u64> },
    #[error(
        "{max_bytes} bytes were written to the overlay, which is all that it may take; raise overlay-max=, or have the \
         guest discard what it does not need"
    )]
    OverlayFull { max_bytes: u64 },
    #[error(
        "what this guest has written before was in the memory of a daemon that has ended (overlay=memory); restart the guest"
    )]
    OverlayLost,
    #[error("{}: its file system or device refuses changes{} ({cause}); repair that, or use readonly=on", file.display(), at(*offset))]
    Refused { file: PathBuf, offset: Option<u64>, cause: io::Error },
    #[error("{}: its device, or the way to it, failed{} ({cause}); see the kernel's log", file.display(), at(*offset))]
    Device { file: PathBuf, offset: Option<u64>, cause: io::Error },
}

impl IoFailure {
    /// Who has refused something of a file, at this offset if it was at one, where an error of the system says too little.
    pub(in crate::disk) fn of_error(file: &File, offset: Option<u64>, error: io::Error) -> io::Error {
        let Some(code) = error.raw_os_error() else { return error };
        let path = path_of(file);
        let failure = match code {
            libc::ENOSPC => {
                let offset = offset.unwrap_or_default();
                Self::Full {
                    file: path,
                    offset,
                    need: SpaceNeed::at(file, offset).unwrap_or(SpaceNeed::Unknown),
                }
            }
            libc::EDQUOT => Self::Quota { file: path, offset },
            libc::EFBIG => Self::Limited { file: path, offset: offset.unwrap_or_default() },
            libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM => Self::Gone { file: path },
            libc::EPERM | libc::EACCES | libc::EROFS => Self::Refused { file: path, offset, cause: error },
            code if is_server_error(code) => {
                let file_system = space::file_system(file);
                Self::Server { file: path, file_system, offset, cause: error.to_string() }
            }
            libc::EIO | libc::ENODATA | libc::ETIMEDOUT | libc::EREMOTEIO | libc::EILSEQ => {
                match space::file_system(file).filter(|it| it.has_server()) {
                    None => Self::Device { file: path, offset, cause: error },
                    file_system => Self::Server { file: path, file_system, offset, cause: error.to_string() },
                }
            }
            _ => return error,
        };
        io::Error::other(failure)
    }

    /// The same of what has failed at an offset of a disk.
    pub(in crate::disk) fn explain(file: &File, offset: u64, error: DiskError) -> DiskError {
        match error {
            DiskError::Io { operation, offset: start, len, source } => {
                let source = Self::of_error(file, Some(offset), source);
                DiskError::Io { operation, offset: start, len, source }
            }
            other => other,
        }
    }

    /// Why the page of a mapping was not there, of a file that is long enough and has its space.
    pub(in crate::disk) fn of_page(file: &File, offset: u64) -> Self {
        let path = path_of(file);
        let server = |file_system, cause| Self::Server {
            file: path.clone(),
            file_system,
            offset: Some(offset),
            cause,
        };
        match rustix::fs::fstatfs(file) {
            Err(errno) => server(None, errno.to_string()),
            Ok(statfs) => match FileSystem::of(&statfs) {
                it if it.has_server() => server(Some(it), "it did not deliver the page".to_owned()),
                _ => Self::Media { file: path, offset },
            },
        }
    }

    /// Where the media has failed, in bytes of the disk, if that is what an error says.
    pub(in crate::disk) fn of_media(error: &DiskError) -> Option<u64> {
        let DiskError::Io { source, .. } = error else { return None };
        match source.get_ref()?.downcast_ref::<Self>()? {
            Self::Media { offset, .. } => Some(*offset),
            Self::GuestMemory
            | Self::Truncated { .. }
            | Self::Full { .. }
            | Self::Limited { .. }
            | Self::Gone { .. }
            | Self::Server { .. }
            | Self::Quota { .. }
            | Self::OverlayFull { .. }
            | Self::OverlayLost
            | Self::Refused { .. }
            | Self::Device { .. } => None,
        }
    }
}

/// Errors that only who is asked over a connection gives: a server of FUSE that has ended, a machine that is not there, a
/// file that it no longer knows.
pub(in crate::disk) const fn is_server_error(code: i32) -> bool {
    matches!(
        code,
        libc::ENOTCONN
            | libc::ECONNABORTED
            | libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::ESHUTDOWN
            | libc::ESTALE
    )
}

/// That a file is shorter than `end`, while so many bytes are served.
pub(in crate::disk) fn truncated_before(file: &File, end: u64, len_bytes: u64) -> Option<IoFailure> {
    // The length of a device is not told so, and cannot change.
    let metadata = file.metadata().ok().filter(|it| it.is_file() && it.len() < end)?;
    Some(IoFailure::Truncated { file: path_of(file), file_bytes: metadata.len(), len_bytes })
}

fn named(file_system: Option<FileSystem>) -> String {
    file_system.map_or_else(String::new, |it| format!(" ({it})"))
}

fn at(offset: Option<u64>) -> String {
    offset.map_or_else(String::new, |offset| format!(" at byte {offset}"))
}

/// The path of an open file, as the kernel knows it now.
pub(in crate::disk) fn path_of(file: &File) -> PathBuf {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(&link).unwrap_or_else(|_| link.into())
}

/// What space was needed for, and what helps.
fn needed_for(need: SpaceNeed, offset: u64) -> String {
    match need {
        SpaceNeed::Hole => format!("for the hole at byte {offset}; free some, or preallocate"),
        SpaceNeed::Shared => {
            format!("to copy what it shares with another file at byte {offset}; free some, or copy it before")
        }
        SpaceNeed::Unknown => format!("for a write at byte {offset}; free some"),
    }
}

/// What a byte that is not there lacks because its file system has no space for it: it is in a hole, or shared, and what
/// could be had is less than a huge page. (Of what has its space, the media is to blame, however full the file system is.)
pub(in crate::disk) fn missing_space(file: &File, offset: u64) -> Option<SpaceNeed> {
    let is_full = space::free_bytes(file).is_some_and(|bytes| bytes < FULL_BELOW_BYTES);
    is_full.then(|| SpaceNeed::at(file, offset))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_who_it_was_and_what_to_do() {
        let file = tempfile::tempfile().unwrap();
        let words =
            |code| IoFailure::of_error(&file, Some(512), io::Error::from_raw_os_error(code)).to_string();
        let cases = [
            (libc::ENOSPC, ["no space is left on its file system", "free some"]),
            (libc::EDQUOT, ["a quota of its user, group or project is used up at byte 512", "raise it"]),
            (libc::EFBIG, ["this process may not write to byte 512", "ulimit -f"]),
            (libc::ENODEV, ["its device is gone", "start the daemon again"]),
            (libc::ENXIO, ["its device is gone", "start the daemon again"]),
            (libc::EPERM, ["refuses changes at byte 512 (Operation not permitted", "use readonly=on"]),
            (libc::EROFS, ["refuses changes at byte 512 (Read-only file system", "use readonly=on"]),
            (libc::ENOTCONN, ["the file server", "check that it runs"]),
            (libc::ESTALE, ["(Stale file handle (os error 116))", "mount it again"]),
            (libc::EHOSTDOWN, ["(Host is down (os error 112))", "check that it runs"]),
            (libc::EIO, ["its device, or the way to it, failed at byte 512", "see the kernel's log"]),
            (libc::ENODATA, ["its device, or the way to it, failed at byte 512", "see the kernel's log"]),
        ];
        for (code, parts) in cases {
            assert!(parts.iter().all(|part| words(code).contains(part)), "{}", words(code));
        }
        assert_eq!(words(libc::EBADF), "Bad file descriptor (os error 9)");
        let flush = IoFailure::of_error(&file, None, io::Error::from_raw_os_error(libc::EIO)).to_string();
        assert!(flush.contains("or the way to it, failed (Input/output error (os error 5)); see"), "{flush}");
    }
}
