//! Opening a device as a disk: device DAX, `/dev/pmemN`, any other block device.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, SeekFrom};

use super::checks::{
    access, check_durability, check_size, check_usable, deep_flush_files, lock, serve_whole_blocks,
};
use super::error::PATH_REMEDY;
use super::options::{DEFAULT_BLOCK_BYTES, OpenOptions, Opened};
use crate::disk::media::sysfs::{Node, Sysfs};
use crate::disk::{
    Backing, BackingKind, BackingPath, BlockDisk, FileKind, Geometry, LockMode, MappedDisk, Media, OpenError,
};

/// Opens the device that `metadata` is of.
pub(in crate::disk) fn open(
    backing: BackingPath,
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
        return Err(OpenError::NotRegular { backing, what: metadata.file_type().into() });
    };
    check_usable(&backing, &media)?;
    check_durability(&backing, &media, options)?;
    let block_bytes = block_bytes(&backing, &media, options)?;
    if !options.read_only
        && let Some(reason) = Unwritable::of(metadata, sysfs)
    {
        return Err(reason.refusal(&backing));
    }
    let file = open_node(&backing, &media, options)?;
    let capacity_bytes = capacity_bytes(&backing, &file, &media, (block_bytes, options.size_bytes))?;
    let file = Arc::new(file.into());
    let lock = lock(&backing, &file, options)?;
    let OpenOptions { read_only, discard, .. } = *options;
    let geometry = Geometry { capacity_bytes, block_bytes, read_only };
    let deep_flush = deep_flush_files(&backing, &media, options)?;
    let mut disk = match media.kind {
        BackingKind::DeviceDax => {
            MappedDisk::over(file, geometry, &media, discard.unmaps(media.kind), deep_flush)
                .map(Backing::Mapped)
                .map_err(|source| {
                    let remedy = "check with `daxctl list` that it is in devdax mode";
                    OpenError::system(&backing, "map", remedy, source)
                })?
        }
        kind => Backing::Block(BlockDisk::over(file, geometry, &media, discard.unmaps(kind))),
    };
    disk.set_growth(options.growth());
    Ok(Opened { disk, lock, media, created: false })
}

/// Block size of the disk, at least that of the device, since requests are passed on in whole blocks.
pub(super) fn block_bytes(
    backing: &BackingPath,
    media: &Media,
    options: &OpenOptions,
) -> Result<u32, OpenError> {
    let device_bytes = match media.kind {
        BackingKind::DeviceDax => DEFAULT_BLOCK_BYTES.into(),
        _ => media.unit_bytes,
    };
    let refused = |cause, remedy| Err(OpenError::BadSize { backing: backing.clone(), cause, remedy });
    match (u32::try_from(device_bytes), options.block_bytes) {
        (Ok(device_bytes @ ..=4096), None) => Ok(device_bytes.max(DEFAULT_BLOCK_BYTES)),
        (Ok(device_bytes @ ..=4096), Some(bytes)) if device_bytes <= bytes => Ok(bytes),
        (Ok(device_bytes @ ..=4096), Some(bytes)) => refused(
            format!("the device has {device_bytes}-byte blocks, larger than the disk's {bytes} bytes"),
            format!("use block-size={device_bytes}"),
        ),
        _ => refused(
            format!("the device has {device_bytes}-byte blocks, and a disk none larger than 4096 bytes"),
            "use a file on a file system on it".to_owned(),
        ),
    }
}

/// Why a block device cannot be written to, though it can be opened for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::disk) enum Unwritable {
    /// `blockdev --setro`, `losetup -r`, a namespace that is not armed.
    #[error("the device is read-only")]
    ReadOnly,
    /// Of DRBD: another node has it. Nothing can be read either.
    #[error("this node is secondary for its DRBD resource")]
    Secondary,
    /// Shingled disks, and zoned flash.
    #[error("the device is zoned: it takes writes in order only")]
    Zoned,
}

impl Unwritable {
    /// The reason why a device cannot be written to, if sysfs has one. A partition of a zoned disk is zoned.
    pub(in crate::disk) fn of(metadata: &Metadata, sysfs: &Sysfs) -> Option<Self> {
        let is_block = FileKind::from(metadata.file_type()) == FileKind::BlockDevice;
        let device = sysfs.block(metadata.rdev()).filter(|_| is_block)?;
        Self::of_device(&device)
    }

    fn of_device(device: &Node) -> Option<Self> {
        let disk = || device.ancestry().take(2);
        let is_read_only = device.number("ro").is_some_and(|ro| ro != 0);
        let is_zoned = disk().find_map(|it| it.text("queue/zoned")).is_some_and(|it| it == "host-managed");
        match (is_read_only, is_zoned) {
            (true, _) if device.name().starts_with("drbd") => Some(Self::Secondary),
            (true, _) => Some(Self::ReadOnly),
            (_, true) => Some(Self::Zoned),
            _ => None,
        }
    }

