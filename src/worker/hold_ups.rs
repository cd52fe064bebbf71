//! Disks whose front-ends hold up those who serve them have workers of their own.
//!
//! Some of what a worker does takes as long as a front-end has it take, and nobody can end it: a call wakes all who wait for an
//! eventfd, one after the other, inside the system call, and that can be hundreds of thousands (`fs.epoll.max_user_watches`);
//! who waits for a kick from now on, or not any more, waits for the lock that is held meanwhile; and who touches guest memory
//! waits while the front-end punches holes into it that it has mapped thousands of times. So it is looked how long that takes.
//! A disk for which it is [too much](Level) is served by workers that serve no other, after all others and on any CPU: there it
//! holds up itself alone, until nothing has taken long for [`HOLD_UPS_MEMORY`].
//!
//! Nobody is held up by a disk that has its workers for itself anyway, nor while others use the processor ([`usage`]).

mod level;
mod move_rings;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use level::Level;
use move_rings::MoveRings;

use super::target::Target;
use super::usage;
use crate::limits::bounds::{HOLD_UP, HOLD_UP_SHARE, HOLD_UP_TURNS, HOLD_UPS_MEMORY, LONG_CALL};
use crate::limits::thread;
use crate::log::{Cause, LogLimit};
use crate::sandbox::ThreadKind;

/// Set to 0, nobody looks how long anything takes: whoever traces or debugs a worker makes all of it long.
const SWITCH: &str = "VHOST_USER_PMEM_HOLD_UPS";

/// So long after no worker could be started it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Whether it is looked how long things take.
pub(super) fn is_looked_at() -> bool {
    static IS_LOOKED_AT: LazyLock<bool> =
        LazyLock::new(|| std::env::var_os(SWITCH).is_none_or(|it| it != "0"));
    *IS_LOOKED_AT
}

/// What the front-ends of one disk hold up.
#[derive(Debug)]
pub struct HoldUps(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    disk: String,
    log_limit: Arc<LogLimit>,
    /// A call that takes as long is a long one.
    long_call: Duration,
    /// How long the disk has workers of its own after the last of it.
    memory: Duration,
    /// A call took long by the clock: the processor may have been another's meanwhile. The next are looked at more closely.
    is_suspect: AtomicBool,
    is_apart: AtomicBool,
    /// Workers that serve the disk and others.
    shared: AtomicUsize,
    /// Who makes turns of it wait that is not a front-end.
    excuses: AtomicUsize,
    /// How often others were held up.
    count: Arc<AtomicU64>,
    state: Mutex<State>,
    changed: Condvar,
    move_rings: MoveRings,
}

#[derive(Debug)]
struct State {
    calls: Level,
    turns: Level,
    /// When something took long last.
    last: Instant,
    suspect_until: Instant,
    has_thread: bool,
    /// A ring rests until it is moved.
    has_resting: bool,
    /// A worker could not be started, and another has its rings.
    lacks_worker: bool,
    /// Nobody serves the disk any more.
    is_over: bool,
}

/// What takes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A call, or to begin or end to wait for a kick.
    Call,
    /// A turn of a ring.
    Turn,
}

impl HoldUps {
    /// Those of the disk of this name.
    pub fn of(disk: String, log_limit: Arc<LogLimit>) -> Arc<Self> {
        Arc::new(Self::with(disk, log_limit, LONG_CALL, HOLD_UPS_MEMORY))
    }

    fn with(disk: String, log_limit: Arc<LogLimit>, long_call: Duration, memory: Duration) -> Self {
        let now = Instant::now();
        let state = State {
            calls: Level::new(HOLD_UP, now),
            turns: Level::new(HOLD_UP_TURNS, now),
            last: now,
            suspect_until: now,
            has_thread: false,
            has_resting: false,
            lacks_worker: false,
            is_over: false,
        };
        Self(Arc::new(Inner {
            disk,
            log_limit,
            long_call,
            memory,
            is_suspect: AtomicBool::new(false),
            is_apart: AtomicBool::new(false),
            shared: AtomicUsize::new(0),
            excuses: AtomicUsize::new(0),
            count: Arc::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            move_rings: MoveRings::default(),
        }))
    }

