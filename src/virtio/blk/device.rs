//! The device: its disk, how it calls itself, its limits and features, and the flushes of its disk.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use super::cache::CacheMode;
use super::config_space::ConfigSpace;
use super::counters::Counters;
use super::features;
use super::latency::Latency;
use super::pending::RequestTask;
use super::request::ErrorStatus;
use super::slow::Slow;
use super::units::{Limits, SECTOR_BYTES, SEG_MAX};
use crate::copy::fault::interruption;
use crate::disk::executor::{TaskName, Threads, Unfinished};
use crate::disk::{Disk, DiskError, Flusher, GrowError, Ticket};
use crate::limits::bounds::MAX_IO_THREADS;
use crate::log::{Cause, LogLimit, kinds};
use crate::sandbox::ThreadKind;
use crate::throttle::Throttle;

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
    /// What may wait for media is done by these.
    threads: Threads<RequestTask<D>>,
    identity: Identity,
    /// With the size at the start.
    limits: Limits,
    /// The size by now.
    capacity_sectors: AtomicU64,
    /// As [`Disk::flushes_by_fence`] says.
    flushes_by_fence: bool,
    /// The kernel does none of its transfers by itself, it has said.
    refuses_direct: AtomicBool,
    /// To begin them may wait: its driver knows of nothing else.
    waits_to_begin: AtomicBool,
    queues: u16,
    seg_max: u16,
    log_limit: Arc<LogLimit>,
    common: Arc<Common>,
}

/// What a device has in common with those that were [made like it](Device::another).
#[derive(Debug, Default)]
struct Common {
    latency: Latency,
    slow: Slow,
    /// What limits its rings. A ring keeps what it has of it: this is looked at when it comes, and when its worker is told.
    throttle: Mutex<Option<Arc<Throttle>>>,
}

impl<D: Disk> Device<D> {
    /// A device with `queues` queues over `disk`.
    pub fn new(disk: D, identity: Identity, queues: u16) -> Self {
        let (limits, flushes_by_fence, has_direct) =
            (Limits::of(&disk), disk.flushes_by_fence(), disk.has_direct());
        let disk = Arc::new(disk);
        let flusher = Flusher::new(disk.clone());
        let capacity_sectors = AtomicU64::new(limits.capacity_sectors);
        let log_limit = Arc::default();
        Self {
            disk,
            flusher,
            threads: Threads::new(ThreadKind::Io, MAX_IO_THREADS),
            identity,
            limits,
            capacity_sectors,
            flushes_by_fence,
            refuses_direct: AtomicBool::new(!has_direct),
            waits_to_begin: AtomicBool::new(false),
            queues,
            seg_max: SEG_MAX,
            log_limit,
            common: Arc::default(),
        }
    }

    /// One over another disk that is served by the same name: it has the same limits, and counts with this one.
    #[must_use]
    pub fn another(&self, disk: D, serial: [u8; 20]) -> Self {
        let identity = Identity { name: self.identity.name.clone(), serial };
        let device = Self::new(disk, identity, self.queues).with_seg_max(self.seg_max);
        Self { log_limit: Arc::clone(&self.log_limit), common: Arc::clone(&self.common), ..device }
    }

    /// Limits what its rings do, from when their workers are told ([`Pool::renew_limits`](crate::worker::Pool::renew_limits)).
    pub fn set_throttle(&self, throttle: Option<Arc<Throttle>>) {
        *self.common.throttle.lock().unwrap_or_else(PoisonError::into_inner) = throttle;
    }

    /// What limits its rings.
    pub fn throttle(&self) -> Option<Arc<Throttle>> {
        self.common.throttle.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

    /// How long its requests take.
    pub fn latency(&self) -> &Latency {
        &self.common.latency
    }

    /// Which of them are slow.
    pub fn slow(&self) -> &Slow {
        &self.common.slow
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

    /// Whether a write that has been copied is done in this cache mode: the fence of its batch is all it still takes.
    #[inline]
    pub(super) fn writes_are_copies(&self, cache: &CacheMode) -> bool {
        !self.limits.read_only && (self.flushes_by_fence || !cache.is_write_through())
    }

    /// The disk behind it.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    pub(super) const fn shared_disk(&self) -> &Arc<D> {
        &self.disk
    }

    /// Whether the kernel does some of its transfers by itself.
    #[inline]
    pub fn has_direct(&self) -> bool {
        !self.refuses_direct.load(Ordering::Relaxed)
    }

    /// It does not: from now on threads do them.
    #[cold]
    pub fn refuse_direct(&self) {
        self.refuses_direct.store(true, Ordering::Relaxed);
    }

    /// Whether to begin them may wait, since otherwise none can be begun.
    pub fn waits_to_begin(&self) -> bool {
        self.waits_to_begin.load(Ordering::Relaxed)
    }

    /// From now on.
    #[cold]
    pub fn wait_to_begin(&self) {
        self.waits_to_begin.store(true, Ordering::Relaxed);
    }

    pub(super) const fn threads(&self) -> &Threads<RequestTask<D>> {
        &self.threads
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

    /// Whether [`poll_flush`](Self::poll_flush) would tell. Costs one load.
    #[inline]
    pub fn is_flushed(&self, ticket: Ticket) -> bool {
        self.flusher.is_done(ticket)
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

    /// How many requests threads have, and whether a flush was asked for that is not done.
    #[cfg(test)]
    pub(crate) fn under_way(&self) -> (usize, bool) {
        (self.threads.unfinished().0, self.flusher.is_asked())
    }

    /// How many requests are begun and not done, and the oldest of them. A flush counts as one, whoever waits for it.
    pub fn unfinished(&self) -> (usize, Option<Unfinished>) {
        let (count, oldest) = self.threads.unfinished();
        let Some(since) = self.flusher.unfinished() else { return (count, oldest) };
        let bytes = self.limits().capacity_sectors.saturating_mul(SECTOR_BYTES);
        let name = TaskName { operation: "flush", offset: 0, len_bytes: bytes };
        let oldest = oldest.filter(|it| it.since <= since).unwrap_or(Unfinished { name, since });
        (count.saturating_add(1), Some(oldest))
    }

    /// The media, or guest memory, failed: the request fails, and one line in the log says so.
    #[cold]
    pub(super) fn failed(&self, operation: &str, error: &DiskError) -> ErrorStatus {
        self.log_failure(operation, error);
        match error {
            DiskError::Unsupported => ErrorStatus::Unsupported,
            DiskError::OutOfRange { .. }
            | DiskError::ReadOnly { .. }
            | DiskError::Io { .. }
            | DiskError::Sync { .. } => ErrorStatus::IoError,
        }
    }

    fn log_failure(&self, operation: &str, error: &DiskError) {
        // One that was interrupted is done again.
        if !interruption::is_interrupted()
            && let Some(suppressed) = self.log_limit.admit(Cause::of_request(operation))
        {
            let disk = &self.identity.name;
            tracing::warn!(name: kinds::REQUEST_FAILED, disk, operation, %error, suppressed, "request failed");
        }
    }
}
