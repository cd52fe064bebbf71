//! Whether a worker serves several disks, of which each may hold up the others.

use std::sync::Arc;

use super::any_ring::AnyRing;
use super::hold_ups::{Counted, is_looked_at};
use super::state::Slot;
use super::watch::{Watch, Watched};
use super::watchdog::lock;
use crate::copy::fault::interruption::{self, OnThisThread};
use crate::disk::Disk;

/// Whether a worker is shared, and what is watched of it then.
#[derive(Debug)]
pub(super) struct Sharing {
    is_shared: bool,
    /// It is looked whether it gets on.
    is_watched: bool,
    /// The number of the round that it is in.
    round: u64,
    watched: Arc<Watched>,
    watch: Arc<Watch>,
}

impl Sharing {
    /// Of a worker that has no ring yet.
    pub(super) fn new(watch: Arc<Watch>) -> Self {
        Self { is_shared: false, is_watched: false, round: 0, watched: Arc::default(), watch }
    }

    #[inline]
    pub(super) const fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// It has these rings now.
    pub(super) fn update<D: Disk>(&mut self, slots: &[Option<Slot<D>>]) {
        let is_shared = slots.iter().flatten().next().is_some_and(|slot| has_others(&slot.ring, slots));
        let disks = || slots.iter().flatten().map(|slot| slot.ring.hold_ups()).filter(|_| is_shared);
        let can_all_leave = disks().all(|disk| disk.can_leave());
        // Those before are dropped behind that: a disk that stays is not alone meanwhile.
        let disks = disks().map(|disk| disk.share()).collect();
        let before = std::mem::replace(&mut *lock(&self.watched.disks), disks);
        drop(before);
        self.is_shared = is_shared;
        let is_watched = is_shared && can_all_leave && is_looked_at();
        if is_watched && !self.is_watched {
            // Ignored: where there is no thread, a turn may be long, and its disk leaves behind it.
            self.is_watched = self.watch.begin(&self.watched).is_ok();
        } else if !is_watched && self.is_watched {
            self.pause();
            self.is_watched = false;
            self.watch.end(&self.watched);
        }
    }

    /// This ring comes to these; until what is returned is dropped it counts as one of them.
    pub(super) fn with<D: Disk>(ring: &AnyRing<D>, slots: &[Option<Slot<D>>]) -> Option<Counted> {
        has_others(ring, slots).then(|| ring.hold_ups().share())
    }

    /// The worker is run by this thread.
    pub(super) fn on_this_thread(&self) -> OnThisThread {
        self.watched.task.on_this_thread()
    }

    /// A round is over, and another one begins.
    #[inline]
    pub(super) fn next_round(&mut self) {
        if self.is_watched {
            self.round = self.round.wrapping_add(1);
            self.watched.task.begin(self.round);
        }
    }

    /// The turn of this ring begins.
    #[inline]
    pub(super) fn turn_of<D: Disk>(&self, ring: &AnyRing<D>) {
        if self.is_watched {
            self.watched.task.turn_of(Arc::as_ptr(ring.hold_ups()).addr());
        }
    }

    /// Whether the turn of a ring was ended is known by now.
    #[inline]
    pub(super) fn turn_is_over(&self) {
        if self.is_watched {
            interruption::take();
        }
    }

    /// A round begins behind a [pause](Self::pause).
    pub(super) fn go_on(&mut self) {
        if self.is_watched {
            self.round = self.round.wrapping_add(1);
            self.watched.task.begin_anew(self.round);
            self.watch.wake();
        }
    }

    /// It sleeps, or does what is not to be ended.
    pub(super) fn pause(&self) {
        if self.is_watched {
            self.watched.task.pause();
        }
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        if self.is_watched {
            self.watch.end(&self.watched);
        }
    }
}

/// Whether there is a ring of another disk.
fn has_others<D: Disk>(ring: &AnyRing<D>, slots: &[Option<Slot<D>>]) -> bool {
    slots.iter().flatten().any(|slot| !Arc::ptr_eq(slot.ring.device(), ring.device()))
}
