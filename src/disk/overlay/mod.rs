//! A private disk over a base that many share: what a guest writes is in memory of this process, or in a file of its own, page by
//! page, and the base is only read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::MemfdFlags;

use crate::copy::fault::interruption;
use crate::copy::{self, PrefetchHint, Segments};
use crate::disk::error::failed;
use crate::disk::failure::IoFailure;
use crate::disk::{DirectTransfer, Disk, DiskError, Durability, Geometry, MappedDisk};
use budget::Budget;
use continuity::Continuity;
pub(super) use pages::Pages;
use pages::{PAGE, PAGE_BYTES, Place};

mod budget;
mod continuity;
pub(super) mod in_file;
mod pages;
mod upper;

pub use in_file::InFile;
pub use upper::{InMemory, Upper};

/// What a page without bytes reads as.
const ZEROES: [u8; PAGE] = [0; PAGE];

/// A disk whose bytes are those of a base until they are written, and then in memory or a file ([`Upper`]), by pages of 4 KiB.
///
/// A read of what nobody has written is a read of the base, after a look at two bits; what was written is read from there, at the
/// same offset. The first write to a page copies it from the base; that is done without guest memory, so that nobody who waits
/// for a page's lock waits for a guest. A range that is zeroed or discarded gives its whole pages back, and reads as zeroes.
///
/// # Lifecycle
/// What was written [in memory](InMemory) ends with the value; [in a file](InFile) it stays. The base is never written, must be as
/// long as the disk for as long, and should not change: pages that nobody has written show what it has by then.
#[derive(Debug)]
pub struct Overlay<B, U = InMemory> {
    /// Of as many overlays as there are.
    base: Arc<B>,
    /// Sparse, and as long as the disk.
    upper: U,
    pages: Pages,
    budget: Budget,
    continuity: Continuity,
    geometry: Geometry,
    /// Whether discards give memory back.
    unmaps: bool,
}

impl<B: Disk> Overlay<B> {
    /// A private disk over all of `base`, whose written pages are at most `max_bytes` of memory.
    ///
    /// # Errors
    /// Those of `memfd_create(2)`, `ftruncate(2)` and `mmap(2)`.
    pub fn new(base: B, max_bytes: u64, unmaps: bool) -> io::Result<Self> {
        Self::in_memory(Arc::new(base), max_bytes, unmaps)
    }

    /// Another one over the same base, to which nothing was written.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn fork(&self) -> io::Result<Self> {
        Self::in_memory(Arc::clone(&self.base), self.max_bytes(), self.unmaps)
    }

    fn in_memory(base: Arc<B>, max_bytes: u64, unmaps: bool) -> io::Result<Self> {
        let geometry = Geometry { read_only: false, ..base.geometry() };
        let file = File::from(rustix::fs::memfd_create("vhost-user-pmem overlay", MemfdFlags::CLOEXEC)?);
        file.set_len(geometry.capacity_bytes)?;
        let upper = MappedDisk::new(file, geometry)?;
        // Ignored: a kernel without huge pages has none to be spared.
        let _ = upper.mapping().advise_small_pages();
        let pages = Pages::new(geometry.capacity_bytes);
        Ok(Self::over(base, InMemory(upper), pages, max_bytes, unmaps))
    }
}

impl<B: Disk, U: Upper> Overlay<B, U> {
    /// With pages that are where they are by now.
    pub(super) fn over(base: Arc<B>, upper: U, pages: Pages, max_bytes: u64, unmaps: bool) -> Self {
        let geometry = Geometry { read_only: false, ..base.geometry() };
        let (budget, continuity) = (Budget::new(max_bytes), Continuity::new(upper.has_past()));
        budget.count(upper.file(), 0);
        Self { base, upper, pages, budget, continuity, geometry, unmaps }
    }

    /// What it lies over.
    pub fn base(&self) -> &B {
        &self.base
    }

    pub(super) const fn upper(&self) -> &U {
        &self.upper
    }

    /// Bytes of memory, or of the file's space, that hold what was written.
    pub fn resident_bytes(&self) -> u64 {
        budget::resident_bytes(self.upper.file()).unwrap_or(0)
    }

    /// The most of them.
    pub const fn max_bytes(&self) -> u64 {
        self.budget.max_bytes()
    }

    /// An error if the driver has written what is not here.
    #[inline]
    fn check_there(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if self.continuity.is_lost() { Err(lost(offset, len)) } else { Ok(()) }
    }

    /// Bytes of a page that the disk has: all but for its last.
    fn page_len(&self, page: u64) -> u64 {
        self.geometry.capacity_bytes.saturating_sub(page.saturating_mul(PAGE_BYTES)).min(PAGE_BYTES)
    }

