//! A ring of a disk whose media may make one wait: its requests are begun, many at once, and published in the ring's order.
//!
//! To the driver it is as if one were done after the other: one that touches bytes of another which is not done waits for it,
//! a flush is begun when all before it are done, and the used ring has them in their order. So the used index says what was
//! done ([decision D2](crate#decisions)), whatever of what comes after it is done already: it is done again.

pub(super) mod limited;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::direct::{self, DirectTasks};
use super::entry::{Entry, Left, unbegun_flushes};
use super::parts::{MANY_REQUESTS, RingSide, WAKE_UP_REQUESTS};
use super::times::{Times, WaitsFor};
use crate::copy::Segments;
use crate::disk::{Disk, Ticket};
use crate::failpoint::{self, Point};
use crate::limits::bounds::{MAX_PENDING_REQUESTS, MAX_TURN_BYTES, MAX_TURN_REQUESTS};
use crate::virtio::blk::{
    CacheMode, Completions, Counters, Device, PendingRequest, Predecessors, Progress, RequestTask, Slow,
    Span, Transfer,
};
use crate::virtio::queue::{Bounds, Chain, Next, RingError, RingLog, Virtqueue};

/// What a ring waits for.
#[derive(Debug)]
pub(super) enum Waits<D: Disk> {
    /// Nothing: requests are done as they are taken.
    Nothing,
    /// A flush, behind which nothing is taken, and since when.
    Flush(Ticket, Instant),
    /// Its media: requests are begun, and come back done.
    Media(Box<Pending<D>>),
    /// Nothing, but each request is taken only when limits allow it.
    Limit,
}

impl<D: Disk> Waits<D> {
    /// Requests that are taken and not published.
    pub(super) fn under_way(&self) -> usize {
        if let Self::Media(pending) = self { pending.entries.len() } else { 0 }
    }
}

/// What a request needs of its ring.
struct Side<'a, D: Disk> {
    device: &'a Device<D>,
    cache: &'a CacheMode,
    counters: &'a mut Counters,
    log: &'a mut Option<Box<RingLog>>,
}

/// The requests of a ring that were taken and are not published, in the ring's order.
#[derive(Debug)]
pub(super) struct Pending<D: Disk> {
    entries: VecDeque<Entry>,
    times: Times,
    /// Most of them.
    room: usize,
    /// The number of the first one, counted from the ring's start.
    first: u64,
    /// Some were completed, and are not published.
    has_completed: bool,
    /// How many are unbegun, and how many in flight.
    unbegun: usize,
    in_flight: usize,
    /// The flush that is done first of those that are begun.
    flush: Option<Ticket>,
    /// Room for requests: as many as there ever were at once.
    #[expect(clippy::vec_box, reason = "they move to threads and back as they are")]
    free: Vec<Box<PendingRequest>>,
    completions: Arc<Completions>,
    /// Those that have just come back.
    returned: Vec<(u64, Box<PendingRequest>)>,
    /// What is about to be begun: by threads of the disk's, or by the ring's worker itself.
    tasks: Vec<RequestTask<D>>,
    quick: Vec<RequestTask<D>>,
    does_quick: bool,
    /// What the kernel does by itself for its worker.
    transfers: Option<Arc<DirectTasks<D>>>,
    /// It takes nothing more.
    is_leaving: bool,
}

