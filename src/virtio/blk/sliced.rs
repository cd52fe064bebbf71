//! Requests that take long are done in slices, one in each turn of their ring, so that no other ring of the worker waits for
//! longer than a slice. The ring goes on to its next request when the last slice is done: its order is kept.
//!
//! A request whose ring is stopped meanwhile is not completed: where the ring goes on, it is done again from its start. That
//! is sound, since the device has the request's buffers until it completes it, and to do any request twice changes nothing.

use std::io;
use std::time::Instant;

use super::counters::Effect;
use super::latency::Timed;
use super::request::{ErrorStatus, Operation, Range, Ranges, parse_ranges};
use super::units::Limits;
use crate::copy::{PrefetchHint, Segments};
use crate::disk::executor::TaskName;
use crate::disk::{DirectTransfer, Disk, DiskError};
use crate::limits::bounds::{MAX_SLICE_BYTES, MAX_UNMAP_SLICE_BYTES};
use crate::throttle::Kind;
use crate::virtio::queue::{Head, HeldSegments, HeldStatus, StatusByte};

/// A request that is done in slices, and room for what it needs, which is made once (D7): one for each ring.
#[derive(Debug, Default)]
pub struct SlicedRequest {
    current: Option<InProgress>,
    /// It is done by a thread that nothing else waits for: its data is not cut.
    is_whole: bool,
    data: HeldSegments,
    ranges: Ranges,
}

/// The request in progress.
#[derive(Debug)]
struct InProgress {
    head: Head,
    status: HeldStatus,
    /// As of [`Chain`](crate::virtio::queue::Chain).
    data_bytes: u64,
    slices: Slices,
    /// When it began, where it takes turns of its ring.
    since: Option<Instant>,
    /// Ranges that are done or in progress.
    ranges: usize,
    /// What the media took for zeroes so far.
    media_bytes: u64,
}

/// What is to be done in slices, and from where on.
#[derive(Debug)]
pub(super) struct Slices {
    operation: SlicedOperation,
    /// Where the next slice begins, and how much is left of the data or of the range, in bytes.
    offset: u64,
    left_bytes: u64,
}

/// A request of which all slices are done, or one has failed.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) head: Head,
    pub(super) status: HeldStatus,
    /// As of [`Chain`](crate::virtio::queue::Chain).
    pub(super) data_bytes: u64,
    /// What a person calls the operation.
    pub(super) name: &'static str,
    /// What it has done, not counted yet.
    pub(super) result: Result<Effect, DiskError>,
}

/// What is done slice by slice.
#[derive(Debug, Clone, Copy)]
enum SlicedOperation {
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
    /// Room for a request that is [run](Self::run_step) on a thread of its own, and not in turns of its ring.
    pub(super) fn whole() -> Self {
        Self { is_whole: true, ..Self::default() }
    }

    /// Whether there is a request that is not finished.
    #[inline]
    pub const fn is_in_progress(&self) -> bool {
        self.current.is_some()
    }

    /// What the next slice writes to guest memory, and where the status will be.
    pub fn writable(&self) -> Option<(Segments<'_>, &HeldStatus)> {
        let current = self.current.as_ref()?;
        let data = match current.slices.operation {
            SlicedOperation::Read(_) => self.data.slice(),
            SlicedOperation::Write(_) | SlicedOperation::Discard | SlicedOperation::WriteZeroes => {
                Segments::empty()
            }
        };
        Some((data, &current.status))
    }

    /// Checks the ranges of a request, or holds its data.
    ///
    /// # Errors
    /// How the request is to be refused.
    pub(super) fn prepare(
        &mut self,
        operation: &Operation<'_>,
        status: &StatusByte<'_>,
        disk: &impl Disk,
        limits: &Limits,
    ) -> Result<Slices, ErrorStatus> {
        let (operation, offset, data) = match *operation {
            Operation::Read { offset, into } => {
                (SlicedOperation::Read(Effect::Read(bytes_of(into))), offset, into)
            }
            Operation::Write { offset, from } => {
                let bytes = bytes_of(from);
                let media_bytes = disk.media_written_bytes(offset, bytes);
                (SlicedOperation::Write(Effect::Written { bytes, media_bytes }), offset, from)
            }
            Operation::Discard { payload } => {
                self.ranges = parse_ranges(payload, false, limits)?;
                return Ok(Slices { operation: SlicedOperation::Discard, offset: 0, left_bytes: 0 });
            }
            Operation::WriteZeroes { payload } => {
                self.ranges = parse_ranges(payload, true, limits)?;
                return Ok(Slices { operation: SlicedOperation::WriteZeroes, offset: 0, left_bytes: 0 });
            }
            // These do not take long.
            Operation::Flush | Operation::GetId { .. } => return Err(ErrorStatus::Unsupported),
        };
        if self.data.hold(data, status) {
            Ok(Slices { operation, offset, left_bytes: bytes_of(data) })
        } else {
            Err(ErrorStatus::IoError)
        }
    }

