//! The device: executes what a chain asks and decides status and used length, in one place.

use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use super::cache::CacheMode;
use super::config_space::ConfigSpace;
use super::counters::Counters;
use super::features;
use super::request::{Operation, Refusal, parse, parse_ranges};
use super::units::Limits;
use crate::copy;
use crate::disk::{Disk, DiskError};
use crate::log_limit::LogLimit;
use crate::virtio::queue::{Chain, Completion, Parts, RingError};

/// How a disk calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// In logs, errors and metrics.
    pub name: String,
    /// To the guest: 20 bytes, padded with zeroes (GET_ID).
    pub serial: [u8; 20],
}

/// A block device over a disk. Shared by all rings of all its front-ends; never changes.
#[derive(Debug)]
pub struct Device<D> {
    disk: D,
    identity: Identity,
    limits: Limits,
    queues: u16,
    log_limit: LogLimit,
}

/// What became of a request.
struct Outcome {
    status: u32,
    /// Data bytes written without a gap from the start of the device-writable part.
    data_bytes: u64,
}

impl Outcome {
    const OK: Self = Self { status: VIRTIO_BLK_S_OK, data_bytes: 0 };
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::IoError => VIRTIO_BLK_S_IOERR,
            Refusal::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        Self { status, data_bytes: 0 }
    }
}

impl<D: Disk> Device<D> {
    /// A device with `queues` queues over `disk`.
    pub fn new(disk: D, identity: Identity, queues: u16) -> Self {
        let limits = Limits::of(&disk.geometry());
        Self { disk, identity, limits, queues, log_limit: LogLimit::default() }
    }

    /// The disk behind it.
    pub const fn disk(&self) -> &D {
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
    pub const fn config_space(&self, writeback: bool) -> ConfigSpace {
        ConfigSpace { limits: self.limits, queues: self.queues, writeback }
    }

    /// Does what a chain asks.
    ///
    /// # Errors
    /// [`RingError::NoStatus`] when there is no place for an answer.
    #[inline]
    pub fn execute(
        &self,
        chain: Chain<'_>,
        cache: &CacheMode,
        counters: &mut Counters,
    ) -> Result<Completion, RingError> {
        let Parts { head, readable, writable, status, data_bytes, flaw } =
            chain.into_parts().ok_or(RingError::NoStatus)?;
        let outcome = match flaw {
            Some(_) => Outcome::from(Refusal::IoError),
            None => match parse(readable, writable, &self.limits) {
                Ok(operation) => self.perform(&operation, cache, counters),
                Err(refusal) => Outcome::from(refusal),
            },
        };
        if outcome.status != VIRTIO_BLK_S_OK {
            counters.failures = counters.failures.wrapping_add(1);
        }
        // The statuses are 0, 1 and 2.
        status.store(u8::try_from(outcome.status).unwrap_or(u8::MAX));
        // The status counts only where no gap is before it (VIRTIO 1.2 §2.7.8.2).
        let reaches_status = outcome.data_bytes == data_bytes;
        let written_bytes = outcome.data_bytes.saturating_add(u64::from(reaches_status));
        Ok(head.complete(u32::try_from(written_bytes).unwrap_or(u32::MAX)))
    }

    /// Orders all writes of a batch before its completions are published.
    #[inline]
    pub fn fence(&self) {
        self.disk.fence();
    }

    #[inline]
    fn perform(&self, operation: &Operation<'_>, cache: &CacheMode, counters: &mut Counters) -> Outcome {
        let done = match operation {
            Operation::Read { offset, into } => {
                let bytes = into.total_bytes() as u64;
                self.disk.read(*offset, *into).map(|()| {
                    counters.reads = counters.reads.wrapping_add(1);
                    counters.read_bytes = counters.read_bytes.wrapping_add(bytes);
                    bytes
                })
            }
            Operation::Write { offset, from } => {
                let written = self.disk.write(*offset, *from).and_then(|()| self.persist(cache));
                written.map(|()| {
                    counters.writes = counters.writes.wrapping_add(1);
                    let bytes = from.total_bytes() as u64;
                    counters.written_bytes = counters.written_bytes.wrapping_add(bytes);
                    0
                })
            }
            Operation::Flush => {
                cache.saw_flush();
                let flushed = self.disk.flush();
                flushed.map(|()| {
                    counters.flushes = counters.flushes.wrapping_add(1);
                    0
                })
            }
            Operation::GetId { into } => {
                counters.others = counters.others.wrapping_add(1);
                Ok(copy::store_slice(*into, &self.identity.serial) as u64)
            }
            Operation::Discard { payload } => return self.unmap(*payload, false, cache, counters),
            Operation::WriteZeroes { payload } => return self.unmap(*payload, true, cache, counters),
        };
        match done {
            Ok(data_bytes) => Outcome { data_bytes, ..Outcome::OK },
            Err(error) => self.failed(operation.name(), &error),
        }
    }

    /// DISCARD, or with `zeroes` WRITE_ZEROES: nothing is done unless every range is good.
    #[cold]
    fn unmap(
        &self,
        payload: copy::Segments<'_>,
        zeroes: bool,
        cache: &CacheMode,
        counters: &mut Counters,
    ) -> Outcome {
        let ranges = match parse_ranges(payload, zeroes, &self.limits) {
            Ok(ranges) => ranges,
            Err(refusal) => return Outcome::from(refusal),
        };
        let mut each = ranges.as_slice().iter();
        let done = each.try_for_each(|range| match zeroes {
            true => self.disk.write_zeroes(range.offset, range.len_bytes, range.unmap),
            false => self.disk.discard(range.offset, range.len_bytes),
        });
        match done.and_then(|()| if zeroes { self.persist(cache) } else { Ok(()) }) {
            Ok(()) => {
                counters.others = counters.others.wrapping_add(1);
                Outcome::OK
            }
            Err(error) => self.failed(if zeroes { "write zeroes" } else { "discard" }, &error),
        }
    }

    /// In write-through mode a write is not done before it persists.
    #[inline]
    fn persist(&self, cache: &CacheMode) -> Result<(), DiskError> {
        if cache.is_write_through() { self.disk.flush() } else { Ok(()) }
    }

    /// The media, or guest memory, failed: the request fails, and one line in the log says so.
    #[cold]
    fn failed(&self, operation: &str, error: &DiskError) -> Outcome {
        if let Some(suppressed) = self.log_limit.admit() {
            let disk = &self.identity.name;
            tracing::warn!(disk, operation, %error, suppressed, "request failed");
        }
        match error {
            DiskError::Unsupported => Outcome::from(Refusal::Unsupported),
            DiskError::OutOfRange | DiskError::ReadOnly | DiskError::Io { .. } => {
                Outcome::from(Refusal::IoError)
            }
        }
    }
}
