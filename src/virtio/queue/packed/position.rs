//! A position in a packed ring: as `GET_VRING_BASE` has it, and as the device area records it.

use crate::virtio::queue::RingError;

/// The wrap counter's bit beside a slot (VIRTIO 1.2 §2.8.10).
const WRAP: u16 = 1 << 15;

/// Marks a slot number as recorded by us, in rings that are small enough: the bits above that no slot number has. In larger
/// ones there is no room for it, and what the slots say has to do.
const RECORDED: u16 = 0b10110 << 10;
const RECORDED_MASK: u16 = 0b11111 << 10;

/// Slots of a ring that has room for the mark.
const MARKED_SIZE: u16 = 1 << 10;

/// The mark, and the bits that it is in.
const fn mark(size: u16) -> (u16, u16) {
    if size <= MARKED_SIZE { (RECORDED, RECORDED_MASK) } else { (0, 0) }
}

/// A slot and the pass over the ring: the ring wrap counter (VIRTIO 1.2 §2.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// Less than the ring's size.
    pub(super) slot: u16,
    pub(super) wrap: bool,
}

impl Position {
    /// Where every ring begins.
    pub(super) const START: Self = Self { slot: 0, wrap: true };

    /// `by` slots further on, at most one pass.
    #[inline]
    pub(super) const fn advance(self, by: u16, size: u16) -> Self {
        let slot = self.slot.wrapping_add(by);
        if slot < size {
            Self { slot, wrap: self.wrap }
        } else {
            Self { slot: slot.wrapping_sub(size), wrap: !self.wrap }
        }
    }

    const fn bits(self) -> u16 {
        if self.wrap { self.slot | WRAP } else { self.slot }
    }

    fn of(slot: u16, wrap: u16, size: u16) -> Option<Self> {
        (slot < size).then_some(Self { slot, wrap: wrap & WRAP != 0 })
    }

    /// As `GET_VRING_BASE` answers it, of a ring in which nothing is under way: what was taken in the lower
    /// half, what was used in the upper.
    pub(super) const fn to_base(self) -> u32 {
        let bits = self.bits() as u32;
        bits << 16 | bits
    }

    /// The used half of what `SET_VRING_BASE` says. Nothing at all means the start; a front-end that knows of
    /// one half only sends the lower one.
    pub(super) fn from_base(base: u32, size: u16) -> Result<Self, RingError> {
        let [a0, a1, u0, u1] = base.to_le_bytes();
        let half = match (u16::from_le_bytes([u0, u1]), u16::from_le_bytes([a0, a1])) {
            (0, 0) => return Ok(Self::START),
            (0, available) => available,
            (used, _) => used,
        };
        Self::of(half & !WRAP, half, size).ok_or(RingError::Base(half & !WRAP, size))
    }

    /// As the device area keeps it.
    pub(super) const fn to_record(self, size: u16) -> u16 {
        self.bits() | mark(size).0
    }

    /// What the device area keeps, if it was written by us.
    pub(super) fn from_record(word: u16, size: u16) -> Option<Self> {
        let (mark, mask) = mark(size);
        (word & mask == mark).then(|| Self::of(word & !mask & !WRAP, word, size)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::queue::MAX_QUEUE_SIZE;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_position_is_read_as_it_was_written(size in 1..=MAX_QUEUE_SIZE, slot: u16, wrap: bool) {
            let at = Position { slot: slot % size, wrap };
            prop_assert_eq!(Position::from_record(at.to_record(size), size), Some(at));
            // A base of nothing stands for a ring that was never started.
            let expected = if at.bits() == 0 { Position::START } else { at };
            prop_assert_eq!(Position::from_base(at.to_base(), size), Ok(expected));
            prop_assert_eq!(Position::from_base(at.bits().into(), size), Ok(expected));
            prop_assert_eq!(at.advance(size, size), Position { wrap: !wrap, ..at });
        }
    }

    #[test]
    fn a_position_beyond_the_ring_is_refused() {
        assert_eq!(Position::from_base(0x8008_0000, 8), Err(RingError::Base(8, 8)));
        assert_eq!(Position::from_base(7, 7), Err(RingError::Base(7, 7)));
        assert_eq!(Position::from_record(RECORDED | 8, 8), None);
        assert_eq!(Position::from_record(0, 8), None, "nobody has written it");
        assert_eq!(Position::from_record(0x8003, 8), None, "an event offset of another device");
    }
}
