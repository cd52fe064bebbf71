//! The driver, as simple as it can be: it counts positions without end instead of wrapping them, and reads of the ring only
//! what a driver may read.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::super::*;

use crate::copy::testing::memfd;
use crate::virtio::memory::testing::table_of;
use crate::virtio::queue::{RingAddresses, RingKind};

pub(super) const MEMORY_BYTES: u64 = 1 << 20;
const DRIVER_AREA: u64 = 0x8000;
pub(super) const DEVICE_AREA: u64 = 0x8004;
const TABLES: u64 = 0x1_0000;
const BUFFERS: u64 = 0x2_0000;

/// One chain a driver offers: lengths of its buffers. The last one is writable: the status has to go somewhere.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) readable: Vec<u32>,
    pub(super) writable: Vec<u32>,
    pub(super) is_indirect: bool,
    pub(super) written_bytes: u32,
}

/// When a driver wants to be called.
#[derive(Debug, Clone, Copy)]
pub(super) enum Want {
    Always,
    Never,
    /// When the slot so many after the next one it reads is used.
    Slot(u16),
}

/// Its id, its buffers with their directions, and what the device then says that it wrote.
pub(super) type Expected = (u16, Vec<(u64, u32, bool)>, u32);

/// The driver, and the guest memory it shares with the device.
pub(super) struct Driver {
    file: File,
    size: u16,
    event_idx: bool,
    /// Slots made available, and those found used, since the ring began: they never wrap.
    pub(super) offered: u64,
    pub(super) seen: u64,
    free_ids: Vec<u16>,
    /// Slots of each chain that is under way, by its id.
    slots: HashMap<u16, u16>,
    /// What the device should find next.
    pub(super) expected: VecDeque<Expected>,
    /// What the driver should find used next.
    pub(super) answers: VecDeque<(u16, u32)>,
    want: Option<u64>,
}

impl Driver {
    pub(super) fn new(size: u16, event_idx: bool) -> Self {
        let file = memfd("ring", MEMORY_BYTES);
        // Ids need not be numbers of slots.
        let free_ids = (0..size).map(|id| id.wrapping_mul(257).wrapping_add(9)).collect();
        let (slots, expected, answers) = (HashMap::new(), VecDeque::new(), VecDeque::new());
        Self { file, size, event_idx, offered: 0, seen: 0, free_ids, slots, expected, answers, want: Some(0) }
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    pub(super) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    pub(super) fn table(&self) -> Arc<MemoryTable> {
        table_of(&self.file, MEMORY_BYTES)
    }

    pub(super) fn layout(&self, base: u32) -> RingLayout {
        let addresses = RingAddresses { descriptors: 0, available: DRIVER_AREA, used: DEVICE_AREA };
        let (kind, size) = (RingKind::Packed, u32::from(self.size));
        let event_idx = self.event_idx;
        RingLayout { kind, size, addresses, base, event_idx, indirect: true }
    }

    pub(super) fn start(&self, table: &MemoryTable, base: u32) -> PackedQueue {
        PackedQueue::start(&self.layout(base), table).unwrap()
    }

    /// Where a position without end is, and whether its pass is one whose wrap counter is 1.
    pub(super) fn place(&self, position: u64) -> (u64, bool) {
        (position % u64::from(self.size), (position / u64::from(self.size)).is_multiple_of(2))
    }

    /// A position as an event offset or half a base.
    fn bits(&self, position: u64) -> u16 {
        let (slot, wrap) = self.place(position);
        slot as u16 | u16::from(wrap) << 15
    }

    pub(super) fn base(&self, position: u64) -> u32 {
        u32::from(self.bits(position)) * 0x1_0001
    }

    fn describe(&self, at: u64, (address, len, is_write): (u64, u32, bool), id: u16, flags: u16) -> [u8; 2] {
        let flags = (flags | if is_write { WRITE } else { 0 }).to_le_bytes();
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &[&len.to_le_bytes()[..], &id.to_le_bytes()].concat());
        flags
    }

