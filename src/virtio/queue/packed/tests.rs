//! The ring against a driver of the test's own, which is as simple as it can be: it counts positions without end
//! instead of wrapping them, and looks at memory only as a driver may.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::stop_point::{self, Point};
use crate::virtio::memory::{DirtyLog, RegionSpec};

const MEMORY_BYTES: u64 = 1 << 20;
const DRIVER_AREA: u64 = 0x8000;
const DEVICE_AREA: u64 = 0x8004;
const TABLES: u64 = 0x1_0000;
const BUFFERS: u64 = 0x2_0000;

/// One chain a driver offers: lengths of its buffers. The last one is writable: the status has to go somewhere.
#[derive(Debug, Clone)]
struct Offer {
    readable: Vec<u32>,
    writable: Vec<u32>,
    is_indirect: bool,
    written_bytes: u32,
}

/// When a driver wants to be called.
#[derive(Debug, Clone, Copy)]
enum Want {
    Always,
    Never,
    /// When the slot so many after the next one it looks at is used.
    Slot(u16),
}

#[derive(Debug, Clone)]
enum Step {
    /// The driver offers as many of these as there is room for.
    Offer(Vec<Offer>),
    /// The device takes up to so many chains, completes and publishes them.
    Serve(usize),
    /// The driver takes what is used.
    Reap,
    Want(Want),
    /// The device takes up to so many chains, and dies at the so-manyeth store of publishing them, if it comes
    /// to that; the front-end sends this base to the next one.
    Die {
        takes: usize,
        stores: u32,
        base: u32,
    },
}

/// Its id, its buffers with their directions, and what the device then says that it wrote.
type Expected = (u16, Vec<(u64, u32, bool)>, u32);

/// The driver, and the guest memory it shares with the device.
struct Driver {
    file: File,
    size: u16,
    event_idx: bool,
    /// Slots made available, and looked at, since the ring began: they never wrap.
    offered: u64,
    seen: u64,
    free_ids: Vec<u16>,
    /// Slots of each chain that is under way, by its id.
    slots: HashMap<u16, u16>,
    /// What the device should find next.
    expected: VecDeque<Expected>,
    /// What the driver should find used next.
    answers: VecDeque<(u16, u32)>,
    want: Option<u64>,
}

impl Driver {
    fn new(size: u16, event_idx: bool) -> Self {
        let file = File::from(rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY_BYTES).unwrap();
        // Ids need not be numbers of slots.
        let free_ids = (0..size).map(|id| id.wrapping_mul(257).wrapping_add(9)).collect();
        let (slots, expected, answers) = (HashMap::new(), VecDeque::new(), VecDeque::new());
        Self { file, size, event_idx, offered: 0, seen: 0, free_ids, slots, expected, answers, want: Some(0) }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn table(&self) -> Arc<MemoryTable> {
        let file = self.file.try_clone().unwrap();
        let (guest_start, user_start, file_offset) = (0, 0, 0);
        let spec = RegionSpec { guest_start, len_bytes: MEMORY_BYTES, user_start, file_offset, file };
        Arc::new(MemoryTable::map(vec![spec]).unwrap())
    }

    fn layout(&self, base: u32) -> RingLayout {
        let addresses = RingAddresses { descriptors: 0, available: DRIVER_AREA, used: DEVICE_AREA };
        let (kind, size) = (RingKind::Packed, u32::from(self.size));
        let event_idx = self.event_idx;
        RingLayout { kind, size, addresses, base, event_idx, indirect: true, max_indirect: 32 }
    }

    fn start(&self, table: &MemoryTable, base: u32) -> PackedQueue {
        PackedQueue::start(&self.layout(base), table).unwrap()
    }

    /// Where a position without end is, and whether its pass is one whose wrap counter is 1.
    fn place(&self, position: u64) -> (u64, bool) {
        (position % u64::from(self.size), (position / u64::from(self.size)).is_multiple_of(2))
    }

    /// A position as an event offset or half a base.
    fn bits(&self, position: u64) -> u16 {
        let (slot, wrap) = self.place(position);
        slot as u16 | u16::from(wrap) << 15
    }

    fn base(&self, position: u64) -> u32 {
        u32::from(self.bits(position)) * 0x1_0001
    }

    fn describe(&self, at: u64, (address, len, is_write): (u64, u32, bool), id: u16, flags: u16) -> [u8; 2] {
        let flags = (flags | if is_write { WRITE } else { 0 }).to_le_bytes();
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &[&len.to_le_bytes()[..], &id.to_le_bytes()].concat());
        flags
    }

