//! Whether the driver that uses a private disk is the one whose writes the disk has.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Which rings drivers have begun since the disk was laid over its base.
///
/// A ring that goes on, and was not begun here, is that of a driver which has written to a disk before this one: of a process that
/// has ended, or on another machine. It must not see what the base has in place of that.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    /// What drivers have written before this process is there.
    has_past: bool,
    begun: Mutex<BTreeSet<u16>>,
    is_lost: AtomicBool,
}

impl Continuity {
    pub(super) fn new(has_past: bool) -> Self {
        Self { has_past, ..Self::default() }
    }

    /// A ring starts, at its beginning or where it has stopped before; `is_first`: no other runs. Returns whether what the driver
    /// has written is lost.
    pub(super) fn ring_starts(&self, ring: u16, goes_on: bool, is_first: bool) -> bool {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        match goes_on {
            true if !self.has_past && !begun.contains(&ring) => self.is_lost.store(true, Ordering::Release),
            true => {}
            // A driver that begins anew expects nothing.
            false if is_first => {
                begun.insert(ring);
                self.is_lost.store(false, Ordering::Release);
            }
            false => {
                begun.insert(ring);
            }
        }
        self.is_lost()
    }

    /// Whether the driver expects what is not there.
    #[inline]
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANEW: bool = false;
    const GOES_ON: bool = true;

    #[test]
    fn a_driver_finds_its_own_writes_or_an_error() {
        let all = Continuity::default();
        assert!(!all.ring_starts(0, ANEW, true));
        assert!(!all.ring_starts(1, ANEW, false));
        // Its front-end comes back, or another one goes on.
        assert!(!all.ring_starts(1, GOES_ON, true));
        assert!(!all.ring_starts(0, GOES_ON, false));
        // Ring 2 was used in another process.
        assert!(all.ring_starts(2, GOES_ON, false));
        assert!(all.ring_starts(0, GOES_ON, true), "it stays lost");
        assert!(!all.ring_starts(0, ANEW, true), "until the driver begins anew");
    }

    #[test]
    fn what_was_kept_is_not_lost() {
        let kept = Continuity::new(true);
        assert!(!kept.ring_starts(0, GOES_ON, true));
    }

    /// After a restart, where the first ring was never used.
    #[test]
    fn one_ring_that_goes_on_is_enough() {
        let all = Continuity::default();
        assert!(!all.ring_starts(0, ANEW, true));
        assert!(all.ring_starts(1, GOES_ON, false));
        assert!(all.is_lost());
    }
}
