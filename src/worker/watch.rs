//! Looks whether workers that several disks share get on, and has a turn ended that holds up the others.
//!
//! How long a turn takes is known behind it, and a front-end may have one go on for as long as it likes: it takes pages of its
//! memory away as fast as they are touched. So a thread looks at each such worker [now and then](TICK) while one is busy. One that is
//! in the same round as before gets a signal ([`interruption`](crate::copy::fault::interruption)): its copy ends if pages are the
//! reason. Nothing of that turn is published; the ring rests until it is with a worker of its disk's own ([`HoldUps`]), and goes on
//! there where its used index stands.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::hold_ups::Counted;
use crate::copy::fault::interruption::Interruptible;
use crate::limits::bounds::MAX_ROUND;
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// How often it is looked: by the second look in a round it is known what the reason is.
const TICK: Duration = Duration::from_millis(25);
const _: () = assert!(2 * TICK.as_nanos() == MAX_ROUND.as_nanos(), "not later than the bound");

/// After so many ticks in which all workers rest nobody looks before one begins.
const QUIET_TICKS: u32 = 4;

/// A worker that disks share.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// What its thread does.
    pub(super) task: Arc<Interruptible>,
    /// The disks, one for each of their rings; none while it is not shared.
    pub(super) disks: Mutex<Vec<Counted>>,
}

impl Watched {
    fn waits_count(&self) -> bool {
        lock(&self.disks).iter().all(Counted::waits_count)
    }
}

/// What looks at the workers of a pool. Its thread begins with the first that is shared.
#[derive(Debug, Default)]
pub(super) struct Watch {
    state: Mutex<State>,
    changed: Condvar,
    /// Nobody looks.
    is_asleep: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Each with the round that was seen last.
    workers: Vec<(Arc<Watched>, u64)>,
    thread: Option<JoinHandle<()>>,
    is_stopping: bool,
}

impl Watch {
    /// Has this worker looked at from now on.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(super) fn attend(self: &Arc<Self>, worker: &Arc<Watched>) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.is_stopping {
            return Ok(());
        }
        if !state.workers.iter().any(|(known, _)| Arc::ptr_eq(known, worker)) {
            state.workers.push((worker.clone(), 0));
        }
        if state.thread.is_none() {
            let this = self.clone();
            let run = move || this.run();
            state.thread = Some(thread::spawn(ThreadKind::Worker, ThreadKind::Worker.name(), run)?);
        }
        Ok(())
    }

    /// Forgets it.
    pub(super) fn forget(&self, worker: &Arc<Watched>) {
        lock(&self.state).workers.retain(|(known, _)| !Arc::ptr_eq(known, worker));
    }

    /// A worker that has rested is in a round now.
    #[inline]
    pub(super) fn wake(&self) {
        // After the round was written, and the other way round in `run`: one of both sees what the other has done.
        if self.is_asleep.load(Ordering::SeqCst) {
            let _state = lock(&self.state);
            self.is_asleep.store(false, Ordering::SeqCst);
            self.changed.notify_one();
        }
    }

    /// Its thread: looks at the workers, each tick, and sleeps while they rest.
    fn run(&self) {
        let mut state = lock(&self.state);
        let mut quiet = 0;
        while !state.is_stopping {
            if quiet < QUIET_TICKS {
                let waited = self.changed.wait_timeout(state, TICK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                quiet = if state.look() { 0 } else { quiet.saturating_add(1) };
                continue;
            }
            self.is_asleep.store(true, Ordering::SeqCst);
            if !state.look() {
                while self.is_asleep.load(Ordering::SeqCst) && !state.is_stopping {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
            self.is_asleep.store(false, Ordering::SeqCst);
            quiet = 0;
        }
    }

    /// Ends its thread; there are no workers any more.
    pub(super) fn stop(&self) {
        let thread = {
            let mut state = lock(&self.state);
            state.is_stopping = true;
            state.workers.clear();
            state.thread.take()
        };
        self.changed.notify_one();
        if let Some(thread) = thread {
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl State {
    /// Has the rounds ended that were seen before. Returns whether any worker is in one.
    fn look(&mut self) -> bool {
        let mut is_any_busy = false;
        for (worker, seen) in &mut self.workers {
            let round = worker.task.round();
            if round != 0 && round == *seen {
                worker.task.end(round, worker.waits_count());
            }
            is_any_busy |= round != 0;
            *seen = round;
        }
        is_any_busy
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
