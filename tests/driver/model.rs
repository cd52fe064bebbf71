//! Random requests on several queues at once, against a model of the disk.

use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use virtio_driver::VirtioFeatureFlags;

use crate::common::daemon::{Place, Setup};
use crate::common::driver::{Driver, Options, Request};
use crate::common::{SECTOR_BYTES, pattern};

const DISK_SECTORS: u64 = 2048;
const DISK_BYTES: usize = DISK_SECTORS as usize * SECTOR_BYTES;
const MOST_SECTORS: u64 = 128;
const QUEUES: usize = 4;
/// Requests under way at most, each with its own slot of data memory.
const SLOTS: usize = 32;
const SLOT_BYTES: usize = MOST_SECTORS as usize * SECTOR_BYTES;

/// One request, as small to print as possible.
#[derive(Debug, Clone)]
struct Step {
    queue: usize,
    kind: Kind,
    sector: u64,
    sectors: u64,
    /// Where the data is cut into segments, in bytes.
    cuts: Vec<usize>,
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes { unmap: bool },
}

impl Step {
    fn bytes(&self) -> Range<usize> {
        let start = self.sector as usize * SECTOR_BYTES;
        start..start + self.sectors as usize * SECTOR_BYTES
    }

    /// Requests under way at once may be executed in any order.
    fn disturbs(&self, other: &Self) -> bool {
        let only_look = |step: &Self| matches!(step.kind, Kind::Read | Kind::Flush);
        let (mine, its) = (self.bytes(), other.bytes());
        let overlap = mine.start < its.end && its.start < mine.end;
        overlap && !(only_look(self) && only_look(other))
    }

    fn segments(&self, slot: usize) -> Vec<Range<usize>> {
        let mut borders: Vec<usize> = self.cuts.iter().map(|cut| cut % self.bytes().len()).collect();
        borders.extend([0, self.bytes().len()]);
        borders.sort_unstable();
        borders.dedup();
        let place = slot * SLOT_BYTES;
        borders.windows(2).map(|pair| place + pair[0]..place + pair[1]).collect()
    }

    fn request(&self, slot: usize) -> Request {
        let (offset, len) = (self.bytes().start as u64, self.bytes().len() as u64);
        match self.kind {
            Kind::Read => Request::Read { offset, into: self.segments(slot) },
            Kind::Write => Request::Write { offset, from: self.segments(slot) },
            Kind::Flush => Request::Flush,
            Kind::Discard => Request::Discard { offset, len },
            Kind::WriteZeroes { unmap } => Request::WriteZeroes { offset, len, unmap },
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        6 => Just(Kind::Read),
        6 => Just(Kind::Write),
        1 => Just(Kind::Flush),
        1 => Just(Kind::Discard),
        2 => any::<bool>().prop_map(|unmap| Kind::WriteZeroes { unmap }),
    ];
    let cuts = vec(0..SLOT_BYTES, 0..6);
    // Half of the requests meet in a small part of the disk.
    let sector = prop_oneof![0..DISK_SECTORS - MOST_SECTORS, 0..64_u64];
    (0..QUEUES, kind, sector, 1..=MOST_SECTORS, cuts, any::<u64>()).prop_map(
        |(queue, kind, sector, sectors, cuts, seed)| Step { queue, kind, sector, sectors, cuts, seed },
    )
}

/// What the disk must hold. After a discard a sector is what it was or zero.
struct Model {
    bytes: Vec<u8>,
    or_else: Vec<u8>,
}

impl Model {
    fn new() -> Self {
        Self { bytes: vec![0; DISK_BYTES], or_else: vec![0; DISK_BYTES] }
    }

    fn apply(&mut self, step: &Step) {
        let range = step.bytes();
        match step.kind {
            Kind::Write => {
                let data = pattern(step.seed, range.len());
                self.bytes[range.clone()].copy_from_slice(&data);
                self.or_else[range].copy_from_slice(&data);
            }
            Kind::Discard => self.or_else[range].fill(0),
            Kind::WriteZeroes { .. } => {
                self.bytes[range.clone()].fill(0);
                self.or_else[range].fill(0);
            }
            Kind::Read | Kind::Flush => {}
        }
    }

