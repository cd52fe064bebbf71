//! A disk in an ordinary file, behind the page cache.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Advice, FallocateFlags};
use rustix::thread::{CapabilitySet, capabilities};

use crate::copy::{self, PrefetchHint, Segments};
use crate::disk::durability::syncs::Syncs;
use crate::disk::error::{cannot, failed};
use crate::disk::failure::IoFailure;
use crate::disk::lock::BackingFile;
use crate::disk::media::bad_blocks::BadBlocks;
use crate::disk::space::growth::{GrowthPolicy, file_bytes};
use crate::disk::space::{self, fallocate};
use crate::disk::{Disk, DiskError, Durability, FileSystem, Geometry, GrowError, sys};
use crate::limits::bounds::MAX_SLICE_BYTES;
use reader::Reader;
use resident::ResidentWindows;

mod reader;
mod resident;

/// What the kernel reads ahead by default (`read_ahead_kb`).
const READ_AHEAD_BYTES: u64 = 128 << 10;

/// A disk that is read through a mapping of the page cache, where there can be one, and written by system calls.
///
/// Writes do not go through the mapping because the file system would then write whole folios back: 256 to
/// 450 times the bytes of a small write, measured on ext4.
#[derive(Debug)]
pub struct FileDisk {
    reader: Reader,
    /// What is there of what the reader has mapped.
    resident: ResidentWindows,
    /// The user who owned the file at the start.
    owner: u32,
    /// The kernel tells this process which pages are in memory; looked up when it has given up what it does not need.
    knows_residency: OnceLock<bool>,
    file: Arc<BackingFile>,
    /// Other machines may have it, too, and the kernel does not know what they write.
    has_server: bool,
    /// With the size at the start: that of `reader` counts.
    geometry: Geometry,
    pub(super) growth: GrowthPolicy,
    syncs: Syncs,
    /// Whether discards give space back.
    unmaps: bool,
    /// What reads have run into. It is tried again all the same.
    bad: BadBlocks,
}

impl FileDisk {
    /// Serves the first `capacity_bytes` of `file`, whose `flock(2)`, if any, ends with the disk.
    ///
    /// # Errors
    /// As [`Mapping::new`](crate::disk::Mapping::new).
    pub fn new(file: File, geometry: Geometry) -> io::Result<Self> {
        Self::over(Arc::new(file.into()), geometry, true)
    }

    /// The same of a file that is shared with its lock; with `unmaps` discards give space back.
    pub(super) fn over(file: Arc<BackingFile>, geometry: Geometry, unmaps: bool) -> io::Result<Self> {
        let reader = Reader::new(&file, geometry.capacity_bytes)?;
        // A process before this one may have left something in the page cache.
        let syncs = Syncs::new("fdatasync", !geometry.read_only);
        let (growth, bad, resident) =
            (GrowthPolicy::default(), BadBlocks::default(), ResidentWindows::default());
        let (owner, knows_residency) = (file.metadata()?.uid(), OnceLock::new());
        let has_server = space::file_system(&file).is_some_and(FileSystem::has_server);
        Ok(Self {
            reader,
            resident,
            owner,
            knows_residency,
            file,
            has_server,
            geometry,
            growth,
            syncs,
            unmaps,
            bad,
        })
    }

    /// As `can_do_mincore` of the kernel (`mm/mincore.c`), but for permissions that others may change.
    #[cold]
    #[inline(never)]
    fn knows_residency(&self) -> bool {
        let may_all = || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::FOWNER));
        self.owner == rustix::process::geteuid().as_raw() || may_all()
    }

    /// The ranges in bytes that reads have run into since they were last read or written well.
    pub(super) fn bad_blocks(&self) -> Vec<Range<u64>> {
        self.bad.list()
    }

    /// For `map_err` of a change of this range.
    fn change_failed(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
    ) -> impl Fn(io::Error) -> DiskError {
        move |error| failed(operation, offset, len)(IoFailure::of_error(&self.file, Some(offset), error))
    }

    /// `fallocate(2)`, which takes what it changes out of the page cache: to read that is to wait for media.
    fn fallocate(&self, what: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        self.resident.forget(offset, len);
        let is_noted = fallocate(&self.file, what, offset, len);
        // Another ring may have asked for it meanwhile.
        self.resident.forget(offset, len);
        is_noted
    }

    /// Bad pages of the page cache are not the media's.
    pub(super) fn forget_announced(&self) {
        self.reader.forget_announced();
    }

    /// What it is made of.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn shared_file(&self) -> Arc<BackingFile> {
        Arc::clone(&self.file)
    }
}

impl Disk for FileDisk {
    #[inline]
    fn geometry(&self) -> Geometry {
        Geometry { capacity_bytes: self.reader.len_bytes(), ..self.geometry }
    }

    fn rescan_size(&self) -> Result<u64, GrowError> {
        let served = self.geometry();
        let Some(target) = self.growth.target(file_bytes(&self.file)?, &served)? else {
            return Ok(served.capacity_bytes);
        };
        if served.read_only && space::file_system(&self.file) == Some(FileSystem::OVERLAYFS) {
            return Err(GrowError::Overlay);
        }
        if self.growth.allocate(&self.file, &served, target)? {
            self.syncs.wrote();
            self.flush().map_err(GrowError::Sync)?;
        }
        self.reader.grow(target).map_err(cannot("map the new part"))?;
        Ok(target)
    }

