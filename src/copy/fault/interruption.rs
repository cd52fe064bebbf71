//! Copies that are ended because they hold up what their thread has to do besides.
//!
//! Whoever shares memory with this process can take pages of it away as fast as they are touched (`fallocate` with
//! `FALLOC_FL_PUNCH_HOLE`): then a copy of a few pages takes as long as he goes on. So a thread says which [round](Interruptible::begin)
//! of its work it is in, and another one, which sees the same round for too long, has it [ended](Interruptible::end): by a signal,
//! whose handler lets a copy from or to guest memory go on at its end, as after a fault. The copy then seems to have met memory that
//! is lost; [`is_interrupted`] says that it has not. What is done of the round is to be thrown away, and to be done again elsewhere.
//!
//! On a machine that is busy a round may be long because others are run. So the first signal looks how often the thread has waited
//! and pages were brought to it so far, and only the next one, which finds that pages are the reason, ends the copy. Both have to
//! find it in the turn of the same disk ([`turn_of`](Interruptible::turn_of)): whose is next has not made the round long.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::null;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vmm_sys_util::signal::unblock_signal;

use super::{ranges, signal_chaining};

/// Nobody who does not handle it notices this signal.
const SIGNAL: c_int = libc::SIGURG;

/// So many pages were brought to a thread in one round: many times what is touched in the turns of dozens of rings.
const MANY_PAGES: i64 = 4096;

/// What was there before our handler.
static FORMER: OnceLock<libc::sigaction> = OnceLock::new();

thread_local! {
    /// That of this thread.
    static CURRENT: Cell<*const Interruptible> = const { Cell::new(null()) };
}

/// Has copies ended by those who ask for it from now on.
///
/// # Errors
/// The error of `sigaction`, which has no reason to fail.
pub fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut is_installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*is_installed {
        let former = signal_chaining::change(SIGNAL, None)?;
        FORMER.get_or_init(|| former);
        signal_chaining::change(SIGNAL, Some(&signal_chaining::action_of(on_signal)))?;
        *is_installed = true;
    }
    Ok(())
}

/// Whether a copy of this thread was ended since that was last [taken](take) note of.
pub fn is_interrupted() -> bool {
    current().is_some_and(|current| current.is_interrupted.load(Ordering::Relaxed))
}

/// The same; none was since, from then on. Until then whoever is about to publish is told so, again and again.
pub fn take() -> bool {
    current().is_some_and(|current| current.is_interrupted.swap(false, Ordering::Relaxed))
}

/// As if a copy of this thread had been ended.
#[cfg(test)]
pub(crate) fn pretend() {
    if let Some(current) = current() {
        current.is_interrupted.store(true, Ordering::Relaxed);
        ranges::count_loss();
    }
}

/// What a thread works on, in rounds that another one may end.
#[derive(Debug, Default)]
pub struct Interruptible {
    /// The number that the kernel has for the thread; 0 for none.
    thread: AtomicI32,
    /// The round that it is in; 0 for none.
    round: AtomicU64,
    /// For whom it works.
    turn: AtomicUsize,
    /// The round that is to end.
    unwanted: AtomicU64,
    /// Whether its waits are a reason to.
    waits_count: AtomicBool,
    /// The round and turn in which the handler has looked first, and what the thread had used by then. These are the thread's own.
    looked_in: AtomicU64,
    looked_at: AtomicUsize,
    waits: AtomicI64,
    pages: AtomicI64,
    is_interrupted: AtomicBool,
}

impl Interruptible {
    /// It is what this thread works on, until what is returned is dropped.
    pub fn on_this_thread(self: &Arc<Self>) -> OnThisThread {
        // A mask is inherited through exec. Ignored: then nothing is ended.
        let _ = unblock_signal(SIGNAL);
        // SAFETY: F4: no memory is involved.
        let thread = unsafe { libc::gettid() };
        self.thread.store(thread, Ordering::Relaxed);
        CURRENT.set(Arc::as_ptr(self));
        OnThisThread { of: self.clone(), thread, not_send: PhantomData }
    }

    /// Another round begins, with a number that none before it had.
    #[inline]
    pub fn begin(&self, round: u64) {
        self.round.store(round, Ordering::Relaxed);
    }

    /// As [`begin`](Self::begin), where there was none, and ordered before whatever comes.
    pub fn begin_anew(&self, round: u64) {
        self.round.store(round, Ordering::SeqCst);
    }

    /// It works for this one from now on: no other is blamed for how long that takes. A number that each has for itself.
    #[inline]
    pub fn turn_of(&self, whom: usize) {
        self.turn.store(whom, Ordering::Relaxed);
    }