    fn check(&self, offset: usize, found: &[u8], what: &str) -> Result<(), TestCaseError> {
        for (index, sector) in found.chunks(SECTOR_BYTES).enumerate() {
            let start = offset + index * SECTOR_BYTES;
            let range = start..start + sector.len();
            prop_assert!(
                sector == &self.bytes[range.clone()] || sector == &self.or_else[range.clone()],
                "{what}: the sector at byte {start} begins with {:02x?} instead of {:02x?}",
                &sector[..8],
                &self.bytes[range][..8]
            );
        }
        Ok(())
    }
}

/// The client, the model and what is under way between them.
struct Run<'a> {
    driver: &'a mut Driver,
    model: Model,
    slots: Vec<Option<Step>>,
}

impl<'a> Run<'a> {
    /// Starts with a disk of zeroes.
    fn new(driver: &'a mut Driver) -> Self {
        let zeroes = Request::WriteZeroes { offset: 0, len: DISK_BYTES as u64, unmap: false };
        driver.queue().run(&zeroes).unwrap();
        Self { driver, model: Model::new(), slots: vec![None; SLOTS] }
    }

    fn start(&mut self, step: &Step) -> Result<(), TestCaseError> {
        while self.slots.iter().flatten().any(|other| step.disturbs(other)) {
            self.finish_some()?;
        }
        let slot = loop {
            match self.slots.iter().position(Option::is_none) {
                Some(slot) => break slot,
                None => self.finish_some()?,
            }
        };
        let data = match step.kind {
            Kind::Write => pattern(step.seed, step.bytes().len()),
            _ => vec![0xa5; step.bytes().len()],
        };
        self.driver.put(slot * SLOT_BYTES, &data);
        while !self.driver.queues()[step.queue].submit(&step.request(slot), slot as u64) {
            self.finish_on(step.queue)?;
        }
        // Every other request waits for company: batches of all sizes come up.
        if step.seed.is_multiple_of(2) {
            self.driver.queues()[step.queue].kick();
        }
        self.slots[slot] = Some(step.clone());
        Ok(())
    }

    fn finish_some(&mut self) -> Result<(), TestCaseError> {
        let queue = self.slots.iter().flatten().map(|step| step.queue).next();
        queue.map_or(Ok(()), |queue| self.finish_on(queue))
    }

    fn finish_on(&mut self, queue: usize) -> Result<(), TestCaseError> {
        self.driver.queues()[queue].kick();
        for (slot, outcome) in self.driver.queues()[queue].wait() {
            let slot = slot as usize;
            let step = self.slots[slot].take().expect("a completion belongs to a request under way");
            prop_assert_eq!(outcome, Ok(()), "{:?}", step);
            prop_assert_eq!(step.queue, queue, "{:?}", step);
            if step.kind == Kind::Read {
                let found = self.driver.get(slot * SLOT_BYTES..slot * SLOT_BYTES + step.bytes().len());
                self.model.check(step.bytes().start, &found, "read")?;
            }
            self.model.apply(&step);
        }
        Ok(())
    }

    fn finish_all(&mut self) -> Result<(), TestCaseError> {
        while self.slots.iter().any(Option::is_some) {
            self.finish_some()?;
        }
        Ok(())
    }
}

#[test]
fn random_requests_leave_the_image_that_the_model_predicts() {
    for (place, is_packed) in Place::ALL.into_iter().flat_map(|place| [(place, false), (place, true)]) {
        let daemon = Setup::new(place).disk("size=1M,queues=4").start();
        // A small ring is often full.
        let mut options = Options { queues: QUEUES, queue_size: 16, ..Options::default() };
        options.ring_features.set(VirtioFeatureFlags::RING_PACKED, is_packed);
        let mut driver = Driver::connect(&daemon.socket(0), options);
        assert_eq!(driver.config().capacity.to_native(), DISK_SECTORS);
        let driver = std::cell::RefCell::new(&mut driver);

        // Discards and flushes take their time on an ordinary file system.
        let cases = if place == Place::Tmpfs { 40 } else { 16 };
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(config, random);
        let outcome = runner.run(&vec(step(), 1..400), |steps| {
            let mut driver = driver.borrow_mut();
            let mut run = Run::new(&mut driver);
            for step in &steps {
                run.start(step)?;
            }
            run.finish_all()?;
            run.model.check(0, &std::fs::read(daemon.image(0)).unwrap(), "image")
        });
        if let Err(failure) = outcome {
            panic!("{place:?}, packed {is_packed}: {failure}");
        }
        daemon.stop();
    }
}
