//! Checks of a path, its media, its size and its lock. Each refusal says what to do.

use std::fs::{File, Metadata};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::error::OpenError;
use super::options::OpenOptions;
use crate::disk::backing_path::BackingPath;
use crate::disk::lock::holder::Holder;
use crate::disk::lock::{BackingFile, FileLock, REMEDY};
use crate::disk::media::kind::FileKind;
use crate::disk::media::{Media, Unusable};
use crate::disk::{BackingKind, Durability};

/// Why a private disk in memory promises nothing.
pub(super) const OVERLAY_IN_MEMORY: &str =
    "what guests write is in the memory of this process (overlay=memory)";

/// Refuses a device that cannot be a disk as it is now.
pub(super) fn check_usable(backing: &BackingPath, media: &Media) -> Result<(), OpenError> {
    match media.unusable.clone() {
        Some(Unusable { cause, remedy }) => {
            Err(OpenError::Unusable { backing: backing.clone(), cause, remedy })
        }
        None => Ok(()),
    }
}

/// Refuses media whose durability is less than `require-durable=` asks for.
pub(super) fn check_durability(
    backing: &BackingPath,
    media: &Media,
    options: &OpenOptions,
) -> Result<(), OpenError> {
    let (found, why) = match &options.overlay {
        Some(overlay) if overlay.file.is_none() => (Durability::Volatile, OVERLAY_IN_MEMORY),
        _ => (media.durability, media.why.as_str()),
    };
    match options.require_durable {
        Some(required) if found < required => {
            Err(OpenError::NotDurable { backing: backing.clone(), required, found, why: why.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Refuses to lay a private disk over a block device.
pub(super) fn check_base(
    backing: &BackingPath,
    kind: BackingKind,
    options: &OpenOptions,
) -> Result<(), OpenError> {
    if options.overlay.is_none() || !kind.is_device() || kind == BackingKind::DeviceDax {
        return Ok(());
    }
    Err(OpenError::Unusable {
        backing: backing.clone(),
        cause: format!("overlay= needs a file or device DAX as its base, and this is a {kind}"),
        remedy: "copy it into a file, or leave overlay= out".to_owned(),
    })
}

/// Opens the `deep_flush` attributes that FLUSH writes to.
pub(super) fn deep_flush_files(
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

/// Takes the lock when a disk is opened, unless its mode says that it is taken later or never.
pub(super) fn lock(
    backing: &BackingPath,
    file: &Arc<BackingFile>,
    options: &OpenOptions,
) -> Result<FileLock, OpenError> {
    let lock = FileLock::new(Arc::clone(file), backing, options.lock, options.read_only);
    match lock.acquire_when_opened() {
        Ok(true) => Ok(lock),
        Ok(false) => {
            let holder = lock.holder().unwrap_or(Holder::unknown());
            Err(OpenError::Locked { backing: backing.clone(), holder })
        }
        Err(error) => Err(OpenError::system(backing, "lock", REMEDY, error)),
    }
}

/// The access mode of `open(2)`: reading, and writing unless the disk is read-only.
pub(super) const fn access(options: &OpenOptions) -> OFlags {
    if options.read_only { OFlags::RDONLY } else { OFlags::RDWR }
}

/// Refuses everything but regular files.
pub(super) fn check_regular(backing: &BackingPath, metadata: &Metadata) -> Result<(), OpenError> {
    match FileKind::from(metadata.file_type()) {
        FileKind::Regular => Ok(()),
        what => Err(OpenError::NotRegular { backing: backing.clone(), what }),
    }
}

pub(super) fn check_block_size(backing: &BackingPath, block_bytes: u32) -> Result<(), OpenError> {
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
pub(super) fn check_size(backing: &BackingPath, size_bytes: u64, block_bytes: u32) -> Result<(), OpenError> {
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

/// The bytes of whole blocks in the size of a file or device, which `what` names. A size of less than a block is refused.
pub(super) fn whole_blocks(
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

/// As [`whole_blocks`], with a warning if some bytes are left over and not served.
pub(super) fn serve_whole_blocks(
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
            "{backing}: the last bytes are less than a block of {block_bytes} and are not served"
        );
    }
    Ok(whole_bytes)
}