    /// Begins what was [prepared](Self::prepare).
    pub(super) fn begin(&mut self, slices: Slices, head: Head, status: HeldStatus, data_bytes: u64) {
        let since = (!self.is_whole).then(Instant::now);
        self.current =
            Some(InProgress { head, status, data_bytes, slices, since, ranges: 0, media_bytes: 0 });
        self.cut();
    }

    /// Does the next slice. Returns the request with the last one.
    pub(super) fn next(&mut self, disk: &impl Disk) -> Option<Finished> {
        let result = match self.execute(disk) {
            Ok(()) if self.cut() => return None,
            result => result,
        };
        self.finish(result)
    }

    /// Does a transfer, or the next step of another request: `None` if there are more.
    pub(super) fn run_step(&mut self, disk: &impl Disk) -> Option<Result<(), DiskError>> {
        match self.touch().and_then(|()| self.execute(disk)) {
            // A transfer is one slice, which stays: where it has written to is marked in the dirty log.
            Ok(()) if !self.is_transfer() && self.cut() => None,
            result => Some(result),
        }
    }

    /// Does a read that was announced, if it need not be waited for any more. Returns whether it is done.
    pub(super) fn try_run(&self, disk: &impl Disk) -> bool {
        let Some(InProgress { slices, .. }) = &self.current else { return false };
        matches!(slices.operation, SlicedOperation::Read(_))
            && disk.read_announced(slices.offset, self.data.slice())
    }

    /// The transfer that it is, if the kernel can do it by itself.
    pub(super) fn direct<'a>(&'a self, disk: &'a impl Disk) -> Option<DirectTransfer<'a>> {
        let InProgress { slices, .. } = self.current.as_ref()?;
        let is_write = matches!(slices.operation, SlicedOperation::Write(_));
        let is_transfer = self.is_transfer() && self.is_whole;
        is_transfer.then(|| disk.direct(slices.offset, self.data.slice(), is_write)).flatten()
    }

    /// Waits for the guest's memory that a transfer is about. False if it is lost.
    pub(super) fn touch_all(&self) -> bool {
        self.data.touch()
    }

    /// Waits for what a write takes from guest memory. Another thread, which has come upon the loss of that memory, may have put
    /// zeroes there.
    fn touch(&self) -> Result<(), DiskError> {
        let Some(current) = &self.current else { return Ok(()) };
        if !matches!(current.slices.operation, SlicedOperation::Write(_)) || self.data.touch() {
            return Ok(());
        }
        let Slices { offset, left_bytes: len, .. } = current.slices;
        let source = io::Error::from_raw_os_error(libc::EFAULT);
        Err(DiskError::Io { operation: "copying guest memory", offset, len, source })
    }

    /// Nothing is in progress any more.
    pub(super) fn abandon(&mut self) {
        self.current = None;
        self.data.release();
    }

    /// The request, of which all was done, or it has failed.
    pub(super) fn finish(&mut self, result: Result<(), DiskError>) -> Option<Finished> {
        let InProgress { head, status, data_bytes, slices, media_bytes, .. } = self.current.take()?;
        self.data.release();
        let (name, effect) = (slices.operation.name(), self.effect(slices.operation, media_bytes));
        Some(Finished { head, status, data_bytes, name, result: result.map(|()| effect) })
    }

    /// Cuts the data of the next slice, or goes on to the next range. Returns whether there is one.
    fn cut(&mut self) -> bool {
        let Some(current) = &mut self.current else { return false };
        let slices = &mut current.slices;
        match slices.operation {
            SlicedOperation::Read(_) | SlicedOperation::Write(_) => {
                let most_bytes = if self.is_whole { u64::MAX } else { MAX_SLICE_BYTES };
                let bytes = slice_bytes(slices.offset, slices.left_bytes, most_bytes);
                self.data.advance(usize::try_from(bytes).unwrap_or(usize::MAX));
                bytes > 0
            }
            SlicedOperation::Discard | SlicedOperation::WriteZeroes if slices.left_bytes > 0 => true,
            SlicedOperation::Discard | SlicedOperation::WriteZeroes => {
                let Some(range) = self.ranges.as_slice().get(current.ranges) else { return false };
                (slices.offset, slices.left_bytes) = (range.offset, range.len_bytes);
                current.ranges = current.ranges.saturating_add(1);
                true
            }
        }
    }

