//! One writer at a time: no two guests write to one disk.
//!
//! Any number of front-ends may connect to a read-write disk and negotiate, but the rings of only one run.
//! The others wait until its last ring has stopped, which is how a live migration hands the disk over.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::disk::{FileLock, LockError, LockMode};
use crate::log::{Cause, LogLimit};

/// A front-end's session: unique in the process, however many come. 32 bits would not do: at 24,500 sessions a second, as
/// measured, they wrap after two days, and a message of one session could take the ring of another.
pub type SessionId = u64;

/// How often the lock of another process is tried: the kernel does not tell when it is free.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Who may run rings on a disk.
pub struct WriterLock {
    /// Read-only disks serve any number at once.
    is_exclusive: bool,
    lock: FileLock,
    /// Called when the lock is taken and others may have written before.
    forget_cached: Box<dyn Fn() + Send + Sync>,
    holder: Mutex<Holder>,
    released: Condvar,
    log_limit: LogLimit,
}

/// The session that holds the lock, and how many of its rings run.
#[derive(Debug, Default)]
struct Holder {
    session: Option<SessionId>,
    /// Rings that workers drive, all of them the holder's.
    rings: u32,
}

impl fmt::Debug for WriterLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriterLock")
            .field("lock", &self.lock)
            .field("holder", &self.holder)
            .finish_non_exhaustive()
    }
}

impl WriterLock {
    /// The writer lock of a disk whose file is protected by `lock`. `forget_cached` is
    /// [`Disk::forget_cached`](crate::disk::Disk::forget_cached).
    pub fn new(is_exclusive: bool, lock: FileLock, forget_cached: impl Fn() + Send + Sync + 'static) -> Self {
        let (holder, released, log_limit) = (Mutex::default(), Condvar::new(), LogLimit::default());
        Self { is_exclusive, lock, forget_cached: Box::new(forget_cached), holder, released, log_limit }
    }

    /// Takes the writer lock if it is free, or held by this session already.
    pub fn try_take(&self, session: SessionId) -> bool {
        !self.is_exclusive || self.try_take_locked(&mut self.lock_holder(), session)
    }

    /// Waits for the writer lock. Returns false when `cancelled` was set meanwhile (and [`wake`](Self::wake) called).
    pub fn wait(&self, session: SessionId, cancelled: &AtomicBool) -> bool {
        let mut holder = self.lock_holder();
        loop {
            if cancelled.load(Ordering::Acquire) {
                return false;
            }
            if self.try_take_locked(&mut holder, session) {
                return true;
            }
            holder = match holder.session {
                Some(_) => self.released.wait(holder).unwrap_or_else(PoisonError::into_inner),
                // Another process has the file.
                None => {
                    self.released.wait_timeout(holder, LOCK_POLL).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Releases the writer lock, if this session holds it: its last ring has stopped.
    pub fn release(&self, session: SessionId) {
        let mut holder = self.lock_holder();
        if holder.session == Some(session) {
            if holder.rings > 0 {
                return never("the writer lock is to be released while rings run");
            }
            holder.session = None;
            if let Err(error) = self.lock.release() {
                self.complain(&error);
            }
            self.released.notify_all();
        }
    }

    /// Gives the file up for other processes, whatever the lock's mode: no ring runs any more, and none will.
    pub fn end(&self) {
        let holder = self.lock_holder();
        if holder.session.is_some() || holder.rings > 0 {
            return never("the file is to be given up while rings may run");
        }
        if let Err(error) = self.lock.end() {
            self.complain(&error);
        }
    }

    /// A ring of this session is about to be driven. False, and it must not be, without the writer lock.
    pub fn ring_starts(&self, session: SessionId) -> bool {
        let mut holder = self.lock_holder();
        if self.is_exclusive && holder.session != Some(session) {
            never("a ring is to start without the writer lock");
            return false;
        }
        holder.rings = holder.rings.saturating_add(1);
        true
    }

    /// Nobody drives it any more.
    pub fn ring_stopped(&self) {
        let mut holder = self.lock_holder();
        holder.rings = holder.rings.saturating_sub(1);
    }

    /// Wakes everyone who waits: each checks whether its wait is cancelled.
    pub fn wake(&self) {
        let _holder = self.lock_holder();
        self.released.notify_all();
    }

    fn try_take_locked(&self, holder: &mut Holder, session: SessionId) -> bool {
        match holder.session {
            Some(other) => other == session,
            None => {
                let is_ours = self.lock.try_acquire().unwrap_or_else(|error| {
                    self.complain(&error);
                    false
                });
                if is_ours {
                    holder.session = Some(session);
                    // A lock that is on has kept all others out since the start.
                    if self.lock.mode() != LockMode::On {
                        (self.forget_cached)();
                    }
                }
                is_ours
            }
        }
    }

    fn complain(&self, error: &LockError) {
        if let Some(suppressed) = self.log_limit.admit(Cause::Lock) {
            tracing::warn!(%error, suppressed, "the disk's file lock");
        }
    }

    fn lock_holder(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What only a mistake of ours can bring about: a test fails with it, a daemon goes on with one writer.
#[cold]
fn never(what: &str) {
    tracing::error!(
        "{what}: refused, because two guests would write to one disk; this is a bug in the daemon"
    );
    debug_assert!(false, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer_lock(is_exclusive: bool) -> WriterLock {
        WriterLock::new(is_exclusive, FileLock::none(), || ())
    }

    #[test]
    fn it_goes_from_one_to_the_next_when_all_rings_have_stopped() {
        let lock = writer_lock(true);
        assert!(lock.try_take(1) && !lock.try_take(2) && lock.try_take(1));
        assert!(lock.ring_starts(1) && lock.ring_starts(1));
        lock.ring_stopped();
        lock.ring_stopped();
        lock.release(2);
        assert!(!lock.try_take(2), "only its holder gives it back");
        lock.release(1);
        assert!(lock.try_take(2) && lock.ring_starts(2));
    }

    /// 2³² connections come in two days of a front-end that does nothing else.
    #[test]
    fn a_number_does_not_come_again() {
        let lock = writer_lock(true);
        assert!(lock.try_take(0) && !lock.try_take(1 << 32));
        lock.release(1 << 32);
        assert!(!lock.try_take(1));
    }

    #[test]
    fn rings_of_many_run_where_nobody_writes() {
        let lock = writer_lock(false);
        assert!(lock.try_take(1) && lock.try_take(2));
        assert!(lock.ring_starts(1) && lock.ring_starts(2));
        lock.release(1);
    }

    #[test]
    #[should_panic(expected = "a ring is to start without the writer lock")]
    fn no_ring_starts_without_it() {
        let lock = writer_lock(true);
        assert!(lock.try_take(1));
        lock.ring_starts(2);
    }

    #[test]
    #[should_panic(expected = "released while rings run")]
    fn it_is_not_released_while_rings_run() {
        let lock = writer_lock(true);
        assert!(lock.try_take(1) && lock.ring_starts(1));
        lock.release(1);
    }
}