    /// Those of another disk of this name, which are counted with these.
    pub fn of_another(&self) -> Arc<Self> {
        let Inner { disk, log_limit, count, .. } = &*self.0;
        let mut another = Self::with(disk.clone(), log_limit.clone(), LONG_CALL, HOLD_UPS_MEMORY);
        if let Some(inner) = Arc::get_mut(&mut another.0) {
            inner.count = count.clone();
        }
        Arc::new(another)
    }

    /// What takes all rings of the disk back from their workers and [attaches](super::Pool::attach) them anew.
    pub fn move_by(&self, move_rings: impl Fn() + Send + Sync + 'static) {
        // Only the first one counts.
        let _ = self.0.move_rings.0.set(Box::new(move_rings));
    }

    /// Whether the disk's rings are for workers of its own.
    pub(super) fn is_apart(&self) -> bool {
        self.0.is_apart.load(Ordering::Acquire)
    }

    /// Another worker serves the disk and others, until what is returned is dropped.
    pub(super) fn share(&self) -> Counted {
        Counted::new(&self.0, |inner| &inner.shared)
    }

    /// What turns of the disk wait for is no fault of its front-ends, until what is returned is dropped.
    pub fn excuse_waits(&self) -> Counted {
        Counted::new(&self.0, |inner| &inner.excuses)
    }

    /// Whether waits of its turns are a front-end's fault.
    pub(super) fn waits_count(&self) -> bool {
        self.0.waits_count()
    }

    /// Whether it is known how its rings can be moved.
    pub(super) fn can_leave(&self) -> bool {
        self.0.move_rings.0.get().is_some()
    }

    /// A turn of a ring had to be ended: the ring rests until it is moved. Returns whether it will be.
    #[cold]
    pub(super) fn leave(&self) -> bool {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        let mut state = self.0.state();
        state.last = Instant::now();
        state.has_resting = true;
        // A thread that is there looks for it again before it ends.
        self.0.changed.notify_one();
        state.has_thread || self.begin(&mut state)
    }

    /// No worker can be started for a ring of it, and another takes the ring: it is tried [again](RETRY_AFTER).
    #[cold]
    pub(super) fn lacks_worker(&self, error: &io::Error) {
        self.0.state().lacks_worker = true;
        if let Some(suppressed) = self.0.log_limit.admit(Cause::HoldUps) {
            let disk = &self.0.disk;
            tracing::warn!(
                disk,
                %error,
                suppressed,
                "cannot start a worker: another one serves a ring that was for it; check the limits (ulimit -n, -u, -v)"
            );
        }
    }

    /// How often others were held up.
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Makes a call.
    #[inline]
    pub(super) fn call(&self, target: &Target) {
        if self.0.is_suspect.load(Ordering::Relaxed) {
            return self.call_suspect(target);
        }
        let start = Instant::now();
        target.wake();
        let took = start.elapsed();
        if took >= self.0.long_call {
            self.suspect(took);
        }
    }

    /// Has calls looked at more closely for so long that what took so long is no more than the share that may be held up.
    #[cold]
    #[inline(never)]
    fn suspect(&self, took: Duration) {
        if !is_looked_at() {
            return;
        }
        let until = Instant::now() + took.saturating_mul(HOLD_UP_SHARE).min(self.0.memory);
        let mut state = self.0.state();
        state.suspect_until = state.suspect_until.max(until);
        self.0.is_suspect.store(true, Ordering::Relaxed);
    }

    #[cold]
    #[inline(never)]
    fn call_suspect(&self, target: &Target) {
        self.watch(|| target.wake());
        let state = self.0.state();
        if Instant::now() >= state.suspect_until {
            self.0.is_suspect.store(false, Ordering::Relaxed);
        }
    }

    /// Does what a front-end may make long, and looks how long it takes this thread's processor.
    pub(super) fn watch<R>(&self, work: impl FnOnce() -> R) -> R {
        let before = usage::cpu_time();
        let result = work();
        let took = usage::cpu_time().saturating_sub(before);
        if took >= self.0.long_call {
            self.add(What::Call, took);
        }
        result
    }

    /// Something took long.
    #[cold]
    pub(super) fn add(&self, what: What, took: Duration) {
        if !is_looked_at() {
            return;
        }
        let (mut state, now) = (self.0.state(), Instant::now());
        state.last = now;
        if self.is_apart() || self.0.shared.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.0.count.fetch_add(1, Ordering::Relaxed);
        let level = match what {
            What::Call => &mut state.calls,
            What::Turn => &mut state.turns,
        };
        if level.add(now, took) && !state.has_thread {
            self.begin(&mut state);
        }
    }