    /// There is no round that may be ended.
    pub fn pause(&self) {
        self.round.store(0, Ordering::Relaxed);
    }

    /// The round that it is in; 0 for none.
    pub fn round(&self) -> u64 {
        self.round.load(Ordering::SeqCst)
    }

    /// Has a copy of this round ended if pages are the reason for how long it takes: by the first call it is begun to look whether
    /// they are. `waits_count`: nobody else makes the thread wait for pages.
    pub fn end(&self, round: u64, waits_count: bool) {
        self.waits_count.store(waits_count, Ordering::Relaxed);
        self.unwanted.store(round, Ordering::Release);
        let thread = self.thread.load(Ordering::Relaxed);
        if thread != 0 {
            // Ignored: a thread that is gone does nothing that could be ended.
            // SAFETY: F4: no memory is involved. Any other thread that gets the signal finds that it is not meant.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, SIGNAL) };
        }
    }

    /// In the handler, on its thread: whether what it does is to end.
    fn is_to_end(&self) -> bool {
        let round = self.round.load(Ordering::Relaxed);
        if round == 0 || self.unwanted.load(Ordering::Acquire) != round {
            return false;
        }
        let Some((waits, pages)) = used() else { return false };
        let turn = self.turn.load(Ordering::Relaxed);
        let is_first = self.looked_in.swap(round, Ordering::Relaxed) != round;
        if self.looked_at.swap(turn, Ordering::Relaxed) != turn || is_first {
            self.waits.store(waits, Ordering::Relaxed);
            self.pages.store(pages, Ordering::Relaxed);
            return false;
        }
        are_reason(
            pages.wrapping_sub(self.pages.load(Ordering::Relaxed)),
            waits.wrapping_sub(self.waits.load(Ordering::Relaxed)),
            self.waits_count.load(Ordering::Relaxed),
        )
    }
}

/// How often this thread has waited, and a page was brought to it, so far.
fn used() -> Option<(i64, i64)> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: F4: there is room for what the kernel says.
    if unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: F4: all zeroes was a rusage already, and the call has filled it.
    let usage = unsafe { usage.assume_init() };
    Some((usage.ru_nvcsw, usage.ru_minflt.wrapping_add(usage.ru_majflt)))
}

/// Whether so many pages, for which a thread has probably waited so often, are the reason why a round is long.
const fn are_reason(pages: i64, waits: i64, waits_count: bool) -> bool {
    pages >= MANY_PAGES || pages > 0 && waits > 0 && waits_count
}

/// What a thread works on is known to the handler, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct OnThisThread {
    of: Arc<Interruptible>,
    thread: libc::pid_t,
    not_send: PhantomData<*mut ()>,
}

impl Drop for OnThisThread {
    fn drop(&mut self) {
        CURRENT.set(null());
        // Another thread may go on with it by now.
        let _ = self.of.thread.compare_exchange(self.thread, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn current<'a>() -> Option<&'a Interruptible> {
    let current = CURRENT.try_with(Cell::get).unwrap_or(null());
    // SAFETY: F7: null, or kept by the guard that this thread has not dropped.
    unsafe { current.as_ref() }
}

/// The handler.
extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: F2: the place of this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: F2: read, to be put back.
    let before = unsafe { *errno };
    // SAFETY: F1: what the kernel says of the signal.
    let code = unsafe { &*info }.si_code;
    if code != libc::SI_TKILL {
        if let Some(former) = FORMER.get() {
            // SAFETY: F1: all three are passed on.
            unsafe { signal_chaining::call(former, signal, info, context) };
        }
    } else if let Some(current) = current()
        && current.is_to_end()
        // SAFETY: F1: the context is passed on.
        && unsafe { end_copy(context) }
    {
        current.is_interrupted.store(true, Ordering::Relaxed);
        // Whoever is about to publish asks what is lost then.
        ranges::count_loss();
    }
    // SAFETY: F2: put back.
    unsafe { *errno = before };
}

/// Ends the copy that the thread is in. Returns whether it is in one.
///
/// # Safety
/// `context` is what the kernel handed to the handler.
#[cfg(target_arch = "x86_64")]
unsafe fn end_copy(context: *mut c_void) -> bool {
    // SAFETY: F1: the context is passed on.
    unsafe { super::go_on(context, crate::copy::x86_64::kernels::end_of) }
}

/// There are no routines that could be ended.
#[cfg(not(target_arch = "x86_64"))]
const unsafe fn end_copy(_context: *mut c_void) -> bool {
    false
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests;
