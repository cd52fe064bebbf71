//! A thread that media holds up is relieved: another one goes on with its rings.
//!
//! A write of a file goes into the page cache, which takes a microsecond: to hand it to another thread and back would take
//! many. But it may wait for media all the same: for the journal, or while too much is dirty. So a worker's thread leaves its
//! rings at its [`Post`] while it does such writes. If it is not back in a moment, another thread takes the rings from there
//! and is that worker from then on; the one before ends when its write is done.
//!
//! So media that hangs costs the worker's other rings [a moment](TICK), once: the disk's own threads do its writes then,
//! until it has been quick for a while (`Claim`).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use super::aio::OwnContext;
use super::cpus::{Cpus, give_way};
use super::watch::Watch;
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// How often it is looked whether a thread is back: it is relieved after one to two of these.
const TICK: Duration = Duration::from_millis(2);

/// After so many ticks in which nobody has left anything, nobody looks before somebody does.
const QUIET_TICKS: u32 = 4;

/// A worker, which threads may go on with one after the other.
pub(super) trait Runs: Send + 'static {
    /// Runs it on this thread from now on.
    fn go_on(self: Box<Self>);
}

/// Where a worker's thread leaves its rings.
#[derive(Debug)]
pub(super) struct Post<R: Runs> {
    left: Mutex<Option<Box<R>>>,
    /// How often they were left, and taken: odd while they are here. It changes under the lock.
    times: AtomicU64,
    /// The worker's threads: the one that it has, and those that were relieved.
    threads: Mutex<Vec<JoinHandle<()>>>,
    relief: Arc<Relief<R>>,
    watch: Arc<Watch>,
    name: String,
    place: Place,
}

/// Where a worker's threads run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Wherever who starts them does.
    Anywhere,
    /// On these CPUs.
    On(Arc<Cpus>),
    /// Behind others: it serves a disk that holds up its worker.
    Behind,
}

impl<R: Runs> Post<R> {
    /// That of a worker of this name.
    pub(super) fn new(relief: &Arc<Relief<R>>, watch: &Arc<Watch>, name: String, place: Place) -> Arc<Self> {
        Arc::new(Self {
            left: Mutex::new(None),
            times: AtomicU64::new(0),
            threads: Mutex::default(),
            relief: relief.clone(),
            watch: watch.clone(),
            name,
            place,
        })
    }

    /// What looks whether the worker gets on.
    pub(super) const fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Where the worker's threads run.
    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    /// Whether it serves a disk that holds up its worker.
    pub(super) fn is_behind(&self) -> bool {
        self.place == Place::Behind
    }

    /// Starts a thread of the worker's, which goes on with what `runner` gives it.
    pub(super) fn start(
        self: &Arc<Self>,
        runner: impl FnOnce(&Self) -> Option<Box<R>> + Send + 'static,
    ) -> io::Result<()> {
        // Held until the thread is listed: who waits for it then finds it.
        let mut threads = lock(&self.threads);
        let post = self.clone();
        let thread = thread::spawn(ThreadKind::Worker, self.name.clone(), move || {
            let Some(runner) = runner(&post) else { return };
            let _context = OwnContext::on_this_thread();
            match &post.place {
                Place::Anywhere => {}
                Place::Behind => give_way(),
                Place::On(cpus) => {
                    if let Err(error) = cpus.pin_this_thread()
                        // The worker's first thread has said so.
                        && post.times.load(Ordering::Relaxed) == 0
                    {
                        tracing::warn!(%cpus, %error, "a worker cannot be pinned to its CPUs; it runs on any");
                    }
                }
            }
            drop(post);
            runner.go_on();
        })?;
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Waits until the worker's last thread has ended, which it has said it would. One that was relieved is not waited for.
    pub(super) fn join(&self, last: Option<ThreadId>) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            if last == Some(thread.thread().id()) || thread.is_finished() {
                // One that panicked has said so already.
                let _ = thread.join();
            }
        }
    }

    /// Leaves the rings. Returns which time this is.
    pub(super) fn leave(&self, runner: Box<R>) -> u64 {
        let time = {
            let mut left = lock(&self.left);
            *left = Some(runner);
            self.times.fetch_add(1, Ordering::SeqCst).wrapping_add(1)
        };
        self.relief.watch();
        time
    }

    /// Takes the rings that were left this time, unless another thread has.
    pub(super) fn take(&self, time: u64) -> Option<Box<R>> {
        let mut left = lock(&self.left);
        if self.times.load(Ordering::SeqCst) != time {
            return None;
        }
        self.times.fetch_add(1, Ordering::SeqCst);
        left.take()
    }
}