    pub(in crate::disk) fn refusal(self, backing: &BackingPath) -> OpenError {
        let remedy = match self {
            Self::ReadOnly => "make it writable (blockdev --setrw), or use readonly=on",
            Self::Secondary => "make it primary (drbdadm primary), once no other node is (drbdadm secondary)",
            Self::Zoned => "use a device-mapper device over it that takes any (dm-zoned), or readonly=on",
        };
        let operation = if self == Self::Secondary { "use" } else { "write to" };
        OpenError::Permission { backing: backing.clone(), operation, remedy, source: io::Error::other(self) }
    }
}

/// Opens a device with direct I/O, and exclusively if it is to be written: that fails for a device that is mounted.
fn open_node(backing: &BackingPath, media: &Media, options: &OpenOptions) -> Result<File, OpenError> {
    let is_exclusive = !options.read_only && options.lock == LockMode::On;
    let flags = match media.kind {
        BackingKind::DeviceDax => OFlags::empty(),
        _ if is_exclusive => OFlags::DIRECT | OFlags::EXCL,
        _ => OFlags::DIRECT,
    };
    let flags = flags | access(options) | OFlags::NOCTTY | OFlags::NONBLOCK;
    let opened = options.symlinks.open(backing.path(), flags, Mode::empty());
    opened.map(File::from).map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => OpenError::InUse { backing: backing.clone() },
        // What DRBD says to one who would only read.
        Some(libc::EMEDIUMTYPE) => Unwritable::Secondary.refusal(backing),
        _ => OpenError::system(backing, "open", PATH_REMEDY, source),
    })
}

/// How many bytes of the device are served.
fn capacity_bytes(
    backing: &BackingPath,
    file: &File,
    media: &Media,
    (block_bytes, size_bytes): (u32, Option<u64>),
) -> Result<u64, OpenError> {
    let device_bytes = match media.device_bytes {
        // There is no sysfs. (A seek to the end of a device-DAX node always gives 0.)
        0 => rustix::fs::seek(file, SeekFrom::End(0)).map_err(|errno| no_size(backing, errno.into()))?,
        bytes => bytes,
    };
    match size_bytes {
        None => serve_whole_blocks(backing, "the device", device_bytes, block_bytes),
        Some(size_bytes) if size_bytes > device_bytes => {
            Err(OpenError::TooSmall { backing: backing.clone(), size_bytes, file_bytes: device_bytes })
        }
        Some(size_bytes) => check_size(backing, size_bytes, block_bytes).map(|()| size_bytes),
    }
}

fn no_size(backing: &BackingPath, source: io::Error) -> OpenError {
    OpenError::system(backing, "tell the size of", "check the device", source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::media::sysfs::testing::Tree;

    #[test]
    fn devices_that_take_no_write_are_known() {
        let tree = Tree::new();
        let (disk, part) = ("devices/pci/block/sda", "devices/pci/block/sda/sda1");
        tree.device("block", "8:0", disk).device("block", "8:1", part);
        let of = |minor| Unwritable::of_device(&tree.sysfs().block(rustix::fs::makedev(8, minor)).unwrap());
        assert_eq!([of(0), of(1)], [None, None], "a kernel that does not tell");
        tree.file(&format!("{disk}/ro"), "0\n").file(&format!("{part}/ro"), "0\n");
        for zoned in ["none\n", "host-aware\n"] {
            tree.file(&format!("{disk}/queue/zoned"), zoned);
            assert_eq!([of(0), of(1)], [None, None], "{zoned}");
        }
        tree.file(&format!("{disk}/queue/zoned"), "host-managed\n");
        assert_eq!([of(0), of(1)], [Some(Unwritable::Zoned); 2]);
        tree.file(&format!("{part}/ro"), "1\n");
        assert_eq!([of(0), of(1)], [Some(Unwritable::Zoned), Some(Unwritable::ReadOnly)]);
        let drbd = "devices/virtual/block/drbd0";
        tree.device("block", "147:0", drbd).file(&format!("{drbd}/ro"), "1\n");
        let secondary = Unwritable::of_device(&tree.sysfs().block(rustix::fs::makedev(147, 0)).unwrap());
        assert_eq!(secondary, Some(Unwritable::Secondary));
        let refusal =
            Unwritable::Zoned.refusal(&BackingPath::of_path(std::path::Path::new("/dev/sda"))).to_string();
        assert!(refusal.starts_with("/dev/sda: cannot write to it (the device is zoned"), "{refusal}");
        assert!(refusal.ends_with("or readonly=on"), "{refusal}");
    }
}
