//! The ring against a driver of the test's own.

mod driver;

use std::collections::VecDeque;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use proptest::prelude::*;

use self::driver::{DEVICE_AREA, Driver, Expected, MEMORY_BYTES, Offer, Want};
use super::*;
use crate::copy::testing::memfd;
use crate::failpoint::{self, Point};
use crate::virtio::memory::DirtyLog;

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
    /// A device of another make takes up to so many chains; the driver takes what is used and offers these.
    Elsewhere {
        chains: usize,
        keeps_flags: bool,
        offers: Vec<Offer>,
    },
}

/// Takes the next chain, which must be the one that the driver offered.
fn take(queue: &mut PackedQueue, batch: &mut Batch, base: *const u8, expected: &Expected) {
    // It must not matter how: as one of the common shape if it is one, or as any other one.
    let next = match expected.2 % 4 {
        0 => Next::Other,
        _ => queue
            .take_contiguous(batch, Bounds { chains: 1, bytes: 1 }, |_| Some(PrefetchHint::NONE))
            .unwrap(),
    };
    let is_contiguous = expected.1.len() == 3 && expected.1[0].1 == 16 && expected.1[2].1 == 1;
    let contiguous = batch.drain(1).next().map(crate::virtio::queue::ContiguousChain::into_chain);
    assert_eq!(contiguous.is_none(), next == Next::Other);
    assert!(contiguous.is_none() || is_contiguous);
    let parts = match contiguous {
        Some(chain) => chain,
        None => queue.pop(batch.memory()).unwrap().unwrap(),
    };
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

/// A driver and a device on the same ring.
struct Run {
    driver: Driver,
    table: Arc<MemoryTable>,
    queue: PackedQueue,
    batch: Batch,
    /// Slots used since the ring began.
    used: u64,
    /// The lengths in slots of the chains that are offered and not used.
    lengths: VecDeque<u64>,
}

impl Run {
    fn new(size: u16, event_idx: bool) -> Self {
        let mut driver = Driver::new(size, event_idx);
        driver.want(Want::Always);
        let table = driver.table();
        let batch = Batch::new(Translator::new(table.clone()));
        let queue = driver.start(&table, 0);
        Self { driver, table, queue, batch, used: 0, lengths: VecDeque::new() }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Offer(offers) => self.offer(offers),
            Step::Reap => self.driver.reap(),
            Step::Want(want) => self.driver.want(*want),
            Step::Serve(most) => self.serve(*most),
            Step::Die { takes, stores, base } => self.die(*takes, *stores, *base),
            Step::Elsewhere { chains, keeps_flags, offers } => {
                self.serve_elsewhere(*chains, *keeps_flags, offers);
            }
        }
    }

    fn offer(&mut self, offers: &[Offer]) {
        for offer in offers {
            let before = self.driver.offered;
            if self.driver.offer(offer) {
                self.lengths.push_back(self.driver.offered - before);
            }
        }
    }

    fn take(&mut self, expected: &Expected) {
        let base = self.table.resolve_user(0, 1).unwrap();
        take(&mut self.queue, &mut self.batch, base, expected);
    }

    fn serve(&mut self, most: usize) {
        self.queue.park_kicks();
        assert_eq!(self.driver.read::<2>(DEVICE_AREA + 2), [1, 0]);
        let count = self.driver.expected.len().min(most);
        for expected in self.driver.expected.drain(..count).collect::<Vec<_>>() {
            self.take(&expected);
        }
        let Self { driver, queue, .. } = self;
        assert_eq!(queue.has_available(), !driver.expected.is_empty());
        assert_eq!(queue.has_more_than(0), queue.has_available());
        // Chains of other lengths are miscounted, but none are seen where there are none.
        assert!(queue.has_available() || (0..queue.slots.size()).all(|chains| !queue.has_more_than(chains)));
        let before = self.used;
        self.used += self.lengths.drain(..count).sum::<u64>();
        assert_eq!(queue.publish(), driver.is_called(before..self.used) && count > 0);
        assert_eq!(queue.base(), driver.base(self.used));
        assert_eq!(queue.arm_kicks(), !driver.expected.is_empty());
        assert_eq!(driver.read::<2>(DEVICE_AREA + 2), [0, 0]);
    }

    /// Another device starts with the base `sent`.
    fn die(&mut self, takes: usize, stores: u32, sent: u32) {
        let count = self.driver.expected.len().min(takes);
        for expected in self.driver.expected.iter().take(count).cloned().collect::<Vec<_>>() {
            self.take(&expected);
        }
        let _ = failpoint::stops_at(Point::RingStore, stores, || self.queue.publish());
        // A driver goes on meanwhile, and may use the slots anew.
        self.driver.reap();
        while self.used < self.driver.seen {
            self.used += self.lengths.pop_front().unwrap();
            self.driver.expected.pop_front();
        }
        self.start(sent, "the place is found");
    }

    fn serve_elsewhere(&mut self, chains: usize, keeps_flags: bool, offers: &[Offer]) {
        let before = self.used;
        self.used = self.driver.served_elsewhere(before, chains, keeps_flags);
        self.lengths.drain(..self.lengths.len() - self.driver.expected.len());
        self.driver.reap();
        self.offer(offers);
        let Self { driver, table, queue, used, .. } = self;
        if driver.offered > before + u64::from(queue.slots.size()) {
            // A ring as full as that hides it from us; without a record the base counts.
            driver.write(DEVICE_AREA, &[0; 2]);
        } else if *used > before && driver.base(before) != 0 {
            let stale = PackedQueue::start(&driver.layout(driver.base(before)), table).unwrap_err();
            assert_eq!(stale, RingError::StaleBase(driver.place(before).0 as u16));
        }
        self.start(self.driver.base(self.used), "the base counts");
    }

    fn start(&mut self, base: u32, what: &str) {
        self.queue = self.driver.start(&self.table, base);
        assert_eq!(self.queue.base(), self.driver.base(self.used), "{what}");
    }

    /// Nothing was lost.
    fn finish(mut self) {
        while let Some(expected) = self.driver.expected.pop_front() {
            self.take(&expected);
            self.queue.publish();
        }
        self.driver.reap();
        assert!(self.driver.answers.is_empty());
    }
}

