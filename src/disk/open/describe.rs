//! What a path is and how it would be served, found out without a change to anything.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::Access;

use super::checks::{check_usable, whole_blocks};
use super::options::DEFAULT_BLOCK_BYTES;
use crate::disk::mapping::huge_pages;
use crate::disk::media::is_dax_path;
use crate::disk::media::sysfs::Sysfs;
use crate::disk::open::device::Unwritable;
use crate::disk::space;
use crate::disk::{
    BackingKind, BackingPath, DeepFlush, DiscardPolicy, Durability, FileKind, Holder, Media, OpenError,
};

/// What a path is and how it would be served.
#[derive(Debug)]
pub struct Description {
    /// What is there.
    pub file_kind: FileKind,
    /// Length in bytes, from the file system or sysfs.
    pub length_bytes: u64,
    /// Bytes that have space allocated.
    pub allocated_bytes: u64,
    /// What its bytes lie on; none for what cannot be a disk.
    pub media: Option<Media>,
    /// Bytes of the smallest page that it is mapped in, or of a block that is transferred.
    pub page_bytes: u64,
    /// Bytes of it that the process which has it locked has mapped in huge pages; on DAX, bytes that can be mapped so, by where
    /// they lie. None where that is not known.
    pub huge_bytes: Option<u64>,
    /// Whether this user may write it, and it can be written to.
    pub writable: bool,
    /// Who has it locked now, where the kernel tells.
    pub holder: Option<Holder>,
    /// Why it cannot be served as it is, with the default options.
    pub refusal: Option<OpenError>,
}

impl Description {
    /// What its bytes lie on.
    pub fn kind(&self) -> Option<BackingKind> {
        self.media.as_ref().map(|media| media.kind)
    }

    /// How requests would reach the bytes, in words.
    pub fn data_path(&self) -> Option<&'static str> {
        self.kind().map(BackingKind::data_path)
    }

    /// What a completed and flushed write would survive.
    pub fn durability(&self) -> Option<Durability> {
        self.media.as_ref().map(|media| media.durability)
    }

    /// The field `writeback` of a new guest's configuration, with the default options: 1 if the guest must flush, 0 if each
    /// completed write persists.
    pub fn initial_writeback(&self) -> Option<bool> {
        let media = self.media.as_ref()?;
        Some(media.durability.needs_flush() || DeepFlush::Auto.regions(media).next().is_some())
    }

    /// Whether discarded space is given back by default, or the discard is ignored.
    pub fn discard(&self) -> Option<DiscardPolicy> {
        let unmaps = DiscardPolicy::Auto.unmaps(self.kind()?);
        Some(if unmaps { DiscardPolicy::Unmap } else { DiscardPolicy::Ignore })
    }
}

/// Describes what is at `path`. Nothing is created, locked or changed. Only a file on a DAX file system is opened, to try
/// whether it can be mapped with `MAP_SYNC`; devices are not opened, since that may start them.
///
/// # Errors
/// [`OpenError`] when there is nothing at the path or it may not be looked at.
pub fn describe(path: &Path) -> Result<Description, OpenError> {
    let backing = BackingPath::of_path(path);
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::Missing {
            backing: backing.clone(),
            operation: "examine",
            cause: "there is no such file",
            remedy: "correct the path, or let `serve` create it with size=",
        },
        _ => OpenError::system(&backing, "examine", "correct the path", source),
    })?;
    let file_kind = FileKind::from(metadata.file_type());
    let media = recognise(&backing, &metadata)?;
    let length_bytes = match &media {
        Some(media) if media.kind.is_device() => media.device_bytes,
        _ => metadata.len(),
    };
    let what = if file_kind.is_device() { "the device" } else { "the file" };
    let refusal = match &media {
        None => Err(OpenError::NotRegular { backing: backing.clone(), what: file_kind }),
        Some(media) => check_usable(&backing, media)
            .and_then(|()| whole_blocks(&backing, what, length_bytes, DEFAULT_BLOCK_BYTES)),
    }
    .and_then(|_| {
        rustix::fs::access(path, Access::READ_OK)
            .map_err(|errno| OpenError::system(&backing, "read", "allow reading it", errno.into()))
    })
    .err();
    let page_bytes = match &media {
        Some(media) if media.kind.is_device() => media.unit_bytes,
        Some(media) if media.kind == BackingKind::Hugetlbfs => metadata.blksize(),
        _ => rustix::param::page_size() as u64,
    };
    let holder = Holder::of(&metadata);
    let huge_bytes = huge_bytes(path, &metadata, media.as_ref(), holder.as_ref());
    Ok(Description {
        file_kind,
        length_bytes,
        allocated_bytes: space::allocated_bytes(&metadata),
        media,
        page_bytes,
        huge_bytes,
        writable: rustix::fs::access(path, Access::WRITE_OK).is_ok()
            && Unwritable::of(&metadata, &Sysfs::system()).is_none(),
        holder,
        refusal,
    })
}

fn huge_bytes(
    path: &Path,
    metadata: &Metadata,
    media: Option<&Media>,
    holder: Option<&Holder>,
) -> Option<u64> {
    let media = media?;
    match media.kind {
        BackingKind::DeviceDax => Some(huge_pages::of_device_dax(media.device_bytes, media.unit_bytes)),
        BackingKind::DaxFile { .. } => {
            huge_pages::of_dax_file(&open_to_examine(path).ok()?, &Sysfs::system())
        }
        kind if kind.is_written_through_mapping() => huge_pages::in_process(holder?.pid?, metadata),
        _ => None,
    }
}

fn open_to_examine(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOATIME).open(path)
}

pub(super) fn recognise(backing: &BackingPath, metadata: &Metadata) -> Result<Option<Media>, OpenError> {
    let sysfs = Sysfs::system();
    match FileKind::from(metadata.file_type()) {
        FileKind::Regular => {}
        FileKind::BlockDevice => return Ok(Some(Media::of_block_device(metadata, &sysfs))),
        FileKind::CharacterDevice => return Ok(Media::of_character_device(metadata, &sysfs)),
        _ => return Ok(None),
    }
    let statfs = rustix::fs::statfs(backing.path()).map_err(|errno| {
        OpenError::system(backing, "tell the file system of", "check the file system", errno.into())
    })?;
    let is_dax = is_dax_path(backing.path()).unwrap_or(false);
    let file = is_dax.then(|| open_to_examine(backing.path())).and_then(Result::ok);
    Ok(Some(Media::of_file(metadata, &statfs, file.as_ref(), &sysfs)))
}
