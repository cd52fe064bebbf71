//! Opening a regular file as a disk: it is created, allocated and locked.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::checks::{access, check_durability, check_regular, deep_flush_files, lock, serve_whole_blocks};
use super::error::PATH_REMEDY;
use super::fill::FileSpace;
use super::options::{DEFAULT_BLOCK_BYTES, OpenOptions, Opened};
use crate::disk::lock::BackingFile;
use crate::disk::media::sysfs::Sysfs;
use crate::disk::space;
use crate::disk::space::cgroup::find_groups;
use crate::disk::{
    Backing, BackingKind, BackingPath, Durability, FileDisk, FileLock, Geometry, Inode, MappedDisk, Media,
    OpenError,
};
use crate::limits::bounds::LEASE_TIMEOUT;

/// Opens the regular file at `backing`, or creates it.
pub(in crate::disk) fn open(
    backing: BackingPath,
    options: &OpenOptions,
    sysfs: &Sysfs,
) -> Result<Opened, OpenError> {
    let found = RegularFile::open_or_create(backing, options, sysfs)?;
    let lock = found.lock()?;
    found.serve(lock)
}

/// Pause between two attempts to open a file that somebody has a lease on.
const LEASE_POLL: Duration = Duration::from_millis(20);

/// The media of a file that is open.
fn recognise(backing: &BackingPath, file: &File, sysfs: &Sysfs) -> Result<Media, OpenError> {
    let failed =
        |operation| move |source| OpenError::system(backing, operation, "check the file system", source);
    let metadata = file.metadata().map_err(failed("examine"))?;
    let statfs =
        rustix::fs::fstatfs(file).map_err(|errno| failed("tell the file system of")(errno.into()))?;
    Ok(Media::of_file(&metadata, &statfs, Some(file), sysfs))
}

/// A regular file that was opened or created.
struct RegularFile<'a> {
    backing: BackingPath,
    options: &'a OpenOptions,
    file: Arc<BackingFile>,
    media: Media,
    created: bool,
}

impl<'a> RegularFile<'a> {
    fn open_or_create(
        backing: BackingPath,
        options: &'a OpenOptions,
        sysfs: &Sysfs,
    ) -> Result<Self, OpenError> {
        let (file, created) = match open_existing(&backing, options)? {
            Some(file) => (file, false),
            None => (create(&backing, options)?, true),
        };
        let media = recognise(&backing, &file, sysfs).and_then(|media| {
            check_durability(&backing, &media, options)?;
            Ok(media)
        });
        let media = media.inspect_err(|_| {
            if created {
                remove(&backing, &file);
            }
        })?;
        if let Some(warning) = &media.warning {
            tracing::warn!(disk = options.name, path = %backing.path().display(), "{warning}");
        }
        Ok(Self { backing, options, file: Arc::new(file.into()), media, created })
    }

    fn lock(&self) -> Result<FileLock, OpenError> {
        lock(&self.backing, &self.file, self.options).inspect_err(|error| {
            // Another process that was faster with the lock serves the file that was created here.
            if self.created && !matches!(error, OpenError::Locked { .. }) {
                remove(&self.backing, &self.file);
            }
        })
    }

    /// Extends, allocates and maps the file. The lock is held, so that no other process does the same now.
    fn serve(mut self, lock: FileLock) -> Result<Opened, OpenError> {
        let before = self.metadata()?;
        if matches!(self.media.kind, BackingKind::Tmpfs | BackingKind::Ramfs) {
            find_groups();
        }
        self.fill(&before)
            .and_then(|capacity_bytes| {
                // Space that was allocated just now may be bad already.
                self.media.find_bad_blocks(&self.file);
                self.disk(capacity_bytes)
            })
            .map(|disk| Opened { disk, lock, media: self.media.clone(), created: self.created })
            .inspect_err(|_| {
                if self.created {
                    remove(&self.backing, &self.file);
                } else if before.len() == 0
                    && self.metadata().is_ok_and(|now| now.len() != 0 || now.blocks() != 0)
                {
                    // Best effort: the error that brought us here is the one to report.
                    let _ = self.file.set_len(0);
                }
            })
    }