    /// Whatever guests are told: a copy has no blocks.
    fn unit_bytes(&self) -> u32 {
        512
    }

    #[inline]
    fn durability(&self) -> Durability {
        Durability::Page
    }

    #[inline]
    fn prefetch_hint(&self, offset: u64) -> PrefetchHint {
        self.reader.prefetch_hint(offset)
    }

    fn may_wait(&self) -> bool {
        true
    }

    /// The kernel locks the file for each.
    fn changes_exclude_each_other(&self) -> bool {
        true
    }

    /// While it is synced, a write may wait for the file system's journal.
    fn writes_are_quick(&self) -> bool {
        !self.has_server && !self.syncs.is_syncing()
    }

    #[inline]
    fn try_read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> bool {
        let len = into.total_bytes() as u64;
        let Reader::Mapped(mapping) = &self.reader else { return false };
        // What is at the end would be a question to the file's server.
        if len > MAX_SLICE_BYTES || !mapping.is_interior(offset, len) {
            return false;
        }
        let is_read = match *self.knows_residency.get_or_init(|| self.knows_residency()) {
            true => self.resident.has(mapping, offset, len) && mapping.read(offset, into, next).is_ok(),
            false => sys::preadv_nowait(self.file.as_fd(), offset, into),
        };
        if is_read {
            self.bad.remove_good(offset, len);
        }
        is_read
    }

    /// As long as the kernel reads at once what it is told of.
    fn can_announce(&self, len: u64) -> bool {
        len <= READ_AHEAD_BYTES && !self.has_server && matches!(self.reader, Reader::Mapped(_))
    }

    fn announce(&self, offset: u64, len: u64) {
        // Ignored: who reads them finds what is wrong.
        let _ = rustix::fs::fadvise(&**self.file, offset, NonZeroU64::new(len), Advice::WillNeed);
    }

    fn read_announced(&self, offset: u64, into: Segments<'_>) -> bool {
        let Reader::Mapped(mapping) = &self.reader else { return false };
        // What is at the end is read as always, and its errors are found out there.
        if !mapping.is_interior(offset, into.total_bytes() as u64) {
            return false;
        }
        copy::touch(into);
        let is_read = sys::preadv_nowait(self.file.as_fd(), offset, into);
        if is_read {
            self.bad.remove_good(offset, into.total_bytes() as u64);
        }
        is_read
    }

    fn forget_cached(&self) {
        if self.has_server {
            self.resident.forget(0, u64::MAX);
            self.reader.forget_cached(&self.file);
        }
    }

    fn begin_turn(&self) {
        self.resident.begin_turn();
    }

    /// Whether it is there was asked before: now it is waited for, if it must be.
    fn read(&self, offset: u64, into: Segments<'_>, _next: PrefetchHint) -> Result<(), DiskError> {
        self.reader.read(&self.file, offset, into).inspect_err(|error| {
            if let Some(at) = IoFailure::of_media(error) {
                self.bad.add(at..at.saturating_add(1));
            }
        })?;
        self.bad.remove_good(offset, into.total_bytes() as u64);
        Ok(())
    }

    fn write(&self, offset: u64, from: Segments<'_>, _next: PrefetchHint) -> Result<(), DiskError> {
        let len = from.total_bytes() as u64;
        self.geometry().check_write(offset, len)?;
        self.reader.check_end(&self.file, offset, len)?;
        copy::touch(from);
        copy::pwritev_all(self.file.as_fd(), offset, from)
            .map_err(self.change_failed("pwritev", offset, len))?;
        self.bad.remove_good(offset, len);
        self.syncs.wrote();
        Ok(())
    }

    #[inline]
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        self.syncs.try_answer()
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.syncs.sync(|| {
            space::sync_data(&self.file).map_err(|error| IoFailure::of_error(&self.file, None, error))
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.geometry().check_write(offset, len)?;
        if self.unmaps {
            // Only advice: a file system that has no holes keeps the bytes.
            self.fallocate(space::PUNCH, offset, len).map_err(self.change_failed(
                "punching a hole",
                offset,
                len,
            ))?;
            self.syncs.wrote();
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError> {
        self.geometry().check_write(offset, len)?;
        self.reader.check_end(&self.file, offset, len)?;
        let what = if unmap && self.unmaps { space::PUNCH } else { space::ZERO };
        let is_noted =
            self.fallocate(what, offset, len).map_err(self.change_failed("zeroing a range", offset, len))?;
        if !is_noted {
            copy::pwritev_zeroes(self.file.as_fd(), offset, len)
                .map_err(self.change_failed("pwritev", offset, len))?;
        }
        self.bad.remove_good(offset, len);
        self.syncs.wrote();
        Ok(if is_noted { 0 } else { len })
    }
}

#[cfg(test)]
mod tests;
