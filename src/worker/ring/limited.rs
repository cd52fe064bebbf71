//! A ring that is limited: it takes a request when its [`Share`] of the limits admits that, and is held until then.

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

/// Has a ring limited as its device says by now. It is not held any more, and may be held again.
pub(in crate::worker) fn renew_limits<D: Disk, Q: Virtqueue>(ring: &mut Ring<D, Q>) {
    let throttle = ring.device.throttle();
    let before = ring.limit.as_ref().map(|limit| limit.throttle());
    if before.map(Arc::as_ptr) == throttle.as_ref().map(Arc::as_ptr) {
        return;
    }
    ring.resume();
    ring.limit = throttle.map(|throttle| Box::new(Share::new(throttle)));
    ring.waits = match std::mem::replace(&mut ring.waits, Waits::Nothing) {
        Waits::Nothing | Waits::Limit if ring.limit.is_some() => Waits::Limit,
        Waits::Nothing | Waits::Limit => Waits::Nothing,
        waits @ (Waits::Flush(_) | Waits::Media(_)) => waits,
    };
}

impl<D: Disk, Q: Virtqueue> Ring<D, Q> {
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
        let has_more = self.limited_batch();
        self.fence_and_publish();
        self.check_memory();
        if !self.held.is_empty() {
            self.waits = Waits::Flush(self.device.begin_flush(waker, &self.counters));
        }
        match has_more {
            _ if self.broken.is_some() => Served::Idle,
            Err(error) => {
                self.break_ring(error);
                Served::Idle
            }
            Ok(_) if matches!(self.waits, Waits::Flush(_)) || self.is_held_by_limit() => Served::Held,
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
            let Self { limit: Some(limit), queue, batch, counters, .. } = self else { return Ok(true) };
            let kind = match limit.is_by_kind() {
                // A guess: what it was is counted.
                true => queue.peek(0, batch.memory()).map_or(Kind::Other, |header| kind_for_limits(&header)),
                false => Kind::Write,
            };
            if !admits(limit, kind, now, counters) {
                break;
            }
            match self.pop(popped)? {
                Popped::Nothing => return Ok(false),
                Popped::Waits => break,
                Popped::Done(bytes) => left_bytes = left_bytes.saturating_sub_unsigned(bytes),
            }
        }
        Ok(true)
    }

    fn limited_slice(&mut self, now: Moment) -> Result<(), RingError> {
        let (kind, bytes) = self.device.next_slice_for_limits(&self.sliced);
        let Self { limit: Some(limit), counters, .. } = self else { return Ok(()) };
        // It was counted as a request when it was taken.
        if !admits(limit, kind, now, counters) {
            return Ok(());
        }
        limit.count_bytes(kind, bytes);
        self.next_slice().map(drop)
    }
}
