//! How much memory an overlay may take.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pages::PAGE_BYTES;

/// Pages that are taken before the kernel is asked how many there really are.
const COUNTED: u64 = 1024;

/// The pages of an overlay's memory: how many it has, and may have.
///
/// The number is that of pages taken, and now and then corrected by what the kernel says the file has: a page that is given back
/// while somebody stores into it is there again, and nobody has taken it.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    taken: AtomicU64,
}

impl Budget {
    pub(super) const fn new(max_bytes: u64) -> Self {
        Self { max: max_bytes.div_ceil(PAGE_BYTES), taken: AtomicU64::new(0) }
    }

    /// Whether one page more may be taken; it is then.
    pub(super) fn take(&self, file: &File) -> bool {
        let more = |taken: u64| (taken < self.max).then(|| taken.saturating_add(1));
        let take = || self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if let Ok(before) = take() {
            if before % COUNTED == COUNTED - 1 {
                self.count(file, 1);
            }
            return true;
        }
        // Pages may have been given back.
        self.count(file, 0);
        take().is_ok()
    }

    /// Asks the kernel how many there are; the caller has taken so many that are not there yet. (What others have taken at this
    /// moment is not counted: the limit may be passed by a page for each of them.)
    pub(super) fn count(&self, file: &File, taken: u64) {
        if let Some(bytes) = resident_bytes(file) {
            self.taken.store(bytes.div_ceil(PAGE_BYTES).saturating_add(taken), Ordering::Relaxed);
        }
    }

    pub(super) const fn max_bytes(&self) -> u64 {
        self.max.saturating_mul(PAGE_BYTES)
    }
}

/// Bytes of memory that a file in memory has.
pub(super) fn resident_bytes(file: &File) -> Option<u64> {
    file.metadata().ok().map(|metadata| metadata.blocks().saturating_mul(512))
}
