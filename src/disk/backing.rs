//! Opening a path as a disk: what is there is found out, created, allocated and locked.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::lock::BackingFile;
use super::space::{self, fallocate};
use super::{
    BackingKind, Disk, DiskError, Durability, FileDisk, FileKind, FileLock, Geometry, LockMode, MappedDisk,
    OpenError, Place,
};
use crate::copy::Segments;

/// What to open, and how.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// How errors call the disk.
    pub name: String,
    /// Bytes to serve: a file that is missing or empty is made that long, a longer one is served in part, a
    /// shorter one is refused. Without it the whole file is served.
    pub size_bytes: Option<u64>,
    /// Logical block size in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// Open for reading only; nothing is created, grown or allocated then.
    pub read_only: bool,
    /// Leave holes as they are. On tmpfs and hugetlbfs a write into a hole that cannot be filled any more is
    /// fatal.
    pub sparse: bool,
    /// When the file is locked.
    pub lock: LockMode,
}

/// A path, opened.
#[derive(Debug)]
pub struct Opened {
    /// Its bytes.
    pub disk: Backing,
    /// Its lock, taken when the mode is [`LockMode::On`].
    pub lock: FileLock,
    /// What it is.
    pub kind: BackingKind,
    /// Whether it was not there before.
    pub created: bool,
}

/// The disks that a path can become, told apart without a virtual call.
#[derive(Debug)]
pub enum Backing {
    /// Written through its mapping.
    Mapped(MappedDisk),
    /// Written by system calls.
    File(FileDisk),
}

/// Opens `path` as a disk.
///
/// # Errors
/// As [`OpenError`]. A file that was created is removed again then, and one that was empty is empty again.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened, OpenError> {
    let place = Place::of_disk(&options.name, path);
    check_block_size(&place, options.block_bytes)?;
    if let Some(size_bytes) = options.size_bytes {
        check_size(&place, "size=", size_bytes, options.block_bytes)?;
    }
    let found = Found::open_or_create(place, options)?;
    let lock = found.lock()?;
    found.serve(lock)
}

/// A regular file that was opened or created.
struct Found<'a> {
    place: Place,
    options: &'a OpenOptions,
    file: Arc<BackingFile>,
    kind: BackingKind,
    created: bool,
}

impl<'a> Found<'a> {
    fn open_or_create(place: Place, options: &'a OpenOptions) -> Result<Self, OpenError> {
        let (file, created) = match open_existing(&place, options.read_only)? {
            Some(file) => (file, false),
            None => (create(&place, options)?, true),
        };
        let statfs = rustix::fs::fstatfs(&file).map_err(|errno| {
            if created {
                remove(&place);
            }
            OpenError::system(&place, "tell the file system of", "check the file system", errno.into())
        })?;
        let file = Arc::new(file.into());
        Ok(Self { place, options, file, kind: BackingKind::of(&statfs), created })
    }

    fn lock(&self) -> Result<FileLock, OpenError> {
        let OpenOptions { lock, read_only, .. } = *self.options;
        FileLock::open(Arc::clone(&self.file), &self.place, lock, read_only).inspect_err(|error| {
            // Whoever was faster than we with the lock serves the file that we have created.
            if self.created && !matches!(error, OpenError::Locked { .. }) {
                remove(&self.place);
            }
        })
    }

    /// Sizes, allocates and maps the file; the lock is taken, so nobody else does the same now.
    fn serve(self, lock: FileLock) -> Result<Opened, OpenError> {
        let before = self.metadata()?;
        self.fill(&before)
            .and_then(|capacity_bytes| self.disk(capacity_bytes))
            .map(|disk| Opened { disk, lock, kind: self.kind, created: self.created })
            .inspect_err(|_| {
                if self.created {
                    remove(&self.place);
                } else if before.len() == 0 && self.metadata().is_ok_and(|now| now.len() != 0) {
                    // Best effort: the error that brought us here is the one to report.
                    let _ = self.file.set_len(0);
                }
            })
    }

    /// Makes the file as long and as full as it shall be; answers how many bytes are served.
    fn fill(&self, metadata: &Metadata) -> Result<u64, OpenError> {
        let (place, options, file_bytes) = (&self.place, self.options, metadata.len());
        match options.size_bytes {
            None => {
                check_size(place, "the file", file_bytes, options.block_bytes)?;
                self.fill_holes(metadata, file_bytes)?;
                Ok(file_bytes)
            }
            Some(size_bytes) if file_bytes == 0 && !options.read_only => {
                self.grow(metadata, size_bytes)?;
                Ok(size_bytes)
            }
            Some(size_bytes) if size_bytes > file_bytes => {
                Err(OpenError::TooSmall { place: place.clone(), size_bytes, file_bytes })
            }
            Some(size_bytes) => {
                self.fill_holes(metadata, size_bytes)?;
                Ok(size_bytes)
            }
        }
    }

