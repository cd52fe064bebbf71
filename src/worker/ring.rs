//! A running ring: the queue, its guest memory, its device and its three descriptors.

pub(super) mod limited;
pub(super) mod waiting;

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Waker;

use super::execute::{Waiting, complete_or_hold, execute};
use super::hold_ups::HoldUps;
use super::notifier::Notifier;
use super::parts::{MANY_REQUESTS, Popped, WAKE_UP_REQUESTS, warn_of_small_ring};
pub use super::parts::{RingKey, RingParts, Served};
use super::pending::{Pending, Waits};
use super::times::Times;
use crate::copy::fault::interruption;
use crate::disk::Disk;
use crate::failpoint::{self, Point};
use crate::limits::bounds::{MAX_SLICE_BYTES, MAX_TURN_BYTES, MAX_TURN_REQUESTS};
use crate::log::{Cause, LogLimit, kinds};
use crate::throttle::{Kind, Share};
use crate::virtio::blk::{CacheMode, Counters, Device, Progress, SlicedRequest, Transfer, kind_for_limits};
use crate::virtio::memory::Translator;
use crate::virtio::queue::{Batch, Bounds, Indices, Next, RingError, RingLog, SplitQueue, Virtqueue};

/// Requests whose media is prefetched at once.
const PREFETCHED_REQUESTS: u16 = 16;

/// A started ring, driven by whoever owns it.
#[derive(Debug)]
#[repr(align(128))] // it changes with each request: no other worker's ring may share a cache line, or a pair of them
pub struct Ring<D: Disk, Q: Virtqueue = SplitQueue> {
    key: RingKey,
    queue: Q,
    batch: Batch,
    device: Arc<Device<D>>,
    cache: Arc<CacheMode>,
    kick: Arc<File>,
    call: Option<Arc<Notifier>>,
    err: Option<Arc<Notifier>>,
    connection: Option<Arc<UnixStream>>,
    hold_ups: Arc<HoldUps>,
    counters: Counters,
    broken: Option<RingError>,
    /// The next chain is probably of the common shape.
    is_contiguous: bool,
    /// Requests that wait for a flush, and those finished behind them, in the ring's order.
    held: Vec<Waiting>,
    /// Whether they do, or all of its requests may wait for media.
    waits: Waits<D>,
    /// A request that takes several turns.
    sliced: SlicedRequest,
    /// What it may do, where its disk is limited.
    limit: Option<Box<Share>>,
    /// When its requests were taken, where some may be slow and their media makes none wait.
    times: Option<Box<Times>>,
    /// Marks what is written to guest memory, while that is wanted.
    log: Option<Box<RingLog>>,
    log_limit: Arc<LogLimit>,
}

impl<D: Disk, Q: Virtqueue> Ring<D, Q> {
    /// Starts a ring where the one before it has stopped.
    ///
    /// # Errors
    /// Size or addresses are not usable.
    pub fn start(parts: RingParts<D>, log_limit: Arc<LogLimit>) -> Result<Self, RingError> {
        let RingParts { key, layout, memory, device, cache, kick, call, err, connection, hold_ups } = parts;
        let queue = Q::start(&layout, &memory)?;
        device.latency().prepare();
        if !layout.indirect && layout.size < device.longest_chain().into() {
            warn_of_small_ring(&device, &key, &layout);
        }
        // Where pages come later the ring has a worker of its own; and a thread of the disk would write zeroes in place of them.
        let is_begun = device.disk().may_wait() && !memory.awaits_pages();
        let waits = if is_begun {
            Waits::Media(Pending::new(layout.size, key.index, device.slow()))
        } else {
            Waits::Nothing
        };
        Ok(Self {
            key,
            queue,
            batch: Batch::new(Translator::new(memory)),
            device,
            cache,
            kick,
            call,
            err,
            connection,
            hold_ups,
            counters: Counters::default(),
            broken: None,
            is_contiguous: true,
            held: Vec::with_capacity(usize::from(MAX_TURN_REQUESTS)),
            waits,
            sliced: SlicedRequest::default(),
            limit: None,
            times: None,
            log: None,
            log_limit,
        })
    }

    /// Marks in the dirty log what it writes to guest memory from now on: a live migration copies that.
    pub fn log_to(&mut self, log: RingLog) {
        self.batch.memory().log_to(Arc::clone(log.dirty_log()));
        self.queue.log_all(&log);
        self.log = Some(Box::new(log));
    }