fn run(steps: &[Step], size: u16, event_idx: bool) {
    let mut run = Run::new(size, event_idx);
    steps.iter().for_each(|step| run.step(step));
    run.finish();
}

fn offer() -> impl Strategy<Value = Offer> {
    let lens = |least| prop::collection::vec(1..200_u32, least..4);
    // Header, data, status, or nearly so.
    let plain =
        (16..18_u32, 1..200_u32, 1..3_u32, any::<bool>()).prop_map(|(header, data, status, is_read)| {
            if is_read { (vec![header], vec![data, status]) } else { (vec![header, data], vec![status]) }
        });
    let parts = (prop_oneof![(lens(0), lens(1)), plain], prop::bool::weighted(0.3), 0..5_u32);
    parts.prop_map(|((readable, writable), is_indirect, written_bytes)| Offer {
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
        1 => (0..4_usize, any::<bool>(), prop::collection::vec(offer(), 0..4))
            .prop_map(|(chains, keeps_flags, offers)| Step::Elsewhere { chains, keeps_flags, offers }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Wraps, chains, tables, calls, and a device that dies between any two stores of a batch: whatever base
    /// the front-end sends then, the next one goes on exactly behind what the driver can see. Where a device of
    /// another make had the ring in between it goes on at the base, or refuses one from before that.
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

/// A device of another make has used three slots and written to one of them: then the front-end knows better.
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

    // Used half, available half only, and the start of the second pass.
    for (base, expected) in [(0x8005_8007, 0x8005_8005), (6, 0x0006_0006), (0, 0)] {
        driver.write(DEVICE_AREA, &[0; 2]);
        assert_eq!(driver.start(&table, base).base(), expected);
    }
    // Where the ring was used since, and where no ring is.
    for (base, error) in [(0x8000_8000, RingError::StaleBase(0)), (0x8008_8008, RingError::Base(8, 8))] {
        driver.write(DEVICE_AREA, &[0; 2]);
        assert_eq!(PackedQueue::start(&driver.layout(base), &table).unwrap_err(), error);
    }
}

/// A driver that began anew has cleared the descriptors; what was left in the device area is no record of them.
#[test]
fn a_record_that_the_ring_contradicts_does_not_count() {
    let driver = Driver::new(8, false);
    let table = driver.table();
    driver.write(DEVICE_AREA, &Position { slot: 3, wrap: true }.to_record(8).to_le_bytes());
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
    assert_eq!(refused(|l| l.size = 32_769), RingError::Size(32_769));
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
    let mut batch = Batch::new(Translator::new(table.clone()));
    let mut queue = driver.start(&table, 0);
    assert!(driver.offer(&single(2)));
    assert!(driver.offer(&single(2)));
    let flags = u16::from_le_bytes(driver.read(3 * 16 + 14)) | NEXT;
    driver.write(3 * 16 + 14, &flags.to_le_bytes());
    assert!(queue.pop(batch.memory()).unwrap().is_some());
    assert_eq!(queue.pop(batch.memory()).unwrap_err(), RingError::EndlessChain);
}

/// The pages of the slots published last and of the device area, for a migration; or of the whole ring.
#[test]
fn what_it_writes_is_marked_in_the_dirty_log() {
    let mut driver = Driver::new(1024, false);
    let table = driver.table();
    let bits = memfd("log", 4096);
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
    let log = Arc::new(DirtyLog::map(&bits, 0, 4096).unwrap());
    let log = RingLog::new(log, table.clone(), &driver.layout(base), Some(DEVICE_AREA));
    queue.log_all(&log);
    assert_eq!(marked(), 0b1_0000_1111);
    for pages in [0b11, 0b10] {
        assert!(driver.offer(&single(3)));
        let expected = driver.expected.pop_front().unwrap();
        let mut batch = Batch::new(Translator::new(table.clone()));
        take(&mut queue, &mut batch, table.resolve_user(0, 1).unwrap(), &expected);
        queue.publish();
        queue.log(&log);
        assert_eq!(marked(), 0b1_0000_0000 | pages);
    }
}
