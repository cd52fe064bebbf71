//! The ring against virtio-queue's `Queue`: two copies of one guest's memory, one driven by each.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::copy::Segment;
use crate::copy::testing::memfd;
use crate::virtio::memory::testing::table_of;
use crate::virtio::memory::{MemoryTable, Translator};

const SIZE: u16 = 16;
const MEMORY_BYTES: usize = 1 << 20;
/// The mock of virtio-queue 0.18 lets the used ring overlap the available ring (it counts that one's entries
/// as bytes), so it only gives the first two addresses.
const USED: u64 = 0x1000;
/// Indirect tables and buffers lie behind the ring.
const TABLES: u64 = 0x1_0000;
const BUFFERS: u64 = 0x2_0000;

/// A buffer: where, how long.
#[derive(Debug, Clone)]
struct Piece {
    at: u64,
    len_bytes: u32,
}

/// One chain a driver offers.
#[derive(Debug, Clone)]
struct Offer {
    readable: Vec<Piece>,
    /// At least one: the status has to go somewhere.
    writable: Vec<Piece>,
    is_indirect: bool,
    written_bytes: u32,
}

#[derive(Debug, Clone)]
enum Step {
    /// The driver offers as many of these as its table has room for.
    Offer(Vec<Offer>),
    /// The device takes up to so many chains, completes and publishes them.
    Serve(usize),
    /// The driver wants to be called when the used index passes its own plus this.
    CallAt(u16),
}

/// One guest: its memory, and the driver's view of the ring.
struct Guest {
    memory: GuestMemoryMmap<()>,
    file: File,
    avail: u64,
}

impl Guest {
    fn new() -> Self {
        let file = memfd("ring", MEMORY_BYTES as u64);
        let bytes: Vec<u8> =
            (0..MEMORY_BYTES - BUFFERS as usize).map(|at| (at * 7 + at / 256) as u8).collect();
        file.write_all_at(&bytes, BUFFERS).unwrap();
        let region = FileOffset::new(file.try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(0), MEMORY_BYTES, Some(region))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        let avail = MockSplitQueue::new(&memory, SIZE).avail_addr().0;
        Self { memory, file, avail }
    }

    /// The oracle on this ring, as the mock sets it up.
    fn oracle(&self) -> Queue {
        let mut queue: Queue = MockSplitQueue::new(&self.memory, SIZE).create_queue().unwrap();
        queue.set_used_ring_address(Some(u32::try_from(USED).unwrap()), Some(0));
        queue
    }

    fn table(&self) -> Arc<MemoryTable> {
        table_of(&self.file, MEMORY_BYTES as u64)
    }

    fn layout(&self, event_idx: bool) -> RingLayout {
        let addresses = RingAddresses { descriptors: 0, available: self.avail, used: USED };
        RingLayout {
            kind: RingKind::Split,
            size: u32::from(SIZE),
            addresses,
            base: 0,
            event_idx,
            indirect: true,
        }
    }

    fn describe(&self, index: u16, descriptor: Descriptor) {
        self.memory.write_obj(descriptor, GuestAddress(u64::from(index) * 16)).unwrap();
    }

    fn read(&self, at: u64) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(at)).unwrap())
    }

    fn write(&self, at: u64, word: u16) {
        self.memory.write_obj(word.to_le(), GuestAddress(at)).unwrap();
    }

    /// The used ring as the driver sees it: flags, index, elements, available event.
    fn used(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4 + usize::from(SIZE) * 8 + 2];
        self.memory.read_slice(&mut bytes, GuestAddress(USED)).unwrap();
        bytes
    }
}

/// The driver: which descriptors are free, how far it has offered and looked.
#[derive(Debug, Default)]
struct Driver {
    next_free: u16,
    in_flight: std::collections::VecDeque<u16>,
    offered: u16,
}