/// Relieves the threads of a pool's workers. Its own thread begins with the first that leaves its rings.
#[derive(Debug)]
pub(super) struct Relief<R: Runs> {
    state: Mutex<State<R>>,
    changed: Condvar,
    has_thread: AtomicBool,
    /// Nobody looks whether threads are back.
    is_asleep: AtomicBool,
}

#[derive(Debug)]
struct State<R: Runs> {
    /// Each with the time that was seen last.
    posts: Vec<(Arc<Post<R>>, u64)>,
    thread: Option<JoinHandle<()>>,
    is_stopping: bool,
}

impl<R: Runs> Default for Relief<R> {
    fn default() -> Self {
        let state = State { posts: Vec::new(), thread: None, is_stopping: false };
        let (has_thread, is_asleep) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { state: Mutex::new(state), changed: Condvar::new(), has_thread, is_asleep }
    }
}

impl<R: Runs> Relief<R> {
    /// Whether a thread that leaves its rings at this post is relieved.
    pub(super) fn is_there(post: &Arc<Post<R>>) -> bool {
        // A post that nobody looks at has not been left yet.
        post.relief.has_thread.load(Ordering::Acquire) && post.times.load(Ordering::Relaxed) != 0
            || Self::begin(post)
    }

    /// Has this post looked at from now on.
    #[cold]
    #[inline(never)]
    fn begin(post: &Arc<Post<R>>) -> bool {
        let relief = &post.relief;
        let mut state = lock(&relief.state);
        if state.is_stopping {
            return false;
        }
        if !state.posts.iter().any(|(known, _)| Arc::ptr_eq(known, post)) {
            state.posts.push((post.clone(), 0));
        }
        if state.thread.is_none() {
            let this = relief.clone();
            // Ignored: threads of the disk's do what it would have allowed.
            let thread = thread::spawn(ThreadKind::Worker, ThreadKind::Worker.name(), move || this.run());
            state.thread = thread.ok();
        }
        relief.has_thread.store(state.thread.is_some(), Ordering::Release);
        state.thread.is_some()
    }

    /// Somebody has left his rings.
    #[inline]
    fn watch(&self) {
        // After the time was written, and the other way round in `run`: one of both sees what the other has done.
        if self.is_asleep.load(Ordering::SeqCst) {
            let _state = lock(&self.state);
            self.is_asleep.store(false, Ordering::SeqCst);
            self.changed.notify_one();
        }
    }

    /// Its thread: looks at the posts, each tick, and sleeps while nobody leaves anything.
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
            // They have the workers' rings, which have them.
            state.posts.clear();
            state.thread.take()
        };
        self.changed.notify_one();
        if let Some(thread) = thread {
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl<R: Runs> State<R> {
    /// Relieves who has not come back since the last look. Returns whether anybody has left anything since.
    fn look(&mut self) -> bool {
        let mut has_any_left = false;
        for (post, seen) in &mut self.posts {
            let time = post.times.load(Ordering::SeqCst);
            let is_left = time % 2 == 1;
            if is_left && time == *seen {
                // Ignored: with the next look it is tried again.
                let _ = post.start(move |post| post.take(time));
            }
            has_any_left |= is_left || time != *seen;
            *seen = time;
        }
        has_any_left
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
