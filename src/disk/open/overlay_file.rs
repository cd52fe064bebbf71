//! Opening the file of an overlay: it is made, locked, and checked against the base.

use std::fs::{File, Metadata};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::error::{OpenError, PATH_REMEDY};
use super::options::{OpenOptions, Opened};
use super::policy::DiscardPolicy;
use super::regular;
use crate::disk::backing_path::BackingPath;
use crate::disk::media::sysfs::Sysfs;
use crate::disk::{BaseStamp, Disk as _, Durability, Geometry, InFile, LockMode, Media, OverlayFileError};

/// A private disk over what was opened, whose writes are in `file`.
pub(super) fn lay_over(
    base: Opened,
    file: &Path,
    max_bytes: Option<u64>,
    options: &OpenOptions,
) -> Result<Opened, OpenError> {
    let backing = BackingPath::of_disk(&options.name, file);
    let geometry = Geometry { read_only: false, ..base.disk.geometry() };
    let as_disk = as_disk(file, geometry.capacity_bytes, options);
    let Opened { disk, lock, mut media, created } =
        regular::open(backing.clone(), &as_disk, &Sysfs::system())?;
    let shared = disk.shared_file();
    drop(disk);
    let stamp = base.disk.file().try_clone_to_owned().and_then(|file| File::from(file).metadata());
    let stamp =
        stamp.map_err(|source| OpenError::system(&backing, "examine the base of", PATH_REMEDY, source))?;
    let unmaps = options.discard != DiscardPolicy::Ignore;
    weaken(&mut media, base.media);
    let make = || InFile::open(shared, lock, BaseStamp::of(&stamp), geometry, unmaps, media.durability);
    let disk = base.disk.overlaid_by_file(max_bytes.unwrap_or(u64::MAX), unmaps, make);
    let disk = disk.map_err(|error| refused(&backing, error))?;
    Ok(Opened { disk, lock: base.lock, media, created })
}

/// Refuses a file that is there and would not be taken as the overlay over a base.
pub(super) fn check(
    file: &Path,
    base: &Metadata,
    capacity_bytes: u64,
    options: &OpenOptions,
) -> Result<(), OpenError> {
    if options.symlinks.metadata(file).map_or(true, |metadata| metadata.len() == 0) {
        return Ok(());
    }
    let backing = BackingPath::of_disk(&options.name, file);
    let opened = options.symlinks.open(file, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
    let opened = opened.map_err(|source| OpenError::system(&backing, "open", PATH_REMEDY, source))?;
    InFile::check(File::from(opened), BaseStamp::of(base), capacity_bytes)
        .map_err(|error| refused(&backing, error))
}

/// How the file is opened, as a disk of its own that is whatever is there. Its lock is taken at once, since what it has is read then.
pub(super) fn as_disk(file: &Path, capacity_bytes: u64, options: &OpenOptions) -> OpenOptions {
    let is_new = options.symlinks.metadata(file).map_or(true, |metadata| metadata.len() == 0);
    OpenOptions {
        size_bytes: InFile::file_bytes(capacity_bytes).filter(|_| is_new),
        block_bytes: None,
        read_only: false,
        overlay: None,
        sparse: true,
        lock: if options.lock == LockMode::Off { LockMode::Off } else { LockMode::On },
        ..options.clone()
    }
}

/// What is written is as safe as its file is behind the page cache, and no safer than the base.
pub(super) fn weaken(media: &mut Media, base: Media) {
    let least = base.durability.min(media.durability).min(Durability::Page);
    if least == base.durability && least != media.durability {
        media.why = base.why;
    }
    media.durability = least;
}

/// Why the file cannot be used, and what to do.
fn refused(backing: &BackingPath, error: OverlayFileError) -> OpenError {
    let remedy = match error {
        OverlayFileError::Io(source) => {
            return OpenError::system(backing, "read", "check the file system", source);
        }
        OverlayFileError::NotAnOverlay => "give overlay= the path of an overlay, or of nothing",
        OverlayFileError::OtherVersion(_) => "serve it with the version that has made it",
        OverlayFileError::OtherSize { .. } => "give the base it was made for, and its size=",
        OverlayFileError::UnknownRun => "give the daemon a /proc, or use overlay=memory",
        OverlayFileError::OtherBase { .. } => {
            "put the base back as it was (with its time of modification), or remove the overlay, and what guests have written with it"
        }
    };
    OpenError::Unusable { backing: backing.clone(), cause: error.to_string(), remedy: remedy.to_owned() }
}
