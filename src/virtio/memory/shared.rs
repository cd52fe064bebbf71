//! A part of a file that somebody else has shared with us, as memory of this process.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU8;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::copy::fault::WatchedRange;
use crate::limits::address_space;
use crate::limits::bounds::MIN_FREE_ADDRESS_SPACE_BYTES;
use crate::limits::map_count::{Charge, Purpose};

/// Mappings that one takes: itself, and what is spare before it.
const MAPPINGS: usize = 2;

/// Why a part of a file is not mapped. Nothing of it stays mapped then.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// Its end does not fit 64 bits, or it has no bytes.
    #[error("{0:#x} bytes at {1:#x} are not part of a file")]
    Overflow(u64, u64),
    /// Mapping needs whole pages.
    #[error("its file offset {0:#x} is not a multiple of {1:#x}, the size of its pages{huge}", huge = huge(*.1))]
    UnalignedOffset(u64, u64),
    /// Touching the missing part would be a SIGBUS.
    #[error("its file has {0:#x} bytes, it ends at {1:#x}")]
    ShortFile(u64, u64),
    /// The descriptor says nothing about itself.
    #[error("fstat: {0}")]
    Stat(io::Error),
    /// The kernel refused the mapping.
    #[error("mmap: {0}")]
    Map(io::Error),
    /// The rest is kept for the process itself.
    #[error("{0}")]
    Limit(io::Error),
    /// No room in the table of ranges that faults are contained in.
    #[error("too many regions are mapped in this process")]
    Unwatched,
}

const fn huge(page_bytes: u64) -> &'static str {
    if page_bytes > 4096 { " (huge pages)" } else { "" }
}

/// A part of a shared file, mapped for reading and writing, watched, and in no core dump; unmapped on drop.
#[derive(Debug)]
pub(super) struct SharedMapping {
    /// Before the mapping: what is watched must be mapped.
    watch: WatchedRange,
    pages: Pages,
    /// Bytes that are used.
    len: usize,
    _charge: Charge,
}

/// Whole pages of address space, and a little before them.
///
/// That keeps neighbours of the same file apart: all of them can be replaced, or unmapped, without another mapping.
///
/// - **M4**: from `reserve` until the drop the range is this value's alone: nothing else of the process is mapped or unmapped
///   there (but by the handler of faults, which puts pages in place of pages).
#[derive(Debug)]
struct Pages {
    start: *mut u8,
    len: usize,
    /// Bytes reserved before `start`, unless they are somebody else's to unmap.
    spare: usize,
}

// SAFETY: M4: address space belongs to the process, not to the thread that reserved it.
unsafe impl Send for Pages {}

// SAFETY: M4: a shared reference gives the address and length only.
unsafe impl Sync for Pages {}

impl SharedMapping {
    /// Maps `len_bytes` bytes of `file` from `offset` on.
    ///
    /// # Errors
    /// They are not all there, or cannot be mapped.
    pub(super) fn map(file: &File, offset: u64, len_bytes: u64) -> Result<Self, SharedError> {
        let overflow = || SharedError::Overflow(len_bytes, offset);
        let len = usize::try_from(len_bytes).ok().filter(|len| *len > 0).ok_or_else(overflow)?;
        let end = offset.checked_add(len_bytes).ok_or_else(overflow)?;
        let page = page_bytes(file).map_err(SharedError::Stat)?;
        if !offset.is_multiple_of(page as u64) {
            return Err(SharedError::UnalignedOffset(offset, page as u64));
        }
        let metadata = file.metadata().map_err(SharedError::Stat)?;
        // A device-DAX node used as guest memory says 0; only a real file knows its length. (One on huge pages has whole
        // ones: what a length is rounded up to is there as well.)
        if metadata.is_file() && metadata.len() < end {
            return Err(SharedError::ShortFile(metadata.len(), end));
        }
        let whole = len.checked_next_multiple_of(page).ok_or_else(overflow)?;
        let charge = Charge::new(Purpose::Memory, MAPPINGS).map_err(SharedError::Limit)?;
        let mut pages = Pages::reserve(whole, page).map_err(SharedError::Map)?;
        pages.open(file, offset).map_err(SharedError::Map)?;
        address_space::check(MIN_FREE_ADDRESS_SPACE_BYTES).map_err(SharedError::Limit)?;
        let watch = WatchedRange::guest(pages.start, len, page, pages.spare).ok_or(SharedError::Unwatched)?;
        pages.spare = 0;
        Ok(Self { watch, pages, len, _charge: charge })
    }

