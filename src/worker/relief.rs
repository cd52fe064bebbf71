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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use super::aio::OwnContext;
use super::cpus::{Cpus, give_way};
use super::watch::Watch;
use super::watchdog::{Look, Watchdog, lock};
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// How often it is looked whether a thread is back: it is relieved after one to two of these.
const TICK: Duration = Duration::from_millis(2);

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
        self.relief.wake();
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
pub(super) type Relief<R> = Watchdog<Posts<R>>;

/// They have the workers' rings, which have them, until it is stopped.
#[derive(Debug)]
pub(super) struct Posts<R: Runs>(Vec<Looked<R>>);

/// One of them.
#[derive(Debug)]
struct Looked<R: Runs> {
    post: Arc<Post<R>>,
    /// The time that was seen last.
    seen: u64,
    /// The last time for which a thread was started.
    relieved: u64,
}

impl<R: Runs> Default for Posts<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<R: Runs> Relief<R> {
    /// Whether a thread that leaves its rings at this post is relieved.
    pub(super) fn is_there(post: &Arc<Post<R>>) -> bool {
        // A post that nobody looks at has not been left yet.
        post.relief.has_thread() && post.times.load(Ordering::Relaxed) != 0 || Self::begin(post)
    }

    /// Has this post looked at from now on.
    #[cold]
    #[inline(never)]
    fn begin(post: &Arc<Post<R>>) -> bool {
        let add = |Posts(posts): &mut Posts<R>| {
            if !posts.iter().any(|known| Arc::ptr_eq(&known.post, post)) {
                posts.push(Looked { post: post.clone(), seen: 0, relieved: 0 });
            }
        };
        // Ignored: threads of the disk's do what it would have allowed.
        post.relief.attend(add).unwrap_or(false)
    }
}

impl<R: Runs> Look for Posts<R> {
    const TICK: Duration = TICK;

    /// Relieves who has not come back since the last look. Returns whether anybody has left anything since.
    fn look(&mut self) -> bool {
        let mut has_any_left = false;
        for Looked { post, seen, relieved } in &mut self.0 {
            let time = post.times.load(Ordering::SeqCst);
            let is_left = time % 2 == 1;
            // If none can be started it is tried again with the next look; one that was may not have begun yet.
            if is_left
                && time == *seen
                && time != *relieved
                && post.start(move |post| post.take(time)).is_ok()
            {
                *relieved = time;
            }
            has_any_left |= is_left || time != *seen;
            *seen = time;
        }
        has_any_left
    }
}