    /// Has its rings moved. Returns whether they will be.
    fn begin(&self, state: &mut State) -> bool {
        match self.0.begin() {
            Ok(()) => state.has_thread = true,
            Err(error) => {
                if let Some(suppressed) = self.0.log_limit.admit(Cause::HoldUps) {
                    let disk = &self.0.disk;
                    tracing::warn!(disk, %error, suppressed, "no thread for a disk that holds up its worker: others wait for it");
                }
            }
        }
        state.has_thread
    }
}

/// Is one of a number of its disk's, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Counted {
    disk: Arc<Inner>,
    number: fn(&Inner) -> &AtomicUsize,
}

impl Counted {
    fn new(disk: &Arc<Inner>, number: fn(&Inner) -> &AtomicUsize) -> Self {
        number(disk).fetch_add(1, Ordering::Relaxed);
        Self { disk: disk.clone(), number }
    }

    /// As [`HoldUps::waits_count`], of its disk.
    pub(super) fn waits_count(&self) -> bool {
        self.disk.waits_count()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.number)(&self.disk).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for HoldUps {
    fn drop(&mut self) {
        self.0.state().is_over = true;
        self.0.changed.notify_one();
    }
}

impl Inner {
    /// Starts the thread that moves the disk's rings, and moves them back in the end.
    fn begin(self: &Arc<Self>) -> io::Result<()> {
        let this = self.clone();
        // Before the thread moves any.
        self.is_apart.store(true, Ordering::Release);
        let thread = thread::spawn(ThreadKind::Worker, format!("apart-{}", self.disk), move || this.run());
        self.is_apart.store(thread.is_ok(), Ordering::Release);
        thread?;
        if let Some(suppressed) = self.log_limit.admit(Cause::HoldUps) {
            tracing::warn!(
                disk = self.disk,
                seconds = self.memory.as_secs(),
                suppressed,
                "a front-end holds up its worker: calls, kicks or guest memory of it take long; the disk has workers of its own now"
            );
        }
        Ok(())
    }

    fn waits_count(&self) -> bool {
        self.excuses.load(Ordering::Relaxed) == 0
    }

