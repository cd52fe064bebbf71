//! Whether the size of a disk is being read again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The rescan of a disk that is under way, if one is.
#[derive(Debug, Default)]
pub(super) struct Rescan(Mutex<Option<Under>>);

/// It is under way.
#[derive(Debug)]
struct Under {
    since: Instant,
    /// Another was asked for meanwhile.
    again: bool,
}

impl Rescan {
    /// Since when one is under way.
    pub(super) fn since(&self) -> Option<Instant> {
        self.lock().as_ref().map(|under| under.since)
    }

    /// Whether it is to be begun; one that is under way is repeated.
    pub(super) fn begins(&self) -> bool {
        let mut state = self.lock();
        match &mut *state {
            Some(under) => under.again = true,
            None => *state = Some(Under { since: Instant::now(), again: false }),
        }
        !state.as_ref().is_some_and(|under| under.again)
    }

    /// Whether it is over: nobody has asked for another.
    pub(super) fn is_over(&self) -> bool {
        let mut state = self.lock();
        let again = state.take().is_some_and(|under| under.again);
        *state = again.then(|| Under { since: Instant::now(), again: false });
        !again
    }

    fn lock(&self) -> MutexGuard<'_, Option<Under>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
