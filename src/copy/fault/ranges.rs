//! Which memory is the guests' and which is media: a table that the signal handler can read.

use crate::limits::bounds::MAX_WATCHED_RANGES;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bits of [`Slot::kind`]: the page size of guest memory, or this.
const MEDIA: usize = 0;

/// [`Slot::spare`] of a range that has given it up.
const GIVEN_UP: usize = usize::MAX;

/// Whether a range's spare mapping could be unmapped, so that the process may make another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpareMapping {
    Never,
    GoneBefore,
    /// The process may make one mapping more now.
    GoneNow,
}

/// One range. Registering takes the lock; the handler reads without one, and the version says whether what it read belongs
/// together (a seqlock).
#[derive(Debug)]
struct Slot {
    /// Odd while the slot is changed.
    version: AtomicU64,
    start: AtomicUsize,
    /// No bytes: the slot is free.
    len: AtomicUsize,
    /// [`MEDIA`], or the size of a page of guest memory.
    kind: AtomicUsize,
    /// Bytes right before `start` that are reserved and may be given up for its replacement.
    spare: AtomicUsize,
    /// It, or a page of it, was found lost since it was registered.
    has_faulted: AtomicBool,
}

static SLOTS: [Slot; MAX_WATCHED_RANGES] = [const { Slot::free() }; MAX_WATCHED_RANGES];

/// Slots that have ever been used: a search need not go further.
static USED_SLOTS: AtomicUsize = AtomicUsize::new(0);

/// Held by whoever changes slots, never by the handler.
static CHANGES: Mutex<()> = Mutex::new(());

/// How often guest memory was found lost so far.
static LOSSES: AtomicU64 = AtomicU64::new(0);

/// How often guest memory was found lost, or a copy [ended](super::interruption), so far, all guests together: as long as it does
/// not change, nobody has to be asked. It changes before anybody can find zeroes in place of what is lost.
#[inline]
pub fn losses() -> u64 {
    // Not before what the caller has read: the handler, which counts, interrupts that.
    compiler_fence(Ordering::SeqCst);
    LOSSES.load(Ordering::Relaxed)
}

/// Has everybody ask who uses guest memory. For a handler.
pub(super) fn count_loss() {
    LOSSES.fetch_add(1, Ordering::SeqCst);
}

/// A range of mapped memory that faults are expected in. It must be dropped before the memory is unmapped.
#[derive(Debug)]
pub struct WatchedRange {
    slot: &'static Slot,
}

impl WatchedRange {
    /// Guest memory: once a page of it is found lost, all of it is replaced by zeroes, which takes no more mappings than
    /// it had. What of it was not lost stays in its file.
    ///
    /// `page_bytes` is the size of its pages: that of the huge ones on hugetlbfs, else the system's. `start`
    /// is a multiple of it. `spare_bytes` right before it, a mapping by themselves that nobody uses, become the range's
    /// own: they are unmapped with its drop, or before, when the replacement finds that the process may have no more
    /// mappings (`vm.max_map_count`). `None` when too many ranges are registered.
    pub fn guest(start: *mut u8, len_bytes: usize, page_bytes: usize, spare_bytes: usize) -> Option<Self> {
        debug_assert!(page_bytes.is_power_of_two(), "{page_bytes}");
        Self::register(start.addr(), len_bytes, page_bytes, spare_bytes)
    }

    /// Media: when the kernel announces that a page of it has gone bad, nothing is to be done before it is
    /// touched. `None` when too many ranges are registered.
    pub fn media(start: *mut u8, len_bytes: usize) -> Option<Self> {
        Self::register(start.addr(), len_bytes, MEDIA, 0)
    }

    /// Whether a page of it was lost, so that what is in it is not what its owner wrote.
    #[inline]
    pub fn has_faulted(&self) -> bool {
        self.slot.has_faulted.load(Ordering::Relaxed)
    }

    /// Its first address, and its length in bytes.
    pub(super) fn bounds(&self) -> (usize, usize) {
        (self.slot.start.load(Ordering::Relaxed), self.slot.len.load(Ordering::Relaxed))
    }

    /// Size of its pages.
    pub(super) fn page_bytes(&self) -> usize {
        match self.slot.kind.load(Ordering::Relaxed) {
            MEDIA => rustix::param::page_size(),
            guest => guest,
        }
    }

    fn register(start: usize, len: usize, kind: usize, spare: usize) -> Option<Self> {
        let _changes = changes();
        let number = SLOTS.iter().position(|slot| slot.len.load(Ordering::Relaxed) == 0)?;
        let slot = SLOTS.get(number).filter(|_| len != 0)?;
        slot.change(start, len, kind, spare);
        USED_SLOTS.fetch_max(number + 1, Ordering::Release);
        Some(Self { slot })
    }
}

impl Drop for WatchedRange {
    fn drop(&mut self) {
        let _changes = changes();
        // Ignored: it does not matter here whether the handler has unmapped it before.
        let _ = self.slot.give_up_spare();
        self.slot.change(0, 0, MEDIA, 0);
    }
}

impl Slot {
    const fn free() -> Self {
        Self {
            version: AtomicU64::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            kind: AtomicUsize::new(MEDIA),
            spare: AtomicUsize::new(0),
            has_faulted: AtomicBool::new(false),
        }
    }

