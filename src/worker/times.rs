//! When the requests of a ring were taken whose media may make one wait: each is timed.

use std::collections::VecDeque;
use std::time::Instant;

use crate::virtio::blk::{Latency, Timed};

/// When requests were taken that are not completed, in the ring's order; and how many were completed in this turn.
#[derive(Debug)]
pub(super) struct Times {
    turn: Instant,
    taken: VecDeque<(Instant, Option<Timed>)>,
    /// Reads that were done at once in this turn.
    at_once: u64,
    completed: usize,
}

impl Times {
    /// With room for so many.
    pub(super) fn new(room: usize) -> Self {
        Self { turn: Instant::now(), taken: VecDeque::with_capacity(room), at_once: 0, completed: 0 }
    }

    pub(super) fn begin_turn(&mut self) {
        self.turn = Instant::now();
    }

    /// One is taken.
    pub(super) fn took(&mut self, what: Option<Timed>) {
        self.taken.push_back((self.turn, what));
    }

    /// A read was taken and completed.
    pub(super) const fn done_at_once(&mut self) {
        self.at_once = self.at_once.saturating_add(1);
    }

    /// The first one is completed.
    pub(super) const fn completed(&mut self) {
        self.completed = self.completed.saturating_add(1);
    }

    /// What is completed is about to be shown.
    pub(super) fn end_turn(&mut self, latency: &Latency) {
        let completed = std::mem::take(&mut self.completed);
        let at_once = std::mem::take(&mut self.at_once);
        if completed == 0 && at_once == 0 {
            return;
        }
        let now = Instant::now();
        if at_once != 0 {
            latency.add(Timed::Read, now.saturating_duration_since(self.turn), at_once);
        }
        for (since, what) in self.taken.drain(..completed.min(self.taken.len())) {
            if let Some(what) = what {
                latency.add(what, now.saturating_duration_since(since), 1);
            }
        }
    }
}
