//! Opening a device as a disk: device DAX, `/dev/pmemN`, any other block device.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use rustix::fs::SeekFrom;

use super::growth::GrowthPolicy;
use super::open::{check_durability, check_fit, check_size, deep_flush_files};
use super::sysfs::Sysfs;
use super::{
    Backing, BackingKind, BlockDisk, FileKind, FileLock, Geometry, LockMode, MappedDisk, Media, OpenError,
    OpenOptions, Opened, Place,
};

/// Opens the device that `metadata` is of.
pub(super) fn open(
    place: Place,
    metadata: &Metadata,
    options: &OpenOptions,
    sysfs: &Sysfs,
) -> Result<Opened, OpenError> {
    let media = match FileKind::from(metadata.file_type()) {
        FileKind::BlockDevice => Some(Media::of_block_device(metadata, sysfs)),
        FileKind::CharacterDevice => Media::of_character_device(metadata, sysfs),
        _ => None,
    };
    let Some(media) = media else {
        return Err(OpenError::NotRegular { place, what: metadata.file_type().into() });
    };
    check_fit(&place, &media)?;
    check_durability(&place, &media, options)?;
    check_blocks(&place, &media, options)?;
    let file = open_node(&place, &media, options)?;
    let capacity_bytes = capacity_bytes(&place, &file, &media, options)?;
    let file = Arc::new(file.into());
    let lock = FileLock::open(Arc::clone(&file), &place, options.lock, options.read_only)?;
    let OpenOptions { block_bytes, read_only, discard, .. } = *options;
    let geometry = Geometry { capacity_bytes, block_bytes, read_only };
    let deep_flush = deep_flush_files(&place, &media, options)?;
    let mut disk = match media.kind {
        BackingKind::DeviceDax => MappedDisk::over(file, geometry, &media, discard, deep_flush)
            .map(Backing::Mapped)
            .map_err(|source| {
                let remedy = "check with `daxctl list` that it is in devdax mode";
                OpenError::system(&place, "map", remedy, source)
            })?,
        kind => Backing::Block(BlockDisk::over(file, geometry, &media, discard.unmaps(kind))),
    };
    disk.set_growth(GrowthPolicy::of(options));
    Ok(Opened { disk, lock, media, created: false })
}

/// A request of the guest is made of whole blocks of the device, too.
fn check_blocks(place: &Place, media: &Media, options: &OpenOptions) -> Result<(), OpenError> {
    if media.kind == BackingKind::DeviceDax || media.unit_bytes <= u64::from(options.block_bytes) {
        return Ok(());
    }
    Err(OpenError::BadSize {
        place: place.clone(),
        cause: format!(
            "the device has {}-byte blocks, larger than the disk's {} bytes",
            media.unit_bytes, options.block_bytes
        ),
        remedy: format!("use block-size={}", media.unit_bytes),
    })
}

/// With direct I/O, and to itself where it is written: a mounted device must not be.
fn open_node(place: &Place, media: &Media, options: &OpenOptions) -> Result<File, OpenError> {
    let is_exclusive = !options.read_only && options.lock == LockMode::On;
    let flags = match media.kind {
        BackingKind::DeviceDax => 0,
        _ if is_exclusive => libc::O_DIRECT | libc::O_EXCL,
        _ => libc::O_DIRECT,
    };
    let opened = File::options()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags | libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(place.path());
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => OpenError::InUse { place: place.clone() },
        _ => OpenError::system(place, "open", "correct path=, or mend what it leads to", source),
    })
}

/// How much of the device is served.
fn capacity_bytes(
    place: &Place,
    file: &File,
    media: &Media,
    options: &OpenOptions,
) -> Result<u64, OpenError> {
    let device_bytes = match media.device_bytes {
        // Without sysfs; the end of device DAX is always 0.
        0 => rustix::fs::seek(file, SeekFrom::End(0)).map_err(|errno| look_failed(place, errno.into()))?,
        bytes => bytes,
    };
    match options.size_bytes {
        None => check_size(place, "the device", device_bytes, options.block_bytes).map(|()| device_bytes),
        Some(size_bytes) if size_bytes > device_bytes => {
            Err(OpenError::TooSmall { place: place.clone(), size_bytes, file_bytes: device_bytes })
        }
        Some(size_bytes) => Ok(size_bytes),
    }
}

fn look_failed(place: &Place, source: io::Error) -> OpenError {
    OpenError::system(place, "tell the size of", "check the device", source)
}
