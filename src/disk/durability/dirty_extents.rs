//! Which pages of a mapping were written since the last sync: at most two runs of them, or "many".
//!
//! Syncing one range costs 3 to 4 ms, page by page 4 ms each, the whole file 3 to 19 ms (measured): so a run
//! or two are synced by themselves, for more the whole file is synced.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use crate::copy;
use crate::disk::ranges;

/// Most runs that are kept apart.
const MAX_RUNS: usize = 2;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::disk) enum Dirty {
    /// Nothing outside these runs of whole pages, in order.
    Runs(Vec<Range<u64>>),
    /// More runs than are kept: the whole file is to be synced.
    Many,
}

/// What was written since it was last [taken](DirtyExtents::take).
#[derive(Debug)]
pub(in crate::disk) struct DirtyExtents {
    /// Set while `runs` is [`Dirty::Many`], so that writers need no lock then.
    many: AtomicBool,
    written: Mutex<Dirty>,
    page_bytes: u64,
}

impl DirtyExtents {
    /// "Many" at first, unless nothing is `dirty`.
    pub(in crate::disk) fn new(page_bytes: u64, dirty: bool) -> Self {
        let written = if dirty { Dirty::Many } else { Dirty::Runs(Vec::with_capacity(MAX_RUNS + 1)) };
        Self { many: AtomicBool::new(dirty), written: Mutex::new(written), page_bytes: page_bytes.max(1) }
    }

    /// A write to this range has finished.
    pub(in crate::disk) fn note(&self, range: Range<u64>) {
        // As in `Syncs::wrote`: whoever finds `many` set is covered by whoever clears it afterwards.
        copy::full_fence();
        if range.is_empty() || self.many.load(Ordering::SeqCst) {
            return;
        }
        let start = range.start - range.start % self.page_bytes;
        let end = range.end.checked_next_multiple_of(self.page_bytes).unwrap_or(u64::MAX);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Dirty::Runs(runs) = &mut *written {
            ranges::insert(runs, start..end);
            if runs.len() > MAX_RUNS {
                *written = Dirty::Many;
                self.many.store(true, Ordering::SeqCst);
            }
        }
    }

    /// The file system has changed more than bytes: only a sync of the whole file will do.
    pub(in crate::disk) fn note_all(&self) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        *written = Dirty::Many;
        self.many.store(true, Ordering::SeqCst);
    }

    /// What was written, and starts anew. Call it before the sync that it is for.
    pub(in crate::disk) fn take(&self) -> Dirty {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::replace(&mut *written, Dirty::Runs(Vec::with_capacity(MAX_RUNS + 1)));
        self.many.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A set of pages is the naive twin.
        #[test]
        fn runs_cover_exactly_the_pages_written(
            writes in prop::collection::vec((0..60_u64 * 4096, 1..20_000_u64), 0..8),
        ) {
            let extents = DirtyExtents::new(4096, false);
            let mut pages = BTreeSet::new();
            let mut was_many = false;
            for (start, len) in writes {
                extents.note(start..start + len);
                pages.extend(start / 4096..(start + len).div_ceil(4096));
                let runs = pages.iter().filter(|page| **page == 0 || !pages.contains(&(*page - 1))).count();
                was_many |= runs > MAX_RUNS;
            }
            match extents.take() {
                Dirty::Many => prop_assert!(was_many),
                Dirty::Runs(runs) => {
                    prop_assert!(!was_many);
                    prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
                    let covered: BTreeSet<u64> =
                        runs.into_iter().flat_map(|run| run.start / 4096..run.end / 4096).collect();
                    prop_assert_eq!(covered, pages);
                }
            }
            prop_assert_eq!(extents.take(), Dirty::Runs(vec![]));
        }
    }

    #[test]
    fn at_first_everything_may_be_dirty() {
        let extents = DirtyExtents::new(4096, true);
        extents.note(0..1);
        assert_eq!(extents.take(), Dirty::Many);
        extents.note(5..5);
        assert_eq!(extents.take(), Dirty::Runs(vec![]));
        extents.note(4095..4097);
        assert_eq!(extents.take(), Dirty::Runs(vec![0..8192]));
    }
}
