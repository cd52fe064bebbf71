//! Who is connected to a disk.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::front_end_config::FrontEndConfig;
use crate::disk::Disk;
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// The configuration as each of one disk's front-ends knows it, for as long as the front-end is connected.
#[derive(Debug)]
pub struct FrontEnds<D: Disk> {
    configs: Mutex<Vec<Weak<FrontEndConfig<D>>>>,
    rings: Mutex<Vec<Weak<dyn MoveRings>>>,
    counts: Arc<Counts>,
}

/// What was counted, also of those that have left.
#[derive(Debug, Default)]
struct Counts {
    /// Connections of users that may not connect.
    refused: AtomicU64,
    /// Descriptors that were not passed on to the daemon.
    refused_descriptors: AtomicU64,
    /// Messages that were not obeyed.
    refused_messages: AtomicU64,
    /// Connections that the daemon has closed, or has not let in.
    closed: AtomicU64,
}

/// The rings of one of them.
pub(super) trait MoveRings: fmt::Debug + Send + Sync {
    /// Takes those that run back from their workers, and has them go on with others.
    fn move_rings(&self);
}

impl<D: Disk> Default for FrontEnds<D> {
    fn default() -> Self {
        Self { configs: Mutex::default(), rings: Mutex::default(), counts: Arc::default() }
    }
}

impl<D: Disk> FrontEnds<D> {
    /// Those of another disk, which are counted with these.
    pub(super) fn of_another(&self) -> Self {
        Self { counts: Arc::clone(&self.counts), ..Self::default() }
    }

    /// How many there are now.
    pub fn count(&self) -> usize {
        self.lock().iter().filter(|config| config.strong_count() != 0).count()
    }

    /// A connection was refused, as its user may not connect.
    pub fn count_refused(&self) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were refused.
    pub fn refused(&self) -> u64 {
        self.counts.refused.load(Ordering::Relaxed)
    }

    /// Descriptors that came with a message were refused for what they are.
    pub(super) fn count_refused_descriptors(&self, count: u64) {
        self.counts.refused_descriptors.fetch_add(count, Ordering::Relaxed);
    }

    /// How many were.
    pub fn refused_descriptors(&self) -> u64 {
        self.counts.refused_descriptors.load(Ordering::Relaxed)
    }

    /// A message was refused.
    pub(super) fn count_refused_message(&self) {
        self.counts.refused_messages.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were.
    pub fn refused_messages(&self) -> u64 {
        self.counts.refused_messages.load(Ordering::Relaxed)
    }

    /// A connection is closed for what its front-end does, or for want of a place.
    pub fn count_closed(&self) {
        self.counts.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were.
    pub fn closed(&self) -> u64 {
        self.counts.closed.load(Ordering::Relaxed)
    }

    /// The disk has grown: every front-end is told to read the configuration again. Call it when the
    /// configuration says so already: whoever connects meanwhile reads the new one.
    pub fn config_changed(&self) {
        let configs: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        for config in configs {
            config.config_changed();
        }
    }

    /// Another one has come, with these rings.
    pub(super) fn add(&self, config: &Arc<FrontEndConfig<D>>, its_rings: Weak<dyn MoveRings>) {
        let mut configs = self.lock();
        configs.retain(|it| it.strong_count() != 0);
        configs.push(Arc::downgrade(config));
        let mut rings = self.rings();
        rings.retain(|it| it.strong_count() != 0);
        rings.push(its_rings);
    }

    /// Has the rings of all of them given to workers anew. One front-end's, whose media keeps a ring from being taken back, do not
    /// hold up another's.
    pub fn move_rings(&self) {
        let mut rings: Vec<_> = self.rings().iter().filter_map(Weak::upgrade).collect();
        let Some(last) = rings.pop() else { return };
        let mut threads = Vec::with_capacity(rings.len());
        rings.retain(|its_rings| {
            let its_rings = its_rings.clone();
            let run = move || its_rings.move_rings();
            let thread = thread::spawn(ThreadKind::Worker, ThreadKind::Worker.name(), run);
            let is_left = thread.is_err();
            threads.extend(thread);
            is_left
        });
        last.move_rings();
        // There is no thread for these.
        rings.iter().for_each(|its_rings| its_rings.move_rings());
        for thread in threads {
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }

    fn rings(&self) -> MutexGuard<'_, Vec<Weak<dyn MoveRings>>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<FrontEndConfig<D>>>> {
        self.configs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
