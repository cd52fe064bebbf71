//! Requests that take long are done in slices, one in a turn of their ring, so that no other ring waits for more than
//! that. The ring goes on when the last one is done: its order is kept, and nothing is shown before.
//!
//! A request whose ring is taken back meanwhile is not answered, and done anew where the ring goes on: the driver's
//! buffers are the driver's own until then, and to do any request twice changes nothing.

use super::cache::CacheMode;
use super::counters::{Counters, Effect};
use super::device::{Device, Done, Progress, counted};
use super::request::{ErrorStatus, Operation, Range, Ranges, parse_ranges};
use crate::copy::Segments;
use crate::disk::{Disk, DiskError};
use crate::limits::bounds::{MAX_SLICE_BYTES, MAX_UNMAP_SLICE_BYTES};
use crate::virtio::queue::{Head, HeldSegments, HeldStatus, RingError, Status as _, StatusByte};

/// A request that is done in slices, and room for what it needs, which is made once (D7): one for each ring.
#[derive(Debug, Default)]
pub struct SlicedRequest {
    current: Option<InProgress>,
    data: HeldSegments,
    ranges: Ranges,
}

/// What is known of a request that is not finished.
#[derive(Debug)]
struct InProgress {
    head: Head,
    status: HeldStatus,
    /// As of [`Chain`](crate::virtio::queue::Chain).
    data_bytes: u64,
    operation: SlicedOperation,
    /// Where the next slice begins, and how much is left of the data or of the range, in bytes.
    offset: u64,
    left_bytes: u64,
    /// Ranges that are done or in progress.
    ranges: usize,
    /// What the media took for zeroes so far.
    media_bytes: u64,
}

/// What is done.
#[derive(Debug, Clone, Copy)]
pub(super) enum SlicedOperation {
    /// With the effect that is counted in the end.
    Read(Effect),
    Write(Effect),
    Discard,
    WriteZeroes,
}

impl SlicedOperation {
    const fn name(self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Write(_) => "write",
            Self::Discard => "discard",
            Self::WriteZeroes => "write zeroes",
        }
    }
}

impl SlicedRequest {
    /// Whether there is a request that is not finished.
    #[inline]
    pub const fn is_in_progress(&self) -> bool {
        self.current.is_some()
    }

    /// What the next slice writes to guest memory, and where the status will be.
    pub fn writable(&self) -> Option<(Segments<'_>, &HeldStatus)> {
        let current = self.current.as_ref()?;
        let data = match current.operation {
            SlicedOperation::Read(_) => self.data.slice(),
            SlicedOperation::Write(_) | SlicedOperation::Discard | SlicedOperation::WriteZeroes => {
                Segments::empty()
            }
        };
        Some((data, &current.status))
    }

    /// Cuts the data of the next slice, or goes on to the next range. Returns whether there is one.
    fn cut(&mut self) -> bool {
        let Some(current) = &mut self.current else { return false };
        match current.operation {
            SlicedOperation::Read(_) | SlicedOperation::Write(_) => {
                let bytes = slice_bytes(current.offset, current.left_bytes, MAX_SLICE_BYTES);
                self.data.advance(usize::try_from(bytes).unwrap_or(usize::MAX));
                bytes > 0
            }
            SlicedOperation::Discard | SlicedOperation::WriteZeroes if current.left_bytes > 0 => true,
            SlicedOperation::Discard | SlicedOperation::WriteZeroes => {
                let Some(range) = self.ranges.as_slice().get(current.ranges) else { return false };
                (current.offset, current.left_bytes) = (range.offset, range.len_bytes);
                current.ranges = current.ranges.saturating_add(1);
                true
            }
        }
    }

    /// The range that is in progress.
    fn range(&self) -> Option<&Range> {
        self.ranges.as_slice().get(self.current.as_ref()?.ranges.checked_sub(1)?)
    }
}

/// Length of the slice at `offset` of what is left.
fn slice_bytes(offset: u64, left_bytes: u64, most_bytes: u64) -> u64 {
    left_bytes.min(most_bytes.saturating_sub(offset % most_bytes))
}

/// What is left of a chain whose request is known.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) head: Head,
    pub(super) status: StatusByte<'a>,
    pub(super) data_bytes: u64,
}

/// Whether a request is done in slices.
#[inline]
pub(super) const fn takes_long(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::Read { into: data, .. } | Operation::Write { from: data, .. } => {
            bytes_of(*data) > MAX_SLICE_BYTES
        }
        Operation::Discard { .. } | Operation::WriteZeroes { .. } => true,
        Operation::Flush | Operation::GetId { .. } => false,
    }
}

impl<D: Disk> Device<D> {
    /// Begins a request that is done in slices: what it needs is put into the room.
    #[cold]
    #[inline(never)]
    pub(super) fn begin(
        &self,
        operation: &Operation<'_>,
        parts: Parts<'_>,
        room: &mut SlicedRequest,
        counters: &mut Counters,
    ) -> Result<Progress, RingError> {
        let Parts { head, status, data_bytes } = parts;
        let (operation, offset, left_bytes) = match self.prepare(operation, &status, room) {
            Ok(prepared) => prepared,
            Err(error) => return Self::complete(Err(error), head, data_bytes, counters, status),
        };
        let status = status.hold();
        let current =
            InProgress { head, status, data_bytes, operation, offset, left_bytes, ranges: 0, media_bytes: 0 };
        room.current = Some(current);
        room.cut();
        Ok(Progress::Sliced)
    }

