//! Executes what any chain asks, and decides its status and used length in one place.

use super::cache::CacheMode;
use super::counters::{Counters, Effect};
use super::device::Device;
use super::latency::Timed;
use super::request::{ErrorStatus, OK, Operation, parse};
use super::sliced::{Finished, SlicedRequest, takes_long};
use crate::copy::{self, PrefetchHint};
use crate::disk::{Disk, DiskError};
use crate::throttle::Kind;
use crate::virtio::queue::{Chain, Completion, Head, HeldStatus, RingError, Status, StatusByte};

/// What became of a request.
#[derive(Debug)]
pub enum Progress {
    /// It is finished.
    Completed(Completion),
    /// It is done but for a flush that takes time: the ring waits for [`Device::begin_flush`].
    Held(HeldRequest),
    /// It takes long: [`Device::next_slice`] does one slice of it after the other, and completes it in the end.
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

    /// What it is.
    pub const fn timed(&self) -> Option<Timed> {
        match self.effect {
            Effect::Flushed => Some(Timed::Flush),
            Effect::Written { .. } => Some(Timed::Write),
            Effect::Zeroed { .. } => Some(Timed::WriteZeroes),
            Effect::Read(_) | Effect::Other | Effect::Failed => None,
        }
    }

    /// Where its status goes.
    pub const fn status(&self) -> &HeldStatus {
        &self.status
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
    /// Does what a chain asks, or begins to: `sliced` has room for one request that takes long, and must not have one in
    /// progress.
    ///
    /// # Errors
    /// [`RingError::GuestMemoryLost`] when the page that the status goes to is lost.
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
                    return self.begin_slices(&operation, head, status, data_bytes, sliced, counters);
                }
                Ok(operation) => self.perform(&operation, cache, counters),
                Err(error) => Err(error),
            },
            Some(_) => Err(ErrorStatus::IoError),
        };
        Self::complete(outcome, head, data_bytes, counters, status)
    }

    /// Begins a request that is done in slices.
    #[cold]
    #[inline(never)]
    pub(super) fn begin_slices(
        &self,
        operation: &Operation<'_>,
        head: Head,
        status: StatusByte<'_>,
        data_bytes: u64,
        sliced: &mut SlicedRequest,
        counters: &mut Counters,
    ) -> Result<Progress, RingError> {
        match sliced.prepare(operation, &status, self.disk(), &self.limits()) {
            Ok(slices) => {
                sliced.begin(slices, head, status.hold(), data_bytes);
                Ok(Progress::Sliced)
            }
            Err(error) => Self::complete(Err(error), head, data_bytes, counters, status),
        }
    }

    /// How limits count the next slice of the request in progress: its kind, and its bytes.
    pub fn next_slice_for_limits(&self, sliced: &SlicedRequest) -> (Kind, u64) {
        (sliced.for_limits().0, sliced.next_bytes(self.disk()))
    }

    /// Does the next slice of the request in progress. Returns what became of it with the last one.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn next_slice(
        &self,
        sliced: &mut SlicedRequest,
        cache: &CacheMode,
        counters: &mut Counters,
    ) -> Result<Option<Progress>, RingError> {
        let Some(finished) = sliced.next(self.disk()) else { return Ok(None) };
        self.finish(finished, cache, counters).map(Some)
    }

    /// Says what became of a request that was done in slices, or on another thread.
    pub(super) fn finish(
        &self,
        finished: Finished,
        cache: &CacheMode,
        counters: &mut Counters,
    ) -> Result<Progress, RingError> {
        let Finished { head, status, data_bytes, name, result } = finished;
        let done = result.and_then(|effect| match effect {
            Effect::Read(bytes) => {
                counters.count(effect);
                Ok(Done::Counted(bytes))
            }
            // In write-through mode what is stored is not done before it persists.
            Effect::Written { .. } | Effect::Zeroed { .. } if cache.is_write_through() => {
                self.flush(effect, counters)
            }
            _ => Ok(counted(effect, counters)),
        });
        let outcome = done.map_err(|error| self.failed(name, &error));
        Self::complete(outcome, head, data_bytes, counters, status)
    }

    /// Stores the status and says what the used ring gets: the one place that decides both.
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

    /// Completes a held request whose flush is done.
    ///
    /// # Errors
    /// [`RingError::GuestMemoryLost`] when the page that the status goes to is lost.
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
            Operation::Read { offset, into } => match self.disk().read(offset, into, PrefetchHint::NONE) {
                Ok(()) => {
                    let bytes = into.total_bytes() as u64;
                    counters.count(Effect::Read(bytes));
                    Ok(Done::Counted(bytes))
                }
                Err(error) => Err(self.failed(name, &error)),
            },
            Operation::Write { offset, from } => {
                let bytes = from.total_bytes() as u64;
                let media_bytes = self.disk().media_written_bytes(offset, bytes);
                let effect = Effect::Written { bytes, media_bytes };
                match self.disk().write(offset, from, PrefetchHint::NONE) {
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
                let bytes = copy::store_slice(into, &self.identity().serial);
                counters.count(Effect::Other);
                Ok(Done::Counted(bytes as u64))
            }
            // These are done in slices.
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => Err(ErrorStatus::Unsupported),
        }
    }

    /// At once where that is possible; else the request is held.
    #[inline(never)]
    fn flush(&self, effect: Effect, counters: &mut Counters) -> Result<Done, DiskError> {
        match self.disk().try_flush() {
            Some(flushed) => flushed.map(|()| counted(effect, counters)),
            None => Ok(Done::Unflushed(effect)),
        }
    }
}
