//! The data of a request that takes several turns of its ring, a slice at a time.

#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::chain::StatusByte;
use super::chain_builder::MAX_CHAIN_SEGMENTS;
use crate::copy::fault::losses;
use crate::copy::{self, Segment, Segments};
use crate::virtio::memory::MemoryTable;

/// Segments of most chains. There may be many that are held, and few of them have more.
const FEW_SEGMENTS: usize = 8;

/// Room for the segments of one chain, of which a slice at a time is executed.
#[derive(Debug)]
pub struct HeldSegments {
    /// The memory that they lie in, while there are any.
    table: Option<Arc<MemoryTable>>,
    list: Vec<Segment>,
    /// Where in the list the slice is.
    slice: Range<usize>,
    /// What the slice has left of its last segment.
    rest: Segment,
}

// SAFETY: Q4: the segments lie in the table that is held with them. Q2: only the owner of this value uses them.
unsafe impl Send for HeldSegments {}

impl Default for HeldSegments {
    /// The room is made once (D7), with the first request that needs it, and once more with the first one of many segments:
    /// most rings have none.
    fn default() -> Self {
        Self { table: None, list: Vec::new(), slice: 0..0, rest: Segment::EMPTY }
    }
}

impl HeldSegments {
    /// Keeps the segments of the chain that has this status byte: the guest's memory stays mapped as long. Returns
    /// whether all of them are of that memory.
    pub fn hold(&mut self, segments: Segments<'_>, status: &StatusByte<'_>) -> bool {
        let (list, table) = (segments.as_slice(), status.table());
        self.release();
        if !list.iter().all(|segment| table.has(segment)) {
            return false;
        }
        self.list.reserve_exact(if list.len() <= FEW_SEGMENTS { FEW_SEGMENTS } else { MAX_CHAIN_SEGMENTS });
        self.list.extend_from_slice(list);
        self.table = Some(table.clone());
        true
    }

    /// Waits until the bytes of the slice are there, which in a postcopy migration may take long. False when guest memory is
    /// lost: then what is read there may be zeroes in place of what the guest wrote.
    pub fn touch(&self) -> bool {
        copy::touch(self.slice());
        // In this order: the loss is noted before there are zeroes.
        losses() == 0 || !self.table.as_ref().is_some_and(|table| table.has_lost_pages())
    }

    /// Nothing is held any more.
    pub fn release(&mut self) {
        self.list.clear();
        (self.table, self.slice, self.rest) = (None, 0..0, Segment::EMPTY);
    }

    /// Goes on to the next slice, of as many bytes (at most what is left).
    pub fn advance(&mut self, bytes: usize) {
        let mut end = self.slice.end;
        if !self.rest.is_empty()
            && let Some(cut) = self.list.get_mut(end.wrapping_sub(1))
        {
            end = end.wrapping_sub(1);
            *cut = std::mem::replace(&mut self.rest, Segment::EMPTY);
        }
        let (start, mut left) = (end, bytes);
        while left > 0
            && let Some(last) = self.list.get_mut(end)
        {
            if last.len() > left {
                self.rest = *last;
                self.rest.advance(left);
                last.truncate(left);
            }
            left = left.saturating_sub(last.len());
            end = end.saturating_add(1);
        }
        self.slice = start..end;
    }

    /// The slice.
    pub fn slice(&self) -> Segments<'_> {
        // SAFETY: Q4: the table has all segments, as `hold` has checked, and is held with them. M2: no reference leads
        // there.
        unsafe { Segments::new(self.list.get(self.slice.clone()).unwrap_or_default()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::copy::load_slice;
    use crate::copy::testing::{Memory, pattern};

    proptest! {
        /// Slices of any lengths over segments of any lengths are, one behind the other, the whole.
        #[test]
        fn slices_are_the_whole(
            lens in prop::collection::vec(prop_oneof![1 => Just(0_usize), 4 => 1..60_usize], 0..20),
            slices in prop::collection::vec(1..90_usize, 1..8),
        ) {
            let total: usize = lens.iter().sum();
            let memory = Memory::new(&pattern(total, 3)).cut(0, &lens, 0);
            let mut held = HeldSegments::default();
            held.list.extend_from_slice(memory.segments().as_slice());
            let (mut found, mut left) = (Vec::new(), total);
            for most in slices.iter().cycle() {
                let len = left.min(*most);
                held.advance(len);
                let slice = held.slice();
                prop_assert_eq!(slice.total_bytes(), len);
                let mut bytes = vec![0; len];
                prop_assert_eq!(load_slice(slice, &mut bytes), len);
                found.extend(bytes);
                left -= len;
                if len == 0 {
                    break;
                }
            }
            prop_assert_eq!(found, memory.bytes());
            held.release();
            prop_assert_eq!(held.slice().total_bytes(), 0);
        }
    }
}
