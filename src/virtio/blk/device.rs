//! The device: executes what a chain asks and decides status and used length, in one place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use super::cache::CacheMode;
use super::config_space::ConfigSpace;
use super::counters::{Counters, Effect};
use super::features;
use super::request::{HEADER_BYTES, Operation, Refusal, guess_offset, parse, parse_ranges};
use super::units::{Limits, SECTOR_BYTES};
use crate::copy::{self, Segments};
use crate::disk::{Disk, DiskError, Flusher, GrowError, Ticket};
use crate::log_limit::LogLimit;
use crate::virtio::queue::{Chain, Completion, HeldStatus, Parts, RingError};

/// How a disk calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// In logs, errors and metrics.
    pub name: String,
    /// To the guest: 20 bytes, padded with zeroes (GET_ID).
    pub serial: [u8; 20],
}

/// A block device over a disk. Shared by all rings of all its front-ends; nothing of it changes but that it may
/// grow.
#[derive(Debug)]
pub struct Device<D: Disk> {
    disk: Arc<D>,
    flusher: Flusher<D>,
    identity: Identity,
    /// With the size at the start.
    limits: Limits,
    /// The size by now.
    capacity_sectors: AtomicU64,
    queues: u16,
    log_limit: LogLimit,
}

/// What became of a request.
#[derive(Debug)]
pub enum Answer {
    /// It is finished.
    Done(Completion),
    /// It is done but for a flush that takes time: the ring waits for [`Device::begin_flush`].
    Held(Held),
}

/// A request that is finished as soon as everything before it persists.
#[derive(Debug)]
#[must_use = "a held request must be settled, or its ring started anew"]
pub struct Held {
    completion: Completion,
    status: HeldStatus,
    effect: Effect,
}

impl Held {
    /// Whether it is a flush: nothing that comes after it in the ring needs to wait with it.
    pub const fn is_flush(&self) -> bool {
        matches!(self.effect, Effect::Flushed)
    }
}

/// Status, and what was done.
struct Outcome {
    status: u32,
    /// Data bytes written without a gap from the start of the device-writable part.
    data_bytes: u64,
    effect: Effect,
    needs_flush: bool,
}

impl Outcome {
    #[inline]
    const fn done(effect: Effect, data_bytes: u64) -> Self {
        Self { status: VIRTIO_BLK_S_OK, data_bytes, effect, needs_flush: false }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::IoError => VIRTIO_BLK_S_IOERR,
            Refusal::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        Self { status, data_bytes: 0, effect: Effect::Failed, needs_flush: false }
    }
}

impl<D: Disk> Device<D> {
    /// A device with `queues` queues over `disk`.
    pub fn new(disk: D, identity: Identity, queues: u16) -> Self {
        let limits = Limits::of(&disk.geometry());
        let disk = Arc::new(disk);
        let flusher = Flusher::new(disk.clone());
        let capacity_sectors = AtomicU64::new(limits.capacity_sectors);
        let log_limit = LogLimit::default();
        Self { disk, flusher, identity, limits, capacity_sectors, queues, log_limit }
    }

    /// What a request is checked against now.
    #[inline]
    fn limits(&self) -> Limits {
        Limits { capacity_sectors: self.capacity_sectors.load(Ordering::Acquire), ..self.limits }
    }

    /// Looks whether the disk has become larger, as [`Disk::reread_size`] says, and serves requests of the new
    /// part then. Returns how many bytes were served before, and are now.
    ///
    /// # Errors
    /// As that method.
    pub fn reread_size(&self) -> Result<(u64, u64), GrowError> {
        let bytes = self.disk.reread_size()?;
        // It never shrinks, whoever of several comes last.
        let before = self.capacity_sectors.fetch_max(bytes / SECTOR_BYTES, Ordering::AcqRel);
        Ok((before.saturating_mul(SECTOR_BYTES), bytes))
    }

    /// The disk behind it.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Its name and serial number.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Queues offered.
    pub const fn queues(&self) -> u16 {
        self.queues
    }

    /// Virtio features offered.
    pub const fn features(&self) -> u64 {
        features::offered(self.limits.read_only, self.queues)
    }

    /// The configuration space as a front-end in this cache mode sees it.
    pub fn config_space(&self, writeback: bool) -> ConfigSpace {
        let alignment = self.disk.discard_alignment_bytes() / SECTOR_BYTES;
        let discard_alignment_sectors = u32::try_from(alignment).unwrap_or(1).max(1);
        ConfigSpace { limits: self.limits(), queues: self.queues, discard_alignment_sectors, writeback }
    }

    /// Does what a chain asks.
    ///
    /// # Errors
    /// [`RingError::NoStatus`] when there is no place for an answer, [`RingError::GuestMemoryLost`] when there
    /// is none any more.
    #[inline]
    pub fn execute(
        &self,
        chain: Chain<'_>,
        cache: &CacheMode,
        counters: &mut Counters,
    ) -> Result<Answer, RingError> {
        let Parts { head, readable, writable, status, data_bytes, flaw } =
            chain.into_parts().ok_or(RingError::NoStatus)?;
        let outcome = match flaw {
            Some(_) => Outcome::from(Refusal::IoError),
            None => match parse(readable, writable, &self.limits()) {
                Ok(operation) => self.perform(&operation, cache),
                Err(refusal) => Outcome::from(refusal),
            },
        };
        // The status counts only where no gap is before it (VIRTIO 1.2 §2.7.8.2).
        let reaches_status = outcome.data_bytes == data_bytes;
        let written_bytes = outcome.data_bytes.saturating_add(u64::from(reaches_status));
        let completion = head.complete(u32::try_from(written_bytes).unwrap_or(u32::MAX));
        if outcome.needs_flush {
            return Ok(Answer::Held(Held { completion, status: status.hold(), effect: outcome.effect }));
        }
        counters.count(outcome.effect);
        // The statuses are 0, 1 and 2.
        status.store(u8::try_from(outcome.status).unwrap_or(u8::MAX))?;
        Ok(Answer::Done(completion))
    }

