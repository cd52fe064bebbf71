//! The driver's side of a packed ring (VIRTIO 1.2 §2.8). Chains are used in order, each with a descriptor of its own.

use std::collections::VecDeque;

use super::{DESCRIPTOR_BYTES, DriverSide, NEXT, Part, Used, Vring, bytes_of};

/// Descriptor flags: with both as the wrap counter a descriptor is used, with the second one inverted available.
pub const AVAILABLE: u16 = 1 << 7;
/// As above.
pub const USED: u16 = 1 << 15;

/// The wrap counter beside a slot number.
const WRAP: u16 = 1 << 15;

/// Event suppression: notifications of every descriptor, of none, or of the one that is named.
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const ONE_DESCRIPTOR: u16 = 2;

/// Offset of a descriptor's flags in it, in bytes.
const FLAGS: u64 = 14;

/// A descriptor of the ring, and the pass over the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    slot: u16,
    wrap: bool,
}

impl Position {
    const START: Self = Self { slot: 0, wrap: true };

    fn next(self, at: &Vring) -> Self {
        if self.slot + 1 < at.size {
            Self { slot: self.slot + 1, ..self }
        } else {
            Self { slot: 0, wrap: !self.wrap }
        }
    }

    fn advance(self, by: u16, at: &Vring) -> Self {
        (0..by).fold(self, |position, _| position.next(at))
    }

    fn bits(self) -> u16 {
        if self.wrap { self.slot | WRAP } else { self.slot }
    }

    /// As `GET_VRING_BASE` says it of a ring at rest.
    fn base(self) -> u32 {
        u32::from(self.bits()) * 0x1_0001
    }

    fn descriptor(self, at: &Vring) -> u64 {
        at.descriptors + u64::from(self.slot) * DESCRIPTOR_BYTES
    }

    /// Whether the device has used the chain whose first descriptor is here.
    fn is_used(self, at: &Vring) -> bool {
        let flags = at.memory.load_u16(self.descriptor(at) + FLAGS);
        [AVAILABLE, USED].iter().all(|bit| (flags & bit != 0) == self.wrap)
    }

    /// Bits of a descriptor that is available here.
    fn available(self) -> u16 {
        if self.wrap { AVAILABLE } else { USED }
    }
}

#[derive(Debug)]
pub(super) struct Packed {
    /// Where the next chain is laid out.
    next: Position,
    /// Where the next chain is used.
    used: Position,
    /// Descriptors of each chain that was laid out and not taken, in order.
    under_way: VecDeque<u16>,
    /// The first of those that are not available yet: where its flags are, and what they will be.
    hidden: Option<(u64, u16)>,
    /// Chains not available yet.
    prepared: u16,
    available_index: u16,
    seen: u16,
    /// What was available at the last notification, or when none was wanted.
    notified: Position,
}

impl Default for Packed {
    fn default() -> Self {
        Self {
            next: Position::START,
            used: Position::START,
            under_way: VecDeque::new(),
            hidden: None,
            prepared: 0,
            available_index: 0,
            seen: 0,
            notified: Position::START,
        }
    }
}

impl Packed {
    /// Where the chains begin that are not used yet, and how many were used before them that were not taken.
    fn end_of_used(&self, at: &Vring) -> (Position, u16) {
        let (mut position, mut count) = (self.used, 0);
        let under_way = self.under_way.iter().take(usize::from(self.available_index.wrapping_sub(self.seen)));
        for descriptors in under_way {
            if !position.is_used(at) {
                break;
            }
            (position, count) = (position.advance(*descriptors, at), count + 1);
        }
        (position, count)
    }
}

impl DriverSide for Packed {
    fn bytes(&self, size: u16) -> [(u64, u64); 3] {
        [(u64::from(size) * DESCRIPTOR_BYTES, 16), (4, 4), (4, 4)]
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn begin_at(&mut self, at: &Vring, chains: u16) {
        let start = (0..chains).fold(Position::START, |position, _| position.next(at));
        *self = Self {
            next: start,
            used: start,
            notified: start,
            available_index: chains,
            seen: chains,
            ..Self::default()
        };
        for slot in 0..at.size {
            // Those behind the place were used in the pass before, if there was one.
            let wrap = if slot < start.slot { start.wrap } else { !start.wrap };
            let flags = if wrap { AVAILABLE | USED } else { 0 };
            at.memory.store_u16(Position { slot, wrap }.descriptor(at) + FLAGS, flags);
        }
    }

    /// Only the last descriptor says the buffer id (§2.8.5).
    fn prepare(&mut self, at: &Vring, head: u16, parts: &[Part]) {
        let last = parts.len() - 1;
        for (number, &(address, len, flags)) in parts.iter().enumerate() {
            let place = self.next.descriptor(at);
            let id = if number == last { head } else { !head };
            at.memory.write(place, &bytes_of(address, len, id, 0)[..FLAGS as usize]);
            let leads_on = if number < last { NEXT } else { 0 };
            let flags = flags | leads_on | self.next.available();
            match self.hidden {
                None => self.hidden = Some((place + FLAGS, flags)),
                Some(_) => at.memory.store_u16(place + FLAGS, flags),
            }
            self.next = self.next.next(at);
        }
        self.under_way.push_back(parts.len() as u16);
        self.prepared += 1;
    }

    fn make_available(&mut self, at: &Vring) {
        if let Some((place, flags)) = self.hidden.take() {
            at.memory.store_u16(place, flags);
        }
        self.available_index = self.available_index.wrapping_add(self.prepared);
        self.prepared = 0;
    }

    fn available_index(&self) -> u16 {
        self.available_index
    }

    fn done(&self, at: &Vring) -> u16 {
        self.seen.wrapping_add(self.end_of_used(at).1)
    }

    fn next_used(&mut self, at: &Vring) -> Option<Used> {
        if self.end_of_used(at).1 == 0 {
            return None;
        }
        let descriptors = self.under_way.pop_front()?;
        let bytes = at.memory.read(self.used.descriptor(at) + 8, 6);
        self.used = self.used.advance(descriptors, at);
        self.seen = self.seen.wrapping_add(1);
        Some(Used {
            head: u16::from_le_bytes(bytes[4..].try_into().unwrap()),
            bytes: u32::from_le_bytes(bytes[..4].try_into().unwrap()),
        })
    }

    fn wants_kick(&mut self, at: &Vring) -> bool {
        let mut position = std::mem::replace(&mut self.notified, self.next);
        match at.memory.load_u16(at.used + 2) & 3 {
            DISABLE => false,
            ONE_DESCRIPTOR if at.event_idx => {
                let event = at.memory.load_u16(at.used);
                while position != self.next && position.bits() != event {
                    position = position.next(at);
                }
                position != self.next
            }
            _ => true,
        }
    }

    fn name_event(&mut self, at: &Vring, chains: u16, descriptors: u16) {
        let event = self.used.advance(chains * descriptors, at);
        at.memory.store_u16(at.available, event.bits());
        at.memory.store_u16(at.available + 2, ONE_DESCRIPTOR);
    }

    fn set_calls(&mut self, at: &Vring, wanted: bool) {
        at.memory.store_u16(at.available + 2, if wanted { ENABLE } else { DISABLE });
    }

    fn used_base(&self, at: &Vring) -> u32 {
        self.end_of_used(at).0.base()
    }

    fn available_base(&self, _at: &Vring) -> u32 {
        self.next.base()
    }

    fn table(&self, parts: &[Part]) -> Vec<u8> {
        parts.iter().flat_map(|&(address, len, flags)| bytes_of(address, len, 0, flags)).collect()
    }
}