impl Driver {
    /// Writes a chain into the guests' memory, alike in both; false when the table is full.
    fn offer(&mut self, guests: &[&Guest], offer: &Offer) -> bool {
        let pieces = offer.readable.len() + offer.writable.len();
        let needs = if offer.is_indirect { 1 } else { u16::try_from(pieces).unwrap() };
        if self.in_flight.iter().sum::<u16>() + needs > SIZE {
            return false;
        }
        let flags = offer.readable.iter().map(|_| 0).chain(offer.writable.iter().map(|_| 2));
        let all = offer.readable.iter().chain(&offer.writable).zip(flags).enumerate();
        let head = self.next_free % SIZE;
        for guest in guests {
            for (place, (piece, write)) in all.clone() {
                let is_last = place + 1 == pieces;
                let place = u16::try_from(place).unwrap();
                let next = if offer.is_indirect { place + 1 } else { (head + place + 1) % SIZE };
                let flags = write | u16::from(!is_last);
                let descriptor = Descriptor::new(piece.at, piece.len_bytes, flags, next);
                if offer.is_indirect {
                    let at = TABLES + u64::from(head) * 0x400 + u64::from(place) * 16;
                    guest.memory.write_obj(descriptor, GuestAddress(at)).unwrap();
                } else {
                    guest.describe((head + place) % SIZE, descriptor);
                }
            }
            if offer.is_indirect {
                let len_bytes = u32::try_from(pieces * 16).unwrap();
                let table = Descriptor::new(TABLES + u64::from(head) * 0x400, len_bytes, 4, 0);
                guest.describe(head, table);
            }
            let slot = u64::from(self.offered % SIZE) * 2;
            guest.write(guest.avail + 4 + slot, head);
            guest.write(guest.avail + 2, self.offered.wrapping_add(1));
        }
        self.next_free = (head + needs) % SIZE;
        self.offered = self.offered.wrapping_add(1);
        self.in_flight.push_back(needs);
        true
    }
}

/// What a device sees of a chain: its head, its header, and each buffer behind that with its direction.
type Seen = (u16, Option<Header>, Vec<(u64, u32, bool)>);

/// The ring, and what chains of it are taken with.
struct Ours {
    queue: SplitQueue,
    batch: Batch,
    base: *const u8,
}

impl Ours {
    fn start(guest: &Guest, event_idx: bool) -> Self {
        let table = guest.table();
        let queue = SplitQueue::start(&guest.layout(event_idx), &table).unwrap();
        let base = table.resolve_user(0, 1).unwrap();
        Self { queue, batch: Batch::new(Translator::new(table)), base }
    }

    /// Takes up to `most` chains, as a worker does, and completes each with the next of these lengths.
    fn take(&mut self, most: usize, lens: &mut std::collections::VecDeque<u32>) -> Vec<Seen> {
        let mut taken = Vec::new();
        let mut next_len = || lens.pop_front().unwrap();
        while taken.len() < most {
            let bounds = Bounds { chains: u16::try_from(most - taken.len()).unwrap(), bytes: 1 << 14 };
            let next = self.queue.take_contiguous(&mut self.batch, bounds, place_of).unwrap();
            let (mut may_follow, mut expected) = (true, None);
            // Some first, and then the others.
            for most in [self.batch.len() / 2, u16::MAX] {
                for chain in self.batch.drain(most) {
                    assert!(may_follow, "no chain is taken behind one that has to be executed before");
                    may_follow = place_of(chain.header()).is_some();
                    let source = if chain.is_writable() { place_of(chain.header()) } else { data_of(&chain) };
                    let source = source.filter(|_| may_follow).unwrap_or(PrefetchHint::NONE);
                    assert!(
                        expected.is_none_or(|expected| expected == source),
                        "the one before has said where it is"
                    );
                    expected = Some(chain.next_source());
                    let (seen, completion) = look_at(chain.into_chain(), self.base, next_len());
                    self.queue.complete(completion);
                    taken.push(seen);
                }
            }
            assert!(
                expected.is_none_or(|expected| expected == PrefetchHint::NONE),
                "nothing is behind the last one"
            );
            assert!(self.batch.is_empty() && taken.len() <= most);
            let waiting = self.queue.waiting().unwrap();
            assert!(
                (0..waiting).all(|chains| self.queue.has_more_than(chains))
                    && !self.queue.has_more_than(waiting)
            );
            if next == Next::Other && taken.len() < most {
                let Self { queue, batch, base } = self;
                let Some(chain) = queue.pop(batch.memory()).unwrap() else { break };
                let (seen, completion) = look_at(chain, *base, next_len());
                queue.complete(completion);
                taken.push(seen);
            } else if !self.queue.has_available() {
                break;
            }
        }
        taken
    }
}

/// Where a request goes, if it may be executed behind others.
fn place_of(header: &Header) -> Option<PrefetchHint> {
    let [place, _] = *header;
    (place % 8 != 0).then(|| PrefetchHint::new(std::ptr::without_provenance(place as usize)))
}

fn data_of(chain: &ContiguousChain<'_>) -> Option<PrefetchHint> {
    chain.data().as_slice().first().map(|data| PrefetchHint::new(data.ptr()))
}

