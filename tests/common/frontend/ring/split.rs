//! The driver's side of a split ring (VIRTIO 1.2 §2.7).

use super::{DESCRIPTOR_BYTES, Descriptor, DriverSide, NEXT, Part, Used, Vring};

/// Flag of the available ring: the driver does not want to be called.
const NO_INTERRUPT: u16 = 1;

/// Flag of the used ring: the device does not want to be kicked.
const NO_NOTIFY: u16 = 1;

#[derive(Debug, Default)]
pub(super) struct Split {
    /// What this side has written to the available index.
    available_index: u16,
    /// Entries of the available ring behind that.
    prepared: u16,
    /// What this side has taken from the used ring.
    seen: u16,
    /// The available index at the last notification, or when none was wanted.
    notified: u16,
}

impl Split {
    /// Writes the next entry of the available ring, which the device does not see yet.
    pub(super) fn announce(&mut self, at: &Vring, head: u16) {
        let slot = self.available_index.wrapping_add(self.prepared) % at.size;
        at.memory.store_u16(at.available + 4 + u64::from(slot) * 2, head);
        self.prepared += 1;
    }

    /// Writes the available index.
    pub(super) fn set_available_index(&mut self, at: &Vring, index: u16) {
        (self.available_index, self.prepared) = (index, 0);
        at.memory.store_u16(at.available + 2, index);
    }
}

/// The parts of a chain whose first descriptor is `head`, of a table of `size`.
fn linked(head: u16, parts: &[Part], size: u16) -> impl Iterator<Item = Descriptor> {
    let last = parts.len() - 1;
    parts.iter().enumerate().map(move |(at, &(address, len, flags))| {
        let next = (head.wrapping_add(at as u16)).wrapping_add(1) % size;
        Descriptor { address, len, flags: if at < last { flags | NEXT } else { flags }, next }
    })
}

impl DriverSide for Split {
    fn bytes(&self, size: u16) -> [(u64, u64); 3] {
        let slots = u64::from(size);
        [(slots * DESCRIPTOR_BYTES, 16), (6 + slots * 2, 2), (6 + slots * 8, 4)]
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn begin_at(&mut self, at: &Vring, chains: u16) {
        at.memory.store_u16(at.available + 2, chains);
        at.memory.store_u16(at.used + 2, chains);
        *self = Self { available_index: chains, prepared: 0, seen: chains, notified: chains };
    }

    fn prepare(&mut self, at: &Vring, head: u16, parts: &[Part]) {
        for (number, descriptor) in linked(head, parts, at.size).enumerate() {
            let index = u64::from((head + number as u16) % at.size);
            at.memory.write(at.descriptors + index * DESCRIPTOR_BYTES, &descriptor.to_bytes());
        }
        self.announce(at, head);
    }

    fn make_available(&mut self, at: &Vring) {
        self.set_available_index(at, self.available_index.wrapping_add(self.prepared));
    }

    fn available_index(&self) -> u16 {
        self.available_index
    }

    fn done(&self, at: &Vring) -> u16 {
        at.memory.load_u16(at.used + 2)
    }

    fn next_used(&mut self, at: &Vring) -> Option<Used> {
        if self.done(at) == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % at.size);
        let entry = at.memory.read(at.used + 4 + slot * 8, 8);
        let field = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        self.seen = self.seen.wrapping_add(1);
        Some(Used { head: u16::try_from(field(0)).unwrap(), bytes: field(4) })
    }

    fn wants_kick(&mut self, at: &Vring) -> bool {
        let (old, new) = (self.notified, self.available_index);
        self.notified = new;
        if at.event_idx {
            let event = at.memory.load_u16(at.used + 4 + u64::from(at.size) * 8);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            at.memory.load_u16(at.used) & NO_NOTIFY == 0
        }
    }

    fn name_event(&mut self, at: &Vring, chains: u16, _descriptors: u16) {
        let event = at.available + 4 + u64::from(at.size) * 2;
        at.memory.store_u16(event, self.seen.wrapping_add(chains));
    }

    fn set_calls(&mut self, at: &Vring, wanted: bool) {
        at.memory.store_u16(at.available, if wanted { 0 } else { NO_INTERRUPT });
    }

    fn used_base(&self, at: &Vring) -> u32 {
        self.done(at).into()
    }

    fn available_base(&self, _at: &Vring) -> u32 {
        self.available_index.into()
    }

    fn table(&self, parts: &[Part]) -> Vec<u8> {
        linked(0, parts, u16::MAX).flat_map(Descriptor::to_bytes).collect()
    }
}