    /// A request that begins with this header will probably come soon.
    #[inline]
    pub fn expect(&self, header: &[u8; HEADER_BYTES]) {
        if let Some(offset) = guess_offset(header) {
            self.disk.prefetch(offset);
        }
    }

    /// Orders all writes of a batch before its completions are published.
    #[inline]
    pub fn fence(&self) {
        self.disk.fence();
    }

    /// Starts the flush that held requests wait for; `waker` is woken when it is done.
    pub fn begin_flush(&self, waker: &Waker) -> Ticket {
        self.flusher.begin(waker)
    }

    /// Whether a flush is done, and if it has succeeded.
    pub fn poll_flush(&self, ticket: Ticket) -> Option<bool> {
        Some(match self.flusher.poll(ticket)? {
            Ok(()) => true,
            Err(error) => {
                self.log_failure("flush", &error);
                false
            }
        })
    }

    /// Answers a request whose flush is done.
    ///
    /// # Errors
    /// [`RingError::GuestMemoryLost`] when the place for the answer is gone.
    pub fn settle(
        &self,
        held: Held,
        has_flushed: bool,
        counters: &mut Counters,
    ) -> Result<Completion, RingError> {
        let Held { completion, status, effect } = held;
        counters.count(if has_flushed { effect } else { Effect::Failed });
        let code = if has_flushed { VIRTIO_BLK_S_OK } else { VIRTIO_BLK_S_IOERR };
        status.store(u8::try_from(code).unwrap_or(u8::MAX))?;
        Ok(completion)
    }

    #[inline]
    fn perform(&self, operation: &Operation<'_>, cache: &CacheMode) -> Outcome {
        let done = match operation {
            Operation::Read { offset, into } => {
                let bytes = into.total_bytes() as u64;
                let done = self.disk.read(*offset, *into);
                done.map(|()| Outcome::done(Effect::Read(bytes), bytes))
            }
            Operation::Write { offset, from } => {
                let bytes = from.total_bytes() as u64;
                let effect =
                    Effect::Written { bytes, media_bytes: self.disk.media_written_bytes(*offset, bytes) };
                self.disk.write(*offset, *from).and_then(|()| self.persist(effect, cache))
            }
            Operation::Flush => {
                cache.saw_flush();
                self.flush(Effect::Flushed)
            }
            Operation::GetId { into } => {
                let bytes = copy::store_slice(*into, &self.identity.serial);
                Ok(Outcome::done(Effect::Other, bytes as u64))
            }
            Operation::Discard { payload } => return self.unmap(*payload, false, cache),
            Operation::WriteZeroes { payload } => return self.unmap(*payload, true, cache),
        };
        done.unwrap_or_else(|error| self.failed(operation.name(), &error))
    }

    /// DISCARD, or with `zeroes` WRITE_ZEROES: nothing is done unless every range is good.
    #[cold]
    fn unmap(&self, payload: Segments<'_>, zeroes: bool, cache: &CacheMode) -> Outcome {
        let ranges = match parse_ranges(payload, zeroes, &self.limits()) {
            Ok(ranges) => ranges,
            Err(refusal) => return Outcome::from(refusal),
        };
        let mut each = ranges.as_slice().iter();
        let media_bytes = each.try_fold(0_u64, |sum, range| match zeroes {
            true => {
                let taken = self.disk.write_zeroes(range.offset, range.len_bytes, range.unmap)?;
                Ok(sum.saturating_add(taken))
            }
            false => self.disk.discard(range.offset, range.len_bytes).map(|()| sum),
        });
        let persisted = media_bytes.and_then(|media_bytes| match zeroes {
            true => self.persist(Effect::Zeroed { media_bytes }, cache),
            false => Ok(Outcome::done(Effect::Other, 0)),
        });
        let name = if zeroes { "write zeroes" } else { "discard" };
        persisted.unwrap_or_else(|error| self.failed(name, &error))
    }

    /// In write-through mode a write is not done before it persists.
    #[inline]
    fn persist(&self, effect: Effect, cache: &CacheMode) -> Result<Outcome, DiskError> {
        if cache.is_write_through() { self.flush(effect) } else { Ok(Outcome::done(effect, 0)) }
    }

    /// At once where that is possible; else the request is held.
    fn flush(&self, effect: Effect) -> Result<Outcome, DiskError> {
        let flushed = self.disk.try_flush();
        let needs_flush = flushed.is_none();
        flushed.unwrap_or(Ok(()))?;
        Ok(Outcome { needs_flush, ..Outcome::done(effect, 0) })
    }

    /// The media, or guest memory, failed: the request fails, and one line in the log says so.
    #[cold]
    fn failed(&self, operation: &str, error: &DiskError) -> Outcome {
        self.log_failure(operation, error);
        match error {
            DiskError::Unsupported => Outcome::from(Refusal::Unsupported),
            DiskError::OutOfRange | DiskError::ReadOnly | DiskError::Io { .. } => {
                Outcome::from(Refusal::IoError)
            }
        }
    }

    fn log_failure(&self, operation: &str, error: &DiskError) {
        if let Some(suppressed) = self.log_limit.admit() {
            let disk = &self.identity.name;
            tracing::warn!(disk, operation, %error, suppressed, "request failed");
        }
    }
}
