//! One thread runs at a time: the one that serves rings decides when the one that flushes goes on, and how far.
//!
//! So each run of a workload is the same as the one before, and interleavings that are rare otherwise, such as a write in
//! the midst of a sync, are chosen.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::Wake;
use std::time::Duration;

use super::driver::{RINGS, indices};
use super::workload::Random;
use crate::copy::recording::{Event, Watch};

/// The CPU that flushes; those before it serve the ring of their number.
pub(super) const FLUSHER: usize = RINGS;

/// Longer than any sync takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Which of the two threads runs.
#[derive(Debug, Default)]
pub(super) struct Scheduler {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The flusher waits until it may go on.
    is_paused: bool,
    may_go_on: bool,
    /// It goes on without being told: the run is over.
    is_over: bool,
    /// Rings that wait for a flush, and those of them that have been woken.
    held: [bool; RINGS],
    woken: [bool; RINGS],
    preemption: Preemption,
}

/// When the flusher goes on while a ring is served.
#[derive(Debug, Default)]
pub(super) enum Preemption {
    #[default]
    Never,
    /// By chance, after each event.
    Random(Random),
    /// After so many events, and then until nothing is left to do.
    AfterEvents(usize),
}

impl State {
    fn is_settled(&self) -> bool {
        self.is_paused || (0..RINGS).all(|ring| !self.held[ring] || self.woken[ring])
    }
}

impl Scheduler {
    pub(super) fn new(preemption: Preemption) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { preemption, ..State::default() }),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A preemption point: the flusher waits here until it may go on.
    pub(super) fn pause(&self) {
        let mut state = self.state();
        state.is_paused = true;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| !state.may_go_on && !state.is_over).unwrap();
        state.may_go_on = false;
    }

    /// Waits for the flusher, which does not come back if it has panicked.
    fn settle(&self, state: MutexGuard<'_, State>) {
        let waited = self.changed.wait_timeout_while(state, TIMEOUT, |state| !state.is_settled()).unwrap();
        let has_come = !waited.1.timed_out();
        drop(waited);
        assert!(has_come, "the flusher is gone");
    }

    /// Lets the flusher go on to its next pause; `false` if it has nothing to do.
    pub(super) fn advance(&self) -> bool {
        let mut state = self.state();
        if !state.is_paused {
            return false;
        }
        (state.is_paused, state.may_go_on) = (false, true);
        self.changed.notify_all();
        self.settle(state);
        true
    }

    /// A ring was served: whether it waits for a flush now, which has begun then.
    pub(super) fn served(&self, ring: usize, is_held: bool) {
        let mut state = self.state();
        state.held[ring] = is_held;
        self.settle(state);
    }

    /// A ring is about to be served.
    pub(super) fn serving(&self, ring: usize) {
        let mut state = self.state();
        (state.held[ring], state.woken[ring]) = (false, false);
    }

    pub(super) fn is_held(&self, ring: usize) -> bool {
        self.state().held[ring]
    }

    pub(super) fn is_woken(&self, ring: usize) -> bool {
        self.state().woken[ring]
    }

    /// Something has happened in a ring.
    fn advance_maybe(&self) {
        let turns = match &mut self.state().preemption {
            Preemption::Never => 0,
            Preemption::Random(random) => usize::from(random.below(6) == 0),
            Preemption::AfterEvents(0) => usize::MAX,
            Preemption::AfterEvents(events) => {
                *events -= 1;
                return;
            }
        };
        if turns > 1 {
            self.state().preemption = Preemption::Never;
        }
        for _ in 0..turns {
            if !self.advance() {
                return;
            }
        }
    }
}

/// Lets the flusher go on for good when dropped.
#[derive(Debug)]
pub(super) struct ReleaseOnDrop(pub(super) Arc<Scheduler>);

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        self.0.state().is_over = true;
        self.0.changed.notify_all();
    }
}

/// The waker of a ring.
#[derive(Debug)]
pub(super) struct RingWaker {
    pub(super) ring: usize,
    pub(super) scheduler: Arc<Scheduler>,
}

impl Wake for RingWaker {
    fn wake(self: Arc<Self>) {
        self.scheduler.state().woken[self.ring] = true;
        self.scheduler.changed.notify_all();
    }
}

/// Reads what drivers see; between any two events of a ring the flusher may go on.
#[derive(Debug)]
pub(super) struct DriverWatch {
    pub(super) guest: File,
    pub(super) scheduler: Arc<Scheduler>,
}

impl Watch for DriverWatch {
    fn seen(&self) -> u64 {
        indices(&self.guest)
    }

    fn happened(&self, cpu: usize, event: &Event) {
        match event {
            Event::SyncBegins(_) if cpu == FLUSHER => self.scheduler.pause(),
            _ if cpu == FLUSHER => {}
            _ => self.scheduler.advance_maybe(),
        }
    }
}