fn look_at(chain: Chain<'_>, base: *const u8, len: u32) -> (Seen, Completion) {
    let mut pieces = Vec::new();
    for (buffer, is_write) in [(chain.readable, false), (chain.writable, true)] {
        for segment in buffer.as_slice() {
            let at = (segment.ptr().addr() - base.addr()) as u64;
            pieces.push((at, u32::try_from(segment.len()).unwrap(), is_write));
        }
        assert_eq!(buffer.total_bytes(), buffer.as_slice().iter().map(Segment::len).sum::<usize>());
    }
    assert!(matches!(chain.flaw, None | Some(Flaw::NoHeader)));
    let header = chain.flaw.is_none().then_some(chain.header);
    let completion = chain.head.complete(len);
    ((completion.head(), header, pieces), completion)
}

fn take_oracle(queue: &mut Queue, memory: &GuestMemoryMmap<()>, len: u32) -> Option<Seen> {
    let chain = queue.pop_descriptor_chain(memory)?;
    let head = chain.head_index();
    let mut pieces: Vec<_> = chain.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect();
    // Ours has taken the status byte off, and the header.
    let last = pieces.last_mut().unwrap();
    last.1 -= 1;
    let mut header = Vec::new();
    for (at, len, _) in pieces.iter_mut().filter(|(_, _, is_write)| !is_write) {
        let here = (*len).min(u32::try_from(16 - header.len()).unwrap());
        let mut bytes = vec![0; here as usize];
        memory.read_slice(&mut bytes, GuestAddress(*at)).unwrap();
        header.extend(bytes);
        (*at, *len) = (*at + u64::from(here), *len - here);
    }
    pieces.retain(|(_, len, _)| *len > 0);
    queue.add_used(memory, head, len).unwrap();
    let words: Option<[u8; 16]> = header.try_into().ok();
    let header =
        words.map(|bytes| [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())));
    Some((head, header, if header.is_some() { pieces } else { vec![] }))
}

fn piece() -> impl Strategy<Value = Piece> {
    (0..0x800_u64, 1..5000_u32).prop_map(|(at, len_bytes)| Piece { at: BUFFERS + at * 0x100, len_bytes })
}

/// Header, data, status; each perhaps a little longer or shorter than it should be.
fn plain() -> impl Strategy<Value = (Vec<Piece>, Vec<Piece>)> {
    let of = |len_bytes| {
        (piece(), prop_oneof![8 => Just(0), 1 => 0..2_u32])
            .prop_map(move |(piece, more)| Piece { len_bytes: len_bytes + more, ..piece })
    };
    (of(16), piece(), of(1), any::<bool>()).prop_map(|(header, data, status, is_read)| match is_read {
        true => (vec![header], vec![data, status]),
        false => (vec![header, data], vec![status]),
    })
}

