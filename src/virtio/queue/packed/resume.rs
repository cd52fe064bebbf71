//! Where a packed ring that is started anew goes on.
//!
//! There is no used index in memory; a ring started anew finds its place all the same ([decision D2](crate#decisions)):
//!
//! - A chain's used descriptor is one store of 8 bytes at its head, and chains are published in order. What is
//!   published at any instant is a prefix of what was fetched.
//! - Before that store the USED bits of the chain's other slots are set as well. Drivers pass them over, and they
//!   write their own inverse of the wrap counter there, which is what the bit is then: so only the device ever
//!   changes a USED bit, and the slots used in this pass are those whose bit equals the wrap counter.
//! - After a batch, the place is recorded in the device area where an event offset could be, which a driver reads
//!   only if the flags beside it say so: ours never do. A crash between the two leaves a record that is behind by
//!   slots that all bear the mark.
//!
//! - All slots that it gives back bear our mark besides. What a device of another make has used since our record does
//!   not.
//!
//! So the place is the first slot without the mark, from the record on. The front-end's base counts in a ring
//! that has no record of ours, or one that its slots contradict; a base that its slots contradict is refused.

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

/// Marks what a device of another make has left unmarked in the pass before this place. Those slots are the
/// driver's: what it offers meanwhile stays.
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

/// Where the device that drove this ring last has stopped, whatever stopped it.
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
        // That is not said of a ring that never ran, but of one whose first pass is over.
        start.wrap = false;
    }
    if is_used(slots, start) {
        return Err(RingError::StaleBase(start.slot));
    }
    adopt(slots, start);
    Ok(start)
}

/// Whether a ring can look like that after what was used up to `at`: the slot before it bears the mark of the
/// pass that it was in, and none of those that are available from there on bears that of this one, except in
/// the very next chain, if that was about to be published.
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