    /// Makes the file as long as the options say and allocates it; returns how many bytes are served.
    fn fill(&self, metadata: &Metadata) -> Result<u64, OpenError> {
        let (backing, options, file_bytes) = (&self.backing, self.options, metadata.len());
        match options.size_bytes {
            None => {
                let whole_bytes = serve_whole_blocks(backing, "the file", file_bytes, self.block_bytes())?;
                self.space().ensure_space(metadata, whole_bytes)?;
                Ok(whole_bytes)
            }
            Some(size_bytes) if file_bytes == 0 && !options.read_only => {
                self.grow(metadata, size_bytes)?;
                Ok(size_bytes)
            }
            Some(size_bytes) if size_bytes > file_bytes => {
                Err(OpenError::TooSmall { backing: backing.clone(), size_bytes, file_bytes })
            }
            Some(size_bytes) => {
                self.space().ensure_space(metadata, size_bytes)?;
                Ok(size_bytes)
            }
        }
    }

    /// Makes an empty file `size_bytes` long, and has it allocated.
    fn grow(&self, metadata: &Metadata, size_bytes: u64) -> Result<(), OpenError> {
        let page_bytes = metadata.blksize().max(1);
        if self.media.kind == BackingKind::Hugetlbfs && !size_bytes.is_multiple_of(page_bytes) {
            return Err(OpenError::BadSize {
                backing: self.backing.clone(),
                cause: format!("size= is {size_bytes} bytes, not a multiple of the {page_bytes}-byte pages"),
                remedy: format!("use size={}", size_bytes.next_multiple_of(page_bytes)),
            });
        }
        if !self.options.sparse {
            self.space().check_memory(size_bytes)?;
        }
        if let Err(error) = self.space().write_in_place() {
            self.space().warn_of_copies(Some(&error));
        }
        // Its length last: a process that is killed meanwhile leaves an empty file behind, not a disk without space.
        let is_allocated =
            !self.options.sparse && self.space().try_allocate(space::KEEP_SIZE, size_bytes, size_bytes)?;
        self.file.set_len(size_bytes).map_err(|source| self.space().not_grown(size_bytes, source))?;
        match (self.options.sparse, is_allocated) {
            (true, _) => self.space().warn_of_memory(size_bytes),
            (false, true) => {}
            (false, false) => self.space().allocate(size_bytes, size_bytes)?,
        }
        if self.created && self.media.durability > Durability::Volatile {
            self.file.sync_all().map_err(|source| {
                OpenError::system(&self.backing, "sync", "check the file system", source)
            })?;
            self.sync_name()?;
        }
        Ok(())
    }

    /// Makes the new file's name survive a power failure, if its directory can be asked to.
    fn sync_name(&self) -> Result<(), OpenError> {
        let Err(source) = sync_directory(self.backing.path()) else { return Ok(()) };
        match source.raw_os_error() {
            // The directory may be searched and written, but not read; or its file system syncs no directories.
            Some(libc::EACCES | libc::EPERM | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => {
                tracing::warn!(
                    disk = self.options.name,
                    path = %self.backing.path().display(),
                    error = %source,
                    "its directory cannot be synced: the new file's name may not survive a power cut soon"
                );
                Ok(())
            }
            _ => Err(OpenError::system(
                &self.backing,
                "sync the directory of",
                "check the file system",
                source,
            )),
        }
    }

    fn disk(&self, capacity_bytes: u64) -> Result<Backing, OpenError> {
        let OpenOptions { read_only, discard, .. } = *self.options;
        let deep_flush = deep_flush_files(&self.backing, &self.media, self.options)?;
        let geometry = Geometry { capacity_bytes, block_bytes: self.block_bytes(), read_only };
        let (file, kind) = (Arc::clone(&self.file), self.media.kind);
        let mut disk = match kind.is_written_through_mapping() {
            true => MappedDisk::over(file, geometry, &self.media, discard.unmaps(kind), deep_flush)
                .map(Backing::Mapped),
            false => FileDisk::over(file, geometry, discard.unmaps(kind)).map(Backing::File),
        }
        .map_err(|source| {
            let remedy = "use a file system whose files can be mapped, and allow as much address space";
            OpenError::system(&self.backing, "map", remedy, source)
        })?;
        disk.set_growth(self.options.growth());
        Ok(disk)
    }

    fn space(&self) -> FileSpace<'_> {
        let Self { backing, options, file, media, .. } = self;
        FileSpace { backing, options, file, media }
    }

