//! How a [`Chain`] is made of its descriptors, each read once: their buffers are translated to host addresses and checked.
//!
//! Both formats of rings share this: they differ in where the next descriptor is, not in what it may say.

#![allow(unsafe_code)]

use super::chain::{Chain, Flaw, HEADER_BYTES, Head, Header, StatusByte};
use super::error::RingError;
use crate::copy::{self, Segment, Segments};
use crate::limits::bounds::{MAX_CHAIN, MAX_REQUEST_BYTES};
use crate::virtio::memory::{BufferKind, Translator};

/// Room for the segments of one chain, and one more to see that there are too many. It is made once (D7), and does not
/// depend on the size of the ring.
pub(super) const MAX_CHAIN_SEGMENTS: usize = MAX_CHAIN as usize + 1;

/// Segments that most chains have at most: there may be thousands of rings, and the memory of the rest is not touched before
/// a chain needs it.
const USUAL_CHAIN_SEGMENTS: usize = 192;

/// The header in a buffer, unchecked: for prefetching alone.
#[inline]
pub(super) fn peek_buffer(address: u64, memory: &mut Translator) -> Option<Header> {
    let header = memory.resolve(BufferKind::Request, address, u64::from(HEADER_BYTES))?;
    // SAFETY: M1: the translator found the 16 bytes in its table.
    unsafe { copy::load_words(header) }.map(|words| words.map(u64::from_le))
}

/// Room for the segments of any chain, of which as much is touched as most chains need.
pub(super) fn segment_buffer() -> Vec<Segment> {
    let mut room = Vec::with_capacity(MAX_CHAIN_SEGMENTS);
    room.resize(USUAL_CHAIN_SEGMENTS, Segment::EMPTY);
    room
}

/// What was read of a chain so far: readable segments, then writable ones.
#[derive(Debug, Default)]
pub(super) struct ChainBuilder {
    /// Segments so far.
    count: usize,
    /// Bytes of the direction of the last buffer, as declared by the driver.
    bytes: u64,
    is_writable: bool,
    /// The same of the readable part, once that is over.
    readable_count: usize,
    readable_bytes: u64,
    /// How many segments there were when a buffer was not mapped. If there are no more at the end, that buffer was the last,
    /// and the status has no place.
    unmapped_at: Option<usize>,
    flaw: Option<Flaw>,
}

impl ChainBuilder {
    /// The chain's request must fail.
    pub(super) const fn set_flaw(&mut self, flaw: Flaw) {
        self.flaw = Some(flaw);
    }

    /// Takes a descriptor's buffer: readable ones first, then writable ones, which go to `out`, a [`segment_buffer`], in this order.
    #[inline]
    pub(super) fn push(
        &mut self,
        address: u64,
        len_bytes: u32,
        is_writable: bool,
        memory: &mut Translator,
        out: &mut Vec<Segment>,
    ) {
        if is_writable != self.is_writable {
            if self.is_writable {
                return self.set_flaw(Flaw::ReadableAfterWritable);
            }
            self.is_writable = true;
            (self.readable_count, self.readable_bytes) = (self.count, self.bytes);
            self.bytes = 0;
        }
        self.bytes += u64::from(len_bytes);
        if let (Some(host), Some(segment)) =
            (memory.resolve(BufferKind::Data, address, u64::from(len_bytes)), out.get_mut(self.count))
        {
            *segment = Segment::new(host, len_bytes as usize);
            self.count += 1;
            return;
        }
        self.push_pieces(address, len_bytes, memory, out);
    }

    /// Takes a buffer that does not lie in one region, or for which there is no room.
    #[cold]
    #[inline(never)]
    fn push_pieces(&mut self, address: u64, len_bytes: u32, memory: &mut Translator, out: &mut Vec<Segment>) {
        out.resize(MAX_CHAIN_SEGMENTS, Segment::EMPTY);
        let room = out.get_mut(self.count..).unwrap_or_default();
        let mut pieces = resolve_pieces(address, len_bytes, memory, room);
        if pieces == Err(Flaw::Unmapped) && self.count.saturating_mul(2) > out.len() {
            // Perhaps it is mapped and there is no room for its pieces. Such a chain fails, and only its last buffer matters,
            // where the status is.
            (self.count, self.readable_count, self.unmapped_at) = (0, 0, None);
            self.flaw = Some(Flaw::TooMany);
            pieces = resolve_pieces(address, len_bytes, memory, out);
        }
        match pieces {
            Ok(pieces) => self.count += pieces,
            Err(flaw) => {
                self.flaw = Some(flaw);
                if flaw == Flaw::Unmapped {
                    self.unmapped_at = Some(self.count);
                }
            }
        }
    }

