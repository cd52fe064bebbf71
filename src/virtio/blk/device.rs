//! The device: executes what a chain asks and decides status and used length, in one place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use super::cache::CacheMode;
use super::config_space::ConfigSpace;
use super::counters::{Counters, Effect};
use super::features;
use super::request::{ErrorStatus, OK, Operation, parse};
use super::sliced::{Parts, SlicedRequest, takes_long};
use super::units::{Limits, SECTOR_BYTES, SEG_MAX};
use crate::copy;
use crate::disk::{Disk, DiskError, Flusher, GrowError, Ticket};
use crate::log::{Cause, LogLimit};
use crate::virtio::queue::{Chain, Completion, Head, HeldStatus, RingError, Status};

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
    seg_max: u16,
    log_limit: Arc<LogLimit>,
}

/// What became of a request.
#[derive(Debug)]
pub enum Progress {
    /// It is finished.
    Completed(Completion),
    /// It is done but for a flush that takes time: the ring waits for [`Device::begin_flush`].
    Held(HeldRequest),
    /// It takes long: [`Device::next_slice`] does one slice of it after the other, and answers in the end.
    Sliced,
}

/// A request that is finished as soon as everything before it persists.
#[derive(Debug)]
#[must_use = "a held request must be settled, or its ring started anew"]
pub struct HeldRequest {
    completion: Completion,
    status: HeldStatus,
    effect: Effect,
}

impl HeldRequest {
    /// Whether it is a flush: nothing that comes after it in the ring needs to wait with it.
    pub const fn is_flush(&self) -> bool {
        matches!(self.effect, Effect::Flushed)
    }
}

/// What was done, or why not.
pub(super) type Outcome = Result<Done, ErrorStatus>;

/// A request that has not failed.
pub(super) enum Done {
    /// It is done and counted, and has written so many data bytes without a gap from the start of the
    /// device-writable part.
    Counted(u64),
    /// It is done when everything before it persists.
    Unflushed(Effect),
}

/// A request that is done and has written no data to the guest.
#[inline]
pub(super) const fn counted(effect: Effect, counters: &mut Counters) -> Done {
    counters.count(effect);
    Done::Counted(0)
}

impl<D: Disk> Device<D> {
    /// A device with `queues` queues over `disk`.
    pub fn new(disk: D, identity: Identity, queues: u16) -> Self {
        let limits = Limits::of(&disk);
        let disk = Arc::new(disk);
        let flusher = Flusher::new(disk.clone());
        let capacity_sectors = AtomicU64::new(limits.capacity_sectors);
        let log_limit = Arc::default();
        Self { disk, flusher, identity, limits, capacity_sectors, queues, seg_max: SEG_MAX, log_limit }
    }

    /// Tells drivers that a request may have so many data segments, in place of [`SEG_MAX`]. More are taken all the same.
    #[must_use]
    pub fn with_seg_max(self, seg_max: u16) -> Self {
        Self { seg_max, ..self }
    }

    /// Descriptors that the longest request takes which drivers are told of, without a table.
    pub const fn longest_chain(&self) -> u16 {
        self.seg_max.saturating_add(2)
    }

    /// For lines of the log that its guest, its front-ends or its file can cause.
    pub const fn log_limit(&self) -> &Arc<LogLimit> {
        &self.log_limit
    }

    /// What a request is checked against now.
    #[inline]
    pub(super) fn limits(&self) -> Limits {
        Limits { capacity_sectors: self.capacity_sectors.load(Ordering::Acquire), ..self.limits }
    }

    /// Reads the size of the disk again, as [`Disk::rescan_size`] says, and serves requests of the new
    /// part then. Returns how many bytes were served before, and are now.
    ///
    /// # Errors
    /// As that method.
    pub fn rescan_size(&self) -> Result<(u64, u64), GrowError> {
        let bytes = self.disk.rescan_size()?;
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
        ConfigSpace {
            limits: self.limits(),
            queues: self.queues,
            seg_max: self.seg_max,
            discard_alignment_sectors,
            writeback,
        }
    }

    /// Does what a chain asks, or begins to: `sliced` has room for one request that takes long, and must not have one that
    /// is not finished.
    ///
    /// # Errors
    /// [`RingError::GuestMemoryLost`] when there is no place for the answer any more.
    #[inline]
    pub fn execute(
        &self,
        chain: Chain<'_>,
        cache: &CacheMode,
        counters: &mut Counters,
        sliced: &mut SlicedRequest,
    ) -> Result<Progress, RingError> {
        let Chain { head, header, flaw, readable, writable, status, data_bytes } = chain;
        let outcome = match flaw {
            None => match parse(&header, readable, writable, &self.limits()) {
                Ok(operation) if takes_long(&operation) => {
                    let parts = Parts { head, status, data_bytes };
                    return self.begin(&operation, parts, sliced, counters);
                }
                Ok(operation) => self.perform(&operation, cache, counters),
                Err(error) => Err(error),
            },
            Some(_) => Err(ErrorStatus::IoError),
        };
        Self::complete(outcome, head, data_bytes, counters, status)
    }

