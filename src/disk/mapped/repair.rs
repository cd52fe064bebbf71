//! What a mapped disk knows of bad media, and how a write mends it.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::PoisonError;

use super::{BackingKind, DiskError, MappedDisk};
use crate::copy::{self, PrefetchHint, Segments};
use crate::disk::error::failed;
use crate::disk::failure::IoFailure;
use crate::disk::media::bad_blocks::{BadBlockList, PAGE_BYTES};
use crate::disk::ranges;
use crate::disk::space::{self, fallocate};
use crate::log::Cause;

impl MappedDisk {
    /// A load from the page at `offset` has failed: from now on reads of it fail without touching it.
    ///
    /// Call it only if the mapping failed, not guest memory, and the file is still as long as the disk.
    #[cold]
    pub fn add_bad_page(&self, offset: u64) {
        let page = offset - offset % PAGE_BYTES;
        self.bad.add(page..page.saturating_add(PAGE_BYTES));
        if let Some(suppressed) = self.log_limit.admit(Cause::Media) {
            tracing::error!(
                offset = page,
                len = PAGE_BYTES,
                suppressed,
                "bad media: the page cannot be read"
            );
        }
    }

    /// Remembers the page that a read has failed at, if it was the media that failed.
    #[cold]
    pub(super) fn note_failure(&self, error: &DiskError) {
        if let Some(offset) = IoFailure::of_media(error) {
            self.add_bad_page(offset);
        }
    }

    /// Learns what the kernel has listed or announced to be bad by now; reads of it fail from then on, without
    /// touching it. Returns what was news, in bytes of the disk.
    pub(in crate::disk) fn update_bad_blocks(&self) -> Vec<Range<u64>> {
        let _repairing = self.repairing.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity_bytes = self.mapping.len_bytes();
        let mut found = ranges::clip(&self.listed(), &(0..capacity_bytes));
        // A page of device DAX may be announced by the address of the huge one that it is in.
        if self.kind != BackingKind::DeviceDax {
            let page = |at: u64| at - at % PAGE_BYTES..(at - at % PAGE_BYTES).saturating_add(PAGE_BYTES);
            found.extend(self.mapping.announced().into_iter().filter(|at| *at < capacity_bytes).map(page));
        }
        found.retain(|range| self.bad.add(range.clone()));
        found
    }

    /// What is listed now.
    fn listed(&self) -> Vec<Range<u64>> {
        self.bad_block_list.as_ref().map(|list| list.read(&self.file)).unwrap_or_default()
    }

    pub(in crate::disk) const fn bad_block_list(&self) -> Option<&BadBlockList> {
        self.bad_block_list.as_ref()
    }

    /// The ranges in bytes that are known to be bad.
    pub fn bad_blocks(&self) -> Vec<Range<u64>> {
        self.bad.list()
    }

    /// Makes the bad pages that the range touches good again, if it covers them: they are zero then.
    #[cold]
    pub(super) fn repair(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let _repairing = self.repairing.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = self.bad.within(offset, len);
        if pages.is_empty() {
            return Ok(());
        }
        let capacity_bytes = self.mapping.len_bytes();
        let covers = |page: &Range<u64>| offset <= page.start && page.end.min(capacity_bytes) <= offset + len;
        match self.kind {
            BackingKind::DaxFile { .. } | BackingKind::Tmpfs if pages.iter().all(covers) => {}
            _ => return Err(self.beyond_repair(&pages)),
        }
        for page in pages {
            let (page, page_bytes) = (page.start..page.end.min(capacity_bytes), page.end - page.start);
            self.rewrite(&page)?;
            // The page table may still say that there is no memory.
            self.mapping.dont_need(page.clone()).map_err(failed("madvise"))?;
            self.bad.remove(&(page.start..page.start + page_bytes));
            if let Some(suppressed) = self.log_limit.admit(Cause::Repaired) {
                let (offset, len) = (page.start, page_bytes);
                tracing::warn!(offset, len, suppressed, "bad media: the range was written anew");
            }
        }
        self.changed_layout()
    }

    /// As [`retry_store`](Self::retry_store), of a write.
    #[cold]
    #[inline(never)]
    pub(super) fn retry_write(
        &self,
        offset: u64,
        from: &Segments<'_>,
        error: DiskError,
    ) -> Result<(), DiskError> {
        self.retry_store(offset, from.total_bytes() as u64, error, &|| {
            self.mapping.write(offset, *from, PrefetchHint::NONE)
        })
    }

    /// A store has met bad media that was not known: it is repaired first if the range covers it, page by page.
    #[cold]
    #[inline(never)]
    pub(super) fn retry_store(
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
            self.note_failure(&error);
            self.repair(offset, len)?;
            match store() {
                Ok(()) => return Ok(()),
                Err(next) => error = next,
            }
        }
        self.note_failure(&error);
        Err(error)
    }

    /// Has a bad range repaired by being written, or put elsewhere by the file system. That it is good then is not
    /// taken for granted: the list must agree.
    fn rewrite(&self, range: &Range<u64>) -> Result<(), DiskError> {
        let len = range.end - range.start;
        let is_listed = || !ranges::clip(&self.listed(), range).is_empty();
        if copy::pwritev_zeroes(self.file.as_fd(), range.start, len).is_ok() && !is_listed() {
            return Ok(());
        }
        self.punch(range.clone())?;
        fallocate(&self.file, space::ALLOCATE, range.start, len).map_err(failed("allocating"))?;
        match is_listed() {
            false => Ok(()),
            true => Err(self.beyond_repair(std::slice::from_ref(range))),
        }
    }

    #[cold]
    fn beyond_repair(&self, pages: &[Range<u64>]) -> DiskError {
        if self.kind == BackingKind::DeviceDax
            && let Some(suppressed) = self.log_limit.admit(Cause::Media)
        {
            let namespace = self.namespace.as_deref().unwrap_or("NAMESPACE");
            tracing::error!(
                ?pages,
                suppressed,
                "bad media: end this disk, then run `ndctl clear-errors {namespace}`"
            );
        }
        bad_media("writing")
    }
}

#[cold]
pub(super) fn bad_media(operation: &'static str) -> DiskError {
    DiskError::Io { operation, source: io::Error::from_raw_os_error(libc::EIO) }
}