    /// Has the bytes of all pages that a range touches in memory.
    fn own(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let end = offset.saturating_add(len);
        for page in offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            if self.pages.place(page) != Place::Upper {
                let start = page.saturating_mul(PAGE_BYTES);
                let is_whole = offset <= start && end >= start.saturating_add(self.page_len(page));
                self.own_page(page, is_whole)?;
            }
        }
        Ok(())
    }

    /// The first write to a page: its bytes are copied into memory. What is to be written whole need not be readable.
    #[cold]
    #[inline(never)]
    fn own_page(&self, page: u64, is_whole: bool) -> Result<(), DiskError> {
        let (start, len) = (page.saturating_mul(PAGE_BYTES), self.page_len(page));
        let _lock = self.pages.lock(page);
        let mut buffer = ZEROES;
        let bytes = buffer.get_mut(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
        match self.pages.place(page) {
            Place::Upper => return Ok(()),
            Place::Nowhere => {}
            Place::Base => {
                let read = copy::with_bytes(bytes, |into| self.base.read(start, into, PrefetchHint::NONE));
                match read {
                    // A copy that was ended is done again; until then the page is the base's.
                    Err(_) if is_whole && !interruption::is_interrupted() => bytes.fill(0),
                    read => read?,
                }
            }
        }
        if !self.budget.take(self.upper.file()) {
            let full = IoFailure::OverlayFull { max_bytes: self.budget.max_bytes() };
            return Err(failed("writing the overlay", start, len)(io::Error::other(full)));
        }
        copy::with_bytes(bytes, |from| self.upper.disk().write(start, from, PrefetchHint::NONE))?;
        // Others read the page once they see where it is.
        copy::store_fence();
        self.set(page..page.saturating_add(1), Place::Upper)
    }

    /// These pages, of one word whose lock the caller has, are there from now on.
    fn set(&self, pages: Range<u64>, place: Place) -> Result<(), DiskError> {
        let (start, word) = (pages.start.saturating_mul(PAGE_BYTES), Pages::word_of(pages.start));
        let states = self.pages.word_with(pages, place);
        if states != self.pages.word(word) {
            let noted = self.upper.note(word, states);
            noted.map_err(|error| IoFailure::of_error(self.upper.file(), None, error)).map_err(failed(
                "noting what is written in the overlay",
                start,
                PAGE_BYTES,
            ))?;
            self.upper.change(word, || self.pages.set_word(word, states));
        }
        Ok(())
    }

    /// Gives the pages of a range back that lie wholly in it; they read as zeroes then. Returns the bytes before and behind them.
    fn give_back(&self, offset: u64, len: u64) -> Result<[(u64, u64); 2], DiskError> {
        let end = offset.saturating_add(len);
        let first = offset.div_ceil(PAGE_BYTES);
        // A last page that is cut short by the disk's end is a whole one.
        let last =
            if end == self.geometry.capacity_bytes { end.div_ceil(PAGE_BYTES) } else { end / PAGE_BYTES };
        if first >= last {
            return Ok([(offset, len), (end, 0)]);
        }
        let mut page = first;
        while page < last {
            let next = last.min(Pages::end_of_word(page));
            let _lock = self.pages.lock(page);
            self.set(page..next, Place::Nowhere)?;
            page = next;
        }
        let (start, stop) = (first * PAGE_BYTES, (last * PAGE_BYTES).min(end));
        self.upper.disk().discard(start, stop.saturating_sub(start))?;
        self.budget.count(self.upper.file(), 0);
        Ok([(offset, start.saturating_sub(offset)), (stop, end.saturating_sub(stop))])
    }

    /// Zeroes parts of pages that were written, by bytes: a page that was written has space, by which an overlay in a file tells it.
    fn zero_parts(&self, offset: u64, len: u64) -> Result<u64, DiskError> {
        let (mut at, end, mut zeroes) = (offset, offset.saturating_add(len), ZEROES);
        while at < end {
            let next = end.min((at / PAGE_BYTES).saturating_add(1).saturating_mul(PAGE_BYTES));
            let part =
                zeroes.get_mut(..usize::try_from(next.saturating_sub(at)).unwrap_or(0)).unwrap_or_default();
            copy::with_bytes(part, |from| self.upper.disk().write(at, from, PrefetchHint::NONE))?;
            at = next;
        }
        Ok(len)
    }

    /// A read of pages that are in several places, or nowhere.
    #[cold]
    #[inline(never)]
    fn read_by_page(&self, offset: u64, into: Segments<'_>) -> Result<(), DiskError> {
        // Nobody may read beyond the end either.
        self.geometry.check_write(offset, into.total_bytes() as u64)?;
        for (at, part) in into.in_pages(offset, PAGE_BYTES) {
            let segments = part.segments();
            match self.pages.place(at / PAGE_BYTES) {
                Place::Base => self.base.read(at, segments, PrefetchHint::NONE)?,
                Place::Upper => self.upper.disk().read(at, segments, PrefetchHint::NONE)?,
                Place::Nowhere => {
                    let len = segments.total_bytes();
                    if copy::store_slice(segments, ZEROES.get(..len).unwrap_or(&ZEROES)) != len {
                        let lost = io::Error::other(IoFailure::GuestMemory);
                        return Err(failed("reading zeroes", at, len as u64)(lost));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether nobody has written a range.
    fn is_base(&self, offset: u64, len: u64) -> bool {
        self.pages.place_of_all(offset, len) == Some(Place::Base)
    }
}

impl<B: Disk, U: Upper> Disk for Overlay<B, U> {
    #[inline]
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn unit_bytes(&self) -> u32 {
        self.upper.disk().unit_bytes()
    }

    fn durability(&self) -> Durability {
        self.upper.durability()
    }

    #[inline]
    fn prefetch_hint(&self, offset: u64) -> PrefetchHint {
        match self.pages.place(offset / PAGE_BYTES) {
            Place::Base => self.base.prefetch_hint(offset),
            Place::Upper => self.upper.disk().prefetch_hint(offset),
            Place::Nowhere => PrefetchHint::NONE,
        }
    }

    #[inline]
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        self.check_there(offset, into.total_bytes() as u64)?;
        match self.pages.place_of_all(offset, into.total_bytes() as u64) {
            Some(Place::Base) => self.base.read(offset, into, next),
            Some(Place::Upper) => self.upper.disk().read(offset, into, next),
            Some(Place::Nowhere) | None => self.read_by_page(offset, into),
        }
    }

    #[inline]
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        let len = from.total_bytes() as u64;
        self.check_there(offset, len)?;
        if self.pages.place_of_all(offset, len) != Some(Place::Upper) {
            self.geometry.check_write(offset, len)?;
            self.own(offset, len)?;
        }
        self.upper.disk().write(offset, from, next)
    }

    fn may_wait(&self) -> bool {
        self.base.may_wait() || self.upper.disk().may_wait()
    }

    fn changes_exclude_each_other(&self) -> bool {
        self.upper.disk().changes_exclude_each_other()
    }

    fn writes_are_quick(&self) -> bool {
        self.upper.writes_are_quick()
    }

    fn has_direct(&self) -> bool {
        self.base.has_direct()
    }

    fn direct<'a>(&'a self, offset: u64, data: Segments<'a>, is_write: bool) -> Option<DirectTransfer<'a>> {
        let is_of_base =
            !is_write && !self.continuity.is_lost() && self.is_base(offset, data.total_bytes() as u64);
        is_of_base.then(|| self.base.direct(offset, data, false)).flatten()
    }

    fn transferred(&self, offset: u64, len: u64, is_write: bool) {
        self.base.transferred(offset, len, is_write);
    }

    fn try_read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> bool {
        if self.continuity.is_lost() {
            return false;
        }
        match self.pages.place_of_all(offset, into.total_bytes() as u64) {
            Some(Place::Base) => self.base.try_read(offset, into, next),
            Some(Place::Upper) => self.upper.try_read(offset, into, next),
            Some(Place::Nowhere) => self.read_by_page(offset, into).is_ok(),
            None => false,
        }
    }

    fn can_announce(&self, len: u64) -> bool {
        self.base.can_announce(len) || self.upper.disk().can_announce(len)
    }

    fn announce(&self, offset: u64, len: u64) {
        match self.pages.place_of_all(offset, len) {
            Some(Place::Base) => self.base.announce(offset, len),
            Some(Place::Upper) => self.upper.disk().announce(offset, len),
            Some(Place::Nowhere) | None => {}
        }
    }

    fn read_announced(&self, offset: u64, into: Segments<'_>) -> bool {
        if self.continuity.is_lost() {
            return false;
        }
        match self.pages.place_of_all(offset, into.total_bytes() as u64) {
            Some(Place::Base) => self.base.read_announced(offset, into),
            Some(Place::Upper) => self.upper.disk().read_announced(offset, into),
            Some(Place::Nowhere) | None => false,
        }
    }

    fn forget_cached(&self) {
        self.base.forget_cached();
        self.upper.disk().forget_cached();
    }

    fn begin_turn(&self) {
        self.base.begin_turn();
        self.upper.disk().begin_turn();
    }

    fn ring_starts(&self, ring: u16, goes_on: bool, is_first: bool) -> bool {
        self.continuity.ring_starts(ring, goes_on, is_first)
    }

    fn fence(&self) {
        self.upper.disk().fence();
    }

    /// What is lost was not kept.
    #[inline]
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        match self.check_there(0, 0) {
            Ok(()) => self.upper.try_flush(),
            lost => Some(lost),
        }
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.check_there(0, 0)?;
        self.upper.flush(|word| self.pages.word(word))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.geometry.check_write(offset, len)?;
        self.check_there(offset, len)?;
        if self.unmaps {
            self.give_back(offset, len)?;
        }
        Ok(())
    }

    fn has_fast_zero(&self) -> bool {
        true
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<u64, DiskError> {
        self.geometry.check_write(offset, len)?;
        self.check_there(offset, len)?;
        let mut written_bytes = 0_u64;
        for (offset, len) in self.give_back(offset, len)? {
            // What is nowhere is zeroes.
            if len != 0 && self.pages.place_of_all(offset, len) != Some(Place::Nowhere) {
                self.own(offset, len)?;
                written_bytes = written_bytes.saturating_add(self.zero_parts(offset, len)?);
            }
        }
        Ok(written_bytes)
    }
}

#[cold]
#[inline(never)]
fn lost(offset: u64, len: u64) -> DiskError {
    failed("reaching the overlay", offset, len)(io::Error::other(IoFailure::OverlayLost))
}

#[cfg(test)]
mod tests;
