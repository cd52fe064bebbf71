//! A disk whose bytes are memory: persistent memory, tmpfs, memfd, hugetlbfs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(test)]
use crate::copy::recording::{Synced, Syncing};
use crate::copy::{Engine, LINE_BYTES, PrefetchHint, Segments};
use crate::disk::durability::dirty_extents::{Dirty, DirtyExtents};
use crate::disk::durability::syncs::Syncs;
use crate::disk::error::{cannot, failed};
use crate::disk::failure::IoFailure;
use crate::disk::lock::BackingFile;
use crate::disk::mapping::{HUGE_PAGE_BYTES, MapOptions, persist_of, smaps};
use crate::disk::media::address;
use crate::disk::media::bad_blocks::{BadBlockList, PAGE_BYTES};
use crate::disk::media::sysfs::Sysfs;
use crate::disk::space::growth::{GrowthPolicy, file_bytes};
use crate::disk::space::{self, fallocate};
use crate::disk::{BackingKind, Disk, DiskError, Durability, Geometry, GrowError, Mapping, Media};
use repair::{BadMedia, MappedFile, bad_media};

/// A disk that is read and written by copies to and from its mapping.
///
/// Every page should have its space before: a store into a hole that cannot be filled is a `SIGBUS`.
#[derive(Debug)]
pub struct MappedDisk {
    mapping: Mapping,
    file: Arc<BackingFile>,
    /// With the size at the start: that of the mapping counts.
    geometry: Geometry,
    pub(super) growth: GrowthPolicy,
    kind: BackingKind,
    durability: Durability,
    persistence: Persistence,
    /// Whether discards give space back.
    unmaps: bool,
    /// Bytes that a hole is made of: a page of the file system, 2 MiB on DAX, to keep its huge mappings.
    punch_bytes: u64,
    bad: BadMedia,
    /// Bytes in huge pages when they were last counted.
    huge_bytes: Mutex<Option<u64>>,
    /// Of a file on DAX: where the device that it lies on begins in memory.
    dax_base: Option<u64>,
    /// Bytes without data that the kernel has zeroed to enter them into the page tables.
    populated_zero_bytes: AtomicU64,
}

/// What makes finished writes persist.
#[derive(Debug)]
enum Persistence {
    /// The fence of their batch, or nothing at all.
    Fence,
    /// That fence; the memory controller's queues are emptied as well.
    Deep { syncs: Syncs, files: Vec<File> },
    /// `msync` of what was written, or `fdatasync`.
    Pages { syncs: Syncs, dirty: DirtyExtents },
}

impl Persistence {
    /// What it takes on media of this class; what is to be synced is noted in units of `run_bytes`.
    fn of(durability: Durability, deep_flush: Vec<File>, run_bytes: u64, dirty: bool) -> Self {
        match durability {
            Durability::Page => Self::Pages {
                syncs: Syncs::new("fdatasync", dirty),
                dirty: DirtyExtents::new(run_bytes, dirty),
            },
            _ if deep_flush.is_empty() => Self::Fence,
            _ => Self::Deep { syncs: Syncs::new("deep flush", dirty), files: deep_flush },
        }
    }
}

/// Empties the memory controller's queues of a region.
fn flush_deep(file: &File) -> io::Result<()> {
    #[cfg(test)]
    let _recorded = Syncing::start(Synced::Queues);
    file.write_all_at(b"1", 0)
}