    /// Writes a chain, its first flags last; false when there is no room.
    pub(super) fn offer(&mut self, offer: &Offer) -> bool {
        let count = offer.readable.len() + offer.writable.len();
        let needs = if offer.is_indirect { 1 } else { count as u64 };
        if self.offered + needs - self.seen > u64::from(self.size) || self.free_ids.is_empty() {
            return false;
        }
        let id = self.free_ids.remove(0);
        let sides = [(&offer.readable, false), (&offer.writable, true)];
        let lens = sides.into_iter().flat_map(|(lens, write)| lens.iter().map(move |len| (*len, write)));
        let start = BUFFERS + self.offered % 64 * 0x1000;
        let buffers: Vec<_> = lens.zip(0_u64..).map(|((len, w), at)| (start + at * 0x100, len, w)).collect();
        let mut first_flags = [0; 2];
        for number in (0..count as u64).rev() {
            let buffer = buffers[number as usize];
            let is_last = number + 1 == count as u64;
            if offer.is_indirect {
                // Flags of a table count only for the direction; ids not at all.
                let flags =
                    self.describe(TABLES + u64::from(id % 64) * 0x200 + number * 16, buffer, 77, NEXT);
                self.write(TABLES + u64::from(id % 64) * 0x200 + number * 16 + 14, &flags);
            } else {
                let next = if is_last { 0 } else { NEXT };
                let (slot, flags) = self.slot_flags(self.offered + number, next);
                first_flags = self.describe(slot, buffer, if is_last { id } else { 55 }, flags);
                if number > 0 {
                    self.write(slot + 14, &first_flags);
                }
            }
        }
        let (slot, flags) = self.slot_flags(self.offered, INDIRECT);
        if offer.is_indirect {
            let table = (TABLES + u64::from(id % 64) * 0x200, count as u32 * 16, false);
            first_flags = self.describe(slot, table, id, flags);
        }
        self.write(slot + 14, &first_flags);
        self.offered += needs;
        self.slots.insert(id, needs as u16);
        self.expected.push_back((id, buffers, offer.written_bytes));
        self.answers.push_back((id, offer.written_bytes));
        true
    }

    fn slot_flags(&self, position: u64, flags: u16) -> (u64, u16) {
        let (slot, wrap) = self.place(position);
        (slot * 16, flags | if wrap { AVAIL } else { USED })
    }

    /// Takes all that is used: it must be what was offered, in order.
    pub(super) fn reap(&mut self) {
        loop {
            let (slot, wrap) = self.place(self.seen);
            let flags = u16::from_le_bytes(self.read(slot * 16 + 14));
            if (flags & AVAIL != 0) != wrap || (flags & USED != 0) != wrap {
                return;
            }
            let written = u32::from_le_bytes(self.read(slot * 16 + 8));
            let id = u16::from_le_bytes(self.read(slot * 16 + 12));
            assert_eq!(Some((id, written)), self.answers.pop_front());
            assert_eq!(flags & WRITE != 0, written > 0);
            self.seen += u64::from(self.slots.remove(&id).unwrap());
            self.free_ids.push(id);
        }
    }

    /// What a device of another make does with the next chains, which begin at a position: it writes to their first
    /// slots only. Returns where it stops.
    pub(super) fn served_elsewhere(&mut self, mut at: u64, chains: usize, keeps_flags: bool) -> u64 {
        for (id, _, written) in self.expected.drain(..chains.min(self.expected.len())).collect::<Vec<_>>() {
            let (slot, wrap) = self.place(at);
            let before = u16::from_le_bytes(self.read(slot * 16 + 14));
            let kept = if keeps_flags { before & !(AVAIL | USED | WRITE) } else { 0 };
            let direction = if written > 0 { WRITE } else { 0 };
            let flags = kept | direction | if wrap { AVAIL | USED } else { 0 };
            let words = [&written.to_le_bytes()[..], &id.to_le_bytes(), &flags.to_le_bytes()].concat();
            self.write(slot * 16 + 8, &words);
            at += u64::from(self.slots[&id]);
        }
        at
    }

    pub(super) fn want(&mut self, want: Want) {
        let (off_wrap, flags) = match want {
            Want::Always => (0, ENABLE),
            Want::Never => (0, DISABLE),
            Want::Slot(ahead) => (self.bits(self.seen + u64::from(ahead % self.size)), ONE_DESCRIPTOR),
        };
        self.want = match want {
            Want::Always => Some(u64::MAX),
            Want::Never => None,
            Want::Slot(ahead) if self.event_idx => Some(self.seen + u64::from(ahead % self.size)),
            Want::Slot(_) => Some(u64::MAX),
        };
        self.write(DRIVER_AREA, &[off_wrap, flags].map(u16::to_le_bytes).concat());
    }

    /// Whether it wants to be called when these slots were used: one that it has named, in this pass or an even
    /// number of passes later, if it never named another one.
    pub(super) fn is_called(&self, mut used: std::ops::Range<u64>) -> bool {
        let passes = 2 * u64::from(self.size);
        self.want.is_some_and(|want| want == u64::MAX || used.any(|slot| slot % passes == want % passes))
    }
}