    /// Ranges are checked before any is done.
    fn prepare(
        &self,
        operation: &Operation<'_>,
        status: &StatusByte<'_>,
        room: &mut SlicedRequest,
    ) -> Result<(SlicedOperation, u64, u64), ErrorStatus> {
        let (operation, offset, data) = match *operation {
            Operation::Read { offset, into } => {
                (SlicedOperation::Read(Effect::Read(bytes_of(into))), offset, into)
            }
            Operation::Write { offset, from } => {
                let bytes = bytes_of(from);
                let media_bytes = self.disk().media_written_bytes(offset, bytes);
                (SlicedOperation::Write(Effect::Written { bytes, media_bytes }), offset, from)
            }
            Operation::Discard { payload } => {
                room.ranges = parse_ranges(payload, false, &self.limits())?;
                return Ok((SlicedOperation::Discard, 0, 0));
            }
            Operation::WriteZeroes { payload } => {
                room.ranges = parse_ranges(payload, true, &self.limits())?;
                return Ok((SlicedOperation::WriteZeroes, 0, 0));
            }
            // These do not take long.
            Operation::Flush | Operation::GetId { .. } => return Err(ErrorStatus::Unsupported),
        };
        if room.data.hold(data, status) {
            Ok((operation, offset, bytes_of(data)))
        } else {
            Err(ErrorStatus::IoError)
        }
    }

    /// Does the next slice of the request in progress. Returns the answer with the last one.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn next_slice(
        &self,
        sliced: &mut SlicedRequest,
        cache: &CacheMode,
        counters: &mut Counters,
    ) -> Result<Option<Progress>, RingError> {
        let outcome = match self.slice(sliced) {
            Ok(()) if sliced.cut() => return Ok(None),
            outcome => outcome,
        };
        let Some(current) = sliced.current.take() else { return Ok(None) };
        let outcome = outcome.and_then(|()| self.finish(&current, sliced, cache, counters));
        let outcome = outcome.map_err(|error| self.failed(current.operation.name(), &error));
        sliced.data.release();
        let InProgress { head, status, data_bytes, .. } = current;
        Self::complete(outcome, head, data_bytes, counters, status).map(Some)
    }

    /// Does the slice that was cut.
    fn slice(&self, sliced: &mut SlicedRequest) -> Result<(), DiskError> {
        let unmap = sliced.range().is_some_and(|range| range.unmap);
        let SlicedRequest { current: Some(current), data, .. } = sliced else { return Ok(()) };
        let most_bytes = match current.operation {
            SlicedOperation::Discard => MAX_UNMAP_SLICE_BYTES,
            SlicedOperation::WriteZeroes if unmap && self.disk().has_fast_zero() => MAX_UNMAP_SLICE_BYTES,
            SlicedOperation::Read(_) | SlicedOperation::Write(_) | SlicedOperation::WriteZeroes => {
                MAX_SLICE_BYTES
            }
        };
        let (offset, bytes) = (current.offset, slice_bytes(current.offset, current.left_bytes, most_bytes));
        match current.operation {
            SlicedOperation::Read(_) => self.disk().read(offset, data.slice())?,
            SlicedOperation::Write(_) => self.disk().write(offset, data.slice())?,
            SlicedOperation::Discard => self.disk().discard(offset, bytes)?,
            SlicedOperation::WriteZeroes => {
                let taken = self.disk().write_zeroes(offset, bytes, unmap)?;
                current.media_bytes = current.media_bytes.saturating_add(taken);
            }
        }
        current.offset = current.offset.saturating_add(bytes);
        current.left_bytes = current.left_bytes.saturating_sub(bytes);
        Ok(())
    }

    /// All slices are done.
    fn finish(
        &self,
        current: &InProgress,
        sliced: &SlicedRequest,
        cache: &CacheMode,
        counters: &mut Counters,
    ) -> Result<Done, DiskError> {
        let effect = match current.operation {
            SlicedOperation::Read(effect) => {
                counters.count(effect);
                return Ok(Done::Counted(current.data_bytes));
            }
            SlicedOperation::Discard => return Ok(counted(Effect::Other, counters)),
            SlicedOperation::Write(effect) => effect,
            SlicedOperation::WriteZeroes => {
                let sum = |sum: u64, range: &Range| sum.saturating_add(range.len_bytes);
                let bytes = sliced.ranges.as_slice().iter().fold(0, sum);
                Effect::Zeroed { bytes, media_bytes: current.media_bytes }
            }
        };
        // In write-through mode a write is not done before it persists.
        if cache.is_write_through() { self.flush(effect, counters) } else { Ok(counted(effect, counters)) }
    }
}

const fn bytes_of(segments: Segments<'_>) -> u64 {
    segments.total_bytes() as u64
}
