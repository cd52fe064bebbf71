//! Opening a path as a disk: what is there is found out, checked, and given to who knows it.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::OFlags;

use crate::disk::media::Unusable;
use crate::disk::media::sysfs::Sysfs;
use crate::disk::{
    Backing, BackingPath, DeepFlush, DiscardPolicy, Durability, FileKind, FileLock, LockMode, Media,
    OpenError, Symlinks,
};

pub(super) mod describe;
mod device;
pub(super) mod error;
mod fill;
pub(super) mod policy;
mod regular;

/// What to open, and how.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// How errors call the disk.
    pub name: String,
    /// Bytes to serve: a file that is missing or empty is made that long, a longer one is served in part, a
    /// shorter one is refused. Without it the whole file is served.
    pub size_bytes: Option<u64>,
    /// Logical block size in bytes: 512 or 4096. Without it, that of a device, and 512 of anything else.
    pub block_bytes: Option<u32>,
    /// Open for reading only; nothing is created, grown or allocated then.
    pub read_only: bool,
    /// Leave holes as they are. On tmpfs, hugetlbfs and DAX a write into a hole that cannot be filled any more
    /// is fatal.
    pub sparse: bool,
    /// When the file is locked.
    pub lock: LockMode,
    /// The least that a completed and flushed write must be worth.
    pub require_durable: Option<Durability>,
    /// What becomes of space that the guest does not need.
    pub discard: DiscardPolicy,
    /// When FLUSH empties the memory controller's queues.
    pub deep_flush: DeepFlush,
    /// Once it is set, what takes long is given up where a signal interrupts it.
    pub should_stop: Arc<AtomicBool>,
    /// Whether the path may lead through symbolic links.
    pub symlinks: Symlinks,
}

impl OpenOptions {
    /// Everything as it is by default: all whole blocks of it, read-write, locked.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            size_bytes: None,
            block_bytes: None,
            read_only: false,
            sparse: false,
            lock: LockMode::On,
            require_durable: None,
            discard: DiscardPolicy::Auto,
            deep_flush: DeepFlush::Auto,
            should_stop: Arc::default(),
            symlinks: Symlinks::Follow,
        }
    }
}

/// Logical block size in bytes of what has none by itself.
pub(in crate::disk) const DEFAULT_BLOCK_BYTES: u32 = 512;

/// A path, opened.
#[derive(Debug)]
pub struct Opened {
    /// Its bytes.
    pub disk: Backing,
    /// Its lock, taken when the mode is [`LockMode::On`].
    pub lock: FileLock,
    /// What it is made of.
    pub media: Media,
    /// Whether it was not there before.
    pub created: bool,
}

/// Opens `path` as a disk.
///
/// # Errors
/// As [`OpenError`]. A file that was created is removed again then, and one that was empty is empty again.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened, OpenError> {
    let backing = BackingPath::of_disk(&options.name, path);
    let block_bytes = options.block_bytes.unwrap_or(DEFAULT_BLOCK_BYTES);
    check_block_size(&backing, block_bytes)?;
    if let Some(size_bytes) = options.size_bytes {
        check_size(&backing, size_bytes, block_bytes)?;
    }
    let sysfs = Sysfs::system();
    // Only looked at first: opening a device may do something.
    match options.symlinks.metadata(path) {
        Ok(metadata) if FileKind::from(metadata.file_type()).is_device() => {
            device::open(backing, &metadata, options, &sysfs)
        }
        Ok(metadata) => {
            check_regular(&backing, &metadata)?;
            regular::open(backing, options, &sysfs)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => regular::open(backing, options, &sysfs),
        Err(error) => {
            Err(OpenError::system(&backing, "look at", "correct path=, or repair what it leads to", error))
        }
    }
}

