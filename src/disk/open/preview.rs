//! What opening a path with some options would come to, found out without a change to anything.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Access, Mode, OFlags, access};

use super::checks::{
    check_base, check_block_size, check_durability, check_regular, check_size, check_usable, lock,
    whole_blocks,
};
use super::describe::recognise;
use super::device::{Unwritable, block_bytes};
use super::error::{OpenError, PATH_REMEDY};
use super::options::{DEFAULT_BLOCK_BYTES, OpenOptions};
use super::overlay_file;
use super::regular::{check_creatable, dangling, not_created};
use crate::disk::backing_path::BackingPath;
use crate::disk::lock::LockMode;
use crate::disk::lock::holder::Holder;
use crate::disk::media::Media;
use crate::disk::media::sysfs::Sysfs;

/// What would be served.
#[derive(Debug)]
pub struct Preview {
    /// Size of the disk in bytes.
    pub capacity_bytes: u64,
    /// Logical block size in bytes.
    pub block_bytes: u32,
    /// What the bytes lie on, or would; none where that shows only once the file is there (on DAX).
    pub media: Option<Media>,
    /// The file is not there yet.
    pub creates: bool,
}

/// Looks at `path` as [`open`](super::open) would. Nothing is created, grown or allocated, and no device is opened; a file that
/// is to be read only is locked for a moment, as any number of readers may. So it does not find out what only a real open
/// does: a device that is mounted, or a file system whose free space is taken meanwhile.
///
/// # Errors
/// Those of [`open`](super::open).
pub fn preview(path: &Path, options: &OpenOptions) -> Result<Preview, OpenError> {
    let options = &options.of_path();
    let backing = BackingPath::of_disk(&options.name, path);
    let block_bytes = options.block_bytes.unwrap_or(DEFAULT_BLOCK_BYTES);
    check_block_size(&backing, block_bytes)?;
    if let Some(size_bytes) = options.size_bytes {
        check_size(&backing, size_bytes, block_bytes)?;
    }
    match options.symlinks.metadata(path) {
        Ok(metadata) => {
            let preview = of_existing(&backing, &metadata, options)?;
            match options.overlay.as_ref().and_then(|overlay| overlay.file.as_ref()) {
                Some(file) => of_overlay(preview, &metadata, file, options),
                None => Ok(preview),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => of_new(&backing, options),
        Err(error) => Err(OpenError::system(&backing, "examine", PATH_REMEDY, error)),
    }
}

/// A private disk over what was found, whose writes are in `file`.
fn of_overlay(
    base: Preview,
    metadata: &Metadata,
    file: &Path,
    options: &OpenOptions,
) -> Result<Preview, OpenError> {
    let found = preview(file, &overlay_file::as_disk(file, base.capacity_bytes, options))?;
    overlay_file::check(file, metadata, base.capacity_bytes, options)?;
    let media = base.media.zip(found.media).map(|(base, mut media)| {
        let kind = base.kind;
        overlay_file::weaken(&mut media, base);
        Media { kind, ..media }
    });
    Ok(Preview { media, creates: found.creates, ..base })
}

fn of_new(backing: &BackingPath, options: &OpenOptions) -> Result<Preview, OpenError> {
    let size_bytes = check_creatable(backing, options)?;
    if std::fs::symlink_metadata(backing.path()).is_ok() {
        return Err(dangling(backing));
    }
    let folder = folder_of(backing.path());
    let failed = |source: io::Error| not_created(backing, source);
    let metadata = options.symlinks.metadata(folder).map_err(failed)?;
    access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| failed(errno.into()))?;
    check_free(backing, folder, size_bytes, options)?;
    let statfs = rustix::fs::statfs(folder).map_err(|errno| failed(errno.into()))?;
    let may_be_dax = crate::disk::media::is_dax_path(folder).unwrap_or(false);
    let media = (!may_be_dax).then(|| Media::of_file(&metadata, &statfs, None, &Sysfs::system()));
    if let Some(media) = &media {
        check_durability(backing, media, options)?;
    }
    let block_bytes = options.block_bytes.unwrap_or(DEFAULT_BLOCK_BYTES);
    Ok(Preview { capacity_bytes: size_bytes, block_bytes, media, creates: true })
}

fn of_existing(
    backing: &BackingPath,
    metadata: &Metadata,
    options: &OpenOptions,
) -> Result<Preview, OpenError> {
    let media = recognise(backing, metadata)?;
    let Some(media) = media else {
        return Err(OpenError::NotRegular { backing: backing.clone(), what: metadata.file_type().into() });
    };
    check_usable(backing, &media)?;
    check_base(backing, media.kind, options)?;
    check_durability(backing, &media, options)?;
    let is_device = media.kind.is_device();
    let block_bytes = match is_device {
        true => block_bytes(backing, &media, options)?,
        false => {
            check_regular(backing, metadata)?;
            options.block_bytes.unwrap_or(DEFAULT_BLOCK_BYTES)
        }
    };
    if !options.read_only
        && let Some(reason) = Unwritable::of(metadata, &Sysfs::system())
    {
        return Err(reason.refusal(backing));
    }
    let wanted = if options.read_only { Access::READ_OK } else { Access::READ_OK | Access::WRITE_OK };
    access(backing.path(), wanted)
        .map_err(|errno| OpenError::system(backing, "open", PATH_REMEDY, errno.into()))?;
    check_lock(backing, metadata, options)?;
    let (what, bytes) = match is_device {
        true => ("the device", media.device_bytes),
        false => ("the file", metadata.len()),
    };
    let capacity_bytes = match options.size_bytes {
        None => whole_blocks(backing, what, bytes, block_bytes)?,
        Some(size_bytes) if bytes == 0 && !is_device && !options.read_only => {
            check_free(backing, backing.path(), size_bytes, options)?;
            size_bytes
        }
        Some(size_bytes) if size_bytes > bytes => {
            return Err(OpenError::TooSmall { backing: backing.clone(), size_bytes, file_bytes: bytes });
        }
        Some(size_bytes) => check_size(backing, size_bytes, block_bytes).map(|()| size_bytes)?,
    };
    Ok(Preview { capacity_bytes, block_bytes, media: Some(media), creates: false })
}

/// A writer is refused by any lock that somebody has, and a reader by one that is exclusive.
fn check_lock(backing: &BackingPath, metadata: &Metadata, options: &OpenOptions) -> Result<(), OpenError> {
    if options.lock != LockMode::On || !metadata.is_file() {
        return Ok(());
    }
    if !options.read_only {
        return match Holder::of(metadata) {
            Some(holder) => Err(OpenError::Locked { backing: backing.clone(), holder }),
            None => Ok(()),
        };
    }
    let file = options.symlinks.open(backing.path(), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
    let file =
        file.map(File::from).map_err(|error| OpenError::system(backing, "open", "correct path=", error))?;
    lock(backing, &Arc::new(file.into()), options).map(drop)
}

/// Whether the file system at `there` has space for a file of this size, unless its holes stay.
fn check_free(
    backing: &BackingPath,
    there: &Path,
    size_bytes: u64,
    options: &OpenOptions,
) -> Result<(), OpenError> {
    let Ok(statvfs) = rustix::fs::statvfs(there) else { return Ok(()) };
    let free_bytes = statvfs.f_bavail.saturating_mul(statvfs.f_frsize);
    if options.sparse || statvfs.f_blocks == 0 || free_bytes >= size_bytes {
        return Ok(());
    }
    Err(OpenError::NoSpace {
        backing: backing.clone(),
        needed_bytes: size_bytes,
        free_bytes: Some(free_bytes),
        remedy: "free some space, choose a smaller size=, or use sparse=on",
        source: io::Error::from_raw_os_error(libc::ENOSPC),
    })
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