    /// Makes an empty file `size_bytes` long, and has it allocated.
    fn grow(&self, metadata: &Metadata, size_bytes: u64) -> Result<(), OpenError> {
        let page_bytes = metadata.blksize().max(1);
        if self.kind == BackingKind::Hugetlbfs && !size_bytes.is_multiple_of(page_bytes) {
            return Err(OpenError::BadSize {
                place: self.place.clone(),
                cause: format!("size= is {size_bytes} bytes, not a multiple of the {page_bytes}-byte pages"),
                remedy: format!("use size={}", size_bytes.next_multiple_of(page_bytes)),
            });
        }
        self.file.set_len(size_bytes).map_err(|source| match source.kind() {
            io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput => OpenError::BadSize {
                place: self.place.clone(),
                cause: format!("size= is {size_bytes} bytes, more than its file system allows: {source}"),
                remedy: "choose a smaller size=".to_owned(),
            },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                self.no_space(size_bytes, self.free_bytes(), source)
            }
            _ => OpenError::system(&self.place, "grow", "check the file system", source),
        })?;
        if !self.options.sparse {
            self.allocate(size_bytes, size_bytes)?;
        }
        if self.created && self.kind.durability() > Durability::Volatile {
            sync_entry(self.place.path(), &self.file)
                .map_err(|source| OpenError::system(&self.place, "sync", "check the file system", source))?;
        }
        Ok(())
    }

    /// Gives every hole its space where a write could not fail otherwise.
    fn fill_holes(&self, metadata: &Metadata, size_bytes: u64) -> Result<(), OpenError> {
        let allocated_bytes = metadata.blocks().saturating_mul(512);
        let full = allocated_bytes >= metadata.len();
        if full || self.options.sparse || self.options.read_only || !self.kind.is_written_through_mapping() {
            return Ok(());
        }
        self.allocate(size_bytes, size_bytes.saturating_sub(allocated_bytes))
    }

    fn allocate(&self, size_bytes: u64, missing_bytes: u64) -> Result<(), OpenError> {
        // Asked before: not every file system gives back at once what a failed allocation took.
        let free_bytes = self.free_bytes();
        match fallocate(&self.file, space::ALLOCATE, 0, size_bytes) {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                disk = self.options.name,
                path = %self.place.path().display(),
                "the file system cannot preallocate: the disk is sparse, and a write that finds no space fails"
            ),
            Err(source) => {
                return Err(match source.raw_os_error() {
                    Some(libc::ENOSPC | libc::EDQUOT) => self.no_space(missing_bytes, free_bytes, source),
                    // What hugetlbfs says when its pool is empty.
                    Some(libc::ENOMEM) if self.kind == BackingKind::Hugetlbfs => {
                        self.no_space(missing_bytes, free_bytes, source)
                    }
                    _ => OpenError::system(&self.place, "allocate", "use sparse=on", source),
                });
            }
        }
        Ok(())
    }

    /// Bytes that this user could still allocate, where the file system knows.
    fn free_bytes(&self) -> Option<u64> {
        let statvfs = rustix::fs::fstatvfs(&**self.file).ok().filter(|it| it.f_blocks != 0)?;
        Some(statvfs.f_bavail.saturating_mul(statvfs.f_frsize))
    }

    fn no_space(&self, needed_bytes: u64, free_bytes: Option<u64>, source: io::Error) -> OpenError {
        let remedy = match self.kind {
            BackingKind::Hugetlbfs => "reserve more huge pages (vm.nr_hugepages) or choose a smaller size=",
            _ => "free some space, choose a smaller size=, or use sparse=on",
        };
        OpenError::NoSpace { place: self.place.clone(), needed_bytes, free_bytes, remedy, source }
    }

    fn disk(&self, capacity_bytes: u64) -> Result<Backing, OpenError> {
        let OpenOptions { block_bytes, read_only, .. } = *self.options;
        let geometry = Geometry { capacity_bytes, block_bytes, read_only };
        let file = Arc::clone(&self.file);
        match self.kind.is_written_through_mapping() {
            true => MappedDisk::over(file, geometry).map(Backing::Mapped),
            false => FileDisk::over(file, geometry).map(Backing::File),
        }
        .map_err(|source| {
            let remedy = "use a file system whose files can be mapped, and allow as much address space";
            OpenError::system(&self.place, "map", remedy, source)
        })
    }

    fn metadata(&self) -> Result<Metadata, OpenError> {
        self.file
            .metadata()
            .map_err(|source| OpenError::system(&self.place, "look at", "check the file system", source))
    }
}