/// Refuses a device that cannot be a disk as it is now.
pub(in crate::disk) fn check_usable(backing: &BackingPath, media: &Media) -> Result<(), OpenError> {
    match media.unusable.clone() {
        Some(Unusable { cause, remedy }) => {
            Err(OpenError::Unusable { backing: backing.clone(), cause, remedy })
        }
        None => Ok(()),
    }
}

/// Refuses what promises less than is required.
pub(in crate::disk) fn check_durability(
    backing: &BackingPath,
    media: &Media,
    options: &OpenOptions,
) -> Result<(), OpenError> {
    match options.require_durable {
        Some(required) if media.durability < required => Err(OpenError::NotDurable {
            backing: backing.clone(),
            required,
            found: media.durability,
            why: media.why.clone(),
        }),
        _ => Ok(()),
    }
}

/// The attributes that FLUSH writes to.
pub(in crate::disk) fn deep_flush_files(
    backing: &BackingPath,
    media: &Media,
    options: &OpenOptions,
) -> Result<Vec<File>, OpenError> {
    options.deep_flush.files(media).map_err(|source| {
        OpenError::system(
            backing,
            "open deep_flush of the region of",
            "run as root, or use deep-flush=auto",
            source,
        )
    })
}

/// How the path of a disk is opened: for reading, and for writing unless it is read-only.
pub(super) const fn access(options: &OpenOptions) -> OFlags {
    if options.read_only { OFlags::RDONLY } else { OFlags::RDWR }
}

/// Refuses everything but regular files.
pub(in crate::disk) fn check_regular(backing: &BackingPath, metadata: &Metadata) -> Result<(), OpenError> {
    match FileKind::from(metadata.file_type()) {
        FileKind::Regular => Ok(()),
        what => Err(OpenError::NotRegular { backing: backing.clone(), what }),
    }
}

fn check_block_size(backing: &BackingPath, block_bytes: u32) -> Result<(), OpenError> {
    match block_bytes {
        512 | 4096 => Ok(()),
        _ => Err(OpenError::BadSize {
            backing: backing.clone(),
            cause: format!("its block size cannot be {block_bytes} bytes"),
            remedy: "use block-size=512 or block-size=4096".to_owned(),
        }),
    }
}

/// Refuses a size of nothing at all, or with a part of a block.
pub(in crate::disk) fn check_size(
    backing: &BackingPath,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<(), OpenError> {
    let whole_bytes = whole_blocks(backing, "size=", size_bytes, block_bytes)?;
    if whole_bytes == size_bytes {
        return Ok(());
    }
    Err(OpenError::BadSize {
        backing: backing.clone(),
        cause: format!("size= has {size_bytes} bytes, not a multiple of the {block_bytes}-byte blocks"),
        remedy: format!("use size={whole_bytes}"),
    })
}

/// The bytes of whole blocks in a size that nobody has chosen; `what` has it. None at all is refused.
pub(in crate::disk) fn whole_blocks(
    backing: &BackingPath,
    what: &str,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<u64, OpenError> {
    let bad = |cause, remedy| Err(OpenError::BadSize { backing: backing.clone(), cause, remedy });
    match size_bytes - size_bytes % u64::from(block_bytes) {
        0 if size_bytes == 0 => {
            bad(format!("{what} has 0 bytes"), "give the size of the disk with size=".to_owned())
        }
        0 => bad(
            format!("{what} has {size_bytes} bytes, less than a block of {block_bytes} bytes"),
            "make it longer".to_owned(),
        ),
        whole_bytes => Ok(whole_bytes),
    }
}

/// The same for what is to be served, and says so if there is more.
pub(in crate::disk) fn serve_whole_blocks(
    backing: &BackingPath,
    what: &str,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<u64, OpenError> {
    let whole_bytes = whole_blocks(backing, what, size_bytes, block_bytes)?;
    if whole_bytes != size_bytes {
        tracing::warn!(
            size_bytes,
            whole_bytes,
            "{backing}: the last bytes are no whole block of {block_bytes} and are not served"
        );
    }
    Ok(whole_bytes)
}