impl MappedDisk {
    /// Serves the first `capacity_bytes` of `file`, which does not outlive the machine, and whose `flock(2)`,
    /// if any, ends with the disk.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub fn new(file: File, geometry: Geometry) -> io::Result<Self> {
        let mapping = Mapping::new(&file, geometry.capacity_bytes, geometry.read_only)?;
        Ok(Self {
            mapping,
            punch_bytes: file.metadata()?.blksize().max(1),
            file: Arc::new(file.into()),
            geometry,
            growth: GrowthPolicy::default(),
            kind: BackingKind::Tmpfs,
            durability: Durability::Volatile,
            persistence: Persistence::Fence,
            unmaps: true,
            bad: BadMedia::default(),
            huge_bytes: Mutex::default(),
            dax_base: None,
            populated_zero_bytes: AtomicU64::new(0),
        })
    }

    /// Serves a file or device that is shared with its lock and long enough; `deep_flush` are the attributes
    /// that FLUSH writes to.
    pub(super) fn over(
        file: Arc<BackingFile>,
        geometry: Geometry,
        media: &Media,
        unmaps: bool,
        deep_flush: Vec<File>,
    ) -> io::Result<Self> {
        let page_bytes = match media.kind {
            BackingKind::DeviceDax => media.unit_bytes,
            _ => file.metadata()?.blksize().max(1),
        };
        let is_synchronous = matches!(media.durability, Durability::CacheLine | Durability::Byte);
        let options = MapOptions {
            len_bytes: geometry.capacity_bytes,
            unit_bytes: page_bytes,
            read_only: geometry.read_only,
            synchronous: is_synchronous,
            persist: persist_of(media.durability),
        };
        let mapping = Mapping::with(&file, options)?;
        if media.kind == BackingKind::Tmpfs {
            // Ignored: with small pages the disk is slower, and no less right.
            let _ = mapping.advise_huge_pages();
        }
        // A process before this one may have left something unwritten.
        let dirty = !geometry.read_only;
        let run_bytes = rustix::param::page_size() as u64;
        let persistence = Persistence::of(media.durability, deep_flush, run_bytes, dirty);
        let is_dax = matches!(media.kind, BackingKind::DaxFile { .. });
        let dax_base = if is_dax { address::dax_base(&file, &Sysfs::system()) } else { None };
        if !is_dax {
            smaps::own();
        }
        Ok(Self {
            mapping,
            file,
            geometry,
            growth: GrowthPolicy::default(),
            kind: media.kind,
            durability: media.durability,
            persistence,
            unmaps,
            punch_bytes: if is_dax { HUGE_PAGE_BYTES as u64 } else { page_bytes },
            bad: BadMedia::new(media),
            huge_bytes: Mutex::default(),
            dax_base,
            populated_zero_bytes: AtomicU64::new(0),
        })
    }

    /// The mapping, to be populated.
    pub(super) const fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The parts of the disk that have space, where holes must be left as they are.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn shared_file(&self) -> Arc<BackingFile> {
        Arc::clone(&self.file)
    }

    /// Of a file on DAX: where its device begins in memory, if that is known.
    pub(super) const fn dax_base(&self) -> Option<u64> {
        self.dax_base
    }

    pub(super) fn set_huge_bytes(&self, bytes: Option<u64>) {
        *self.huge_bytes.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    pub(super) fn huge_bytes(&self) -> Option<u64> {
        *self.huge_bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_populated_zero_bytes(&self, bytes: u64) {
        self.populated_zero_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn populated_zero_bytes(&self) -> u64 {
        self.populated_zero_bytes.load(Ordering::Relaxed)
    }

    /// What it lies on.
    pub(super) const fn kind(&self) -> BackingKind {
        self.kind
    }

    /// A load from the page at `offset` has failed: from now on reads of it fail without touching it.
    ///
    /// Call it only if the mapping failed, not guest memory, and the file is still as long as the disk.
    #[cold]
    pub fn add_bad_page(&self, offset: u64) {
        self.bad.add_page(offset);
    }

    /// The ranges in bytes that are known to be bad.
    pub fn bad_blocks(&self) -> Vec<Range<u64>> {
        self.bad.blocks()
    }

    /// Learns what the kernel has listed or announced to be bad by now; reads of it fail from then on, without
    /// touching it. Returns what was news, in bytes of the disk.
    pub(super) fn update_bad_blocks(&self) -> Vec<Range<u64>> {
        self.bad.update(self.mapped_file())
    }

    pub(super) const fn bad_block_list(&self) -> Option<&BadBlockList> {
        self.bad.list()
    }

    fn mapped_file(&self) -> MappedFile<'_> {
        MappedFile { file: &self.file, mapping: &self.mapping, kind: self.kind }
    }

    /// An error if a range that is to be read touches bad pages.
    #[cold]
    #[inline(never)]
    fn check_bad(&self, offset: u64, len: usize) -> Result<(), DiskError> {
        let len = len as u64;
        if self.bad.touch(offset, len) { Err(bad_media("reading bad media", offset, len)) } else { Ok(()) }
    }

    /// Makes the bad pages that a range touches good again, if it covers them.
    #[cold]
    fn repair(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.bad.repair(self.mapped_file(), offset, len, || self.changed_layout())
    }

    /// As [`retry_store`](Self::retry_store), of a write.
    #[cold]
    #[inline(never)]
    fn retry_write(&self, offset: u64, from: &Segments<'_>, error: DiskError) -> Result<(), DiskError> {
        self.retry_store(offset, from.total_bytes() as u64, error, &|| {
            self.mapping.write(offset, *from, PrefetchHint::NONE)
        })
    }

    /// A store has met bad media that was not known: it is repaired first if the range covers it, page by page.
    #[cold]
    #[inline(never)]
    fn retry_store(
        &self,
        offset: u64,
        len: u64,
        error: DiskError,
        store: &dyn Fn() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut error = error;
        // One that is bad again at once is bad.
        for _ in 0..=len / PAGE_BYTES {
            if IoFailure::of_media(&error).is_none() {
                break;
            }
            self.bad.note_failure(&error);
            self.repair(offset, len)?;
            match store() {
                Ok(()) => return Ok(()),
                Err(next) => error = next,
            }
        }
        self.bad.note_failure(&error);
        Err(error)
    }

    /// A write to `len` bytes at `offset` has finished.
    #[inline]
    fn wrote(&self, offset: u64, len: u64) {
        match &self.persistence {
            Persistence::Fence => {}
            Persistence::Deep { syncs, .. } => syncs.wrote(),
            Persistence::Pages { syncs, dirty } => {
                // In this order: a sync clears the flag before it takes what is dirty.
                dirty.note(offset..offset + len);
                syncs.wrote();
            }
        }
    }

    /// The file system has changed where the bytes lie: that lasts when it is synced.
    fn changed_layout(&self) -> Result<(), DiskError> {
        match &self.persistence {
            Persistence::Pages { syncs, dirty } => {
                dirty.note_all();
                syncs.wrote();
                Ok(())
            }
            _ if self.durability == Durability::Volatile => Ok(()),
            _ => space::sync_data(&self.file)
                .map_err(|source| DiskError::Sync { operation: "fdatasync", source }),
        }
    }

    fn punch(&self, range: Range<u64>) -> Result<bool, DiskError> {
        let (offset, len) = (range.start, range.end - range.start);
        fallocate(&self.file, space::PUNCH, offset, len).map_err(failed("punching a hole", offset, len))
    }

    /// Zeroes in place. Returns what the media takes.
    fn zero(&self, offset: u64, len: u64) -> Result<u64, DiskError> {
        let store = || self.mapping.zero(offset, len);
        store().or_else(|error| self.retry_store(offset, len, error, &store))?;
        self.wrote(offset, len);
        Ok(self.media_written_bytes(offset, len))
    }
}

impl Disk for MappedDisk {
    #[inline]
    fn geometry(&self) -> Geometry {
        Geometry { capacity_bytes: self.mapping.len_bytes(), ..self.geometry }
    }

    /// Bad media in the new part is found by reading it.
    fn rescan_size(&self) -> Result<u64, GrowError> {
        let served = self.geometry();
        if self.kind == BackingKind::DeviceDax {
            return Ok(served.capacity_bytes); // its size is fixed while it is open
        }
        let Some(target) = self.growth.target(file_bytes(&self.file)?, &served)? else {
            return Ok(served.capacity_bytes);
        };
        if self.growth.allocate(&self.file, &served, target)? {
            self.changed_layout().and_then(|()| self.flush()).map_err(GrowError::Sync)?;
        }
        self.mapping.grow(target).map_err(cannot("map the new part"))?;
        if self.kind == BackingKind::Tmpfs {
            // Ignored: with small pages the disk is slower, and no less right.
            let _ = self.mapping.advise_huge_pages();
        }
        Ok(target)
    }

    /// Whatever guests are told: a copy has no blocks.
    fn unit_bytes(&self) -> u32 {
        512
    }

    #[inline]
    fn durability(&self) -> Durability {
        self.durability
    }

    fn initial_writeback(&self) -> bool {
        match self.persistence {
            Persistence::Fence => self.durability == Durability::Volatile,
            Persistence::Deep { .. } | Persistence::Pages { .. } => true,
        }
    }

    fn discard_alignment_bytes(&self) -> u64 {
        self.punch_bytes.max(PAGE_BYTES)
    }

    #[inline]
    fn media_written_bytes(&self, offset: u64, len: u64) -> u64 {
        // The media takes whole cache lines.
        const LINE: u64 = LINE_BYTES as u64;
        match len {
            0 => 0,
            _ => (offset % LINE + len).next_multiple_of(LINE),
        }
    }

    #[inline]
    fn prefetch_hint(&self, offset: u64) -> PrefetchHint {
        // Bad media is not to be touched, not even so.
        if self.bad.is_empty() { self.mapping.prefetch_hint(offset) } else { PrefetchHint::NONE }
    }

    #[inline(always)]
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        if !self.bad.is_empty() {
            self.check_bad(offset, into.total_bytes())?;
        }
        let load = self.mapping.load(offset, into)?;
        let left = Engine::get().load(load, next);
        self.mapping.loaded(offset, &load, left).inspect_err(|error| self.bad.note_failure(error))
    }

    #[inline(always)]
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        let len = from.total_bytes() as u64;
        if !self.bad.is_empty() {
            self.geometry().check_write(offset, len)?;
            self.repair(offset, len)?;
        }
        let store = self.mapping.store(offset, from)?;
        let left = Engine::get().store(store, self.mapping.persist(), next);
        if let Err(error) = self.mapping.stored(offset, &store, left) {
            // A copy for the rare case, so that the common one has it in registers.
            let again = from;
            self.retry_write(offset, &again, error)?;
        }
        self.wrote(offset, len);
        Ok(())
    }

    fn flushes_by_fence(&self) -> bool {
        matches!(self.persistence, Persistence::Fence)
    }

    #[inline]
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        // The fence of the batch comes before the answer is seen.
        match &self.persistence {
            Persistence::Fence => Some(Ok(())),
            Persistence::Deep { syncs, .. } | Persistence::Pages { syncs, .. } => syncs.try_answer(),
        }
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.fence();
        match &self.persistence {
            Persistence::Fence => Ok(()),
            Persistence::Deep { syncs, files } => syncs.sync(|| files.iter().try_for_each(flush_deep)),
            Persistence::Pages { syncs, dirty } => syncs.sync(|| match dirty.take() {
                Dirty::Runs(runs) => runs.into_iter().try_for_each(|run| self.mapping.sync(run)),
                Dirty::Many => space::sync_data(&self.file),
            }),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.geometry().check_write(offset, len)?;
        let range = match self.kind {
            BackingKind::DaxFile { .. } => whole_units(offset..offset + len, self.punch_bytes),
            _ => Some(offset..offset + len),
        };
        let Some(range) = range.filter(|_| self.unmaps) else { return Ok(()) };
        // Only advice: a file system that has no holes keeps the bytes. What is lost of it when the power
        // fails is no harm either, so nothing waits for a sync.
        self.punch(range)?;
        if let Persistence::Pages { syncs, dirty } = &self.persistence {
            dirty.note_all();
            syncs.wrote();
        }
        Ok(())
    }

    fn has_fast_zero(&self) -> bool {
        self.unmaps && self.kind != BackingKind::DeviceDax
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError> {
        self.geometry().check_write(offset, len)?;
        if !self.bad.is_empty() {
            self.repair(offset, len)?;
        }
        let end = offset + len;
        // Up to 2 MiB are zeroed faster than given back, where giving back means a journal to be written.
        let is_small = matches!(self.kind, BackingKind::DaxFile { .. }) && len <= self.punch_bytes;
        let Some(pages) =
            whole_units(offset..end, self.punch_bytes).filter(|_| unmap && self.unmaps && !is_small)
        else {
            return self.zero(offset, len);
        };
        if !self.punch(pages.clone())? {
            return self.zero(offset, len);
        }
        self.changed_layout()?;
        let before = self.zero(offset, pages.start - offset)?;
        Ok(before + self.zero(pages.end, end - pages.end)?)
    }
}

/// The part of `range` that consists of whole units of `unit` bytes, if there is one.
fn whole_units(range: Range<u64>, unit: u64) -> Option<Range<u64>> {
    let start = range.start.checked_next_multiple_of(unit)?;
    let end = range.end - range.end % unit;
    (start < end).then_some(start..end)
}

#[cfg(test)]
pub(crate) mod emulated;
pub(super) mod huge_pages;
pub(super) mod populate;
mod repair;
#[cfg(test)]
mod tests;