    /// Which ring this is.
    pub const fn key(&self) -> RingKey {
        self.key
    }

    /// What becomes readable when the driver kicks.
    pub fn kick(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// Whether the driver broke it: it stays silent until it is started anew.
    pub const fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Where the ring goes on (`GET_VRING_BASE`): a request that still waits for a flush comes after it, and is done again.
    pub fn base(&self) -> u32 {
        self.queue.base()
    }

    /// The device behind it.
    pub const fn device(&self) -> &Arc<Device<D>> {
        &self.device
    }

    /// What its disk's front-ends hold up.
    pub const fn hold_ups(&self) -> &Arc<HoldUps> {
        &self.hold_ups
    }

    /// What it has done since it was started.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where it stands, how many requests wait in it, and what has broken it.
    pub(super) fn standing(&self) -> (Indices, usize, Option<&RingError>) {
        (self.queue.indices(), self.waits.under_way().max(self.held.len()), self.broken.as_ref())
    }

    /// Whether there is something to do. Costs one load.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.broken.is_none()
            && match &self.waits {
                Waits::Nothing => self.sliced.is_in_progress() || self.queue.has_available(),
                Waits::Flush(..) => true,
                Waits::Media(pending) => {
                    pending.has_work(&self.device, self.queue.has_available() && !self.is_held_by_limit())
                }
                Waits::Limit => {
                    !self.is_held_by_limit() && (self.sliced.is_in_progress() || self.queue.has_available())
                }
            }
    }

    /// Whether a turn of it is as long as the requests take that it counts then. While a limit holds it, none is taken.
    pub(super) fn is_timed(&self) -> bool {
        self.times.is_none()
            && matches!(self.waits, Waits::Nothing | Waits::Limit)
            && !self.sliced.is_in_progress()
            && self.has_work()
    }

    /// Asks the driver to kick when it makes chains available. Returns whether some have come meanwhile, for
    /// which no kick will come.
    #[inline]
    pub fn arm(&mut self) -> bool {
        if self.broken.is_some() || self.is_held_by_limit() {
            return false;
        }
        let has_more = self.queue.arm_kicks();
        if !has_more && self.limit.is_some() {
            self.rest();
        }
        if let Some(log) = &self.log {
            self.queue.log(log);
        }
        // Zeroes in place of lost memory are an empty ring: nothing else would ever read it again.
        self.check_memory();
        let is_full = matches!(&self.waits, Waits::Media(pending) if pending.is_full());
        has_more && self.broken.is_none() && !is_full
    }

    /// Whether it waits for so much of its media that it is woken often.
    pub(super) fn waits_for_media(&self) -> bool {
        matches!(&self.waits, Waits::Media(pending) if pending.has_much_in_flight())
    }

    /// One turn: does up to a batch of requests, publishes them and calls the driver if it wants that, all at once or in a
    /// few parts. `waker` is woken when a flush that the ring waits for is done. The driver does not kick from then on,
    /// unless the ring is [armed](Self::arm).
    #[inline]
    pub fn serve(&mut self, waker: &Waker) -> Served {
        if !matches!(self.waits, Waits::Nothing)
            && let Some(served) = self.serve_waiting(waker)
        {
            return served;
        }
        if self.broken.is_some() {
            return Served::Idle;
        }
        self.queue.park_kicks();
        let has_more = if self.sliced.is_in_progress() { self.next_slice() } else { self.batch() };
        self.fence_and_publish();
        self.check_memory();
        if !self.held.is_empty() {
            self.wait_for_flush(waker);
        }
        match has_more {
            _ if self.broken.is_some() => {}
            Err(error) => self.break_ring(error),
            // Nothing more is fetched, and no kick needed, until the flush is done.
            Ok(_) if !matches!(self.waits, Waits::Nothing) => {}
            Ok(true) => return Served::More,
            Ok(false) => {}
        }
        if matches!(self.waits, Waits::Nothing) { Served::Idle } else { Served::Held }
    }

