//! A descriptor chain on its way: popped, taken apart, completed.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::Arc;

use super::RingError;
use crate::copy::{self, Segment, Segments};
use crate::virtio::memory::MemoryTable;

/// A chain that the driver expects back. It is not `Clone` and only becomes a [`Completion`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a popped chain must be completed"]
pub struct Head(u16);

impl Head {
    pub(super) const fn new(index: u16) -> Self {
        Self(index)
    }

    /// Finishes the chain; `written_bytes` counts from the start of its device-writable part
    /// (VIRTIO 1.2 §2.7.8.2).
    pub const fn complete(self, written_bytes: u32) -> Completion {
        Completion { head: self.0, written_bytes }
    }
}

/// A finished chain, to be noted in the used ring.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a completion must be given back to its ring"]
pub struct Completion {
    head: u16,
    written_bytes: u32,
}

impl Completion {
    /// Index of the chain's first descriptor.
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// Bytes written without a gap from the start of the device-writable part.
    pub const fn written_bytes(&self) -> u32 {
        self.written_bytes
    }
}

/// What is wrong with a chain that can still be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// VIRTIO 1.2 §2.7.4.2.
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// No data in a descriptor.
    #[error("a descriptor of no bytes")]
    Empty,
    /// A buffer that is not (wholly) guest memory.
    #[error("a buffer outside guest memory")]
    Unmapped,
    /// VIRTIO 1.2 §2.7.5.3.1: no table in a table, no chain behind a table, only if negotiated.
    #[error("an indirect table where none is allowed")]
    Indirect,
    /// VIRTIO 1.2 §2.7.5.2: 4 GiB at most.
    #[error("more than 4 GiB in one chain")]
    TooLong,
}

/// One direction of a chain: a run of bytes in pieces, consumed from both ends.
#[derive(Debug)]
pub struct Buffer<'a> {
    list: &'a mut [Segment],
    len_bytes: u32,
    mapped: PhantomData<&'a [u8]>,
}

impl<'a> Buffer<'a> {
    /// Vouches for `list`, whose lengths sum up to `len_bytes`.
    ///
    /// # Safety
    /// As [`Segments::new`].
    pub(super) const unsafe fn new(list: &'a mut [Segment], len_bytes: u32) -> Self {
        Self { list, len_bytes, mapped: PhantomData }
    }

    /// Bytes left.
    #[inline]
    pub const fn len_bytes(&self) -> u32 {
        self.len_bytes
    }

    /// Takes the first `N` bytes out: read once, never again. `None`, and nothing taken, if there are fewer or
    /// they cannot be read.
    #[inline]
    pub fn take_front<const N: usize>(&mut self) -> Option<[u8; N]> {
        let left = self.len_bytes.checked_sub(u32::try_from(N).ok()?)?;
        let mut front = [0; N];
        if copy::load_slice(self.segments(), &mut front) != N {
            return None;
        }
        self.len_bytes = left;
        let list = std::mem::take(&mut self.list);
        let (mut missing, mut emptied) = (N, 0);
        for segment in list.iter_mut() {
            let here = missing.min(segment.len());
            segment.advance(here);
            missing -= here;
            if !segment.is_empty() {
                break;
            }
            emptied += 1;
        }
        self.list = list.get_mut(emptied..).unwrap_or_default();
        Some(front)
    }

    /// Takes the last byte out: that is where a block request's status goes.
    #[inline]
    pub(super) fn take_last(&mut self) -> Option<Segment> {
        let list = std::mem::take(&mut self.list);
        let last = list.last_mut()?;
        let at = last.len().checked_sub(1)?;
        let mut byte = *last;
        byte.advance(at);
        last.truncate(at);
        let kept = list.len().saturating_sub(usize::from(at == 0));
        self.list = list.get_mut(..kept).unwrap_or_default();
        self.len_bytes = self.len_bytes.saturating_sub(1);
        Some(byte)
    }

    /// The bytes left, to be copied.
    #[inline]
    pub fn segments(&self) -> Segments<'_> {
        // SAFETY: whoever made this buffer vouched for its segments; they only ever shrink.
        unsafe { Segments::new(self.list) }
    }

    /// As [`segments`](Self::segments), for as long as the chain lives.
    #[inline]
    pub fn into_segments(self) -> Segments<'a> {
        // SAFETY: as above; the mutable borrow ends here, so the list cannot change any more.
        unsafe { Segments::new(self.list) }
    }
}

/// Where a block request's status goes: the last byte of the device-writable part (VIRTIO 1.2 §5.2.6).
#[derive(Debug)]
pub struct StatusByte<'a> {
    byte: Segment,
    table: &'a Arc<MemoryTable>,
}

impl StatusByte<'_> {
    /// Writes the status.
    ///
    /// # Errors
    /// [`RingError::GuestMemoryLost`]: its place is not there any more.
    #[inline]
    pub fn store(self, status: u8) -> Result<(), RingError> {
        store_status(self.byte, status)
    }

    /// Keeps the place for later: the guest's memory stays mapped as long.
    pub fn hold(self) -> HeldStatus {
        HeldStatus { byte: self.byte, _table: self.table.clone() }
    }
}