    /// Under the lock only.
    fn change(&self, start: usize, len: usize, kind: usize, spare: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.kind.store(kind, Ordering::Relaxed);
        self.spare.store(spare, Ordering::Relaxed);
        self.has_faulted.store(false, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    fn note_lost(&self) {
        self.has_faulted.store(true, Ordering::Relaxed);
        LOSSES.fetch_add(1, Ordering::SeqCst);
    }

    /// Unmaps the spare mapping. Called by the signal handler, and when the range is dropped.
    fn give_up_spare(&self) -> SpareMapping {
        match self.spare.swap(GIVEN_UP, Ordering::Relaxed) {
            0 => {
                self.spare.store(0, Ordering::Relaxed);
                SpareMapping::Never
            }
            GIVEN_UP => SpareMapping::GoneBefore,
            len => {
                let at =
                    std::ptr::without_provenance_mut(self.start.load(Ordering::Relaxed).wrapping_sub(len));
                // Ignored: a whole mapping of ours can always be unmapped.
                // SAFETY: F3: the spare mapping, which is unmapped once only: `swap` has answered it to nobody else.
                let _ = unsafe { libc::munmap(at, len) };
                SpareMapping::GoneNow
            }
        }
    }

    /// The kind of the range, if `address` is in it. A slot that is being changed is not the range of an
    /// address that is being used.
    fn kind_at(&self, address: usize) -> Option<usize> {
        let version = self.version.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        let kind = self.kind.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let is_whole = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (is_whole && address.wrapping_sub(start) < len).then_some(kind)
    }
}

/// The slot of an address and its kind. For the handler.
fn find(address: usize) -> Option<(&'static Slot, usize)> {
    let slots = SLOTS.get(..USED_SLOTS.load(Ordering::Acquire))?;
    slots.iter().find_map(|slot| Some((slot, slot.kind_at(address)?)))
}

/// Where in its media an address lies, in bytes, if it is in any.
#[cfg(test)]
pub(in crate::copy) fn offset_in_media(address: usize) -> Option<usize> {
    let (slot, _) = find(address).filter(|(_, kind)| *kind == MEDIA)?;
    Some(address - slot.start.load(Ordering::Relaxed))
}

/// Whether somebody has registered the address. For the handler.
pub(super) fn is_watched(address: usize) -> bool {
    find(address).is_some()
}

/// Marks guest memory, a page of which was taken away, as lost; it stays as it is. For the handler.
pub(super) fn note_lost(address: usize) {
    if let Some((slot, _)) = find(address).filter(|(_, kind)| *kind != MEDIA) {
        slot.note_lost();
    }
}

/// Puts zeroes in place of guest memory, a page of which is lost. For the handler.
///
/// All of the range at once: each page by itself would be a mapping of its own, and the process may have so many only.
/// Its owner stops using it when it next asks [`losses`].
pub(super) fn replace_lost(address: usize) -> bool {
    let Some((slot, page_bytes)) = find(address).filter(|(_, kind)| *kind != MEDIA) else { return false };
    // Before the zeroes are there: a reader that finds them can find this as well.
    slot.note_lost();
    // SAFETY: F2: the place of this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: F2: read, to be put back.
    let before = unsafe { *errno };
    let start = slot.start.load(Ordering::Relaxed);
    let whole = slot.len.load(Ordering::Relaxed).next_multiple_of(page_bytes);
    let is_replaced = put_zeroes(start, whole) || {
        let spare = slot.give_up_spare();
        spare == SpareMapping::GoneNow && put_zeroes(start, whole)
            // Where memory is promised only if it is there (vm.overcommit_memory=2, RLIMIT_DATA), a page may be had.
            || put_zeroes(address - address % page_bytes, page_bytes)
            // Another thread has unmapped it and replaces the range just now: the access is made again.
            || spare == SpareMapping::GoneBefore
    };
    // SAFETY: F2: put back.
    unsafe { *errno = before };
    is_replaced
}

/// Maps pages of zeroes, in no core dump, over whole pages of guest memory.
fn put_zeroes(start: usize, len: usize) -> bool {
    let at = std::ptr::without_provenance_mut(start);
    let (access, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
    );
    // SAFETY: F3: whole pages of a registered range; for atomics any bytes will do. Several threads may do this at once:
    // the last pages stay.
    if unsafe { libc::mmap(at, len, access, flags, -1, 0) } == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: F3: the advice changes no byte of what was just mapped.
    unsafe { libc::madvise(at, len, libc::MADV_DONTDUMP) };
    true
}

fn changes() -> MutexGuard<'static, ()> {
    CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_as_long_as_its_range_is_registered() {
        // Never dereferenced, and no mapping is up there.
        let start = std::ptr::without_provenance_mut::<u8>(0x7fff_ffff_0000_0000);
        assert!(!is_watched(start.addr()));
        let media = WatchedRange::media(start, 0x3000).unwrap();
        let guest = WatchedRange::guest(start.wrapping_add(0x3000), 1, 4096, 0).unwrap();
        assert!(!is_watched(start.addr() - 1));
        assert!(is_watched(start.addr()) && is_watched(start.addr() + 0x3000));
        assert!(!is_watched(start.addr() + 0x3001));
        assert!(!replace_lost(start.addr()), "never over media");
        assert!(!media.has_faulted() && !guest.has_faulted());
        drop(media);
        assert!(!is_watched(start.addr() + 0x2fff));
        assert!(is_watched(start.addr() + 0x3000));
        drop(guest);
        assert!(!is_watched(start.addr() + 0x3000));
    }

    #[test]
    fn a_range_of_no_bytes_takes_no_slot() {
        assert!(WatchedRange::media(std::ptr::null_mut(), 0).is_none());
    }
}