    /// Does up to a batch of requests, or up to a flush. Returns whether there may be more.
    #[inline]
    fn batch(&mut self) -> Result<bool, RingError> {
        let (mut left, mut popped) = (MAX_TURN_REQUESTS, 0_u16);
        let mut left_bytes = i64::from(MAX_TURN_BYTES);
        while left > 0 {
            let Some(bytes) = u32::try_from(left_bytes).ok().filter(|bytes| *bytes > 0) else { break };
            let mut next = Next::Other;
            if self.is_contiguous {
                next = self.take_contiguous(Bounds { chains: left, bytes })?;
                let taken = self.batch.len();
                if taken > 0 {
                    left_bytes = self.batch.left_bytes();
                }
                left = left.saturating_sub(taken);
                if self.log.is_some() {
                    if self.transfer_logged()? {
                        break;
                    }
                } else {
                    // Where few more wait, the driver is called after half of them: it wakes up while the rest is done.
                    if taken >= MANY_REQUESTS && !self.queue.has_more_than(WAKE_UP_REQUESTS) {
                        if self.transfer(taken / 2)? {
                            break;
                        }
                        self.fence_and_publish();
                    }
                    if self.transfer(taken)? {
                        break;
                    }
                }
                if taken >= MANY_REQUESTS && next == Next::Any && left > 0 {
                    self.fence_and_publish();
                }
            }
            match next {
                Next::Nothing if !self.queue.has_available() => return Ok(false),
                Next::Other if left > 0 => match self.pop(popped)? {
                    Popped::Nothing => return Ok(false),
                    Popped::Waits => break,
                    Popped::Done(bytes) => {
                        (left, popped) = (left.saturating_sub(1), popped.wrapping_add(1));
                        left_bytes = left_bytes.saturating_sub_unsigned(bytes);
                    }
                },
                Next::Nothing | Next::Any | Next::Other => {}
            }
        }
        Ok(true)
    }

    /// Takes the next chains of the common shape. Returns what follows.
    #[inline(never)]
    fn take_contiguous(&mut self, bounds: Bounds) -> Result<Next, RingError> {
        self.queue.take_contiguous(&mut self.batch, bounds, self.device.prefetcher())
    }

    /// Does the next request, of any shape; `number` of this batch were done by this function before it.
    #[cold]
    #[inline(never)]
    fn pop(&mut self, number: u16) -> Result<Popped, RingError> {
        if number.is_multiple_of(PREFETCHED_REQUESTS) {
            self.prefetch_media();
        }
        let Some(chain) = self.queue.pop(self.batch.memory())? else { return Ok(Popped::Nothing) };
        self.is_contiguous = chain.readable.as_slice().len() + chain.writable.as_slice().len() <= 1;
        let bytes = match chain.flaw {
            None => chain.readable.total_bytes().saturating_add(chain.writable.total_bytes()) as u64,
            // To find the flaw may have taken as long.
            Some(_) => u64::from(MAX_TURN_BYTES),
        };
        let Self { device, cache, counters, sliced, log, limit, times, .. } = self;
        if let Some(times) = times {
            times.begin(&chain.header, bytes);
        }
        if let Some(limit) = limit {
            let kind = if chain.flaw.is_none() { kind_for_limits(&chain.header) } else { Kind::Other };
            limit.count(kind);
            // What has more is done, and counted, in slices, or refused.
            limit.count_bytes(kind, if bytes <= MAX_SLICE_BYTES { bytes } else { 0 });
        }
        let progress = execute(chain, device, cache, counters, sliced, log)?;
        let waits = complete_or_hold(&mut self.queue, &mut self.held, progress);
        Ok(if waits { Popped::Waits } else { Popped::Done(bytes) })
    }

    /// Does the next slice of a request that takes long.
    #[cold]
    #[inline(never)]
    fn next_slice(&mut self) -> Result<bool, RingError> {
        let Self { queue, device, cache, counters, held, sliced, log, times, .. } = self;
        if let (Some(log), Some((writable, status))) = (&mut *log, sliced.writable()) {
            log.note_slice(writable, status);
        }
        let timed = sliced.timed().filter(|_| times.is_none());
        let progress = device.next_slice(sliced, cache, counters);
        if let Some(log) = log {
            // As in `execute_logged`.
            device.fence();
            log.executed(matches!(progress, Ok(Some(Progress::Held(_)))));
        }
        if let Some(progress) = progress? {
            if let Some((what, since)) = timed {
                device.latency().add(what, since.elapsed(), 1);
            }
            complete_or_hold(queue, held, progress);
        }
        Ok(true)
    }

