//! The dirty log of a live migration: which pages of guest memory were written to.

use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, VolatileMemory as _};

use crate::copy::fault::WatchedRange;

/// What one bit of the log stands for, whatever the page size of either side.
pub const LOG_PAGE_BYTES: u64 = 4096;

/// Why a log is refused. The one before it stays in force.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The area's end does not fit 64 bits, or it has no bytes.
    #[error("dirty log: {0:#x} bytes from {1:#x} on are no part of a file")]
    Overflow(u64, u64),
    /// Mapping needs whole pages.
    #[error("dirty log: file offset {0:#x} is not a multiple of the page size")]
    UnalignedOffset(u64),
    /// Touching the missing part would be a SIGBUS.
    #[error("dirty log: the file has {0:#x} bytes, the log ends at {1:#x}")]
    ShortFile(u64, u64),
    /// The descriptor says nothing about itself.
    #[error("dirty log: fstat: {0}")]
    Stat(std::io::Error),
    /// The kernel refused the mapping.
    #[error("dirty log: mmap: {0}")]
    Map(MmapRegionError),
    /// No room in the table of ranges that faults are contained in.
    #[error("dirty log: too many regions are mapped in this process")]
    Unwatched,
}

/// A bitmap shared with the front-end, which clears it as it reads it: one bit a page of [`LOG_PAGE_BYTES`] of
/// guest-physical addresses, the least significant bit of a byte first. Unmapped on drop.
#[derive(Debug)]
pub struct DirtyLog {
    /// Before the mapping: what is watched must be mapped. A log that is truncated costs its marks.
    _watch: WatchedRange,
    mapping: MmapRegion<()>,
}

impl DirtyLog {
    /// Maps `len_bytes` bytes of `file`, from `offset` on.
    ///
    /// # Errors
    /// The area is not all there, or cannot be mapped.
    pub fn map(file: File, offset: u64, len_bytes: u64) -> Result<Self, LogError> {
        let overflow = || LogError::Overflow(len_bytes, offset);
        let len = usize::try_from(len_bytes).ok().filter(|len| *len > 0).ok_or_else(overflow)?;
        let end = offset.checked_add(len_bytes).ok_or_else(overflow)?;
        if !offset.is_multiple_of(rustix::param::page_size() as u64) {
            return Err(LogError::UnalignedOffset(offset));
        }
        let file_bytes = file.metadata().map_err(LogError::Stat)?.len();
        if file_bytes < end {
            return Err(LogError::ShortFile(file_bytes, end));
        }
        let page_bytes = super::page_bytes(&file).map_err(LogError::Stat)?;
        let mapping = MmapRegionBuilder::new_with_bitmap(len, ())
            .with_file_offset(FileOffset::new(file, offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(LogError::Map)?;
        let host = mapping.as_volatile_slice().ptr_guard_mut().as_ptr();
        let watch = WatchedRange::guest(host, len, page_bytes).ok_or(LogError::Unwatched)?;
        Ok(Self { _watch: watch, mapping })
    }

    /// Marks the pages of `len_bytes` bytes at a guest-physical address. What was stored there before is seen by
    /// whoever sees the mark. Pages that the log has no bits for are left out.
    pub fn mark(&self, address: u64, len_bytes: u64) {
        let Some(last_byte) = len_bytes.checked_sub(1) else { return };
        let mut page = address / LOG_PAGE_BYTES;
        let last = address.saturating_add(last_byte) / LOG_PAGE_BYTES;
        let bits = self.mapping.as_volatile_slice();
        while page <= last {
            let Ok(place) = usize::try_from(page / 8) else { return };
            let Ok(byte) = bits.get_atomic_ref::<AtomicU8>(place) else { return };
            // As many pages as have their bit in this byte.
            let end = last.min(page | 7);
            byte.fetch_or(mask(page % 8, end % 8), Ordering::Release);
            page = end.saturating_add(1);
        }
    }
}

/// The bits from the one to the other, both included.
fn mask(first: u64, last: u64) -> u8 {
    (first..=last).fold(0, |mask, bit| mask | 1 << bit)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn file(len_bytes: u64) -> File {
        let fd = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(len_bytes).unwrap();
        file
    }

    fn pages(file: &File, len: usize) -> Vec<u64> {
        let mut bits = vec![0; len];
        file.read_exact_at(&mut bits, 0).unwrap();
        (0..len as u64 * 8).filter(|page| bits[(page / 8) as usize] >> (page % 8) & 1 == 1).collect()
    }

    #[test]
    fn every_page_that_is_touched_has_its_bit_and_no_other() {
        for (address, len_bytes, marked) in [
            (0, 0, vec![]),
            (0, 1, vec![0]),
            (4095, 1, vec![0]),
            (4095, 2, vec![0, 1]),
            (7 * 4096, 4096, vec![7]),
            (7 * 4096 + 1, 4096, vec![7, 8]),
            (6 * 4096, 19 * 4096, (6..25).collect()),
            (255 * 4096, 2 * 4096, vec![255]),
            (256 * 4096, 4096, vec![]),
            (u64::MAX, 1, vec![]),
            (u64::MAX - 4096, u64::MAX, vec![]),
            (4096, u64::MAX, (1..256).collect()),
        ] {
            let file = file(4096);
            let log = DirtyLog::map(file.try_clone().unwrap(), 0, 32).unwrap();
            log.mark(address, len_bytes);
            // The log ends with its length, not with its file.
            assert_eq!(pages(&file, 4096), marked, "{len_bytes} bytes at {address:#x}");
        }
    }

    #[test]
    fn marks_of_others_stay() {
        let file = file(4096);
        file.write_all_at(&[0b1010_0001], 0).unwrap();
        let log = DirtyLog::map(file.try_clone().unwrap(), 0, 4096).unwrap();
        log.mark(4096, 4096);
        assert_eq!(pages(&file, 1), [0, 1, 5, 7]);
    }

    #[test]
    fn logs_that_are_not_all_there_are_refused() {
        let map = |offset, len_bytes| DirtyLog::map(file(8192), offset, len_bytes).map(|_| ());
        assert!(map(4096, 4096).is_ok());
        assert!(matches!(map(0, 0), Err(LogError::Overflow(0, 0))));
        assert!(matches!(map(1 << 12, u64::MAX), Err(LogError::Overflow(..))));
        assert!(matches!(map(512, 4096), Err(LogError::UnalignedOffset(512))));
        assert!(matches!(map(4096, 4097), Err(LogError::ShortFile(8192, 8193))));
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(matches!(DirtyLog::map(null, 0, 4096), Err(LogError::ShortFile(0, 4096))));
    }

    #[test]
    fn a_log_that_is_truncated_costs_its_marks_only() {
        crate::copy::fault::install().unwrap();
        let file = file(4096);
        let log = DirtyLog::map(file.try_clone().unwrap(), 0, 4096).unwrap();
        file.set_len(0).unwrap();
        log.mark(0, 4096);
    }
}
