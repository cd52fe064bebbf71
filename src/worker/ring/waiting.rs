//! A ring that waits: for a flush, or for its media.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::{Ring, Served, Waits};
use crate::disk::{Disk, Ticket};
use crate::virtio::blk::{RequestTask, Timed};
use crate::virtio::queue::{RingError, Virtqueue};
use crate::worker::direct::DirectTasks;
use crate::worker::execute::Waiting;
use crate::worker::parts::RingSide;

/// Has a ring's worker do itself what is quick: whoever does not say so has nothing to do with [`Served::Begun`].
pub(in crate::worker) fn leave_quick<D: Disk, Q: Virtqueue>(
    ring: &mut Ring<D, Q>,
    transfers: Option<Arc<DirectTasks<D>>>,
) {
    if let Waits::Media(pending) = &mut ring.waits {
        pending.leave_quick(transfers);
    }
}

impl<D: Disk, Q: Virtqueue> Ring<D, Q> {
    /// One turn of a ring whose media may make one wait.
    fn serve_pending(&mut self, waker: &Waker) -> Served {
        let Self { queue, batch, device, cache, counters, log, waits, call, is_contiguous, limit, .. } = self;
        let (Waits::Media(pending), None) = (waits, self.broken) else { return Served::Idle };
        queue.park_kicks();
        let ring = RingSide { queue, batch, is_contiguous, device, cache, counters, log, call, limit };
        let (is_any_done, turn) = pending.turn(ring, waker);
        if is_any_done {
            self.fence_and_publish();
        }
        self.check_memory();
        let has_quick = matches!(&self.waits, Waits::Media(pending) if pending.has_quick());
        match turn {
            _ if has_quick => return Served::Begun,
            Ok(true) => return Served::More,
            Ok(false) => {}
            Err(error) => self.break_ring(error),
        }
        if self.is_held_by_limit() { Served::Held } else { Served::Idle }
    }

    /// What its worker is to do, in place of an empty vector.
    pub(in crate::worker) fn take_quick(&mut self, out: &mut Vec<RequestTask<D>>) {
        if let Waits::Media(pending) = &mut self.waits {
            pending.take_quick(out);
        }
    }

    /// Takes nothing more, and publishes what is done. Returns whether no thread of the disk's has a request of the ring any
    /// more: before that, bytes may still be written to the disk or to guest memory. `waker` is woken when it is worth asking
    /// again.
    ///
    /// What was not done to its end is done again where the ring goes on.
    pub fn drain(&mut self, waker: &Waker) -> bool {
        let Waits::Media(pending) = &mut self.waits else { return true };
        pending.leave();
        self.serve_pending(waker);
        let Waits::Media(pending) = &mut self.waits else { return true };
        if self.broken.is_some() {
            pending.discard();
        }
        !pending.is_in_flight()
    }

    /// A turn of a ring that waits for something. `None`: it does not any more, and can go on as others do.
    #[inline(never)]
    pub(super) fn serve_waiting(&mut self, waker: &Waker) -> Option<Served> {
        match self.waits {
            Waits::Nothing => None,
            Waits::Media(_) => Some(self.serve_pending(waker)),
            Waits::Limit => Some(self.serve_limited(waker)),
            Waits::Flush(ticket, since) => match self.settle_flush(ticket, since) {
                Ok(true) if self.takes_singly() => Some(self.serve_limited(waker)),
                Ok(true) => None,
                Ok(false) => Some(Served::Held),
                Err(error) => {
                    self.break_ring(error);
                    None
                }
            },
        }
    }

    /// Has what is held wait for a flush: it covers the writes that have finished; others need not be covered (VIRTIO 1.2
    /// §5.2.6.2).
    #[cold]
    #[inline(never)]
    pub(super) fn wait_for_flush(&mut self, waker: &Waker) {
        let since = Instant::now();
        self.waits = Waits::Flush(self.device.begin_flush(waker, &self.counters), since);
    }

    /// Answers what waited for a flush, once that is done. Returns whether nothing waits any more.
    fn settle_flush(&mut self, ticket: Ticket, since: Instant) -> Result<bool, RingError> {
        let Some(has_flushed) = self.device.poll_flush(ticket) else { return Ok(false) };
        self.waits = if self.takes_singly() { Waits::Limit } else { Waits::Nothing };
        let mut timed = [0_u64; Timed::ALL.len()];
        for waiting in self.held.drain(..) {
            let completion = match waiting {
                Waiting::Finished(completion) => completion,
                Waiting::Unsettled(held) => {
                    let count = held.timed().and_then(|what| timed.get_mut(what as usize));
                    count.into_iter().for_each(|count| *count = count.saturating_add(1));
                    self.device.settle(held, has_flushed, &mut self.counters)?
                }
            };
            self.queue.complete(completion);
        }
        if let Some(log) = &mut self.log {
            log.settled();
        }
        self.publish();
        if self.times.is_none() {
            // Behind what waited longest of this turn: the time before that is short.
            let took = since.elapsed();
            let all = Timed::ALL.into_iter().zip(timed).filter(|(_, count)| *count != 0);
            all.for_each(|(what, count)| self.device.latency().add(what, took, count));
        }
        self.end_times();
        self.check_memory();
        Ok(true)
    }
}