fn offer() -> impl Strategy<Value = Offer> {
    let pieces = |least| prop::collection::vec(piece(), least..5);
    let pieces = prop_oneof![(pieces(0), pieces(1)), plain()];
    let parts = (pieces, any::<bool>(), any::<u32>());
    parts.prop_map(|((readable, writable), is_indirect, written_bytes)| Offer {
        readable,
        writable,
        is_indirect,
        written_bytes,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::vec(offer(), 1..6).prop_map(Step::Offer),
        (0..20_usize).prop_map(Step::Serve),
        (0..4_u16).prop_map(Step::CallAt),
    ]
}

/// Runs one history through both and compares everything a device or a driver can see.
fn same_as_the_oracle(steps: &[Step], event_idx: bool, start: u16) {
    let (ours, oracle) = (Guest::new(), Guest::new());
    let mut twin = oracle.oracle();
    let (avail, used) = (ours.avail, USED);
    for guest in [&ours, &oracle] {
        guest.write(avail + 2, start);
        guest.write(used + 2, start);
    }
    let mut device = Ours::start(&ours, event_idx);
    twin.set_next_avail(start);
    twin.set_next_used(start);
    twin.set_event_idx(event_idx);
    let mut driver = Driver { offered: start, ..Driver::default() };
    let mut lens = std::collections::VecDeque::new();
    for step in steps {
        match step {
            Step::Offer(offers) => {
                for offer in offers {
                    if driver.offer(&[&ours, &oracle], offer) {
                        lens.push_back(offer.written_bytes);
                    }
                }
            }
            Step::CallAt(ahead) => {
                let seen = ours.read(used + 2).wrapping_add(*ahead);
                for guest in [&ours, &oracle] {
                    guest.write(avail + 4 + u64::from(SIZE) * 2, seen);
                }
            }
            Step::Serve(most) => {
                device.queue.park_kicks();
                twin.disable_notification(&oracle.memory).unwrap();
                let mut twin_lens = lens.clone();
                let seen = device.take(*most, &mut lens);
                let taken_by_twin = (0..*most).map_while(|_| {
                    let len = twin_lens.pop_front().unwrap_or(0);
                    take_oracle(&mut twin, &oracle.memory, len)
                });
                assert_eq!(seen, taken_by_twin.collect::<Vec<_>>());
                driver.in_flight.drain(..seen.len());
                let queue = &mut device.queue;
                let has_completed = queue.indices().used != ours.read(used + 2);
                let call = queue.publish();
                if has_completed {
                    assert_eq!(call, twin.needs_notification(&oracle.memory).unwrap());
                } else {
                    assert!(!call, "nothing new, nobody to call");
                }
                assert_eq!(queue.arm_kicks(), twin.enable_notification(&oracle.memory).unwrap());
                assert_eq!(queue.indices().used, twin.next_used());
                assert_eq!(ours.used(), oracle.used());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_history_ends_as_with_virtio_queue(
        steps in prop::collection::vec(step(), 1..40),
        event_idx: bool,
        start in prop_oneof![Just(0), Just(u16::MAX - 3), any::<u16>()],
    ) {
        same_as_the_oracle(&steps, event_idx, start);
    }
}

#[test]
fn the_driver_may_forbid_calls() {
    let guest = Guest::new();
    let avail = guest.avail;
    let piece = Piece { at: BUFFERS, len_bytes: 1 };
    let offer = Offer { readable: vec![], writable: vec![piece], is_indirect: false, written_bytes: 1 };
    let mut driver = Driver::default();
    let mut device = Ours::start(&guest, false);
    for (flags, is_called) in [(0, true), (1, false), (0, true)] {
        guest.write(avail, flags);
        assert!(driver.offer(&[&guest], &offer));
        assert_eq!(device.take(2, &mut [1].into()).len(), 1);
        assert_eq!(device.queue.publish(), is_called, "flags {flags}");
    }
}

#[test]
fn kicks_are_parked_and_armed_by_flag() {
    let guest = Guest::new();
    let table = guest.table();
    let used = USED;
    let mut queue = SplitQueue::start(&guest.layout(false), &table).unwrap();
    queue.park_kicks();
    assert_eq!(guest.read(used), 1);
    assert!(!queue.arm_kicks());
    assert_eq!(guest.read(used), 0);
}

#[test]
fn a_ring_starts_where_its_used_index_stands() {
    let guest = Guest::new();
    let (avail, used) = (guest.avail, USED);
    guest.write(used + 2, 41);
    guest.write(avail + 2, 43);
    let table = guest.table();
    let mut queue = SplitQueue::start(&guest.layout(true), &table).unwrap();
    assert_eq!(queue.base(), 41);
    assert!(queue.arm_kicks(), "two chains were fetched before a crash and never completed");
    assert_eq!(guest.read(used + 4 + u64::from(SIZE) * 8), 41);
}

#[test]
fn a_ring_that_cannot_be_used_is_refused() {
    let guest = Guest::new();
    let table = guest.table();
    let layout = guest.layout(true);
    let with = |change: fn(&mut RingLayout)| {
        let mut layout = layout;
        change(&mut layout);
        SplitQueue::start(&layout, &table).map(|_| ()).unwrap_err()
    };
    for size in [0, 3, 65_536, u32::MAX] {
        let refused = SplitQueue::start(&RingLayout { size, ..layout }, &table).unwrap_err();
        assert_eq!(refused, RingError::Size(size));
    }
    assert_eq!(with(|l| l.addresses.descriptors = 8), RingError::Misaligned("descriptor table"));
    assert_eq!(with(|l| l.addresses.available += 1), RingError::Misaligned("available ring"));
    assert_eq!(with(|l| l.addresses.used += 2), RingError::Misaligned("used ring"));
    let end = MEMORY_BYTES as u64;
    assert_eq!(with(|l| l.addresses.used = u64::MAX - 3), RingError::Unmapped("used ring"));
    let event = RingAddresses { used: end - 4 - u64::from(SIZE) * 8, ..layout.addresses };
    let short = RingLayout { addresses: event, ..layout };
    assert_eq!(
        SplitQueue::start(&short, &table).unwrap_err(),
        RingError::Unmapped("used ring"),
        "the event index is part of the area"
    );
    assert!(SplitQueue::start(&RingLayout { event_idx: false, ..short }, &table).is_ok());
}
