//! Who calls the drivers of a disk.
//!
//! A call is a system call whose length its receiver decides: an eventfd or a socket wakes all who wait for it, one after the
//! other, inside the call, and that can be hundreds of thousands (`fs.epoll.max_user_watches`). So it is looked how long calls
//! take. Once one was slow, a thread of the disk's own makes all calls of its drivers, and nobody else waits for them, until none
//! has been slow for [`SLOW_CALLS_MEMORY`].
//!
//! A call says no more than that something has been published: those that come while one waits to be made are made with it.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::aio::OwnContext;
use super::target::Target;
use crate::limits::bounds::{SLOW_CALL, SLOW_CALLS_MEMORY};
use crate::limits::thread;
use crate::log::{Cause, LogLimit};
use crate::sandbox::ThreadKind;

/// The thread that needs it makes a call; it takes some hundred nanoseconds.
const DIRECT: u8 = 0;
/// The same, but one has just taken long, by the clock: the processor may have been another's meanwhile. The next are looked at
/// more closely.
const SUSPECT: u8 = 1;
/// The disk's own thread makes them.
const APART: u8 = 2;

/// The calls of one disk.
#[derive(Debug)]
pub struct Calls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    disk: String,
    log_limit: Arc<LogLimit>,
    /// What takes as long is slow.
    slow_call: Duration,
    /// How long its thread makes them after the last one that was.
    memory: Duration,
    pace: AtomicU8,
    /// Calls that were slow while others waited for who made them.
    slow: AtomicU64,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Each of them once.
    waiting: VecDeque<Arc<Target>>,
    has_thread: bool,
    /// Nobody calls drivers of the disk any more.
    is_over: bool,
}

impl Calls {
    /// Those of the disk of this name.
    pub fn of(disk: String, log_limit: Arc<LogLimit>) -> Arc<Self> {
        Arc::new(Self::with(disk, log_limit, SLOW_CALL, SLOW_CALLS_MEMORY))
    }

