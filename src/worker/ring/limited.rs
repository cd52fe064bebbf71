//! A ring that is limited: it takes a request when its [`Share`] of the limits admits that, and is held until then. So is each
//! request taken on its own where it is to be known which are slow.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::{Popped, Ring, Served, Waits};
use crate::disk::Disk;
use crate::limits::bounds::{MAX_TURN_BYTES, MAX_TURN_REQUESTS};
use crate::throttle::{Kind, Moment, Share};
use crate::virtio::blk::kind_for_limits;
use crate::virtio::queue::{RingError, Virtqueue};
use crate::worker::pending::limited::admits;
use crate::worker::times::{Times, WaitsFor};

/// Has a ring limited as its device says by now. It is not held any more, and may be held again.
pub fn renew_limits<D: Disk, Q: Virtqueue>(ring: &mut Ring<D, Q>) {
    let is_watched = ring.device.slow().threshold().is_some() && !matches!(ring.waits, Waits::Media(_));
    if is_watched != ring.times.is_some() {
        let room = usize::from(MAX_TURN_REQUESTS);
        let times = || Box::new(Times::new(room, ring.key.index, ring.device.slow()));
        ring.times = is_watched.then(times);
    }
    let throttle = ring.device.throttle();
    let before = ring.limit.as_ref().map(|limit| limit.throttle());
    if before.map(Arc::as_ptr) != throttle.as_ref().map(Arc::as_ptr) {
        ring.resume();
        ring.limit = throttle.map(|throttle| Box::new(Share::new(throttle)));
    }
    ring.waits = match std::mem::replace(&mut ring.waits, Waits::Nothing) {
        Waits::Nothing | Waits::Limit if ring.takes_singly() => Waits::Limit,
        Waits::Nothing | Waits::Limit => Waits::Nothing,
        waits @ (Waits::Flush(..) | Waits::Media(_)) => waits,
    };
}

impl<D: Disk, Q: Virtqueue> Ring<D, Q> {
    /// Whether its requests are taken one by one: there is a limit, or it is to be known how long each takes.
    pub(super) fn takes_singly(&self) -> bool {
        self.limit.is_some() || self.times.is_some()
    }

    /// Says which of its requests are slow and have not ended.
    pub(in crate::worker) fn tell_slow(&mut self) {
        match &mut self.waits {
            Waits::Media(pending) => pending.tell_slow(&self.device),
            _ => self.times.iter_mut().for_each(|times| times.look(&self.device)),
        }
    }

    /// What is done of its requests is shown.
    pub(super) fn end_times(&mut self) {
        let Some(times) = &mut self.times else { return };
        // All that is not done, in the ring's order: what waits for a flush, and what is done in slices.
        times.completed_but(self.held.len().saturating_add(self.sliced.is_in_progress().into()));
        times.end_turn(&self.device);
        if matches!(self.waits, Waits::Flush(..)) {
            let held = self.held.iter().map(|_| WaitsFor::Flush);
            times.wait_for(held);
        }
    }

    /// Whether a limit holds it.
    pub(in crate::worker) fn is_held_by_limit(&self) -> bool {
        self.limit.as_ref().is_some_and(|limit| limit.is_held())
    }

    /// Until when a limit holds it.
    pub(in crate::worker) fn held_until(&self) -> Option<Instant> {
        self.limit.as_ref()?.held_until()
    }

    /// No limit holds it any more, or it is served again to see.
    pub(in crate::worker) fn resume(&mut self) {
        let Some(limit) = &mut self.limit else { return };
        let nanos = u64::try_from(limit.resume().as_nanos()).unwrap_or(u64::MAX);
        self.counters.throttled_ns = self.counters.throttled_ns.wrapping_add(nanos);
    }

    /// It has nothing to do.
    #[cold]
    pub(super) fn rest(&mut self) {
        self.limit.iter_mut().for_each(|limit| limit.rest(Moment::now()));
    }

    /// As [`serve`](Self::serve), as far as limits allow.
    pub(super) fn serve_limited(&mut self, waker: &Waker) -> Served {
        if self.broken.is_some() {
            return Served::Idle;
        }
        self.queue.park_kicks();
        self.times.iter_mut().for_each(|times| times.begin_turn(self.device.slow()));
        let has_more = self.limited_batch();
        self.fence_and_publish();
        self.check_memory();
        if !self.held.is_empty() {
            self.wait_for_flush(waker);
        }
        self.end_times();
        match has_more {
            _ if self.broken.is_some() => Served::Idle,
            Err(error) => {
                self.break_ring(error);
                Served::Idle
            }
            Ok(_) if matches!(self.waits, Waits::Flush(..)) || self.is_held_by_limit() => Served::Held,
            Ok(true) => Served::More,
            Ok(false) => Served::Idle,
        }
    }

    /// Does requests one after the other, up to a batch, a flush, a slice, or one that may not be taken yet. Returns whether there
    /// may be more.
    fn limited_batch(&mut self) -> Result<bool, RingError> {
        let now = Moment::now();
        if self.sliced.is_in_progress() {
            self.limited_slice(now)?;
            return Ok(true);
        }
        let mut left_bytes = i64::from(MAX_TURN_BYTES);
        for popped in 0..MAX_TURN_REQUESTS {
            if left_bytes <= 0 {
                break;
            }
            if !self.queue.has_available() {
                return Ok(false);
            }
            let Self { limit, times, queue, batch, counters, .. } = self;
            let is_by_kind = limit.as_ref().is_some_and(|limit| limit.is_by_kind());
            // A guess: what it was is counted.
            let header = (is_by_kind || times.is_some()).then(|| queue.peek(0, batch.memory())).flatten();
            if let Some(limit) = limit {
                let kind = match is_by_kind {
                    true => header.as_ref().map_or(Kind::Other, kind_for_limits),
                    false => Kind::Write,
                };
                if !admits(limit, kind, now, counters) {
                    times.iter_mut().for_each(|times| times.held_by_limit(header.as_ref()));
                    break;
                }
            }
            let popped = self.pop(popped)?;
            if let (Some(times), false) = (&mut self.times, matches!(popped, Popped::Nothing)) {
                let slices = self.sliced.is_in_progress().then(|| self.sliced.name());
                times.took_begun(slices, WaitsFor::Media);
            }
            match popped {
                Popped::Nothing => return Ok(false),
                Popped::Waits => break,
                Popped::Done(bytes) => left_bytes = left_bytes.saturating_sub_unsigned(bytes),
            }
        }
        Ok(true)
    }

    fn limited_slice(&mut self, now: Moment) -> Result<(), RingError> {
        let (kind, bytes) = self.device.next_slice_for_limits(&self.sliced);
        let Self { limit, counters, .. } = self;
        if let Some(limit) = limit {
            // It was counted as a request when it was taken.
            let is_admitted = admits(limit, kind, now, counters);
            let waits_for = if is_admitted { WaitsFor::Media } else { WaitsFor::Limit };
            self.times.iter_mut().for_each(|times| times.wait_for(std::iter::once(waits_for)));
            if !is_admitted {
                return Ok(());
            }
            limit.count_bytes(kind, bytes);
        }
        self.times.iter().for_each(|times| times.begin_slice());
        let has_more = self.next_slice();
        self.times.iter_mut().for_each(|times| times.end_slice());
        has_more.map(drop)
    }
}
