//! Who is connected to a disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::rings::Session;
use crate::disk::Disk;

/// The sessions of one disk, for as long as each of them is there.
#[derive(Debug)]
pub struct FrontEnds<D: Disk> {
    sessions: Mutex<Vec<Weak<Session<D>>>>,
    /// Connections of users that may not connect.
    refused: AtomicU64,
}

impl<D: Disk> Default for FrontEnds<D> {
    fn default() -> Self {
        Self { sessions: Mutex::default(), refused: AtomicU64::default() }
    }
}

impl<D: Disk> FrontEnds<D> {
    /// How many there are now.
    pub fn count(&self) -> usize {
        self.lock().iter().filter(|session| session.strong_count() != 0).count()
    }

    /// A connection was refused, as its user may not connect.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The disk has grown: every front-end is told to read the configuration again. Call it when the
    /// configuration says so already: whoever connects meanwhile reads the new one.
    pub fn config_changed(&self) {
        let sessions: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        for session in sessions {
            session.config_changed();
        }
    }

    pub(super) fn join(&self, session: &Arc<Session<D>>) {
        let mut sessions = self.lock();
        sessions.retain(|it| it.strong_count() != 0);
        sessions.push(Arc::downgrade(session));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Session<D>>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
