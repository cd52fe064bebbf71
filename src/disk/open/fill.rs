//! Allocating the space of a regular file at the start, unless the disk is to be sparse.

use std::fs::{File, Metadata};
use std::io;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, IFlags, ioctl_getflags, ioctl_setflags};
use rustix::process::{Resource, getrlimit};

use super::error::OpenError;
use super::options::OpenOptions;
use crate::disk::backing_path::BackingPath;
use crate::disk::space;
use crate::disk::{BackingKind, FileSystem, Media};

/// Bytes of a file in memory that one call allocates: it takes some tenths of a second, and a stop is heeded between calls.
const IN_MEMORY_PART_BYTES: u64 = 256 << 20;

/// Bytes that one call copies of what is shared with other files.
const COPY_PART_BYTES: u64 = 64 << 20;

/// A regular file whose space is to be allocated.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileSpace<'a> {
    pub(super) backing: &'a BackingPath,
    pub(super) options: &'a OpenOptions,
    pub(super) file: &'a File,
    pub(super) media: &'a Media,
}

impl FileSpace<'_> {
    pub(super) fn not_grown(&self, size_bytes: u64, source: io::Error) -> OpenError {
        match source.kind() {
            io::ErrorKind::FileTooLarge if getrlimit(Resource::Fsize).current.is_some() => {
                OpenError::BadSize {
                    backing: self.backing.clone(),
                    cause: format!(
                        "size= is {size_bytes} bytes, more than this process may write (ulimit -f): {source}"
                    ),
                    remedy: "raise that limit (LimitFSIZE= of the service), or choose a smaller size="
                        .to_owned(),
                }
            }
            io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput => OpenError::BadSize {
                backing: self.backing.clone(),
                cause: format!("size= is {size_bytes} bytes, more than its file system allows: {source}"),
                remedy: "choose a smaller size=".to_owned(),
            },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                self.no_space(size_bytes, space::free_bytes(self.file), source)
            }
            _ => OpenError::system(self.backing, "grow", "check the file system", source),
        }
    }

    /// Makes sure of space for the first `size_bytes`, as the options say.
    pub(super) fn ensure_space(&self, metadata: &Metadata, size_bytes: u64) -> Result<(), OpenError> {
        if self.options.read_only {
            return Ok(());
        }
        if self.is_copied_on_write() {
            self.warn_of_copies(None);
        }
        if !self.options.sparse {
            self.unshare(size_bytes)?;
        }
        match self.media.kind.is_written_through_mapping() {
            true => self.fill_holes(metadata, size_bytes),
            false => Ok(()),
        }
    }

    /// Blocks that other files share (clones, snapshots) are copied when they are written to. A write through a mapping must not
    /// fail for lack of space, and so they are copied now; for other disks it is enough that there is space for it.
    fn unshare(&self, size_bytes: u64) -> Result<(), OpenError> {
        let is_mapped = self.media.kind.is_written_through_mapping();
        let free_bytes = space::free_bytes(self.file);
        if !is_mapped && free_bytes.is_none_or(|free_bytes| free_bytes >= size_bytes) {
            return Ok(());
        }
        let shared_bytes = space::shared_bytes(self.file, 0..size_bytes);
        if shared_bytes == 0 {
            return Ok(());
        }
        let no_space = |source| {
            let remedy = "free some space, or use sparse=on, with which writes fail that find none";
            self.no_space_with(remedy, shared_bytes, free_bytes, source)
        };
        if free_bytes.is_some_and(|free_bytes| free_bytes < shared_bytes) {
            return Err(no_space(io::Error::other("as much of it is shared with other files")));
        }
        if is_mapped {
            let copied = self.fallocate_parts(space::UNSHARE, size_bytes, COPY_PART_BYTES);
            let synced =
                copied.and_then(|is_done| if is_done { space::sync_data(self.file) } else { Ok(()) });
            synced.map_err(|source| match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => no_space(source),
                _ => {
                    OpenError::system(self.backing, "copy what other files share of", "use sparse=on", source)
                }
            })?;
        }
        Ok(())
    }

    /// Whether each write goes to new blocks, and so needs space even where the file has some: on btrfs, unless the file has the
    /// attribute NOCOW, which must be set while it is empty.
    fn is_copied_on_write(&self) -> bool {
        let is_btrfs = self.media.kind == BackingKind::OrdinaryFile { file_system: FileSystem::BTRFS };
        is_btrfs && !ioctl_getflags(self.file).is_ok_and(|flags| flags.contains(IFlags::NOCOW))
    }

    /// Sets NOCOW on a file that is still empty, if it needs that: later writes go to the blocks that it has.
    pub(super) fn write_in_place(&self) -> io::Result<()> {
        if !self.is_copied_on_write() {
            return Ok(());
        }
        let file = self.file;
        Ok(ioctl_setflags(file, ioctl_getflags(file)? | IFlags::NOCOW)?)
    }

    pub(super) fn warn_of_copies(&self, error: Option<&io::Error>) {
        tracing::warn!(
            disk = self.options.name,
            path = %self.backing.path().display(),
            error = error.map(tracing::field::display),
            "btrfs writes this file to a new place each time: writes fail when the file system is full, however much \
             space the file has; a file that is created with size=, or empty with chattr +C, does not need that"
        );
    }

    /// Allocates the holes of a file that is written through a mapping, where a write that finds no space cannot fail.
    fn fill_holes(&self, metadata: &Metadata, size_bytes: u64) -> Result<(), OpenError> {
        // An estimate: blocks can lie behind the end as well.
        let short_bytes = size_bytes.saturating_sub(space::allocated_bytes(metadata));
        if self.options.sparse {
            self.warn_of_memory(short_bytes);
            return Ok(());
        }
        let missing_bytes = match short_bytes {
            0 => space::hole_bytes(self.file, 0..size_bytes),
            _ => short_bytes,
        };
        if missing_bytes == 0 {
            return Ok(());
        }
        self.check_memory(short_bytes)?;
        if space::unused_bytes(self.file).is_some_and(|unused_bytes| unused_bytes < short_bytes) {
            // Not tried: it would take what there is before it fails, and not every file system gives that back.
            let source = io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(self.no_space(short_bytes, space::free_bytes(self.file), source));
        }
        self.allocate(size_bytes, missing_bytes)
    }

    pub(super) fn allocate(&self, size_bytes: u64, missing_bytes: u64) -> Result<(), OpenError> {
        if !self.try_allocate(space::ALLOCATE, size_bytes, missing_bytes)? {
            tracing::warn!(
                disk = self.options.name,
                path = %self.backing.path().display(),
                "the file system cannot preallocate: the disk is sparse, and a write that finds no space fails"
            );
        }
        Ok(())
    }

    /// Allocates the first `size_bytes`, of which `missing_bytes` have no space yet; `false` when the file system cannot do it
    /// in this manner.
    pub(super) fn try_allocate(
        &self,
        how: FallocateFlags,
        size_bytes: u64,
        missing_bytes: u64,
    ) -> Result<bool, OpenError> {
        // Read before the attempt: not every file system gives back at once what a failed allocation took.
        let free_bytes = space::free_bytes(self.file);
        let part_bytes = match self.media.kind {
            // It takes long, so it is done in parts, but only if there is space for all of them.
            BackingKind::Tmpfs | BackingKind::Hugetlbfs
                if free_bytes.is_none_or(|free| free >= missing_bytes) =>
            {
                IN_MEMORY_PART_BYTES
            }
            _ => size_bytes,
        };
        self.fallocate_parts(how, size_bytes, part_bytes).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => self.no_space(missing_bytes, free_bytes, source),
            // The error of hugetlbfs when its pool is empty.
            Some(libc::ENOMEM) if self.media.kind == BackingKind::Hugetlbfs => {
                self.no_space(missing_bytes, free_bytes, source)
            }
            Some(libc::EFBIG) => self.not_grown(size_bytes, source),
            _ => OpenError::system(self.backing, "allocate", "use sparse=on", source),
        })
    }

    fn fallocate_parts(&self, how: FallocateFlags, size_bytes: u64, part_bytes: u64) -> io::Result<bool> {
        let should_stop = || self.options.should_stop.load(Ordering::Relaxed);
        space::fallocate_parts(self.file, how, size_bytes, part_bytes, should_stop)
    }

    /// Refuses more bytes in memory than a control group has left: the kernel would kill this process.
    pub(super) fn check_memory(&self, bytes: u64) -> Result<(), OpenError> {
        let Some(limit) = space::memory_limit(self.file, bytes) else { return Ok(()) };
        let remedy = "raise that limit (MemoryMax= of the service), or choose a smaller size=";
        let source = io::Error::other(limit.to_string());
        Err(self.no_space_with(remedy, bytes, Some(limit.room_bytes), source))
    }

    /// Warns if a control group has less memory left than the holes may take: the kernel would kill this process in the middle
    /// of a guest's write.
    pub(super) fn warn_of_memory(&self, missing_bytes: u64) {
        if let Some(limit) = space::memory_limit(self.file, missing_bytes) {
            let (disk, room_bytes) = (&self.options.name, limit.room_bytes);
            tracing::warn!(
                disk,
                missing_bytes,
                room_bytes,
                %limit,
                "the kernel will end this process when guests fill more holes than there is memory for"
            );
        }
    }

    fn no_space(&self, needed_bytes: u64, free_bytes: Option<u64>, source: io::Error) -> OpenError {
        let remedy = match self.media.kind {
            BackingKind::Hugetlbfs => "reserve more huge pages (vm.nr_hugepages) or choose a smaller size=",
            _ => "free some space, choose a smaller size=, or use sparse=on",
        };
        self.no_space_with(remedy, needed_bytes, free_bytes, source)
    }

    fn no_space_with(
        &self,
        remedy: &'static str,
        needed_bytes: u64,
        free_bytes: Option<u64>,
        source: io::Error,
    ) -> OpenError {
        OpenError::NoSpace { backing: self.backing.clone(), needed_bytes, free_bytes, remedy, source }
    }
}