    /// The thread: nothing of the disk has taken long for a while when it ends, or the disk is gone.
    fn run(&self) {
        loop {
            {
                let mut state = self.state();
                (state.has_resting, state.lacks_worker) = (false, false);
            }
            if let Some(move_rings) = self.move_rings.0.get() {
                move_rings();
            }
            let mut state = self.state();
            let left = |state: &State| self.memory.saturating_sub(state.last.elapsed());
            let waits = |state: &State| !state.is_over && !state.has_resting && !left(state).is_zero();
            let mut moves_again = false;
            while self.is_apart.load(Ordering::Relaxed) && waits(&state) && !moves_again {
                moves_again = state.lacks_worker;
                let left = if moves_again { left(&state).min(RETRY_AFTER) } else { left(&state) };
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            if (state.has_resting || moves_again) && !state.is_over {
                // Those that were moved back meanwhile have to leave again.
                self.is_apart.store(true, Ordering::Release);
            } else if !self.is_apart.swap(false, Ordering::AcqRel) || state.is_over {
                let now = Instant::now();
                (state.calls, state.turns) = (Level::new(HOLD_UP, now), Level::new(HOLD_UP_TURNS, now));
                state.has_thread = false;
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for HoldUps {
    fn default() -> Self {
        Self::with(String::new(), Arc::default(), LONG_CALL, HOLD_UPS_MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    const TOOK: Duration = Duration::from_millis(100);

    fn target() -> Target {
        Target::Event(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(File::from).unwrap())
    }

    fn wait_until(condition: impl Fn() -> bool) {
        while !condition() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn calls_and_turns_are_not_added_up() {
        let hold_ups = HoldUps::with("mixed".into(), Arc::default(), LONG_CALL, Duration::from_secs(3600));
        let _shared = hold_ups.share();
        for _ in 0..2 {
            hold_ups.add(What::Call, TOOK);
            hold_ups.add(What::Turn, TOOK);
        }
        assert!(!hold_ups.is_apart() && hold_ups.count() == 4);
        hold_ups.add(What::Turn, TOOK);
        wait_until(|| hold_ups.is_apart());
    }

    #[test]
    fn a_disk_that_is_alone_on_its_workers_holds_up_nobody() {
        let hold_ups = HoldUps::with("alone".into(), Arc::default(), LONG_CALL, Duration::from_secs(3600));
        (0..9).for_each(|_| hold_ups.add(What::Call, TOOK));
        let (shared, other) = (hold_ups.share(), hold_ups.share());
        drop(shared);
        (0..2).for_each(|_| hold_ups.add(What::Call, TOOK));
        drop(other);
        (0..9).for_each(|_| hold_ups.add(What::Call, TOOK));
        assert!(!hold_ups.is_apart() && hold_ups.count() == 2);
    }

    #[test]
    fn waits_are_excused_while_somebody_says_so() {
        let hold_ups = HoldUps::default();
        assert!(hold_ups.waits_count());
        let excused = [hold_ups.excuse_waits(), hold_ups.excuse_waits()];
        for excuse in excused {
            assert!(!hold_ups.waits_count());
            drop(excuse);
        }
        assert!(hold_ups.waits_count());
    }

    #[test]
    fn a_disk_is_apart_until_nothing_has_taken_long_for_a_while() {
        let hold_ups = HoldUps::with("slow".into(), Arc::default(), LONG_CALL, Duration::from_millis(20));
        let _shared = hold_ups.share();
        let moves = Arc::new(AtomicU64::new(0));
        let moved = moves.clone();
        hold_ups.move_by(move || _ = moved.fetch_add(1, Ordering::SeqCst));
        for round in 1..=2 {
            (0..2).for_each(|_| hold_ups.add(What::Call, TOOK));
            assert!(!hold_ups.is_apart(), "one look more may show that it was the machine");
            hold_ups.add(What::Call, TOOK);
            wait_until(|| moves.load(Ordering::SeqCst) == 2 * round && !hold_ups.0.state().has_thread);
            assert_eq!((hold_ups.is_apart(), hold_ups.count()), (false, 3 * round));
        }
    }

    /// A busy machine is no slow call.
    #[test]
    fn what_takes_long_by_the_clock_alone_is_looked_at_and_nothing_else() {
        let hold_ups = HoldUps::default();
        hold_ups.suspect(Duration::from_nanos(1));
        hold_ups.call(&target());
        assert!(!hold_ups.0.is_suspect.load(Ordering::Relaxed));
        hold_ups.suspect(TOOK);
        (0..2).for_each(|_| hold_ups.call(&target()));
        assert!(hold_ups.0.is_suspect.load(Ordering::Relaxed), "as long as it may hold up others");
    }

    #[test]
    fn a_ring_that_rests_is_moved_also_if_that_is_while_others_are_moved_back() {
        let hold_ups =
            Arc::new(HoldUps::with("rests".into(), Arc::default(), LONG_CALL, Duration::from_millis(20)));
        assert!(!hold_ups.can_leave());
        let (moves, rests) = (Arc::new(AtomicU64::new(0)), Arc::downgrade(&hold_ups));
        let moved = moves.clone();
        hold_ups.move_by(move || {
            // The second time they are moved back.
            if moved.fetch_add(1, Ordering::SeqCst) == 1 {
                let hold_ups = rests.upgrade().unwrap();
                assert!(!hold_ups.is_apart() && hold_ups.leave());
            }
        });
        assert!(hold_ups.can_leave() && hold_ups.leave());
        wait_until(|| !hold_ups.0.state().has_thread);
        assert_eq!((moves.load(Ordering::SeqCst), hold_ups.count(), hold_ups.is_apart()), (4, 2, false));
    }

    #[test]
    fn its_thread_ends_with_the_disk() {
        let hold_ups =
            HoldUps::with("gone".into(), Arc::default(), Duration::ZERO, Duration::from_secs(3600));
        let shared = hold_ups.share();
        (0..3).for_each(|_| hold_ups.add(What::Call, TOOK));
        drop(shared);
        wait_until(|| hold_ups.is_apart());
        let inner = Arc::downgrade(&hold_ups.0);
        drop(hold_ups);
        wait_until(|| inner.strong_count() == 0);
    }
}