    fn with(disk: String, log_limit: Arc<LogLimit>, slow_call: Duration, memory: Duration) -> Self {
        Self(Arc::new(Inner {
            disk,
            log_limit,
            slow_call,
            memory,
            pace: AtomicU8::new(DIRECT),
            slow: AtomicU64::new(0),
            queue: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// How often somebody else had to wait for a slow one.
    pub fn slow(&self) -> u64 {
        self.0.slow.load(Ordering::Relaxed)
    }

    /// Makes a call, or has it made.
    #[inline]
    pub(super) fn make(&self, target: &Arc<Target>) {
        if self.0.pace.load(Ordering::Relaxed) != DIRECT {
            return self.0.make_with_care(target);
        }
        let start = Instant::now();
        target.wake();
        if start.elapsed() >= self.0.slow_call {
            self.0.pace.store(SUSPECT, Ordering::Relaxed);
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.0.queue().is_over = true;
        self.0.changed.notify_one();
    }
}

impl Inner {
    #[cold]
    #[inline(never)]
    fn make_with_care(self: &Arc<Self>, target: &Arc<Target>) {
        if self.pace.load(Ordering::Relaxed) == APART && self.leave(target) {
            return;
        }
        if !self.is_slow(target) {
            // Not if another one was: its thread is there, or is tried anew.
            let _ = self.pace.compare_exchange(SUSPECT, DIRECT, Ordering::Relaxed, Ordering::Relaxed);
            return;
        }
        self.slow.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.begin()
            && let Some(suppressed) = self.log_limit.admit(Cause::SlowCalls)
        {
            tracing::warn!(disk = self.disk, %error, suppressed, "no thread for slow calls of drivers: others wait for them");
        }
    }

    /// Starts the thread that makes them from now on.
    fn begin(self: &Arc<Self>) -> io::Result<()> {
        let mut queue = self.queue();
        if !queue.has_thread {
            let this = self.clone();
            thread::spawn(ThreadKind::Worker, format!("calls-{}", self.disk), move || this.run())?;
            queue.has_thread = true;
        }
        self.pace.store(APART, Ordering::Relaxed);
        Ok(())
    }

    /// Leaves a call to the thread, if there is one.
    fn leave(&self, target: &Arc<Target>) -> bool {
        let mut queue = self.queue();
        if !queue.has_thread {
            return false;
        }
        if !queue.waiting.iter().any(|other| Arc::ptr_eq(other, target)) {
            queue.waiting.push_back(target.clone());
            drop(queue);
            self.changed.notify_one();
        }
        true
    }

    /// The thread: makes calls until none has been slow for long, or the disk is gone.
    fn run(&self) {
        let _context = OwnContext::on_this_thread();
        if let Some(suppressed) = self.log_limit.admit(Cause::SlowCalls) {
            tracing::warn!(
                disk = self.disk,
                seconds = self.memory.as_secs(),
                suppressed,
                "calls of drivers take long, as very many wait for them: a thread of the disk's own makes them"
            );
        }
        let mut last_slow = Instant::now();
        let mut queue = self.queue();
        loop {
            if let Some(target) = queue.waiting.pop_front() {
                drop(queue);
                if self.is_slow(&target) {
                    last_slow = Instant::now();
                }
                drop(target);
                queue = self.queue();
                continue;
            }
            let left = self.memory.saturating_sub(last_slow.elapsed());
            if queue.is_over || left.is_zero() {
                queue.has_thread = false;
                self.pace.store(DIRECT, Ordering::Relaxed);
                return;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call, and says whether it took this thread's processor for long.
    fn is_slow(&self, target: &Target) -> bool {
        // Not rustix's: it looks for the vDSO, which is not there under Valgrind, and a worker's instructions are counted there.
        let used = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
        let before = used();
        target.wake();
        used().saturating_sub(before) >= self.slow_call
    }
}

impl Default for Calls {
    fn default() -> Self {
        Self::with(String::new(), Arc::default(), SLOW_CALL, SLOW_CALLS_MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn event() -> File {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap().into()
    }

    fn await_call(event: &File) {
        while rustix::io::read(event.as_fd(), &mut [0; 8]).is_err() {
            std::thread::yield_now();
        }
    }

    /// Everything is slow for it.
    #[test]
    fn a_thread_makes_slow_calls_until_none_has_been_slow_for_long() {
        let calls = Calls::with("slow".into(), Arc::default(), Duration::ZERO, Duration::from_millis(20));
        let event = event();
        let target = Arc::new(Target::Event(event.try_clone().unwrap()));
        for made_here in [1, 2] {
            for _ in 0..100 {
                calls.make(&target);
                await_call(&event);
            }
            assert!(calls.slow() >= made_here, "the second is looked at closely");
            while calls.0.pace.load(Ordering::Relaxed) != DIRECT {
                std::thread::yield_now();
            }
        }
        assert!(calls.slow() < 100, "most were made by the thread");
    }

    /// A busy machine is no slow call.
    #[test]
    fn what_takes_long_by_the_clock_alone_stays_where_it_is() {
        let calls = Calls::with("busy".into(), Arc::default(), SLOW_CALL, SLOW_CALLS_MEMORY);
        let target = Arc::new(Target::Event(event()));
        calls.0.pace.store(SUSPECT, Ordering::Relaxed);
        calls.make(&target);
        assert_eq!((calls.0.pace.load(Ordering::Relaxed), calls.slow()), (DIRECT, 0));
    }

    #[test]
    fn its_thread_ends_with_the_disk() {
        let calls = Calls::with("gone".into(), Arc::default(), Duration::ZERO, Duration::MAX);
        let target = Arc::new(Target::Event(event()));
        (0..3).for_each(|_| calls.make(&target));
        let inner = Arc::downgrade(&calls.0);
        drop(calls);
        while inner.strong_count() != 0 {
            std::thread::yield_now();
        }
    }
}
