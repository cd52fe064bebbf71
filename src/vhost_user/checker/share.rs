//! How many checkers are at their end with what one disk's front-ends have sent. What takes long to close, or for ever, uses up
//! that disk's share of processes, and no other's.
//!
//! The daemon counts those that retire, and asks the spawner, which knows who has ended, when there may be too many by
//! that count. So there may be fewer than are counted here, and never more.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::bounds::{CHECKER_TIMEOUT, MAX_RETIRED_CHECKERS, RETIRED_CHECKERS_TIMEOUT};

/// How often the spawner is asked, once it has answered.
const COUNT_INTERVAL: Duration = Duration::from_millis(50);

/// Those of one disk.
#[derive(Debug)]
pub(super) struct Share {
    /// The disk's number for the spawner.
    disk: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// At the most so many.
    retired: usize,
    /// Of them, those that have retired since the spawner was asked.
    since_asked: usize,
    /// When that was, and whether it has not answered yet.
    asked: Option<(Instant, bool)>,
    /// Messages that were not taken.
    refusals: u64,
}

impl Share {
    pub(super) fn of(disk: u64) -> Self {
        Self { disk, state: Mutex::default() }
    }

    pub(super) const fn disk(&self) -> u64 {
        self.disk
    }

    /// One more has retired, or is about to.
    pub(super) fn add(&self) {
        let mut state = self.lock();
        state.retired = state.retired.saturating_add(1);
        state.since_asked = state.since_asked.saturating_add(1);
    }

    /// Whether to ask the spawner: before there can be too many, as most end at once.
    pub(super) fn may_be_too_many(&self) -> bool {
        self.lock().retired >= MAX_RETIRED_CHECKERS / 2
    }

    pub(super) fn is_full(&self) -> bool {
        self.lock().retired >= MAX_RETIRED_CHECKERS
    }

    /// Whether the spawner is to be asked now.
    pub(super) fn is_to_be_counted(&self) -> bool {
        let mut state = self.lock();
        let is_due = state.asked.is_none_or(|(when, awaits)| {
            when.elapsed() >= if awaits { CHECKER_TIMEOUT } else { COUNT_INTERVAL }
        });
        if is_due {
            (state.asked, state.since_asked) = (Some((Instant::now(), true)), 0);
        }
        is_due
    }

    /// The spawner's answer, if it has one.
    pub(super) fn count(&self, retired: Option<usize>) {
        let mut state = self.lock();
        if let Some((_, awaits)) = &mut state.asked {
            *awaits = false;
        }
        if let Some(retired) = retired {
            state.retired = retired.saturating_add(state.since_asked);
        }
    }

    /// A message is not taken.
    pub(super) fn refuse(&self) -> io::Error {
        let mut state = self.lock();
        state.refusals = state.refusals.saturating_add(1);
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "{} processes have not been able to close what front-ends of this disk have sent before, and none has ended \
                 within {} s; end whoever makes them wait: a FUSE server, the reader of a pipe",
                state.retired,
                RETIRED_CHECKERS_TIMEOUT.as_secs()
            ),
        )
    }

    pub(super) fn refusals(&self) -> u64 {
        self.lock().refusals
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_retire_while_the_spawner_counts_are_not_forgotten() {
        let share = Share::of(1);
        (0..MAX_RETIRED_CHECKERS).for_each(|_| share.add());
        assert!(share.is_full() && share.is_to_be_counted());
        assert!(!share.is_to_be_counted(), "it is being counted");
        share.add();
        share.count(Some(MAX_RETIRED_CHECKERS - 1));
        assert!(share.is_full(), "and the one that has come since");
        share.count(Some(MAX_RETIRED_CHECKERS - 2));
        assert!(!share.is_full());
        share.count(None);
        assert!(!share.is_full(), "no answer is no reason to take nothing");
    }
}
