//! How long nobody does tasks himself that are most often quick, since some were not.

use std::time::{Duration, Instant};

/// Tasks that are done in less are quick.
const QUICK: Duration = Duration::from_millis(2);

/// How long threads do such tasks after one that was not quick, and after many.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long nobody is to do tasks himself, since some were not quick.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    /// Doubled by each that is not quick, down to nothing by one that is.
    length: Duration,
}

impl Pause {
    pub(super) fn lasts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    pub(super) fn learn(&mut self, took: Duration, now: Instant) {
        if took < QUICK {
            *self = Self::default();
            return;
        }
        self.length = self.length.saturating_mul(2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.until = now.checked_add(self.length);
    }
}
