//! One writer at a time (`architecture.md`, D4).
//!
//! Any number of front-ends may connect to a read-write disk and negotiate, but the rings of only one run.
//! The others wait until its last ring has stopped, which is how a live migration hands the disk over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::disk::FileLock;

/// A front-end's session: unique in the process.
pub type SessionId = u32;

/// How often the lock of another process is tried: the kernel does not tell when it is free.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Who may run rings on a disk.
#[derive(Debug)]
pub struct Baton {
    /// Read-only disks serve any number at once.
    is_exclusive: bool,
    lock: FileLock,
    holder: Mutex<Option<SessionId>>,
    released: Condvar,
}

impl Baton {
    /// The baton of a disk whose file is protected by `lock`.
    pub fn new(is_exclusive: bool, lock: FileLock) -> Self {
        Self { is_exclusive, lock, holder: Mutex::new(None), released: Condvar::new() }
    }

    /// Takes the baton if it is free, or held by this session already.
    pub fn try_take(&self, session: SessionId) -> bool {
        !self.is_exclusive || self.try_take_locked(&mut self.lock_holder(), session)
    }

    /// Waits for the baton. Returns false when `cancelled` was set meanwhile (and [`wake`](Self::wake) called).
    pub fn wait(&self, session: SessionId, cancelled: &AtomicBool) -> bool {
        let mut holder = self.lock_holder();
        loop {
            if cancelled.load(Ordering::Acquire) {
                return false;
            }
            if self.try_take_locked(&mut holder, session) {
                return true;
            }
            holder = match *holder {
                Some(_) => self.released.wait(holder).unwrap_or_else(PoisonError::into_inner),
                // Another process has the file.
                None => {
                    self.released.wait_timeout(holder, LOCK_POLL).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Gives the baton back, if this session holds it: its last ring has stopped.
    pub fn release(&self, session: SessionId) {
        let mut holder = self.lock_holder();
        if *holder == Some(session) {
            *holder = None;
            if let Err(error) = self.lock.release() {
                tracing::warn!(%error, "the disk's file lock");
            }
            self.released.notify_all();
        }
    }

    /// Lets everyone who waits look whether it is cancelled.
    pub fn wake(&self) {
        let _holder = self.lock_holder();
        self.released.notify_all();
    }

    fn try_take_locked(&self, holder: &mut Option<SessionId>, session: SessionId) -> bool {
        match *holder {
            Some(other) => other == session,
            None => {
                let is_ours = self.lock.try_acquire().unwrap_or_else(|error| {
                    tracing::warn!(%error, "the disk's file lock");
                    false
                });
                if is_ours {
                    *holder = Some(session);
                }
                is_ours
            }
        }
    }

    fn lock_holder(&self) -> MutexGuard<'_, Option<SessionId>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