    fn block_bytes(&self) -> u32 {
        self.options.block_bytes.unwrap_or(DEFAULT_BLOCK_BYTES)
    }

    fn metadata(&self) -> Result<Metadata, OpenError> {
        self.file
            .metadata()
            .map_err(|source| OpenError::system(&self.backing, "examine", "check the file system", source))
    }
}

/// Opens a regular file; `None` when there is nothing at the path.
fn open_existing(backing: &BackingPath, options: &OpenOptions) -> Result<Option<File>, OpenError> {
    let failed = |operation| move |source| OpenError::system(backing, operation, PATH_REMEDY, source);
    let started = Instant::now();
    let may_wait = || started.elapsed() < LEASE_TIMEOUT && !options.should_stop.load(Ordering::Relaxed);
    let open = |flags| loop {
        let flags = flags | access(options) | OFlags::NOCTTY | OFlags::NONBLOCK;
        match options.symlinks.open(backing.path(), flags, Mode::empty()) {
            // Somebody has a lease on it; this attempt has asked for its return.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && may_wait() => {
                std::thread::sleep(LEASE_POLL);
            }
            opened => return opened,
        }
    };
    // Reads need no time stamps, but only the owner may leave them out.
    let file = match open(OFlags::NOATIME) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(OFlags::empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result,
    };
    let file = File::from(file.map_err(failed("open"))?);
    let opened = file.metadata().map_err(failed("examine"))?;
    check_regular(backing, &opened)?;
    Ok(Some(file))
}

/// The size that a file is to be created with.
///
/// # Errors
/// [`OpenError::Missing`] if it is not to be created.
pub(super) fn check_creatable(backing: &BackingPath, options: &OpenOptions) -> Result<u64, OpenError> {
    let remedy = match (options.size_bytes, options.read_only) {
        (Some(size_bytes), false) => return Ok(size_bytes),
        (_, true) => "correct path=; a read-only disk is not created",
        (None, false) => "correct path=, or give size= to create it",
    };
    let (operation, cause) = ("open", "there is no such file");
    Err(OpenError::Missing { backing: backing.clone(), operation, cause, remedy })
}

/// What is said of a symbolic link to nothing.
pub(super) fn dangling(backing: &BackingPath) -> OpenError {
    let (operation, cause) = ("open", "it is a link to a file that does not exist");
    let remedy = "repair the link or correct path=";
    OpenError::Missing { backing: backing.clone(), operation, cause, remedy }
}

fn create(backing: &BackingPath, options: &OpenOptions) -> Result<File, OpenError> {
    check_creatable(backing, options)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOATIME;
    let created = options.symlinks.open(backing.path(), flags, Mode::RUSR | Mode::WUSR);
    created.map(File::from).map_err(|source| not_created(backing, source))
}

/// Why a file cannot be created.
pub(super) fn not_created(backing: &BackingPath, source: io::Error) -> OpenError {
    match source.kind() {
        io::ErrorKind::NotFound => OpenError::Missing {
            backing: backing.clone(),
            operation: "create",
            cause: "its directory does not exist",
            remedy: "create the directory or correct path=",
        },
        io::ErrorKind::AlreadyExists => dangling(backing),
        _ => OpenError::system(backing, "create", PATH_REMEDY, source),
    }
}

/// Removes what was created, and nothing that its path leads to by now. An error is ignored: the one that made the file useless is
/// to be reported.
fn remove(backing: &BackingPath, created: &File) {
    let _ = created.metadata().and_then(|created| Inode::from(&created).remove_from(backing.path()));
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