    /// What is answered to a request of which that has become.
    #[inline(always)]
    pub(super) fn complete(
        outcome: Outcome,
        head: Head,
        data_bytes: u64,
        counters: &mut Counters,
        status: impl Status,
    ) -> Result<Progress, RingError> {
        // The status counts only where no gap is before it (VIRTIO 1.2 §2.7.8.2).
        let complete = |written_bytes: u64| {
            let reaches_status = written_bytes == data_bytes;
            head.complete(u32::try_from(written_bytes + u64::from(reaches_status)).unwrap_or(u32::MAX))
        };
        let (code, written_bytes) = match outcome {
            Ok(Done::Counted(written_bytes)) => (OK, written_bytes),
            Ok(Done::Unflushed(effect)) => {
                return Ok(Progress::Held(HeldRequest {
                    completion: complete(0),
                    status: status.hold(),
                    effect,
                }));
            }
            Err(error) => {
                counters.count(Effect::Failed);
                (error.status(), 0)
            }
        };
        status.store(code)?;
        Ok(Progress::Completed(complete(written_bytes)))
    }

    /// Orders all writes of a batch before its completions are published.
    #[inline]
    pub fn fence(&self) {
        self.disk.fence();
    }

    /// Has something done, on a thread of the disk's own, before the first flush of a writer is answered.
    pub fn after_first_flush(&self, then: impl FnOnce() + Send + 'static) {
        self.flusher.after_first_write(then);
    }

    /// Starts the flush that held requests wait for; `waker` is woken when it is done. `counters` are those of who asks.
    pub fn begin_flush(&self, waker: &Waker, counters: &Counters) -> Ticket {
        self.flusher.begin(waker, counters.media_written_bytes != 0)
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
        held: HeldRequest,
        has_flushed: bool,
        counters: &mut Counters,
    ) -> Result<Completion, RingError> {
        let HeldRequest { completion, status, effect } = held;
        counters.count(if has_flushed { effect } else { Effect::Failed });
        status.store(if has_flushed { OK } else { ErrorStatus::IoError.status() })?;
        Ok(completion)
    }

    #[inline]
    fn perform(&self, operation: &Operation<'_>, cache: &CacheMode, counters: &mut Counters) -> Outcome {
        let name = operation.name();
        match *operation {
            Operation::Read { offset, into } => match self.disk.read(offset, into) {
                Ok(()) => {
                    let bytes = into.total_bytes() as u64;
                    counters.count(Effect::Read(bytes));
                    Ok(Done::Counted(bytes))
                }
                Err(error) => Err(self.failed(name, &error)),
            },
            Operation::Write { offset, from } => {
                let bytes = from.total_bytes() as u64;
                let media_bytes = self.disk.media_written_bytes(offset, bytes);
                let effect = Effect::Written { bytes, media_bytes };
                match self.disk.write(offset, from) {
                    // In write-through mode it is not done before it persists.
                    Ok(()) if !cache.is_write_through() => Ok(counted(effect, counters)),
                    Ok(()) => self.flush(effect, counters).map_err(|error| self.failed(name, &error)),
                    Err(error) => Err(self.failed(name, &error)),
                }
            }
            Operation::Flush => {
                cache.saw_flush();
                self.flush(Effect::Flushed, counters).map_err(|error| self.failed(name, &error))
            }
            Operation::GetId { into } => {
                let bytes = copy::store_slice(into, &self.identity.serial);
                counters.count(Effect::Other);
                Ok(Done::Counted(bytes as u64))
            }
            // These are done in slices.
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => Err(ErrorStatus::Unsupported),
        }
    }

    /// At once where that is possible; else the request is held.
    #[inline(never)]
    pub(super) fn flush(&self, effect: Effect, counters: &mut Counters) -> Result<Done, DiskError> {
        match self.disk.try_flush() {
            Some(flushed) => flushed.map(|()| counted(effect, counters)),
            None => Ok(Done::Unflushed(effect)),
        }
    }

    /// The media, or guest memory, failed: the request fails, and one line in the log says so.
    #[cold]
    pub(super) fn failed(&self, operation: &str, error: &DiskError) -> ErrorStatus {
        self.log_failure(operation, error);
        match error {
            DiskError::Unsupported => ErrorStatus::Unsupported,
            DiskError::OutOfRange | DiskError::ReadOnly | DiskError::Io { .. } => ErrorStatus::IoError,
        }
    }

    fn log_failure(&self, operation: &str, error: &DiskError) {
        if let Some(suppressed) = self.log_limit.admit(Cause::of_request(operation)) {
            let disk = &self.identity.name;
            tracing::warn!(disk, operation, %error, suppressed, "request failed");
        }
    }
}
