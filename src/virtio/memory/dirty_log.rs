//! The dirty log of a live migration: which pages of guest memory were written to.

use std::fs::File;
use std::sync::atomic::Ordering;

use super::shared::{SharedError, SharedMapping};

/// What one bit of the log stands for, whatever the page size of either side.
pub const LOG_PAGE_BYTES: u64 = 4096;

/// Why a log is refused. The one before it stays in force.
#[derive(Debug, thiserror::Error)]
#[error("dirty log: {0}")]
pub struct LogError(#[from] SharedError);

/// A bitmap shared with the front-end, which clears it as it reads it: one bit a page of [`LOG_PAGE_BYTES`] of
/// guest-physical addresses, the least significant bit of a byte first. Unmapped on drop.
#[derive(Debug)]
pub struct DirtyLog {
    bits: SharedMapping,
}

impl DirtyLog {
    /// Maps `len_bytes` bytes of `file`, from `offset` on.
    ///
    /// # Errors
    /// The area is not all there, or cannot be mapped.
    pub fn map(file: &File, offset: u64, len_bytes: u64) -> Result<Self, LogError> {
        Ok(Self { bits: SharedMapping::map(file, offset, len_bytes)? })
    }

    /// Whether marks were lost: its file is shorter than it was, or a page of it went bad.
    pub fn is_lost(&self) -> bool {
        self.bits.watch().has_faulted()
    }

    /// Marks the pages of `len_bytes` bytes at a guest-physical address. What was stored there before is seen by
    /// whoever sees the mark. Pages that the log has no bits for are left out.
    pub fn mark(&self, address: u64, len_bytes: u64) {
        let Some(last_byte) = len_bytes.checked_sub(1) else { return };
        let mut page = address / LOG_PAGE_BYTES;
        let last = address.saturating_add(last_byte) / LOG_PAGE_BYTES;
        while page <= last {
            let Ok(place) = usize::try_from(page / 8) else { return };
            let Some(byte) = self.bits.byte(place) else { return };
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
    use crate::copy::testing::memfd;

    fn file(len_bytes: u64) -> File {
        memfd("log", len_bytes)
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
            let log = DirtyLog::map(&file, 0, 32).unwrap();
            log.mark(address, len_bytes);
            // The log ends with its length, not with its file.
            assert_eq!(pages(&file, 4096), marked, "{len_bytes} bytes at {address:#x}");
        }
    }

    #[test]
    fn marks_of_others_stay() {
        let file = file(4096);
        file.write_all_at(&[0b1010_0001], 0).unwrap();
        let log = DirtyLog::map(&file, 0, 4096).unwrap();
        log.mark(4096, 4096);
        assert_eq!(pages(&file, 1), [0, 1, 5, 7]);
    }

    #[test]
    fn logs_that_are_not_all_there_are_refused() {
        let map = |offset, len_bytes| DirtyLog::map(&file(8192), offset, len_bytes).map(|_| ());
        assert!(map(4096, 4096).is_ok());
        assert!(matches!(map(0, 0), Err(LogError(SharedError::Overflow(0, 0)))));
        assert!(matches!(map(1 << 12, u64::MAX), Err(LogError(SharedError::Overflow(..)))));
        assert!(matches!(map(512, 4096), Err(LogError(SharedError::UnalignedOffset(512, 4096)))));
        assert!(matches!(map(4096, 4097), Err(LogError(SharedError::ShortFile(8192, 8193)))));
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(matches!(DirtyLog::map(&null, 0, 4096), Err(LogError(SharedError::Map(_)))));
    }

    #[test]
    fn a_log_that_is_truncated_knows_it() {
        crate::copy::fault::install().unwrap();
        let file = file(4096);
        let log = DirtyLog::map(&file, 0, 4096).unwrap();
        log.mark(0, 4096);
        assert!(!log.is_lost());
        file.set_len(0).unwrap();
        log.mark(0, 4096);
        assert!(log.is_lost());
    }
}