/// Opens a regular file; `None` when there is nothing at the path.
fn open_existing(place: &Place, read_only: bool) -> Result<Option<File>, OpenError> {
    let failed = |operation| {
        move |source| OpenError::system(place, operation, "correct path=, or mend what it leads to", source)
    };
    // Only looked at first: opening a device may do something.
    let found = match std::fs::metadata(place.path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(failed("look at"))?,
    };
    check_regular(place, &found)?;
    let open = |flags| {
        File::options()
            .read(true)
            .write(!read_only)
            .custom_flags(flags | libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(place.path())
    };
    // Reads need no time stamps, but only the owner may leave them out.
    let file = match open(libc::O_NOATIME) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(0),
        result => result,
    }
    .map_err(failed("open"))?;
    let opened = file.metadata().map_err(failed("look at"))?;
    check_regular(place, &opened)?;
    Ok(Some(file))
}

fn create(place: &Place, options: &OpenOptions) -> Result<File, OpenError> {
    let missing =
        |operation, cause, remedy| OpenError::Missing { place: place.clone(), operation, cause, remedy };
    if options.size_bytes.is_none() || options.read_only {
        let remedy = match options.read_only {
            true => "correct path=; a read-only disk is not created",
            false => "correct path=, or give size= to create it",
        };
        return Err(missing("open", "there is no such file", remedy));
    }
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOATIME)
        .open(place.path())
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                missing("create", "its directory does not exist", "create the directory or correct path=")
            }
            io::ErrorKind::AlreadyExists => missing(
                "open",
                "it is a link to a file that does not exist",
                "mend the link or correct path=",
            ),
            _ => OpenError::system(place, "create", "correct path=, or mend what it leads to", source),
        })
}

/// Removes what was created; the error that made it useless is the one to report.
fn remove(place: &Place) {
    let _ = std::fs::remove_file(place.path());
}

/// Makes a new file survive a power failure: itself, and its name in the directory.
fn sync_entry(path: &Path, file: &File) -> io::Result<()> {
    file.sync_all()?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Refuses everything but regular files.
pub(super) fn check_regular(place: &Place, metadata: &Metadata) -> Result<(), OpenError> {
    match FileKind::from(metadata.file_type()) {
        FileKind::Regular => Ok(()),
        what => Err(OpenError::NotRegular { place: place.clone(), what }),
    }
}

fn check_block_size(place: &Place, block_bytes: u32) -> Result<(), OpenError> {
    match block_bytes {
        512 | 4096 => Ok(()),
        _ => Err(OpenError::BadSize {
            place: place.clone(),
            cause: format!("its block size cannot be {block_bytes} bytes"),
            remedy: "use block-size=512 or block-size=4096".to_owned(),
        }),
    }
}

/// Refuses nothing at all and parts of blocks; `what` has this size.
pub(super) fn check_size(
    place: &Place,
    what: &str,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<(), OpenError> {
    let block_bytes = u64::from(block_bytes);
    let whole_bytes = size_bytes - size_bytes % block_bytes;
    let bad = |cause, remedy| Err(OpenError::BadSize { place: place.clone(), cause, remedy });
    if size_bytes == 0 {
        return bad(format!("{what} has 0 bytes"), "give the size of the disk with size=".to_owned());
    }
    if whole_bytes == size_bytes {
        return Ok(());
    }
    let cause = format!("{what} has {size_bytes} bytes, not a multiple of the {block_bytes}-byte blocks");
    match whole_bytes {
        0 => bad(cause, format!("use size={block_bytes} or more")),
        _ => bad(cause, format!("use size={whole_bytes}")),
    }
}

/// Calls the same method of whichever disk it is.
macro_rules! either {
    ($self:ident, $disk:ident => $call:expr) => {
        match $self {
            Self::Mapped($disk) => $call,
            Self::File($disk) => $call,
        }
    };
}

impl Disk for Backing {
    #[inline]
    fn geometry(&self) -> Geometry {
        either!(self, disk => disk.geometry())
    }

    #[inline]
    fn durability(&self) -> Durability {
        either!(self, disk => disk.durability())
    }

    #[inline]
    fn read(&self, offset: u64, into: Segments<'_>) -> Result<(), DiskError> {
        either!(self, disk => disk.read(offset, into))
    }

    #[inline]
    fn write(&self, offset: u64, from: Segments<'_>) -> Result<(), DiskError> {
        either!(self, disk => disk.write(offset, from))
    }

    #[inline]
    fn fence(&self) {
        either!(self, disk => disk.fence());
    }

    #[inline]
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        either!(self, disk => disk.try_flush())
    }

    fn flush(&self) -> Result<(), DiskError> {
        either!(self, disk => disk.flush())
    }

    #[inline]
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        either!(self, disk => disk.discard(offset, len))
    }

    #[inline]
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        either!(self, disk => disk.write_zeroes(offset, len, unmap))
    }
}
