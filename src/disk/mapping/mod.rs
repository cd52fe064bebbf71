//! A file mapped into the memory of this process.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::mm::{Advice, MsyncFlags};

use crate::copy::fault::{action_optional, interruption};
#[cfg(test)]
use crate::copy::recording::{Synced, Syncing};
use crate::copy::{self, Engine, Load, Persist, PrefetchHint, Segments, Store};
use crate::disk::error::{failed, read_only};
use crate::disk::failure::{IoFailure, missing_space, path_of, truncated_before};
use crate::disk::media::is_gone;
use crate::disk::media::sysfs::Sysfs;
use crate::disk::{DiskError, Durability};
use crate::failpoint::{self, Point};
use advice::advise;
use options::too_large;
pub(super) use options::{HUGE_PAGE_BYTES, MapOptions};
use reservation::Reservation;

mod advice;
pub(super) mod huge_pages;
mod options;
mod reservation;
pub(in crate::disk) mod residency;
pub(super) mod smaps;

/// Names of operations in errors.
const READING: &str = "reading the mapping";
const WRITING: &str = "writing the mapping";

/// What a write into a mapping of this class needs besides the fence of its batch.
pub(super) const fn persist_of(durability: Durability) -> Persist {
    match durability {
        Durability::CacheLine => Persist::Lines,
        Durability::Volatile | Durability::Page | Durability::Byte => Persist::FenceOnly,
    }
}

/// A shared mapping of the first bytes of a file.
///
/// It begins at a multiple of 2 MiB, so that huge pages fit. Its memory is reached through the methods only, by offset, which
/// they check: no pointer leaves. It can [grow](Self::grow) while it is used.
///
/// - **V1**: what `at`, `writable_at` and `pages` answer lies in what is mapped (for writing), and stays so until the value is
///   dropped: it grows, and the reservations of before stay. All methods rely on it.
/// - **V2**: no Rust reference leads to its bytes, and no pointer leaves but as a hint that is only prefetched: guest memory is elsewhere.
#[derive(Debug)]
pub struct Mapping {
    /// To find out why a copy fell short.
    file: File,
    /// Address of the first byte.
    base: AtomicPtr<u8>,
    /// Bytes served.
    len: AtomicUsize,
    /// Bytes before the last page. Access to them needs no check whether the file still has them: a page that was cut off is a
    /// fault, and only the last page can be cut off in part. It is read before `base`, and stored after it.
    interior_len: AtomicUsize,
    /// The last one is in use. Those that the file was mapped in before stay mapped: a copy may be under way there.
    reservations: Mutex<Vec<Reservation>>,
    /// How it was mapped; `len_bytes` is the length at the start.
    options: MapOptions,
}