    /// Does the slice that was cut.
    fn execute(&mut self, disk: &impl Disk) -> Result<(), DiskError> {
        let unmap = self.range().is_some_and(|range| range.unmap);
        let bytes = self.next_bytes(disk);
        let Self { current: Some(current), data, .. } = self else { return Ok(()) };
        let slices = &mut current.slices;
        let offset = slices.offset;
        match slices.operation {
            SlicedOperation::Read(_) => disk.read(offset, data.slice(), PrefetchHint::NONE)?,
            SlicedOperation::Write(_) => disk.write(offset, data.slice(), PrefetchHint::NONE)?,
            SlicedOperation::Discard => disk.discard(offset, bytes)?,
            SlicedOperation::WriteZeroes => {
                let taken = disk.write_zeroes(offset, bytes, unmap)?;
                current.media_bytes = current.media_bytes.saturating_add(taken);
            }
        }
        slices.offset = slices.offset.saturating_add(bytes);
        slices.left_bytes = slices.left_bytes.saturating_sub(bytes);
        Ok(())
    }

    /// Bytes of the disk that the slice which was cut is about.
    pub(super) fn next_bytes(&self, disk: &impl Disk) -> u64 {
        let Some(InProgress { slices, .. }) = &self.current else { return 0 };
        let unmap = self.range().is_some_and(|range| range.unmap);
        let most_bytes = match slices.operation {
            SlicedOperation::Read(_) | SlicedOperation::Write(_) if self.is_whole => u64::MAX,
            SlicedOperation::Discard => MAX_UNMAP_SLICE_BYTES,
            SlicedOperation::WriteZeroes if unmap && disk.has_fast_zero() => MAX_UNMAP_SLICE_BYTES,
            SlicedOperation::Read(_) | SlicedOperation::Write(_) | SlicedOperation::WriteZeroes => {
                MAX_SLICE_BYTES
            }
        };
        slice_bytes(slices.offset, slices.left_bytes, most_bytes)
    }

    /// How limits count what is in progress: its kind, and bytes of the disk that it has still to do, of all its ranges.
    pub(super) fn for_limits(&self) -> (Kind, u64) {
        let Some(InProgress { slices, .. }) = &self.current else { return (Kind::Other, 0) };
        match slices.operation {
            SlicedOperation::Read(_) => (Kind::Read, slices.left_bytes),
            SlicedOperation::Write(_) => (Kind::Write, slices.left_bytes),
            SlicedOperation::Discard | SlicedOperation::WriteZeroes => (Kind::Write, self.ranges_bytes()),
        }
    }

    fn ranges_bytes(&self) -> u64 {
        let sum = |sum: u64, range: &Range| sum.saturating_add(range.len_bytes);
        self.ranges.as_slice().iter().fold(0, sum)
    }

    /// What the whole request has done.
    fn effect(&self, operation: SlicedOperation, media_bytes: u64) -> Effect {
        match operation {
            SlicedOperation::Read(effect) | SlicedOperation::Write(effect) => effect,
            SlicedOperation::Discard => Effect::Other,
            SlicedOperation::WriteZeroes => Effect::Zeroed { bytes: self.ranges_bytes(), media_bytes },
        }
    }

    /// What it is, and when it began, where it takes turns of its ring.
    pub fn timed(&self) -> Option<(Timed, Instant)> {
        let InProgress { slices, since, .. } = self.current.as_ref()?;
        let what = match slices.operation {
            SlicedOperation::Read(_) => Timed::Read,
            SlicedOperation::Write(_) => Timed::Write,
            SlicedOperation::Discard => Timed::Discard,
            SlicedOperation::WriteZeroes => Timed::WriteZeroes,
        };
        Some((what, (*since)?))
    }

    /// What a person calls it, and which bytes of the disk it is about: from the first one to the last one of all ranges.
    pub fn name(&self) -> TaskName {
        let Some(current) = &self.current else {
            return TaskName { operation: "none", offset: 0, len_bytes: 0 };
        };
        let Slices { operation, offset, left_bytes } = current.slices;
        let (offset, end) = match operation {
            SlicedOperation::Read(_) | SlicedOperation::Write(_) => {
                (offset, offset.saturating_add(left_bytes))
            }
            SlicedOperation::Discard | SlicedOperation::WriteZeroes => {
                let ranges = self.ranges.as_slice().iter();
                let ends = ranges.clone().map(|range| range.offset.saturating_add(range.len_bytes));
                let starts = ranges.map(|range| range.offset);
                (starts.min().unwrap_or(0), ends.max().unwrap_or(0))
            }
        };
        TaskName { operation: operation.name(), offset, len_bytes: end.saturating_sub(offset) }
    }

    fn is_transfer(&self) -> bool {
        let is_transfer = |it: &InProgress| {
            matches!(it.slices.operation, SlicedOperation::Read(_) | SlicedOperation::Write(_))
        };
        self.current.as_ref().is_some_and(is_transfer)
    }

    /// Whether it changes bytes.
    pub(super) fn is_change(&self) -> bool {
        self.current.as_ref().is_some_and(|it| !matches!(it.slices.operation, SlicedOperation::Read(_)))
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

const fn bytes_of(segments: Segments<'_>) -> u64 {
    segments.total_bytes() as u64
}