/// A [`StatusByte`] of a request that waits for a flush.
#[derive(Debug)]
pub struct HeldStatus {
    byte: Segment,
    _table: Arc<MemoryTable>,
}

// SAFETY: the byte lies in the table that is held with it, and only the owner of this value writes it.
unsafe impl Send for HeldStatus {}

impl HeldStatus {
    /// Writes the status.
    ///
    /// # Errors
    /// As [`StatusByte::store`].
    pub fn store(self, status: u8) -> Result<(), RingError> {
        store_status(self.byte, status)
    }
}

#[inline]
fn store_status(byte: Segment, status: u8) -> Result<(), RingError> {
    let byte = [byte];
    // SAFETY: the byte was the last one of a buffer that was vouched for, in a table that is still borrowed
    // or held.
    let place = unsafe { Segments::new(&byte) };
    if copy::store_slice(place, &[status]) == 1 { Ok(()) } else { Err(RingError::GuestMemoryLost) }
}

/// A popped chain: borrows the ring until it is taken apart and its parts are used up.
#[derive(Debug)]
pub struct Chain<'a> {
    head: Head,
    readable: Buffer<'a>,
    writable: Buffer<'a>,
    table: &'a Arc<MemoryTable>,
    declared_bytes: u64,
    flaw: Option<Flaw>,
}

/// A chain taken apart. The status byte is there already: a chain without one does not come this far.
#[derive(Debug)]
pub struct Parts<'a> {
    /// To be completed.
    pub head: Head,
    /// What the driver sends.
    pub readable: Buffer<'a>,
    /// Room for what the device sends, without the status byte.
    pub writable: Buffer<'a>,
    /// Where the status goes.
    pub status: StatusByte<'a>,
    /// Bytes before the status byte as the driver declared them: more than are in `writable` only when some
    /// are not mapped.
    pub data_bytes: u64,
    /// Why the request must fail, whatever it asks.
    pub flaw: Option<Flaw>,
}

impl<'a> Chain<'a> {
    pub(super) const fn new(
        head: Head,
        readable: Buffer<'a>,
        writable: Buffer<'a>,
        table: &'a Arc<MemoryTable>,
        declared_bytes: u64,
        flaw: Option<Flaw>,
    ) -> Self {
        Self { head, readable, writable, table, declared_bytes, flaw }
    }

    /// Where the device may write, the status byte included.
    pub(super) fn writable(&self) -> Segments<'_> {
        self.writable.segments()
    }

    /// Takes the chain apart; `None` when no byte is left for the status, and then the head is lost: the ring
    /// is broken.
    #[inline]
    pub fn into_parts(mut self) -> Option<Parts<'a>> {
        let byte = self.writable.take_last()?;
        let Self { head, readable, writable, table, declared_bytes, flaw } = self;
        let status = StatusByte { byte, table };
        Some(Parts { head, readable, writable, status, data_bytes: declared_bytes.saturating_sub(1), flaw })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(bytes: &mut [u8], lens: &[usize]) -> Vec<Segment> {
        let (mut at, mut list) = (bytes.as_mut_ptr(), Vec::new());
        for len in lens {
            list.push(Segment::new(at, *len));
            at = at.wrapping_add(*len);
        }
        list
    }

    #[test]
    fn bytes_are_taken_from_both_ends_over_any_split() {
        for split in 1..19 {
            let mut bytes: Vec<u8> = (0..20).collect();
            let mut list = pieces(&mut bytes, &[split, 19 - split, 1]);
            // SAFETY: `bytes` outlives the buffer and nothing else touches it meanwhile.
            let mut buffer = unsafe { Buffer::new(&mut list, 20) };
            assert_eq!(buffer.take_front::<16>().unwrap(), std::array::from_fn(|i| i as u8));
            assert_eq!(buffer.len_bytes(), 4);
            assert!(buffer.take_front::<5>().is_none());
            assert_eq!(buffer.take_last().unwrap().len(), 1);
            assert_eq!(buffer.len_bytes(), 3);
            assert_eq!(buffer.segments().total_bytes(), 3);
            assert_eq!(buffer.take_front::<3>().unwrap(), [16, 17, 18]);
            assert!(buffer.take_last().is_none());
            assert!(buffer.segments().as_slice().is_empty());
        }
    }

    #[test]
    fn the_status_is_the_last_writable_byte() {
        let mut bytes = vec![0xee; 8];
        let mut list = pieces(&mut bytes, &[4, 4]);
        // SAFETY: as above.
        let writable = unsafe { Buffer::new(&mut list, 8) };
        // SAFETY: no bytes.
        let readable = unsafe { Buffer::new(&mut [], 0) };
        let table = Arc::default();
        let parts = Chain::new(Head::new(7), readable, writable, &table, 8, None).into_parts().unwrap();
        assert_eq!(parts.writable.len_bytes(), 7);
        parts.status.store(2).unwrap();
        let completion = parts.head.complete(1);
        assert_eq!((completion.head(), completion.written_bytes()), (7, 1));
        assert_eq!(bytes, [0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 2]);
    }
}