impl Mapping {
    /// Maps the first `len_bytes` of `file`, which must have that many and be open for reading, and for
    /// writing too unless `read_only`.
    ///
    /// # Errors
    /// The error of `mmap`; `InvalidInput` when there is nothing to map or the file is shorter.
    pub fn new(file: &File, len_bytes: u64, read_only: bool) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if len_bytes == 0 || len_bytes > metadata.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a file of {} bytes does not have {len_bytes} bytes to map", metadata.len()),
            ));
        }
        let options = MapOptions {
            len_bytes,
            unit_bytes: metadata.blksize(),
            read_only,
            synchronous: false,
            persist: Persist::FenceOnly,
        };
        Self::with(file, options)
    }

    /// Maps a file or device, of which the caller knows that it is long enough.
    ///
    /// # Errors
    /// The error of `mmap`.
    pub(super) fn with(file: &File, options: MapOptions) -> io::Result<Self> {
        let len = usize::try_from(options.len_bytes).map_err(|_| too_large())?;
        let end = options.whole_units(len)?;
        let mut reservation = Reservation::reserve(end, options.align()?)?;
        reservation.map(file, 0..end, options)?;
        Ok(Self {
            file: file.try_clone()?,
            base: AtomicPtr::new(reservation.base()),
            len: AtomicUsize::new(len),
            interior_len: AtomicUsize::new(interior_len(len)),
            reservations: Mutex::new(vec![reservation]),
            options,
        })
    }

    /// Makes the mapping `len_bytes` long; the caller knows that the file is long enough. A mapping never becomes shorter. Others
    /// may use it meanwhile.
    ///
    /// # Errors
    /// The error of `mmap`; nothing has changed then.
    pub(super) fn grow(&self, len_bytes: u64) -> io::Result<()> {
        let len = usize::try_from(len_bytes).map_err(|_| too_large())?;
        let mut reservations = self.reservations.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.len.load(Ordering::Relaxed);
        if len <= before {
            return Ok(());
        }
        let (mapped, end) = (self.options.whole_units(before)?, self.options.whole_units(len)?);
        match reservations.last_mut() {
            Some(reservation) if end <= reservation.len_bytes() => {
                reservation.map(&self.file, mapped..end, self.options)?
            }
            former => {
                let mut reservation = Reservation::reserve(end, self.options.align()?)?;
                reservation.map(&self.file, 0..end, self.options)?;
                // Before the lengths, which are read first: see `interior_at`.
                self.base.store(reservation.base(), Ordering::Release);
                if let Some(former) = former {
                    former.dont_need(mapped);
                }
                reservations.push(reservation);
            }
        }
        failpoint::reached(Point::NewLength);
        self.len.store(len, Ordering::Release);
        self.interior_len.store(interior_len(len), Ordering::Release);
        Ok(())
    }

    /// The same mapping, whose writes persist in another way.
    #[cfg(test)]
    pub(crate) const fn persisting(mut self, persist: Persist) -> Self {
        self.options.persist = persist;
        self
    }

    /// Enters a part of the mapping into the page tables before it is needed: for writing (which allocates holes) unless the
    /// mapping is read-only. No byte changes.
    ///
    /// # Errors
    /// The error of `madvise(2)`; `EINVAL` on Linux before 5.14.
    pub(super) fn populate(&self, range: Range<u64>) -> io::Result<()> {
        let advice =
            if self.options.read_only { Advice::LinuxPopulateRead } else { Advice::LinuxPopulateWrite };
        advise(self.pages(&range), advice)
    }

    /// Asks for huge pages where the kernel has a choice.
    ///
    /// # Errors
    /// The error of `madvise(2)`; `EINVAL` in a kernel without them.
    pub(super) fn advise_huge_pages(&self) -> io::Result<()> {
        advise(self.pages(&(0..u64::MAX)), Advice::LinuxHugepage)
    }

    /// Asks for small pages, for bytes that come one by one.
    ///
    /// # Errors
    /// The error of `madvise(2)`; `EINVAL` in a kernel without huge pages.
    pub(super) fn advise_small_pages(&self) -> io::Result<()> {
        advise(self.pages(&(0..u64::MAX)), Advice::LinuxNoHugepage)
    }

    /// Collapses the pages of this part of a file in memory into huge ones, whatever the system's setting for new pages is. No
    /// byte changes, and others may use them meanwhile.
    ///
    /// # Errors
    /// The error of `madvise(2)`: no huge page is free, or Linux is older than 6.1.
    pub(super) fn collapse(&self, range: Range<u64>) -> io::Result<()> {
        advice::collapse(self.pages(&range))
    }

    /// Removes a part from the page tables; it is entered again when it is next touched. No byte changes.
    ///
    /// # Errors
    /// The error of `madvise(2)`.
    pub(super) fn dont_need(&self, range: Range<u64>) -> io::Result<()> {
        advise(self.pages(&range), Advice::LinuxDontNeed)
    }

    /// Writes a part of the mapping back to the media (`msync(2)`), and waits for that.
    ///
    /// # Errors
    /// The error of `msync`.
    pub(super) fn sync(&self, range: Range<u64>) -> io::Result<()> {
        let Some((start, len)) = self.pages(&range) else { return Ok(()) };
        #[cfg(test)]
        let _recorded = Syncing::start(Synced::Range { start: range.start, end: range.end });
        // SAFETY: V1: `pages` has checked the range. R2: writing it down changes no byte.
        unsafe { rustix::mm::msync(start, len, MsyncFlags::SYNC) }.map_err(Into::into)
    }

    /// Offsets in bytes of pages that the kernel has announced to be bad since the last call.
    pub(super) fn announced(&self) -> Vec<u64> {
        let reservations = self.reservations.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for reservation in &*reservations {
            let start = reservation.base().addr();
            let addresses = action_optional::fetch(&(start..start.saturating_add(reservation.len_bytes())));
            found.extend(addresses.into_iter().map(|address| (address - start) as u64));
        }
        found
    }

    /// Address of the first byte, which may change when it grows.
    pub(super) fn address(&self) -> usize {
        self.base.load(Ordering::Acquire).addr()
    }

    /// Address and length of the pages that hold a range; none if it is empty or outside.
    fn pages(&self, range: &Range<u64>) -> Option<(*mut std::ffi::c_void, usize)> {
        let start = usize::try_from(range.start).ok()?;
        let start = start - start % rustix::param::page_size();
        let mapped = self.options.whole_units(self.len.load(Ordering::Acquire)).ok()?;
        let end = usize::try_from(range.end).unwrap_or(usize::MAX).min(mapped);
        let len = end.checked_sub(start).filter(|len| *len != 0)?;
        Some((self.base.load(Ordering::Relaxed).wrapping_add(start).cast(), len))
    }

    /// Length in bytes.
    #[inline]
    pub fn len_bytes(&self) -> u64 {
        self.len.load(Ordering::Acquire) as u64
    }

    /// A copy of the bytes at `offset` into `into`.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], or [`DiskError::Io`] when the file is known to have lost them.
    #[inline(always)]
    pub(super) fn load<'a>(&'a self, offset: u64, into: Segments<'a>) -> Result<Load<'a>, DiskError> {
        let src = self.at(offset, into.total_bytes(), READING)?;
        // SAFETY: V1: `at` has answered this address for as many bytes. V2: no reference leads there, and `into` is elsewhere.
        Ok(unsafe { Load::new(src, into) })
    }

    /// An error unless a load from `offset` has left no bytes.
    ///
    /// # Errors
    /// [`DiskError::Io`]: the memory could not be read.
    #[inline(always)]
    pub(super) fn loaded(&self, offset: u64, load: &Load<'_>, left: usize) -> Result<(), DiskError> {
        self.complete(READING, (offset, load.address()), load.total_bytes(), left)
    }

    /// A copy of `from` to the bytes at `offset`.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`DiskError::ReadOnly`].
    #[inline(always)]
    pub(super) fn store<'a>(&'a self, offset: u64, from: Segments<'a>) -> Result<Store<'a>, DiskError> {
        let dst = self.writable_at(offset, from.total_bytes(), WRITING)?;
        // SAFETY: V1: `writable_at` has answered this address for as many bytes. V2: no reference leads there, and `from` is
        // elsewhere.
        Ok(unsafe { Store::new(dst, from) })
    }

    /// An error unless a store to `offset` has left no bytes.
    ///
    /// # Errors
    /// [`DiskError::Io`]: the memory could not be written.
    #[inline(always)]
    pub(super) fn stored(&self, offset: u64, store: &Store<'_>, left: usize) -> Result<(), DiskError> {
        self.complete(WRITING, (offset, store.address()), store.total_bytes(), left)
    }

    /// What a store does besides the fence of its batch.
    #[inline]
    pub(super) const fn persist(&self) -> Persist {
        self.options.persist
    }

    /// Fills `into` with the bytes at `offset`, and prefetches what is needed next.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], or [`DiskError::Io`] when the memory could not be read.
    #[inline(always)]
    pub fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        let load = self.load(offset, into)?;
        self.loaded(offset, &load, Engine::get().load(load, next))
    }

    /// A hint to prefetch the byte at `offset`; none if it is not inside, or in the last page.
    #[inline]
    pub fn prefetch_hint(&self, offset: u64) -> PrefetchHint {
        self.interior_at(offset, 1).map_or(PrefetchHint::NONE, |start| PrefetchHint::new(start))
    }

    /// Stores `from` at `offset`, and prefetches what is needed next.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`DiskError::ReadOnly`].
    #[inline(always)]
    pub fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        let store = self.store(offset, from)?;
        self.stored(offset, &store, Engine::get().store(store, self.persist(), next))
    }

    /// Stores `len` zero bytes at `offset`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    #[inline]
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let Ok(len) = usize::try_from(len) else { return Err(self.out_of_range(offset, len)) };
        let dst = self.writable_at(offset, len, "zeroing the mapping")?;
        // SAFETY: V1: `writable_at` has answered this address for `len` bytes. V2: no reference leads there.
        let left = unsafe { copy::zero(dst, len, self.options.persist) };
        self.complete("zeroing the mapping", (offset, dst), len, left)
    }

    /// Whether `len` bytes at `offset` are inside.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`] when they are not.
    #[inline]
    pub fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        match self.len_bytes().checked_sub(len) {
            Some(last) if offset <= last => Ok(()),
            _ => Err(self.out_of_range(offset, len)),
        }
    }

    #[cold]
    #[inline(never)]
    fn out_of_range(&self, offset: u64, len: u64) -> DiskError {
        DiskError::OutOfRange { offset, len, capacity_bytes: self.len_bytes() }
    }

    /// An error if the file has been truncated and a write of `len` bytes at `offset`, which are inside, would make it longer
    /// again: what was cut off would then read as zeroes. Costs one load as long as the last page is in memory, and a system
    /// call for writes to that page.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    #[inline]
    pub fn check_end(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        const WRITING: &str = "writing the file";
        if offset.saturating_add(len) > self.interior_len.load(Ordering::Relaxed) as u64 {
            return self.check_truncated(offset, len, WRITING);
        }
        let end = self.len_bytes().saturating_sub(1);
        let Ok(last) = usize::try_from(end) else { return Err(self.out_of_range(offset, len)) };
        let last = self.base.load(Ordering::Relaxed).wrapping_add(last);
        // SAFETY: V1: the last byte that is mapped.
        if unsafe { copy::can_read(last) } {
            return Ok(());
        }
        match self.failure(end, last) {
            failure @ IoFailure::Truncated { .. } => {
                Err(failed(WRITING, offset, len)(io::Error::other(failure)))
            }
            // The last page cannot be read for another reason: other pages can be written.
            _ => Ok(()),
        }
    }

    /// An error unless the file is long enough for `len` bytes at `offset`. Needed for the last page only: if a part of that page
    /// is cut off, access to it is no fault, reads give zeroes, and what is stored is lost.
    #[cold]
    #[inline(never)]
    fn check_truncated(&self, offset: u64, len: u64, operation: &'static str) -> Result<(), DiskError> {
        self.check(offset, len)?;
        let end = offset.saturating_add(len);
        match truncated_before(&self.file, end, self.len_bytes()) {
            Some(failure) if len != 0 => Err(failed(operation, offset, len)(io::Error::other(failure))),
            _ => Ok(()),
        }
    }

    /// An error unless all `len` bytes were copied; the first is at this offset, and was mapped at this address.
    #[inline]
    fn complete(
        &self,
        operation: &'static str,
        (offset, start): (u64, *const u8),
        len: usize,
        bytes_left: usize,
    ) -> Result<(), DiskError> {
        if bytes_left == 0 {
            Ok(())
        } else {
            Err(self.fell_short(operation, (offset, start), len, bytes_left))
        }
    }

    #[cold]
    #[inline(never)]
    fn fell_short(
        &self,
        operation: &'static str,
        (offset, start): (u64, *const u8),
        len: usize,
        bytes_left: usize,
    ) -> DiskError {
        if interruption::is_interrupted() {
            return failed(operation, offset, len as u64)(io::Error::other(IoFailure::GuestMemory));
        }
        let copied = len.saturating_sub(bytes_left);
        let (end, address) = (offset.saturating_add(copied as u64), start.wrapping_add(copied));
        // On DAX, holes and shared blocks can be read, but a store into them needs space.
        let need = (operation != READING).then(|| missing_space(&self.file, end)).flatten();
        let failure = match need {
            Some(need) => IoFailure::Full { file: path_of(&self.file), offset: end, need },
            None => self.failure(end, address),
        };
        failed(operation, offset, len as u64)(io::Error::other(failure))
    }

    /// Why a copy ended before the byte at `offset`, which is inside and was mapped at `address`.
    #[cold]
    fn failure(&self, offset: u64, address: *const u8) -> IoFailure {
        let file = path_of(&self.file);
        // SAFETY: V1: the caller took the address from a range that `at` had checked.
        if unsafe { copy::can_read(address) } {
            return IoFailure::GuestMemory;
        }
        match (self.file.metadata(), missing_space(&self.file, offset)) {
            (Ok(metadata), _) if is_gone(&metadata, &Sysfs::system()) => IoFailure::Gone { file },
            (Ok(metadata), _) if metadata.is_file() && metadata.len() <= offset => {
                IoFailure::Truncated { file, file_bytes: metadata.len(), len_bytes: self.len_bytes() }
            }
            (_, Some(need)) => IoFailure::Full { file, offset, need },
            (_, None) => IoFailure::of_page(&self.file, offset),
        }
    }

    /// The address of `len` bytes at `offset`, if they are inside and the file is not known to be truncated before their end.
    #[inline]
    fn at(&self, offset: u64, len: usize, operation: &'static str) -> Result<*mut u8, DiskError> {
        match self.interior_at(offset, len) {
            Some(address) => Ok(address),
            None => self.at_end(offset, len, operation),
        }
    }

    /// The address of `len` bytes at `offset`, if they are before the last page.
    #[inline]
    fn interior_at(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len as u64)?;
        if end > self.interior_len.load(Ordering::Acquire) as u64 {
            return None;
        }
        // After the length: then this is not the address of a reservation that holds fewer bytes than that.
        Some(self.base.load(Ordering::Relaxed).wrapping_add(usize::try_from(offset).ok()?))
    }

    #[cold]
    #[inline(never)]
    fn at_end(&self, offset: u64, len: usize, operation: &'static str) -> Result<*mut u8, DiskError> {
        self.check_truncated(offset, len as u64, operation)?;
        let Ok(offset) = usize::try_from(offset) else {
            return Err(self.out_of_range(offset, len as u64));
        };
        // After the length, which `check_truncated` has read, as in `interior_at`.
        Ok(self.base.load(Ordering::Relaxed).wrapping_add(offset))
    }

    /// As [`at`](Self::at), and the bytes may be written.
    #[inline]
    fn writable_at(&self, offset: u64, len: usize, operation: &'static str) -> Result<*mut u8, DiskError> {
        if self.options.read_only {
            return Err(read_only(offset, len as u64));
        }
        self.at(offset, len, operation)
    }
}

/// How many of `len` bytes are before the last page, be it whole or a part.
fn interior_len(len: usize) -> usize {
    let last = len.saturating_sub(1);
    last - last % rustix::param::page_size()
}

#[cfg(test)]
mod tests;
