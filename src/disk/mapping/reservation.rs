//! Address space for a mapping, with room for it to grow.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::options::{MapOptions, too_large};
use crate::copy::fault::WatchedRange;

/// Address space of this process that a file is mapped in. It is given back when this value is dropped.
///
/// - **R1**: from `exactly` until the drop the range is this value's alone: nothing else of the process is mapped or unmapped there.
/// - **R2**: what is mapped in it is shared with its file: advice, populating and syncing change no byte.
#[derive(Debug)]
pub(super) struct Reservation {
    /// Registers the range, so that what the kernel announces of bad pages in it is kept for `action_optional::fetch`.
    /// Dropped before the memory is unmapped; none when too many ranges are registered.
    watch: Option<WatchedRange>,
    base: *mut u8,
    len: usize,
}

// SAFETY: R1: address space belongs to the process, not to the thread that reserved it.
unsafe impl Send for Reservation {}

// SAFETY: R1: a shared reference gives the address and length only.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves twice `len` bytes at a multiple of `align`, so that the mapping can grow, or only `len` where address space is
    /// scarce (`ulimit -v`).
    ///
    /// # Errors
    /// The error of `mmap`.
    pub(super) fn reserve(len: usize, align: usize) -> io::Result<Self> {
        let roomy = len.checked_mul(2).ok_or_else(too_large).and_then(|twice| Self::exactly(twice, align));
        let mut reservation = roomy.or_else(|_| Self::exactly(len, align))?;
        reservation.watch = WatchedRange::media(reservation.base, reservation.len);
        Ok(reservation)
    }

    fn exactly(len: usize, align: usize) -> io::Result<Self> {
        let whole = len.checked_add(align).ok_or_else(too_large)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let anywhere = std::ptr::null_mut();
        // SAFETY: R1: the kernel chooses an address that is free, so that nothing of this process is replaced.
        let base = unsafe { rustix::mm::mmap_anonymous(anywhere, whole, ProtFlags::empty(), flags) }?;
        let base: *mut u8 = base.cast();
        let before = base.addr().next_multiple_of(align) - base.addr();
        let aligned = base.wrapping_add(before);
        let of = |base, len| Self { watch: None, base, len };
        drop(of(base, before));
        drop(of(aligned.wrapping_add(len), whole - before - len));
        Ok(of(aligned, len))
    }

    /// Its address.
    pub(super) const fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes that can be mapped in it.
    pub(super) const fn len_bytes(&self) -> usize {
        self.len
    }

    /// Maps these bytes of the file, whole pages, at the same offset in here. They were not mapped before.
    ///
    /// # Errors
    /// The error of `mmap`; `InvalidInput` when they are not inside.
    pub(super) fn map(&mut self, file: &File, range: Range<usize>, options: MapOptions) -> io::Result<()> {
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Ok(());
        }
        if range.end > self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let access = if options.read_only { ProtFlags::READ } else { ProtFlags::READ | ProtFlags::WRITE };
        let flags = MapFlags::NORESERVE | MapFlags::FIXED;
        let flags = flags
            | match options.synchronous {
                true => MapFlags::SHARED_VALIDATE | MapFlags::SYNC,
                false => MapFlags::SHARED,
            };
        let start = self.base.wrapping_add(range.start).cast();
        // SAFETY: R1: the range was checked to be inside, and nobody uses what is not mapped yet.
        let mapped = unsafe { rustix::mm::mmap(start, len, access, flags, file, range.start as u64) };
        if mapped.is_err() {
            // The kernel may have unmapped this range already, and another thread may have mapped something there: from here
            // on nothing is ours to unmap any more.
            self.len = range.start;
        }
        mapped?;
        // Keeps the disk, and what guests have deleted of it, out of core dumps and out of child processes. A kernel that
        // refuses the advice serves it all the same.
        for advice in [Advice::LinuxDontDump, Advice::LinuxDontFork] {
            // SAFETY: R2: the advice changes no byte of what was just mapped.
            let _ = unsafe { rustix::mm::madvise(start, len, advice) };
        }
        Ok(())
    }

    /// Frees the page tables of the first `len` bytes, which are rarely touched from now on; a copy that is under way there finds
    /// the same bytes. Where the kernel refuses, they stay until the drop.
    pub(super) fn dont_need(&self, len: usize) {
        // SAFETY: R1: not more than the reservation. R2: what was stored is in the file and not lost.
        let _ = unsafe { rustix::mm::madvise(self.base.cast(), len.min(self.len), Advice::LinuxDontNeed) };
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        drop(self.watch.take());
        if self.len == 0 {
            return;
        }
        // SAFETY: R1: whoever used what was mapped there had borrowed the mapping that owns this reservation.
        let unmapped = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}
