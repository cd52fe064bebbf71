//! What is known of bad media below a mapping, and how a write repairs it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use crate::copy;
use crate::disk::error::failed;
use crate::disk::failure::IoFailure;
use crate::disk::mapping::Mapping;
use crate::disk::media::bad_blocks::{BadBlockList, BadBlocks, PAGE_BYTES};
use crate::disk::space::{self, fallocate};
use crate::disk::{BackingKind, DiskError, Media, ranges};
use crate::log::{Cause, LogLimit};

/// The bad blocks of a disk, those that Linux lists and those that reads have met.
#[derive(Debug, Default)]
pub(super) struct BadMedia {
    blocks: BadBlocks,
    /// Where Linux lists what is bad by now.
    list: Option<BadBlockList>,
    /// Held while pages are repaired, and while the list is read.
    repairing: Mutex<()>,
    /// Of a device-DAX node, as `ndctl` calls it.
    namespace: Option<String>,
    log_limit: LogLimit,
}

/// A file and its mapping, parts of which may be bad.
#[derive(Debug, Clone, Copy)]
pub(super) struct MappedFile<'a> {
    pub(super) file: &'a File,
    pub(super) mapping: &'a Mapping,
    pub(super) kind: BackingKind,
}

impl BadMedia {
    pub(super) fn new(media: &Media) -> Self {
        Self {
            blocks: BadBlocks::new(&media.bad_blocks),
            list: media.bad_block_list.clone(),
            namespace: media.namespace.clone(),
            ..Self::default()
        }
    }

    #[cfg(test)]
    pub(super) fn with_list(list: BadBlockList) -> Self {
        Self { list: Some(list), ..Self::default() }
    }

    /// Whether nothing is known to be bad.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether any byte of the range is known to be bad.
    #[inline]
    pub(super) fn touch(&self, offset: u64, len: u64) -> bool {
        self.blocks.touch(offset, len)
    }

    /// The ranges in bytes that are known to be bad.
    pub(super) fn blocks(&self) -> Vec<Range<u64>> {
        self.blocks.list()
    }

    /// Where Linux lists what is bad by now.
    pub(super) const fn list(&self) -> Option<&BadBlockList> {
        self.list.as_ref()
    }

    /// The page at `offset` cannot be read.
    #[cold]
    pub(super) fn add_page(&self, offset: u64) {
        let page = offset - offset % PAGE_BYTES;
        self.blocks.add(page..page.saturating_add(PAGE_BYTES));
        if let Some(suppressed) = self.log_limit.admit(Cause::Media) {
            tracing::error!(
                offset = page,
                len = PAGE_BYTES,
                suppressed,
                "bad media: the page cannot be read"
            );
        }
    }

    /// Remembers the page that a copy has failed at, if it was the media that failed.
    #[cold]
    pub(super) fn note_failure(&self, error: &DiskError) {
        if let Some(offset) = IoFailure::of_media(error) {
            self.add_page(offset);
        }
    }

    /// Adds what the kernel has listed or announced to be bad by now. Returns what was news, in bytes of the disk.
    pub(super) fn update(&self, at: MappedFile<'_>) -> Vec<Range<u64>> {
        let _repairing = self.repairing.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity_bytes = at.mapping.len_bytes();
        let mut found = ranges::clip(&self.listed(at.file), &(0..capacity_bytes));
        // A page of device DAX may be announced by the address of the huge one that it is in.
        if at.kind != BackingKind::DeviceDax {
            let page = |at: u64| at - at % PAGE_BYTES..(at - at % PAGE_BYTES).saturating_add(PAGE_BYTES);
            found.extend(at.mapping.announced().into_iter().filter(|at| *at < capacity_bytes).map(page));
        }
        found.retain(|range| self.blocks.add(range.clone()));
        found
    }

    /// What is listed now.
    fn listed(&self, file: &File) -> Vec<Range<u64>> {
        self.list.as_ref().map(|list| list.read(file)).unwrap_or_default()
    }

    /// Makes the bad pages that the range touches good again, if it covers them: they are zero then, and `persist_layout`
    /// is called, since the file system may have put them elsewhere.
    #[cold]
    pub(super) fn repair(
        &self,
        at: MappedFile<'_>,
        offset: u64,
        len: u64,
        persist_layout: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let _repairing = self.repairing.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = self.blocks.within(offset, len);
        if pages.is_empty() {
            return Ok(());
        }
        let capacity_bytes = at.mapping.len_bytes();
        let covers = |page: &Range<u64>| offset <= page.start && page.end.min(capacity_bytes) <= offset + len;
        match at.kind {
            BackingKind::DaxFile { .. } | BackingKind::Tmpfs if pages.iter().all(covers) => {}
            kind => return Err(self.beyond_repair(kind, &pages)),
        }
        for page in pages {
            let (page, page_bytes) = (page.start..page.end.min(capacity_bytes), page.end - page.start);
            self.rewrite(at, &page)?;
            // The page table may still say that there is no memory.
            at.mapping.dont_need(page.clone()).map_err(failed("madvise", page.start, page_bytes))?;
            self.blocks.remove(&(page.start..page.start + page_bytes));
            if let Some(suppressed) = self.log_limit.admit(Cause::Repaired) {
                let (offset, len) = (page.start, page_bytes);
                tracing::warn!(offset, len, suppressed, "bad media: the range was rewritten");
            }
        }
        persist_layout()
    }

    /// Has a bad range repaired by being written, or put elsewhere by the file system. That it is good then is not
    /// taken for granted: the list must agree.
    fn rewrite(&self, at: MappedFile<'_>, range: &Range<u64>) -> Result<(), DiskError> {
        let (file, len) = (at.file, range.end - range.start);
        let is_listed = || !ranges::clip(&self.listed(file), range).is_empty();
        if copy::pwritev_zeroes(file.as_fd(), range.start, len).is_ok() && !is_listed() {
            return Ok(());
        }
        fallocate(file, space::PUNCH, range.start, len).map_err(failed(
            "punching a hole",
            range.start,
            len,
        ))?;
        fallocate(file, space::ALLOCATE, range.start, len).map_err(failed("allocating", range.start, len))?;
        match is_listed() {
            false => Ok(()),
            true => Err(self.beyond_repair(at.kind, std::slice::from_ref(range))),
        }
    }

    #[cold]
    fn beyond_repair(&self, kind: BackingKind, pages: &[Range<u64>]) -> DiskError {
        if kind == BackingKind::DeviceDax
            && let Some(suppressed) = self.log_limit.admit(Cause::Media)
        {
            let namespace = self.namespace.as_deref().unwrap_or("NAMESPACE");
            tracing::error!(
                ?pages,
                suppressed,
                "bad media: stop serving this disk, then run `ndctl clear-errors {namespace}`"
            );
        }
        let first = pages.first().cloned().unwrap_or_default();
        bad_media("writing bad media", first.start, first.end - first.start)
    }
}

#[cold]
pub(super) fn bad_media(operation: &'static str, offset: u64, len: u64) -> DiskError {
    failed(operation, offset, len)(io::Error::from_raw_os_error(libc::EIO))
}
