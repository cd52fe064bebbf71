//! What a chain consists of: its descriptors, each read once, and the host ranges that they name.
//!
//! Shared by all kinds of rings: they differ in where the next descriptor is, not in what one may say.

#![allow(unsafe_code)]

use super::RingError;
use super::chain::{Buffer, Chain, Flaw, Head};
use crate::copy::{self, Segment, Segments};
use crate::virtio::memory::Translator;

/// Descriptor flags (VIRTIO 1.2 §2.7.5): the chain goes on, the device writes, a table of descriptors.
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Size of a descriptor in bytes.
pub(super) const DESCRIPTOR_BYTES: u32 = 16;

/// Segments a chain may take beyond one a descriptor, where buffers run over the borders of regions.
const SPLIT_SEGMENTS: usize = 64;

/// Scratch for the segments of any one chain of a ring of `size` descriptors, allocated once (D7): host ranges,
/// or whatever else is kept of each.
pub(super) fn scratch<T>(size: u16, max_indirect: u16) -> Vec<T> {
    Vec::with_capacity(usize::from(size) + usize::from(max_indirect) + SPLIT_SEGMENTS)
}

/// How many descriptors an indirect table of so many bytes has, at most `most` (VIRTIO 1.2 §2.7.5.3).
pub(super) fn indirect_len(len_bytes: u32, most: u16) -> Result<u16, RingError> {
    let len = u16::try_from(len_bytes / DESCRIPTOR_BYTES).unwrap_or(u16::MAX);
    if !len_bytes.is_multiple_of(DESCRIPTOR_BYTES) || len == 0 || len > most {
        return Err(RingError::IndirectLength(len_bytes));
    }
    Ok(len)
}

/// The two halves of a descriptor, each read once, wherever it lies.
///
/// # Safety
/// 16 bytes must be mapped at `at`. They need not be aligned: those of an indirect table are not always.
#[inline]
pub(super) unsafe fn read_halves(at: *const u8) -> [u64; 2] {
    #[derive(Clone, Copy)]
    #[repr(C, packed)]
    struct Half(u64);
    let half = at.cast::<Half>();
    // SAFETY: mapped, as the caller says; `Half` needs no alignment. Volatile: read exactly once.
    let first = unsafe { half.read_volatile() };
    // SAFETY: as above.
    let second = unsafe { half.wrapping_add(1).read_volatile() };
    [u64::from_le(first.0), u64::from_le(second.0)]
}

/// The first bytes of a buffer, for a guess: nobody has checked it yet.
#[inline]
pub(super) fn peek_buffer<const N: usize>(address: u64, memory: &mut Translator) -> Option<[u8; N]> {
    let start = memory.resolve(address, N as u64)?;
    let bytes = [Segment::new(start, N)];
    // SAFETY: the translator found the segment in its table, which it keeps mapped.
    let bytes = unsafe { Segments::new(&bytes) };
    let mut peeked = [0; N];
    (copy::load_slice(bytes, &mut peeked) == N).then_some(peeked)
}

/// What a walk over a chain has found so far.
#[derive(Debug, Default)]
pub(super) struct Walk {
    readable_count: usize,
    readable_bytes: u64,
    /// As declared by the driver, mapped or not.
    declared_bytes: u64,
    /// Of these, mapped.
    writable_bytes: u64,
    /// The last writable descriptor is not mapped: the status byte has no place.
    status_lost: bool,
    flaw: Option<Flaw>,
}

impl Walk {
    /// The chain can be answered, but not done.
    pub(super) const fn flawed(&mut self, flaw: Flaw) {
        self.flaw = Some(flaw);
    }

    /// Takes a descriptor's buffer: readable ones first, then writable ones, which go to `out` in this order.
    #[inline]
    pub(super) fn take(
        &mut self,
        address: u64,
        len_bytes: u32,
        writable: bool,
        memory: &mut Translator,
        out: &mut Vec<Segment>,
    ) {
        if len_bytes == 0 {
            self.flaw = Some(Flaw::Empty);
            return;
        }
        if !writable && self.declared_bytes > 0 {
            self.flaw = Some(Flaw::ReadableAfterWritable);
            return;
        }
        let is_mapped = memory.append(address, len_bytes, out);
        if !is_mapped {
            self.flaw = Some(Flaw::Unmapped);
        }
        let mapped_bytes = if is_mapped { u64::from(len_bytes) } else { 0 };
        if writable {
            self.status_lost = !is_mapped;
            self.declared_bytes += u64::from(len_bytes);
            self.writable_bytes += mapped_bytes;
        } else {
            self.readable_count = out.len();
            self.readable_bytes += mapped_bytes;
        }
    }

    /// The chain has ended.
    ///
    /// # Errors
    /// [`RingError::NoStatus`]: it cannot even be answered.
    #[inline]
    pub(super) fn end(mut self) -> Result<Self, RingError> {
        if self.writable_bytes == 0 || self.status_lost {
            return Err(RingError::NoStatus);
        }
        if self.readable_bytes.max(self.declared_bytes) > u64::from(u32::MAX) {
            self.flaw = Some(Flaw::TooLong);
        }
        Ok(self)
    }

    /// The chain, of the segments that this walk has found.
    ///
    /// # Safety
    /// `segments` are what [`take`](Self::take) was given, with `memory`, and nothing else.
    #[inline]
    pub(super) unsafe fn into_chain<'a>(
        self,
        head: Head,
        segments: &'a mut [Segment],
        memory: &'a Translator,
    ) -> Chain<'a> {
        let (readable, writable) = segments.split_at_mut_checked(self.readable_count).unwrap_or_default();
        let bounded = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        // SAFETY: the translator found the segments in its table, which it keeps mapped for 'a, and they
        // are borrowed as long. Guest memory is never the target of a Rust reference.
        let readable = unsafe { Buffer::new(readable, bounded(self.readable_bytes)) };
        // SAFETY: as above.
        let writable = unsafe { Buffer::new(writable, bounded(self.writable_bytes)) };
        Chain::new(head, readable, writable, memory.table(), self.declared_bytes, self.flaw)
    }
}