    /// Writes a chain, its first flags last; false when there is no room.
    fn offer(&mut self, offer: &Offer) -> bool {
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
    fn reap(&mut self) {
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

    fn want(&mut self, want: Want) {
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
    fn is_called(&self, mut used: std::ops::Range<u64>) -> bool {
        let passes = 2 * u64::from(self.size);
        self.want.is_some_and(|want| want == u64::MAX || used.any(|slot| slot % passes == want % passes))
    }
}

/// Takes the next chain, which must be the one that the driver offered.
fn take(queue: &mut PackedQueue, memory: &mut Translator, base: *const u8, expected: &Expected) {
    let parts = queue.pop(memory).unwrap().unwrap();
    let mut pieces = Vec::new();
    for (buffer, is_write) in [(parts.readable, false), (parts.writable, true)] {
        for segment in buffer.as_slice() {
            let at = (segment.ptr().addr() - base.addr()) as u64;
            pieces.push((at, segment.len() as u32, is_write));
        }
    }
    let (id, mut buffers, written) = expected.clone();
    // The status byte is off, and the header.
    let last = buffers.last_mut().unwrap();
    last.1 -= 1;
    let mut missing = 16;
    for (at, len, _) in buffers.iter_mut().filter(|(_, _, is_write)| !is_write) {
        let here = missing.min(*len);
        (*at, *len, missing) = (*at + u64::from(here), *len - here, missing - here);
    }
    let flaw = (missing > 0).then_some(Flaw::NoHeader);
    assert_eq!(parts.flaw, flaw);
    if flaw.is_some() {
        buffers.clear();
    }
    buffers.retain(|buffer| buffer.1 > 0);
    assert_eq!(pieces, buffers);
    let completion = parts.head.complete(written);
    assert_eq!(completion.head(), id);
    queue.complete(completion);
}

fn run(steps: &[Step], size: u16, event_idx: bool) {
    let mut driver = Driver::new(size, event_idx);
    driver.want(Want::Always);
    let table = driver.table();
    let base = table.resolve_user(0, 1).unwrap();
    let mut memory = Translator::new(table.clone());
    let mut queue = driver.start(&table, 0);
    // Slots used so far, and the lengths of the chains that are not.
    let (mut used, mut lengths) = (0_u64, VecDeque::new());
    for step in steps {
        match step {
            Step::Offer(offers) => {
                for offer in offers {
                    let before = driver.offered;
                    if driver.offer(offer) {
                        lengths.push_back(driver.offered - before);
                    }
                }
            }
            Step::Reap => driver.reap(),
            Step::Want(want) => driver.want(*want),
            Step::Serve(most) => {
                queue.park_kicks();
                assert_eq!(driver.read::<2>(DEVICE_AREA + 2), [1, 0]);
                let count = driver.expected.len().min(*most);
                for expected in driver.expected.drain(..count) {
                    take(&mut queue, &mut memory, base, &expected);
                }
                assert_eq!(queue.has_available(), !driver.expected.is_empty());
                let before = used;
                used += lengths.drain(..count).sum::<u64>();
                assert_eq!(queue.publish(), driver.is_called(before..used) && count > 0);
                assert_eq!(queue.base(), driver.base(used));
                assert_eq!(queue.arm_kicks(), !driver.expected.is_empty());
                assert_eq!(driver.read::<2>(DEVICE_AREA + 2), [0, 0]);
            }
            Step::Die { takes, stores, base: sent } => {
                let count = driver.expected.len().min(*takes);
                for expected in driver.expected.iter().take(count) {
                    take(&mut queue, &mut memory, base, expected);
                }
                let _ = stop_point::stops_at(Point::RingStore, *stores, || queue.publish());
                // A driver goes on meanwhile, and may use the slots anew.
                driver.reap();
                while used < driver.seen {
                    used += lengths.pop_front().unwrap();
                    driver.expected.pop_front();
                }
                queue = driver.start(&table, *sent);
                assert_eq!(queue.base(), driver.base(used), "the place is found");
            }
        }
    }
    // Nothing was lost.
    while let Some(expected) = driver.expected.pop_front() {
        take(&mut queue, &mut memory, base, &expected);
        queue.publish();
    }
    driver.reap();
    assert!(driver.answers.is_empty());
}

fn offer() -> impl Strategy<Value = Offer> {
    let lens = |least| prop::collection::vec(1..200_u32, least..4);
    let parts = (lens(0), lens(1), prop::bool::weighted(0.3), 0..3_u32);
    parts.prop_map(|(readable, writable, is_indirect, written_bytes)| Offer {
        readable,
        writable,
        is_indirect,
        written_bytes,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let want = prop_oneof![Just(Want::Always), Just(Want::Never), (0..8_u16).prop_map(Want::Slot)];
    prop_oneof![
        3 => prop::collection::vec(offer(), 1..6).prop_map(Step::Offer),
        3 => (0..8_usize).prop_map(Step::Serve),
        2 => Just(Step::Reap),
        1 => want.prop_map(Step::Want),
        2 => (0..8_usize, 0..16_u32, any::<u32>()).prop_map(|(takes, stores, base)| Step::Die { takes, stores, base }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Wraps, chains, tables, calls, and a device that dies between any two stores of a batch: whatever base
    /// the front-end sends then, the next one goes on exactly behind what the driver can see.
    #[test]
    fn every_history_is_served_in_order_and_once(
        steps in prop::collection::vec(step(), 1..60),
        size in prop_oneof![Just(16_u16), 6..20_u16, Just(64)],
        event_idx: bool,
    ) {
        run(&steps, size, event_idx);
    }
}

fn single(len: usize) -> Offer {
    Offer { readable: vec![16; len - 1], writable: vec![1], is_indirect: false, written_bytes: 1 }
}

/// The whole ring is one chain, in either pass, and the device dies at each store of it.
#[test]
fn the_place_is_found_when_one_chain_fills_the_ring() {
    for size in [1, 2, 5, 8] {
        for stores in 0..=u32::from(size) + 1 {
            let offer = || Step::Offer(vec![single(usize::from(size))]);
            let die = Step::Die { takes: 1, stores, base: 0 };
            let steps =
                [offer(), die.clone(), Step::Serve(1), Step::Reap, offer(), die, Step::Serve(1), Step::Reap];
            run(&steps, size, false);
        }
    }
}

/// A device of another make has used three slots and marked one of them: then the front-end knows better.
#[test]
fn the_base_counts_in_a_ring_without_a_record() {
    let mut driver = Driver::new(8, false);
    let table = driver.table();
    assert!(driver.offer(&single(3)));
    driver.write(8, &[1, 0, 0, 0, 9, 0, 0x82, 0x80]);
    driver.reap();
    assert_eq!(driver.seen, 3);
    assert_eq!(driver.start(&table, driver.base(3)).base(), driver.base(3));
    // From now on there is one, as soon as something was done.
    let mut queue = driver.start(&table, driver.base(3));
    assert!(driver.offer(&single(2)));
    assert!(queue.pop(&mut Translator::new(table.clone())).unwrap().is_some());
    queue.complete(Head::new(driver.expected[1].0).complete(1));
    queue.publish();
    assert_eq!(driver.start(&table, 0).base(), driver.base(5));

    // Used half, available half only, and nothing at all.
    for (base, expected) in [(0x8005_8007, 0x8005_8005), (6, 0x0006_0006), (0, 0x8000_8000)] {
        driver.write(DEVICE_AREA, &[0; 2]);
        assert_eq!(driver.start(&table, base).base(), expected);
    }
    driver.write(DEVICE_AREA, &[0; 2]);
    let refused = PackedQueue::start(&driver.layout(0x8008_8008), &table).unwrap_err();
    assert_eq!(refused, RingError::Base(8, 8));
}

/// A driver that began anew has cleared the descriptors; what was left in the device area is no record of them.
#[test]
fn a_record_that_the_ring_contradicts_does_not_count() {
    let driver = Driver::new(8, false);
    let table = driver.table();
    driver.write(DEVICE_AREA, &Position { slot: 3, wrap: true }.to_record().to_le_bytes());
    assert_eq!(driver.start(&table, 0).base(), 0x8000_8000);
}

#[test]
fn a_ring_that_cannot_be_used_is_refused() {
    let driver = Driver::new(8, true);
    let table = driver.table();
    let refused = |change: fn(&mut RingLayout)| {
        let mut layout = driver.layout(0);
        change(&mut layout);
        PackedQueue::start(&layout, &table).map(|_| ()).unwrap_err()
    };
    assert_eq!(refused(|l| l.size = 0), RingError::Size(0));
    assert_eq!(refused(|l| l.size = 1025), RingError::Size(1025));
    assert_eq!(refused(|l| l.size = 65_537), RingError::Size(65_537));
    assert_eq!(refused(|l| l.addresses.descriptors = 8), RingError::Misaligned("descriptor ring"));
    assert_eq!(refused(|l| l.addresses.available += 2), RingError::Misaligned("driver area"));
    assert_eq!(refused(|l| l.addresses.used += 2), RingError::Misaligned("device area"));
    assert_eq!(refused(|l| l.addresses.used = MEMORY_BYTES), RingError::Unmapped("device area"));
    assert_eq!(
        refused(|l| l.addresses.descriptors = MEMORY_BYTES - 112),
        RingError::Unmapped("descriptor ring")
    );
    assert!(PackedQueue::start(&RingLayout { size: 7, ..driver.layout(0) }, &table).is_ok());
}

/// A chain may not run into slots that are still the device's.
#[test]
fn a_chain_without_end_breaks_the_ring() {
    let mut driver = Driver::new(4, false);
    let table = driver.table();
    let mut memory = Translator::new(table.clone());
    let mut queue = driver.start(&table, 0);
    assert!(driver.offer(&single(2)));
    assert!(driver.offer(&single(2)));
    let flags = u16::from_le_bytes(driver.read(3 * 16 + 14)) | NEXT;
    driver.write(3 * 16 + 14, &flags.to_le_bytes());
    assert!(queue.pop(&mut memory).unwrap().is_some());
    assert_eq!(queue.pop(&mut memory).unwrap_err(), RingError::EndlessChain);
}

/// The pages of the slots published last and of the device area, for a migration; or of the whole ring.
#[test]
fn what_it_writes_is_marked_in_the_dirty_log() {
    let mut driver = Driver::new(1024, false);
    let table = driver.table();
    let bits = File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    bits.set_len(4096).unwrap();
    let marked = || {
        let mut seen = [0; 4];
        bits.read_exact_at(&mut seen, 0).unwrap();
        bits.write_all_at(&[0; 4], 0).unwrap();
        u32::from_le_bytes(seen)
    };
    // The chain runs over the end of the first page of slots.
    (driver.offered, driver.seen) = (254, 254);
    let base = driver.base(254);
    let mut queue = driver.start(&table, base);
    let log = Arc::new(DirtyLog::map(bits.try_clone().unwrap(), 0, 4096).unwrap());
    let log = RingLog::new(log, table.clone(), &driver.layout(base), Some(DEVICE_AREA));
    queue.log_all(&log);
    assert_eq!(marked(), 0b1_0000_1111);
    for pages in [0b11, 0b10] {
        assert!(driver.offer(&single(3)));
        let expected = driver.expected.pop_front().unwrap();
        take(&mut queue, &mut Translator::new(table.clone()), table.resolve_user(0, 1).unwrap(), &expected);
        queue.publish();
        queue.log(&log);
        assert_eq!(marked(), 0b1_0000_0000 | pages);
    }
}
