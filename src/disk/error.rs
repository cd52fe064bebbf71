//! Why a disk could not do what was asked of it.

use std::io;

/// Why a disk could not do what was asked of it. The request fails, nothing else. Offsets and lengths are bytes.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The range is not inside the disk.
    #[error("{len} bytes at offset {offset} are not inside the disk, which has {capacity_bytes}")]
    OutOfRange {
        /// Where the range begins.
        offset: u64,
        /// Its length.
        len: u64,
        /// The size of the disk.
        capacity_bytes: u64,
    },
    /// The disk was opened read-only.
    #[error("the disk is read-only: {len} bytes at offset {offset} cannot be changed")]
    ReadOnly {
        /// Where the range begins.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// The operation does not exist on this backing.
    #[error("not supported by this backing")]
    Unsupported,
    /// The backing, or guest memory, refused.
    #[error("{operation} of {len} bytes at offset {offset}: {source}")]
    Io {
        /// The system call or step that failed.
        operation: &'static str,
        /// Where the range begins.
        offset: u64,
        /// Its length.
        len: u64,
        /// The error of the step.
        source: io::Error,
    },
    /// What was written before could not be persisted.
    #[error("{operation}: {source}")]
    Sync {
        /// The system call or step that failed.
        operation: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl DiskError {
    /// Whether it says that the media could not be read.
    pub(super) fn is_media_error(&self) -> bool {
        // A device says ENODATA where it knows more than that something went wrong.
        let is_media = |source: &io::Error| matches!(source.raw_os_error(), Some(libc::EIO | libc::ENODATA));
        matches!(self, Self::Io { source, .. } if is_media(source))
    }
}

/// Made out of the way of those that are not refused.
#[cold]
#[inline(never)]
pub(super) fn read_only(offset: u64, len: u64) -> DiskError {
    DiskError::ReadOnly { offset, len }
}

/// For `map_err`: the system call or step that failed, and the range that it was for.
pub(super) fn failed(operation: &'static str, offset: u64, len: u64) -> impl Fn(io::Error) -> DiskError {
    move |source| DiskError::Io { operation, offset, len, source }
}

/// Why a disk goes on with the size it has.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// There is less of the backing than is served.
    #[error(
        "the backing has only {backing_bytes} bytes, but {served_bytes} are served, and a disk does not shrink \
         while it is served; make it as long again"
    )]
    Shrunk {
        /// What is there.
        backing_bytes: u64,
        /// What is served, and goes on being so.
        served_bytes: u64,
    },
    /// Less than is served was asked for.
    #[error(
        "{wanted_bytes} bytes are less than the {served_bytes} that are served, and a disk does not shrink while it is served"
    )]
    Smaller {
        /// What was asked for.
        wanted_bytes: u64,
        /// What is served.
        served_bytes: u64,
    },
    /// Something else than whole blocks was asked for.
    #[error("{wanted_bytes} bytes are not a multiple of its {block_bytes}-byte blocks")]
    NotBlocks {
        /// What was asked for.
        wanted_bytes: u64,
        /// What it has to be a multiple of.
        block_bytes: u32,
    },
    /// The file is only read.
    #[error("it is served read-only; whoever may write to the file makes it longer")]
    ReadOnly,
    /// A private disk, whose base is shared.
    #[error(
        "it is a private disk over a base (overlay=), which does not grow; end it, make the base longer, and begin anew"
    )]
    Private,
    /// The new part has no space on its file system.
    #[error("no space for {missing_bytes} more bytes ({source}); free some, or use sparse=on")]
    NoSpace {
        /// By how much the disk would grow.
        missing_bytes: u64,
        /// What the file system said.
        source: io::Error,
    },
    /// The new part has no memory.
    #[error("no memory for {missing_bytes} more bytes ({limit}); raise that limit, then send SIGHUP")]
    NoMemory {
        /// By how much the disk would grow.
        missing_bytes: u64,
        /// Which limit it is, in words.
        limit: String,
    },
    /// A file of an overlay that is only read.
    #[error(
        "the file is read through overlayfs, and the file that is open may not be the one that is longer now (overlayfs \
         copies it for whoever writes it); restart the daemon to serve all of it"
    )]
    Overlay,
    /// A step that the kernel refused.
    #[error("cannot {operation} ({source}); repair that, then send SIGHUP")]
    Io {
        /// The step.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What was written could not be persisted.
    #[error("cannot persist the new size: {0}")]
    Sync(DiskError),
}

/// For `map_err`: the step that failed.
pub(in crate::disk) fn cannot(operation: &'static str) -> impl Fn(io::Error) -> GrowError {
    move |source| GrowError::Io { operation, source }
}