impl<D: Disk> Pending<D> {
    /// Of a ring with so many entries and this index.
    pub(super) fn new(ring_size: u32, ring: u16, slow: &Slow) -> Box<Self> {
        let room = usize::try_from(ring_size).unwrap_or(usize::MAX).min(usize::from(MAX_PENDING_REQUESTS));
        Box::new(Self {
            entries: VecDeque::with_capacity(room),
            times: Times::new(room, ring, slow),
            room,
            first: 0,
            has_completed: false,
            unbegun: 0,
            in_flight: 0,
            flush: None,
            free: Vec::with_capacity(room),
            completions: Arc::default(),
            returned: Vec::with_capacity(room),
            tasks: Vec::new(),
            quick: Vec::new(),
            does_quick: false,
            transfers: None,
            is_leaving: false,
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.room || self.is_leaving
    }

    /// Whether there is something to do, if the ring `has_available`.
    pub(super) fn has_work(&self, device: &Device<D>, has_available: bool) -> bool {
        self.completions.has_some()
            || self.has_transferred()
            || has_available && !self.is_full()
            || self.flush.is_some_and(|ticket| device.is_flushed(ticket))
    }

    /// Whether all that it has taken is done, but for flushes.
    fn is_finished(&self) -> bool {
        self.unbegun == 0 && self.in_flight == 0
    }

    /// Those that its worker does itself from now on are left to it, as [`Served::Begun`](super::Served::Begun) says.
    /// So are those that the kernel does by itself, if there are `transfers`.
    pub(super) fn leave_quick(&mut self, transfers: Option<Arc<DirectTasks<D>>>) {
        (self.does_quick, self.transfers) = (true, transfers);
    }

    /// Whether the kernel has done some.
    fn has_transferred(&self) -> bool {
        self.in_flight != 0 && self.transfers.as_ref().is_some_and(|transfers| transfers.has_ended())
    }

    /// Takes them: its own, and those of others on the way.
    fn reap(&self) {
        if let Some(transfers) = self.transfers.as_ref().filter(|_| self.has_transferred()) {
            direct::reap(transfers, &self.completions);
        }
    }

    /// Whether some are left to the worker.
    pub(super) const fn has_quick(&self) -> bool {
        !self.quick.is_empty()
    }

    /// Gives these to the worker, in place of an empty vector.
    pub(super) fn take_quick(&mut self, out: &mut Vec<RequestTask<D>>) {
        std::mem::swap(&mut self.quick, out);
    }

    /// Has those begun, in order, that need not wait for one before them.
    fn begin(&mut self, device: &Device<D>, waker: &Waker) {
        if self.unbegun == 0 || self.is_leaving {
            return;
        }
        let does_quick = self.does_quick && device.disk().writes_are_quick();
        let does_direct = self.transfers.is_some() && device.has_direct();
        let mut left_bytes = u64::from(MAX_TURN_BYTES);
        for index in 0..self.entries.len() {
            let Some(Entry::Unbegun(_, span)) = self.entries.get(index) else { continue };
            let span = *span;
            if self.entries.iter().take(index).filter_map(Entry::span).any(|before| before.excludes(&span)) {
                break;
            }
            let Some(entry) = self.entries.get_mut(index) else { break };
            if let Entry::Unbegun(request, _) = std::mem::replace(entry, Entry::InFlight(span)) {
                self.unbegun = self.unbegun.saturating_sub(1);
                self.in_flight = self.in_flight.saturating_add(1);
                let number = self.first.wrapping_add(index as u64);
                let task = device.task(request, number, &self.completions, waker);
                let is_direct = does_direct && task.direct().is_some();
                // The kernel looks up the pages of what it does by itself, which takes a fraction of a copy.
                let bytes = if is_direct { span.len_bytes() / 16 } else { span.len_bytes() };
                if (is_direct || does_quick && task.is_quick()) && bytes <= left_bytes {
                    left_bytes = left_bytes.saturating_sub(bytes);
                    self.quick.push(task);
                } else {
                    self.tasks.push(task);
                }
            }
        }
        device.submit(&mut self.tasks);
    }

    /// One turn: stores the status of what has come back, takes more, has begun what can be, and completes what is done. Returns
    /// whether something is to be published, and whether there may be more to take.
    #[inline(never)]
    pub(super) fn turn<Q: Virtqueue>(
        &mut self,
        mut ring: RingSide<'_, D, Q>,
        waker: &Waker,
    ) -> (bool, Result<bool, RingError>) {
        self.times.begin_turn(ring.device.slow());
        let collected = self.collect(&mut ring);
        let mut has_more = collected.and_then(|()| self.take(&mut ring));
        if !self.entries.is_empty() {
            self.begin(ring.device, waker);
            let flushed = self.flush(&mut ring, waker);
            if self.times.is_watched() {
                self.times.wait_for(self.entries.iter().map(Entry::waits_for));
            }
            self.complete(ring.queue);
            has_more = flushed.and(has_more);
        }
        self.times.end_turn(ring.device);
        (std::mem::take(&mut self.has_completed), has_more)
    }

    /// Says which requests are slow and have not ended.
    pub(super) fn tell_slow(&mut self, device: &Device<D>) {
        self.times.look(device);
    }

    /// Takes nothing more, and what no thread has begun comes back as it is.
    pub(super) fn leave(&mut self) {
        self.is_leaving = true;
        self.completions.abandon();
    }

    /// Drops what has come back: the ring is broken.
    pub(super) fn discard(&mut self) {
        self.reap();
        self.completions.take(&mut self.returned);
        self.in_flight = self.in_flight.saturating_sub(self.returned.len());
    }

    /// Whether it is woken so often that its worker need not look by itself, and leaves the CPU to who has its requests; or waits
    /// for a flush, which takes longer than to be woken, and says nothing about its driver's pauses.
    pub(super) const fn has_much_in_flight(&self) -> bool {
        self.in_flight >= 4 || self.flush.is_some()
    }

    /// Whether a thread has a request.
    pub(super) const fn is_in_flight(&self) -> bool {
        self.in_flight != 0
    }

    /// Stores the status of those that have come back.
    fn collect<Q: Virtqueue>(&mut self, ring: &mut RingSide<'_, D, Q>) -> Result<(), RingError> {
        self.reap();
        if !self.completions.has_some() {
            return Ok(());
        }
        let RingSide { device, cache, counters, log, .. } = ring;
        let mut collected = Ok(());
        let Self { entries, first, in_flight, free, completions, returned, .. } = self;
        completions.take(returned);
        for (number, mut request) in returned.drain(..) {
            if let (Some(log), Some((writable, status))) = (&mut **log, request.writable()) {
                log.note_slice(writable, status);
            }
            let answer = device.complete_pending(&mut request, cache, counters);
            if let Some(log) = &mut **log {
                // As in `execute_logged`. The status of one that waits for a flush is marked again when it is stored.
                device.fence();
                log.executed(false);
            }
            free.push(request);
            *in_flight = in_flight.saturating_sub(1);
            let index = usize::try_from(number.wrapping_sub(*first)).unwrap_or(usize::MAX);
            let Some(entry) = entries.get_mut(index) else { continue };
            *entry = match answer {
                Ok(Some(Progress::Completed(completion))) => Entry::Done(completion),
                Ok(Some(Progress::Held(held))) => Entry::Unflushed(held, None),
                Ok(Some(Progress::Sliced) | None) => Entry::Abandoned,
                Err(error) => {
                    collected = Err(error);
                    Entry::Abandoned
                }
            };
        }
        collected
    }

    /// Takes the next requests, up to a batch. Returns whether there may be more.
    fn take<Q: Virtqueue>(&mut self, ring: &mut RingSide<'_, D, Q>) -> Result<bool, RingError> {
        ring.device.disk().begin_turn();
        if ring.limit.is_some() {
            return self.take_limited(ring);
        }
        let mut left = Left { requests: MAX_TURN_REQUESTS, bytes: MAX_TURN_BYTES.into() };
        while left.requests > 0 {
            let Some(bytes) = u32::try_from(left.bytes).ok().filter(|bytes| *bytes > 0) else { break };
            let room = u16::try_from(self.room.saturating_sub(self.entries.len())).unwrap_or(u16::MAX);
            if room == 0 || self.is_leaving {
                return Ok(false);
            }
            let next = match *ring.is_contiguous {
                true => {
                    self.take_contiguous(ring, Bounds { chains: left.requests.min(room), bytes }, &mut left)?
                }
                false => Next::Other,
            };
            match next {
                Next::Nothing if !ring.queue.has_available() => return Ok(false),
                // There is room: none was taken before it.
                Next::Other if left.requests > 0 && !self.is_full() => {
                    if !self.pop(ring, &mut left)? {
                        return Ok(false);
                    }
                }
                Next::Nothing | Next::Any | Next::Other => {}
            }
        }
        Ok(true)
    }

    /// Takes the next chains of the common shape. Returns what follows.
    fn take_contiguous<Q: Virtqueue>(
        &mut self,
        ring: &mut RingSide<'_, D, Q>,
        bounds: Bounds,
        left: &mut Left,
    ) -> Result<Next, RingError> {
        let device = ring.device;
        let next = ring.queue.take_contiguous(ring.batch, bounds, |header| device.prefetch(header))?;
        let taken = ring.batch.len();
        if taken > 0 {
            left.bytes = ring.batch.left_bytes();
        }
        left.requests = left.requests.saturating_sub(taken);
        // As `Ring::batch` does.
        if taken >= MANY_REQUESTS && ring.log.is_none() && !ring.queue.has_more_than(WAKE_UP_REQUESTS) {
            self.transfer(ring, taken / 2)?;
            self.publish(ring)?;
        }
        self.transfer(ring, taken)?;
        if taken >= MANY_REQUESTS && ring.log.is_none() && next == Next::Any && left.requests > 0 {
            self.publish(ring)?;
        }
        Ok(next)
    }

    /// Does up to so many of the chains taken, or has them wait.
    #[inline(never)]
    fn transfer<Q: Virtqueue>(&mut self, ring: &mut RingSide<'_, D, Q>, most: u16) -> Result<(), RingError> {
        let RingSide { queue, batch, device, cache, counters, log, .. } = ring;
        let rules = device.rules(cache);
        for chain in batch.drain(most) {
            let asked = self.times.begin(chain.header(), chain.data_bytes().into());
            let is_free = |span: &Span| self.is_free(span);
            let chain = match &**log {
                None => match device.try_transfer(chain, &rules, counters, is_free) {
                    Transfer::Done(completion) if self.entries.is_empty() => {
                        queue.complete(completion);
                        self.first = self.first.wrapping_add(1);
                        self.has_completed = true;
                        self.times.done_at_once(asked);
                        continue;
                    }
                    Transfer::Done(completion) => {
                        self.entries.push_back(Entry::Done(completion));
                        self.times.took(asked, WaitsFor::Order);
                        continue;
                    }
                    Transfer::Lost => return Err(RingError::GuestMemoryLost),
                    Transfer::Other(chain) => chain,
                },
                Some(_) => chain,
            };
            let is_tried = log.is_none();
            self.take_chain(chain.into_chain(), &mut Side { device, cache, counters, log }, is_tried)?;
        }
        Ok(())
    }

    /// Takes the next chain, of any shape. Returns whether there was one.
    #[cold]
    #[inline(never)]
    fn pop<Q: Virtqueue>(
        &mut self,
        ring: &mut RingSide<'_, D, Q>,
        left: &mut Left,
    ) -> Result<bool, RingError> {
        let RingSide { queue, batch, device, cache, counters, log, is_contiguous, .. } = ring;
        let Some(chain) = queue.pop(batch.memory())? else { return Ok(false) };
        **is_contiguous = chain.readable.as_slice().len() + chain.writable.as_slice().len() <= 1;
        let bytes = chain.readable.total_bytes().saturating_add(chain.writable.total_bytes()) as u64;
        let is_done = self.take_chain(chain, &mut Side { device, cache, counters, log }, false)?;
        left.requests = left.requests.saturating_sub(1);
        left.bytes = left.bytes.saturating_sub_unsigned(if is_done { bytes } else { 0 }); // else nothing was copied
        Ok(true)
    }

    /// Does what a chain asks, or has it wait; it may have been tried already whether that takes no waiting. Returns whether it
    /// was done.
    fn take_chain(
        &mut self,
        chain: Chain<'_>,
        side: &mut Side<'_, D>,
        is_tried: bool,
    ) -> Result<bool, RingError> {
        let Side { device, cache, counters, log } = side;
        if let Some(log) = &mut **log {
            log.note(&chain);
        }
        let asked = self.times.begin(&chain.header, chain.data_bytes);
        let mut request = self.free.pop().unwrap_or_default();
        let is_free = |span: &Span| !is_tried && self.is_free(span);
        let before = Predecessors { is_free, are_done: self.is_finished() };
        let answer = device.begin(chain, cache, counters, &mut request, before);
        if let Some(log) = &mut **log
            && !matches!(answer, Ok(Progress::Sliced))
        {
            device.fence();
            log.executed(false);
        }
        let entry = match answer? {
            Progress::Sliced => {
                self.unbegun = self.unbegun.saturating_add(1);
                let span = request.span();
                self.entries.push_back(Entry::Unbegun(request, span));
                self.times.took(asked.at(span), WaitsFor::Order);
                return Ok(false);
            }
            Progress::Completed(completion) => Entry::Done(completion),
            Progress::Held(held) => Entry::Unflushed(held, None),
        };
        self.free.push(request);
        self.entries.push_back(entry);
        self.times.took(asked, WaitsFor::Order);
        Ok(true)
    }

    /// Whether a request need not wait for one before it.
    #[inline]
    fn is_free(&self, span: &Span) -> bool {
        !self.entries.iter().filter_map(Entry::span).any(|before| before.excludes(span))
    }

    /// Publishes what was completed in this turn so far, as `Ring::publish` does in the end: the driver wakes up while the
    /// rest is done.
    fn publish<Q: Virtqueue>(&mut self, ring: &mut RingSide<'_, D, Q>) -> Result<(), RingError> {
        if !std::mem::take(&mut self.has_completed) {
            return Ok(());
        }
        ring.device.fence();
        if ring.batch.memory().is_lost() {
            return Err(RingError::GuestMemoryLost);
        }
        failpoint::reached(Point::BeforeUsed);
        let is_wanted = ring.queue.publish();
        failpoint::reached(Point::AfterUsed);
        if is_wanted && let Some(call) = ring.call {
            failpoint::reached(Point::BeforeCall);
            call.signal();
        }
        Ok(())
    }

    /// Stores the status of those whose flush is done, and asks for one flush for all that may be flushed by now.
    fn flush<Q: Virtqueue>(&mut self, ring: &mut RingSide<'_, D, Q>, waker: &Waker) -> Result<(), RingError> {
        let RingSide { device, counters, log, .. } = ring;
        if self.flush.is_some_and(|ticket| device.is_flushed(ticket)) {
            for entry in &mut self.entries {
                let Entry::Unflushed(_, Some(ticket)) = entry else { continue };
                let Some(has_flushed) = device.poll_flush(*ticket) else { continue };
                let Entry::Unflushed(held, _) = std::mem::replace(entry, Entry::Abandoned) else { continue };
                if let Some(log) = &mut **log {
                    log.note_slice(Segments::empty(), held.status());
                }
                let settled = device.settle(held, has_flushed, counters);
                if let Some(log) = &mut **log {
                    log.executed(false);
                }
                *entry = Entry::Done(settled?);
            }
        }
        let mut ticket = None;
        for wanted in unbegun_flushes(&mut self.entries, self.is_leaving) {
            // It covers the writes that have finished by now.
            let begun = || device.begin_flush(waker, counters);
            *wanted = Some(*ticket.get_or_insert_with(begun));
        }
        let begun = self.entries.iter().filter_map(|entry| match entry {
            Entry::Unflushed(_, ticket) => *ticket,
            _ => None,
        });
        self.flush = begun.min();
        Ok(())
    }

    /// Completes those that are done, up to the first that is not.
    fn complete(&mut self, queue: &mut impl Virtqueue) {
        while let Some(Entry::Done(_)) = self.entries.front() {
            let Some(Entry::Done(completion)) = self.entries.pop_front() else { break };
            queue.complete(completion);
            self.times.completed();
            self.first = self.first.wrapping_add(1);
            self.has_completed = true;
        }
    }
}
