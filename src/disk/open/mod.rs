//! Opening a path as a disk: a regular file or a device.

use std::io;
use std::path::Path;

use self::checks::{OVERLAY_IN_MEMORY, check_base, check_block_size, check_regular, check_size};
use self::error::{OpenError, PATH_REMEDY};
use self::options::{DEFAULT_BLOCK_BYTES, OpenOptions, Opened, OverlayOptions};
use self::policy::DiscardPolicy;
use crate::disk::backing_path::BackingPath;
use crate::disk::media::kind::FileKind;
use crate::disk::media::sysfs::Sysfs;
use crate::disk::{Disk as _, Durability};

mod checks;
pub(super) mod describe;
mod device;
pub(super) mod error;
mod fill;
pub(super) mod options;
mod overlay_file;
pub(super) mod policy;
pub(super) mod preview;
mod regular;

/// Opens `path` as a disk.
///
/// # Errors
/// As [`OpenError`]. A file that was created is removed again then, and one that was empty is empty again.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened, OpenError> {
    let options = &options.of_path();
    let backing = BackingPath::of_disk(&options.name, path);
    let opened = open_path(path, &backing, options)?;
    match &options.overlay {
        None => Ok(opened),
        Some(OverlayOptions { file: Some(file), max_bytes }) => {
            check_base(&backing, opened.media.kind, options)?;
            overlay_file::lay_over(opened, file, *max_bytes, options)
        }
        Some(overlay) => lay_over(opened, overlay, &backing, options),
    }
}

/// A private disk over what was opened.
fn lay_over(
    opened: Opened,
    overlay: &OverlayOptions,
    backing: &BackingPath,
    options: &OpenOptions,
) -> Result<Opened, OpenError> {
    let Opened { disk, lock, mut media, created } = opened;
    check_base(backing, media.kind, options)?;
    let capacity_bytes = disk.geometry().capacity_bytes;
    let unmaps = options.discard != DiscardPolicy::Ignore;
    let disk = disk.overlaid(overlay.max_bytes.unwrap_or(capacity_bytes), unmaps).map_err(|source| {
        OpenError::system(
            backing,
            "lay an overlay over",
            "allow as much address space and as many files",
            source,
        )
    })?;
    (media.durability, media.why) = (Durability::Volatile, OVERLAY_IN_MEMORY.to_owned());
    Ok(Opened { disk, lock, media, created })
}

fn open_path(path: &Path, backing: &BackingPath, options: &OpenOptions) -> Result<Opened, OpenError> {
    let block_bytes = options.block_bytes.unwrap_or(DEFAULT_BLOCK_BYTES);
    check_block_size(backing, block_bytes)?;
    if let Some(size_bytes) = options.size_bytes {
        check_size(backing, size_bytes, block_bytes)?;
    }
    let sysfs = Sysfs::system();
    // `stat` first: opening a device or a FIFO may have effects.
    match options.symlinks.metadata(path) {
        Ok(metadata) if FileKind::from(metadata.file_type()).is_device() => {
            device::open(backing.clone(), &metadata, options, &sysfs)
        }
        Ok(metadata) => {
            check_regular(backing, &metadata)?;
            regular::open(backing.clone(), options, &sysfs)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            regular::open(backing.clone(), options, &sysfs)
        }
        Err(error) => Err(OpenError::system(backing, "examine", PATH_REMEDY, error)),
    }
}
