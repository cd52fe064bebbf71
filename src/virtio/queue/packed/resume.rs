//! Where a packed ring that is started anew goes on.
//!
//! A packed ring has no used index in memory. Where the back-end before us has stopped, even by a crash, is found from the
//! descriptors and from a record ([decision D2](crate#decisions)):
//!
//! - A chain's used descriptor is one store of 8 bytes at its head, and chains are published in order. What is
//!   published at any instant is a prefix of what was fetched.
//! - Before that store the USED bits of the chain's other slots are set as well, which drivers do not read. When a driver
//!   makes a slot available it sets USED to the inverse of its wrap counter (VIRTIO 1.2 §2.8.1), which is what the bit is
//!   by then. So only the device ever changes a USED bit, and the slots used in this pass are those whose bit equals the
//!   wrap counter.
//! - After a batch the position is recorded in the device area, in the place of the event offset: drivers read that only if
//!   the flags beside it say so, and ours never do. A crash between the two leaves a record that is behind by slots that
//!   all bear the mark.
//! - All slots that we give back bear a mark of ours besides. Those that another back-end has used since our record do
//!   not.
//!
//! So the ring goes on at the first slot without the mark, from the record on. The front-end's base is used for a ring that
//! has no record of ours, or one that its slots contradict; a base that its slots contradict is refused.

use std::sync::atomic::Ordering;

use super::position::Position;
use super::slots::{AVAIL, Descriptor, OURS, Slots, USED};
use crate::virtio::queue::descriptor::NEXT;
use crate::virtio::queue::error::RingError;

/// Whether we have used this slot in this pass. The driver may have offered it for the next one since.
fn is_marked(slots: &Slots, at: Position) -> bool {
    let flags = u16::from_le(slots.flags(at.slot).load(Ordering::Acquire));
    let is_offered_again = (flags & AVAIL != 0) != at.wrap;
    (flags & USED != 0) == at.wrap && (is_offered_again || flags & OURS != 0)
}

/// Whether some device has used the chain here in this pass, and the driver has not offered another one since.
fn is_used(slots: &Slots, at: Position) -> bool {
    let Descriptor { address, len_bytes, id, flags } = slots.read(at.slot);
    let is_blank = (address, len_bytes, id, flags) == (0, 0, 0, 0);
    (flags & USED != 0) == at.wrap && (flags & AVAIL != 0) == at.wrap && !is_blank
}

/// Marks what another back-end has left unmarked in the pass before this position. Those slots are the driver's: what it
/// makes available meanwhile stays.
fn adopt(slots: &Slots, mut at: Position) {
    for _ in 0..slots.size() {
        let flags = slots.flags(at.slot);
        let before = flags.load(Ordering::Acquire);
        let bits = u16::from_le(before);
        if (bits & AVAIL != 0) != at.wrap && (bits & USED != 0) == at.wrap {
            let marked = (bits ^ USED).to_le();
            // It fails where the driver has made the slot available anew: then its flags stay.
            let _ = flags.compare_exchange(before, marked, Ordering::AcqRel, Ordering::Relaxed);
        }
        at = at.advance(1, slots.size());
    }
}

/// The position where the back-end that drove this ring last has stopped, whatever stopped it.
pub(super) fn find(slots: &Slots, base: u32) -> Result<Position, RingError> {
    let word = u16::from_le(slots.device_word(0).load(Ordering::Acquire));
    if let Some(mut at) = Position::from_record(word, slots.size()) {
        for _ in 0..slots.size() {
            if !is_marked(slots, at) {
                break;
            }
            at = at.advance(1, slots.size());
        }
        if agrees(slots, at) {
            return Ok(at);
        }
    }
    let mut start = Position::from_base(base, slots.size())?;
    if base == 0 && u16::from_le(slots.flags(0).load(Ordering::Acquire)) & USED != 0 {
        // The ring has run: base 0 then means slot 0 of its second pass, whose wrap counter is 0.
        start.wrap = false;
    }
    if is_used(slots, start) {
        return Err(RingError::StaleBase(start.slot));
    }
    adopt(slots, start);
    Ok(start)
}

/// Whether the flags of a ring's slots can be what they are if everything before `at` was used and nothing from there on: the
/// slot before `at` has the used flag of its pass, and none of those that are available from `at` on has that of the present
/// pass, but for the very next chain, if that was about to be published.
fn agrees(slots: &Slots, mut at: Position) -> bool {
    let mut is_next_chain = false;
    (1..=slots.size()).all(|count| {
        let flags = u16::from_le(slots.flags(at.slot).load(Ordering::Acquire));
        let counts = count == slots.size() || (flags & AVAIL != 0) == at.wrap;
        let is_possible = is_next_chain || !counts || (flags & USED != 0) != at.wrap;
        is_next_chain = flags & NEXT != 0 && (is_next_chain || count == 1);
        at = at.advance(1, slots.size());
        is_possible
    })
}
