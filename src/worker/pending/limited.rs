//! The same of a ring that is limited: it takes a request when that is admitted, and counts what it has begun or done.

use super::{Entry, Left, Pending, RingSide};
use crate::disk::Disk;
use crate::limits::bounds::{MAX_DISCARD_SECTORS, MAX_TURN_BYTES, MAX_TURN_REQUESTS};
use crate::throttle::{Admission, Kind, Moment, Share};
use crate::virtio::blk::{Counters, SECTOR_BYTES, kind_for_limits};
use crate::virtio::queue::{RingError, Virtqueue};

/// Of the space of a DISCARD or WRITE_ZEROES no more is counted: as much as drivers are told that one may have.
const COUNTED_RANGES_BYTES: u64 = MAX_DISCARD_SECTORS as u64 * SECTOR_BYTES;

/// Whether a request of this kind may be taken. Counts it if the ring is held from now on.
pub(in crate::worker) fn admits(limit: &mut Share, kind: Kind, now: Moment, counters: &mut Counters) -> bool {
    let admission = limit.admit(kind, now);
    counters.throttled = counters.throttled.wrapping_add((admission == Admission::Held).into());
    admission == Admission::Taken
}

impl<D: Disk> Pending<D> {
    /// Takes the next requests, up to a batch, one after the other. Returns whether there may be more.
    #[cold]
    #[inline(never)]
    pub(super) fn take_limited<Q: Virtqueue>(
        &mut self,
        ring: &mut RingSide<'_, D, Q>,
    ) -> Result<bool, RingError> {
        let now = Moment::now();
        let mut left = Left { requests: MAX_TURN_REQUESTS, bytes: MAX_TURN_BYTES.into() };
        while left.requests > 0 && left.bytes > 0 {
            if self.is_full() || !ring.queue.has_available() {
                return Ok(false);
            }
            let Some(limit) = &mut *ring.limit else { break };
            let header = ring.queue.peek(0, ring.batch.memory());
            let kind = header.map_or(Kind::Other, |header| kind_for_limits(&header));
            if !admits(limit, kind, now, ring.counters) {
                self.times.held_by_limit(header.as_ref());
                return Ok(false);
            }
            let (reads, bytes) = (ring.counters.reads, ring.counters.read_bytes);
            if !self.pop(ring, &mut left)? {
                return Ok(false);
            }
            let (kind, bytes) = match self.entries.back() {
                Some(Entry::Unbegun(request, _)) => request.for_limits(),
                // Reads are the only ones that move bytes and are done at once.
                _ if ring.counters.reads != reads => {
                    (Kind::Read, ring.counters.read_bytes.wrapping_sub(bytes))
                }
                _ => (Kind::Other, 0),
            };
            let Some(limit) = &mut *ring.limit else { break };
            limit.count(kind);
            limit.count_bytes(kind, bytes.min(COUNTED_RANGES_BYTES));
        }
        Ok(true)
    }
}
