//! A thread that looks at some things now and then, and sleeps while there is nothing to see.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// After so many looks at which there was nothing to see, nobody looks before [somebody says](Watchdog::wake) that there is.
const QUIET_TICKS: u32 = 4;

/// What is looked at.
pub(super) trait Look: Default + Send + 'static {
    /// How often.
    const TICK: Duration;

    /// Looks. Returns whether there was something to see.
    fn look(&mut self) -> bool;
}

/// Looks at what it is given. Its thread begins with the first of that.
#[derive(Debug, Default)]
pub(super) struct Watchdog<L: Look> {
    state: Mutex<State<L>>,
    changed: Condvar,
    has_thread: AtomicBool,
    /// Nobody looks.
    is_asleep: AtomicBool,
}

#[derive(Debug, Default)]
struct State<L> {
    watched: L,
    thread: Option<JoinHandle<()>>,
    is_stopping: bool,
}

impl<L: Look> Watchdog<L> {
    /// Whether somebody looks, or will once there is something to see.
    #[inline]
    pub(super) fn has_thread(&self) -> bool {
        self.has_thread.load(Ordering::Acquire)
    }

    /// Changes what is looked at from now on. Does nothing once it is [stopped](Self::stop). Returns whether it is looked at.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(super) fn attend(self: &Arc<Self>, change: impl FnOnce(&mut L)) -> io::Result<bool> {
        let mut state = lock(&self.state);
        if state.is_stopping {
            return Ok(false);
        }
        change(&mut state.watched);
        if state.thread.is_none() {
            let this = self.clone();
            let run = move || this.run();
            state.thread = Some(thread::spawn(ThreadKind::Worker, ThreadKind::Worker.name(), run)?);
            self.has_thread.store(true, Ordering::Release);
        }
        Ok(true)
    }

    /// The same where nothing comes.
    pub(super) fn forget(&self, change: impl FnOnce(&mut L)) {
        change(&mut lock(&self.state).watched);
    }

    /// There is something to see.
    #[inline]
    pub(super) fn wake(&self) {
        // After that was written, and the other way round in `run`: one of both sees what the other has done.
        if self.is_asleep.load(Ordering::SeqCst) {
            let _state = lock(&self.state);
            self.is_asleep.store(false, Ordering::SeqCst);
            self.changed.notify_one();
        }
    }

    fn run(&self) {
        let mut state = lock(&self.state);
        let mut quiet = 0;
        while !state.is_stopping {
            if quiet < QUIET_TICKS {
                let waited = self.changed.wait_timeout(state, L::TICK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                quiet = if state.watched.look() { 0 } else { quiet.saturating_add(1) };
                continue;
            }
            self.is_asleep.store(true, Ordering::SeqCst);
            if !state.watched.look() {
                while self.is_asleep.load(Ordering::SeqCst) && !state.is_stopping {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
            self.is_asleep.store(false, Ordering::SeqCst);
            quiet = 0;
        }
    }

    /// Ends its thread, and forgets all.
    pub(super) fn stop(&self) {
        let thread = {
            let mut state = lock(&self.state);
            state.is_stopping = true;
            state.watched = L::default();
            state.thread.take()
        };
        self.changed.notify_one();
        if let Some(thread) = thread {
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