    /// Executes up to so many of the chains taken. Returns whether the last one is a flush that takes time.
    #[inline(never)]
    fn transfer(&mut self, most: u16) -> Result<bool, RingError> {
        let Self { queue, batch, device, cache, counters, held, sliced, log, .. } = self;
        let device: &Device<D> = device;
        let rules = device.rules(cache);
        for chain in batch.drain(most) {
            match device.transfer(chain, &rules, counters) {
                Transfer::Done(completion) if held.is_empty() => queue.complete(completion),
                Transfer::Done(completion) => held.push(Waiting::Finished(completion)),
                Transfer::Other(chain) => {
                    let progress = execute(chain.into_chain(), device, cache, counters, sliced, log)?;
                    if complete_or_hold(queue, held, progress) {
                        return Ok(true);
                    }
                }
                Transfer::Lost => return Err(RingError::GuestMemoryLost),
            }
        }
        Ok(false)
    }

    /// As [`transfer`](Self::transfer), and what they may have written is marked.
    #[cold]
    #[inline(never)]
    fn transfer_logged(&mut self) -> Result<bool, RingError> {
        let Self { queue, batch, device, cache, counters, held, sliced, log, .. } = self;
        for chain in batch.drain(u16::MAX) {
            let progress = execute(chain.into_chain(), device, cache, counters, sliced, log)?;
            if complete_or_hold(queue, held, progress) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Prefetches the media of the next requests at once: their page walks overlap then.
    #[inline(never)]
    fn prefetch_media(&mut self) {
        let prefetch = self.device.prefetcher();
        for ahead in 0..PREFETCHED_REQUESTS {
            let Some(header) = self.queue.peek(ahead, self.batch.memory()) else { return };
            prefetch(&header);
        }
    }

    /// Orders the stores to the media, then publishes what is done.
    #[inline]
    fn fence_and_publish(&mut self) {
        self.device.fence();
        self.publish();
    }

    /// Publishes what is done, and calls the driver. Not if guest memory is lost: what was copied from it meanwhile may have
    /// been the zeroes in its place.
    #[inline(always)] // else each turn would save its registers once more
    fn publish(&mut self) {
        if self.batch.memory().is_lost() {
            return self.break_ring(RingError::GuestMemoryLost);
        }
        if let Some(log) = &self.log {
            self.queue.log(log);
        }
        failpoint::reached(Point::BeforeUsed);
        let is_wanted = self.queue.publish();
        failpoint::reached(Point::AfterUsed);
        if let Some(log) = &self.log {
            self.queue.log(log);
        }
        if is_wanted && let Some(call) = &self.call {
            failpoint::reached(Point::BeforeCall);
            call.signal();
        }
    }

    /// Breaks the ring if guest memory is lost. Index, flags and events of the ring are read and written without a check, so
    /// it is made after them, once in each turn; `publish` makes it between two parts of a turn.
    #[inline]
    fn check_memory(&mut self) {
        if self.batch.memory().is_lost() {
            self.break_ring(RingError::GuestMemoryLost);
        }
    }

    #[cold]
    #[inline(never)]
    fn break_ring(&mut self, error: RingError) {
        if self.broken.is_some() {
            return;
        }
        // Where it cannot leave it ends as if its memory were lost.
        if interruption::is_interrupted() && self.hold_ups.leave() {
            self.broken = Some(RingError::Interrupted);
            return;
        }
        let error = if self.batch.memory().is_log_lost() { RingError::DirtyLogLost } else { error };
        self.broken = Some(error);
        self.counters.broken_rings = self.counters.broken_rings.wrapping_add(1);
        if let Some(err) = &self.err {
            err.signal();
        }
        if let Some(suppressed) = self.log_limit.admit(Cause::RingBroken) {
            let (disk, ring) = (&self.device.identity().name, self.key.index);
            tracing::warn!(name: kinds::RING_BROKEN, disk, ring, %error, suppressed, "the driver broke a ring; it waits for a restart");
        }
        if matches!(error, RingError::GuestMemoryLost | RingError::DirtyLogLost)
            && let Some(connection) = &self.connection
        {
            // It fails if the connection is closed already. Either way the session's thread takes its rings back.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}