    /// Where it begins.
    pub(super) const fn start(&self) -> *mut u8 {
        self.pages.start
    }

    /// What is known of faults in it.
    pub(super) const fn watch(&self) -> &WatchedRange {
        &self.watch
    }

    /// A byte of it, if it is inside.
    pub(super) fn byte(&self, offset: usize) -> Option<&AtomicU8> {
        if offset >= self.len {
            return None;
        }
        // SAFETY: M4: inside, and mapped until `self` is dropped. M2: an atomic.
        Some(unsafe { AtomicU8::from_ptr(self.pages.start.wrapping_add(offset)) })
    }
}

impl Pages {
    /// Reserves `len` bytes, whole pages of this size.
    fn reserve(len: usize, page: usize) -> io::Result<Self> {
        let small = rustix::param::page_size();
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let total = len.checked_add(page).and_then(|sum| sum.checked_add(page)).ok_or_else(too_large)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let anywhere = std::ptr::null_mut();
        // SAFETY: M4: the kernel chooses an address that is free, so that nothing of this process is replaced.
        let base = unsafe { rustix::mm::mmap_anonymous(anywhere, total, ProtFlags::empty(), flags) }?;
        let spare = base.addr().wrapping_add(small).next_multiple_of(page).wrapping_sub(base.addr());
        let start = base.cast::<u8>().wrapping_add(spare);
        let behind = total.wrapping_sub(spare).wrapping_sub(len);
        let pages = Self { start, len, spare };
        if behind != 0 {
            // SAFETY: M4: the end of what was just reserved, which nobody uses.
            unsafe { rustix::mm::munmap(start.wrapping_add(len).cast(), behind) }?;
        }
        Ok(pages)
    }

    /// Maps the file where there is room for it now.
    fn open(&mut self, file: &File, offset: u64) -> io::Result<()> {
        let (access, start) = (ProtFlags::READ | ProtFlags::WRITE, self.start.cast::<c_void>());
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: M4: it was reserved, and nobody uses it yet.
        unsafe { rustix::mm::mmap(start, self.len, access, flags, file, offset) }?;
        let base = start.wrapping_byte_sub(self.spare);
        // The advice makes what is spare differ from reservations of others beside it: it stays a mapping by itself.
        // SAFETY: M4: the advice changes no byte of what was just mapped.
        unsafe { rustix::mm::madvise(base, self.spare.wrapping_add(self.len), Advice::LinuxDontDump) }?;
        // Nor do processes that receive descriptors see it. A kernel that refuses the advice serves it all the same.
        // SAFETY: M4: the advice changes no byte of what was just mapped.
        let _ =
            unsafe { rustix::mm::madvise(base, self.spare.wrapping_add(self.len), Advice::LinuxDontFork) };
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let total = self.spare.wrapping_add(self.len);
        // SAFETY: M4: whoever used what was mapped there had borrowed the value that owns this, or kept it alive.
        let unmapped = unsafe { rustix::mm::munmap(self.start.wrapping_sub(self.spare).cast(), total) };
        // It is mappings as a whole, so that none more is needed for it.
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

/// Size of the pages of a shared memory file: on hugetlbfs they can be mapped, and replaced, only as a whole.
fn page_bytes(file: &File) -> io::Result<usize> {
    let statfs = rustix::fs::fstatfs(file)?;
    match usize::try_from(statfs.f_bsize) {
        Ok(huge) if statfs.f_type == libc::HUGETLBFS_MAGIC => Ok(huge),
        _ => Ok(rustix::param::page_size()),
    }
}

#[cfg(test)]
mod tests;