    /// The chain, at its end.
    ///
    /// # Errors
    /// [`RingError::NoStatus`]: it has no place for a status.
    ///
    /// # Safety
    /// `segments` are what [`push`](Self::push) was given, with `memory`, and nothing else.
    pub(super) unsafe fn build<'a>(
        self,
        head: Head,
        segments: &'a mut [Segment],
        memory: &'a Translator,
    ) -> Result<Chain<'a>, RingError> {
        let Self { count, readable_count, readable_bytes, bytes: writable_bytes, .. } = self;
        let found = segments.get_mut(..count).unwrap_or_default();
        let (readable, writable) = found.split_at_mut_checked(readable_count).unwrap_or_default();
        let last = writable.last_mut().filter(|_| self.is_writable && self.unmapped_at != Some(count));
        let Some(last) = last else { return Err(RingError::NoStatus) };
        let before = last.len().saturating_sub(1);
        // SAFETY: M1: the translator found this byte in its table, which `memory` borrows.
        let status = unsafe { StatusByte::new(last.ptr().wrapping_add(before), memory.table()) };
        last.truncate(before);
        let flaw = if count > usize::from(MAX_CHAIN) { Some(Flaw::TooMany) } else { self.flaw };
        let data_bytes = match flaw {
            // Not all of them were read.
            Some(Flaw::TooMany) => writable_bytes,
            _ => writable_bytes.saturating_sub(1),
        };
        let header = match flaw {
            _ if readable_bytes.max(writable_bytes) > MAX_REQUEST_BYTES => Err(Flaw::TooLong),
            Some(flaw) => Err(flaw),
            // SAFETY: M1: the translator found the segments in its table, which is borrowed for 'a. M2: no reference leads
            // there.
            None => header_of(unsafe { Segments::new(readable) }).ok_or(Flaw::NoHeader),
        };
        let header = match header {
            Ok(header) => header,
            Err(flaw) => {
                let (readable, writable) = (Segments::empty(), Segments::empty());
                let (header, flaw) = (Header::default(), Some(flaw));
                return Ok(Chain { head, header, flaw, readable, writable, status, data_bytes });
            }
        };
        // SAFETY: M1: a part of what the translator found, borrowed for 'a. M2: no reference leads there.
        let readable = unsafe { Segments::new(without_front(readable, HEADER_BYTES as usize)) };
        let data_count = writable.len() - usize::from(before == 0);
        // SAFETY: M1: a part of what the translator found, borrowed for 'a. M2: no reference leads there.
        let writable = unsafe { Segments::new(writable.get(..data_count).unwrap_or_default()) };
        Ok(Chain { head, header, flaw: None, readable, writable, status, data_bytes })
    }
}

/// The first bytes, each read once.
fn header_of(readable: Segments<'_>) -> Option<Header> {
    let mut words = [[0; 8]; 2];
    (copy::load_slice(readable, words.as_flattened_mut()) == HEADER_BYTES as usize)
        .then(|| words.map(u64::from_le_bytes))
}

/// The segments without their first `bytes` bytes.
fn without_front(list: &mut [Segment], bytes: usize) -> &mut [Segment] {
    let (mut missing, mut emptied) = (bytes, 0);
    for segment in list.iter_mut() {
        let here = missing.min(segment.len());
        segment.advance(here);
        missing -= here;
        if !segment.is_empty() {
            break;
        }
        emptied += 1;
    }
    list.get_mut(emptied..).unwrap_or_default()
}

/// Takes a buffer that does not lie in one region: how many pieces it has.
fn resolve_pieces(
    address: u64,
    len_bytes: u32,
    memory: &mut Translator,
    out: &mut [Segment],
) -> Result<usize, Flaw> {
    match len_bytes {
        0 => Err(Flaw::Empty),
        _ => memory.resolve_pieces(address, len_bytes, out).ok_or(Flaw::Unmapped),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_taken_from_the_front_over_any_split() {
        let mut bytes = [0_u8; 20];
        for split in 1..20 {
            let rest = bytes.as_mut_ptr().wrapping_add(split);
            let mut list = [Segment::new(bytes.as_mut_ptr(), split), Segment::new(rest, 20 - split)];
            let left = without_front(&mut list, 16);
            assert_eq!(left.iter().map(Segment::len).sum::<usize>(), 4, "{split}");
            assert_eq!(left[0].ptr(), bytes.as_mut_ptr().wrapping_add(16), "{split}");
            assert!(without_front(left, 4).is_empty());
        }
    }
}
