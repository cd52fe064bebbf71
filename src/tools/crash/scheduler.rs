//! One thread at a time: the one that serves rings says when the one that flushes goes on, and how far.
//!
//! Without that no two runs of a history would be the same, and what only happens when a write is done in the
//! midst of a sync would happen by accident.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::Wake;
use std::time::Duration;

use super::driver::{RINGS, indices};
use super::workload::Random;
use crate::copy::recording::{Event, Watch};

/// The CPU that flushes; those before it serve the ring of their number.
pub(super) const FLUSHER: usize = RINGS;

/// No sync takes as long.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
pub(super) struct Baton {
    turn: Mutex<Turn>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Turn {
    /// The flusher waits until it may go on.
    is_paused: bool,
    may_go_on: bool,
    /// Nobody says any more when it may.
    is_over: bool,
    /// Rings that wait for a flush, and those of them that have been woken.
    held: [bool; RINGS],
    rung: [bool; RINGS],
    moments: Moments,
}

/// When the flusher goes on while a ring is served.
#[derive(Debug, Default)]
pub(super) enum Moments {
    #[default]
    Never,
    /// By chance.
    Random(Random),
    /// After so many events, and then until nothing is left to do.
    After(usize),
}

impl Turn {
    fn is_settled(&self) -> bool {
        self.is_paused || (0..RINGS).all(|ring| !self.held[ring] || self.rung[ring])
    }
}

impl Baton {
    pub(super) fn new(moments: Moments) -> Arc<Self> {
        Arc::new(Self { turn: Mutex::new(Turn { moments, ..Turn::default() }), changed: Condvar::new() })
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap()
    }

    /// A place where the flusher waits for its turn.
    pub(super) fn pause(&self) {
        let mut turn = self.turn();
        turn.is_paused = true;
        self.changed.notify_all();
        turn = self.changed.wait_while(turn, |turn| !turn.may_go_on && !turn.is_over).unwrap();
        turn.may_go_on = false;
    }

    /// Waits for the flusher, which does not come back if it has panicked.
    fn settle(&self, turn: MutexGuard<'_, Turn>) {
        let waited = self.changed.wait_timeout_while(turn, PATIENCE, |turn| !turn.is_settled()).unwrap();
        let has_come = !waited.1.timed_out();
        drop(waited);
        assert!(has_come, "the flusher is gone");
    }

    /// Lets the flusher go on to its next pause; `false` if it has nothing to do.
    pub(super) fn advance(&self) -> bool {
        let mut turn = self.turn();
        if !turn.is_paused {
            return false;
        }
        (turn.is_paused, turn.may_go_on) = (false, true);
        self.changed.notify_all();
        self.settle(turn);
        true
    }

    /// A ring was served: whether it waits for a flush now, which has begun then.
    pub(super) fn served(&self, ring: usize, is_held: bool) {
        let mut turn = self.turn();
        turn.held[ring] = is_held;
        self.settle(turn);
    }

    /// A ring is about to be served.
    pub(super) fn serving(&self, ring: usize) {
        let mut turn = self.turn();
        (turn.held[ring], turn.rung[ring]) = (false, false);
    }

    pub(super) fn is_held(&self, ring: usize) -> bool {
        self.turn().held[ring]
    }

    pub(super) fn is_rung(&self, ring: usize) -> bool {
        self.turn().rung[ring]
    }

    /// Something has happened in a ring.
    fn advance_maybe(&self) {
        let turns = match &mut self.turn().moments {
            Moments::Never => 0,
            Moments::Random(random) => usize::from(random.below(6) == 0),
            Moments::After(0) => usize::MAX,
            Moments::After(events) => {
                *events -= 1;
                return;
            }
        };
        if turns > 1 {
            self.turn().moments = Moments::Never;
        }
        for _ in 0..turns {
            if !self.advance() {
                return;
            }
        }
    }
}

/// Lets everybody go when dropped.
#[derive(Debug)]
pub(super) struct Over(pub(super) Arc<Baton>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.turn().is_over = true;
        self.0.changed.notify_all();
    }
}

/// What wakes a ring.
#[derive(Debug)]
pub(super) struct Bell {
    pub(super) ring: usize,
    pub(super) baton: Arc<Baton>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.baton.turn().rung[self.ring] = true;
        self.baton.changed.notify_all();
    }
}

/// Looks at what drivers see; between any two events of a ring the flusher may go on.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) guest: File,
    pub(super) baton: Arc<Baton>,
}

impl Watch for Watcher {
    fn seen(&self) -> u64 {
        indices(&self.guest)
    }

    fn happened(&self, cpu: usize, event: &Event) {
        match event {
            Event::SyncBegins(_) if cpu == FLUSHER => self.baton.pause(),
            _ if cpu == FLUSHER => {}
            _ => self.baton.advance_maybe(),
        }
    }
}
