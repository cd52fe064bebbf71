//! The same with many requests under way on media that end them in any order: a back-end dies at any step, or its ring is
//! stopped in an orderly way, and the next one goes on.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::guest::{self, GuestRequest, Size};
use super::{Base, Machine};
use crate::copy::testing::memfd;
use crate::copy::{self, PrefetchHint, Segments};
use crate::disk::testing::pass_on;
use crate::disk::{Disk, DiskError, MappedDisk};
use crate::failpoint::{self, Point};
use crate::limits::bounds::{MAX_IO_THREADS, MAX_PENDING_REQUESTS};
use crate::tools::crash::workload::Random;
use crate::virtio::memory::DirtyLog;
use crate::virtio::memory::testing::table_of;
use crate::virtio::queue::{RingKind, RingLog};
use crate::worker::AnyRing;

/// How long a step may take on a machine that is busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Media that do a request when the test says so, in any order, or never.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    next: u64,
    /// Requests that wait.
    waiting: Vec<u64>,
    /// One that may go on.
    granted: Option<u64>,
    /// The process is dead: of the requests that wait, those with an odd number are done by half.
    is_dead: bool,
    /// Most that ever waited at the same time.
    most: usize,
}

/// What becomes of a request.
pub(super) enum Verdict {
    Done,
    Half,
    Nothing,
}

impl Gate {
    pub(super) fn pass(&self) -> Verdict {
        let mut state = self.state.lock().unwrap();
        let number = state.next;
        state.next += 1;
        state.waiting.push(number);
        state.most = state.most.max(state.waiting.len());
        while state.granted != Some(number) && !state.is_dead {
            state = self.changed.wait(state).unwrap();
        }
        state.waiting.retain(|waiting| *waiting != number);
        match state.is_dead {
            true if number % 2 == 1 => Verdict::Half,
            true => Verdict::Nothing,
            false => {
                state.granted = None;
                Verdict::Done
            }
        }
    }

    /// Lets one of those that wait go on, if there is one.
    pub(super) fn grant(&self, random: &mut Random) {
        let mut state = self.state.lock().unwrap();
        if state.granted.is_none() && !state.waiting.is_empty() {
            let place = random.below(state.waiting.len());
            state.granted = Some(state.waiting[place]);
            self.changed.notify_all();
        }
    }

    pub(super) fn die(&self) {
        self.state.lock().unwrap().is_dead = true;
        self.changed.notify_all();
    }

    fn is_at_rest(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.waiting.is_empty() && state.granted.is_none()
    }
}

/// A disk behind a gate.
#[derive(Debug)]
struct GatedDisk {
    disk: MappedDisk,
    file: File,
    gate: Arc<Gate>,
}

fn dead() -> DiskError {
    DiskError::Unsupported
}

impl Disk for GatedDisk {
    pass_on!(disk: geometry, durability, fence, flush, discard, write_zeroes);
    fn may_wait(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        match self.gate.pass() {
            Verdict::Done => self.disk.read(offset, into, next),
            Verdict::Half => {
                let mut half = vec![0; into.total_bytes() / 2];
                self.file.read_exact_at(&mut half, offset).unwrap();
                assert_eq!(copy::store_slice(into, &half), half.len());
                Err(dead())
            }
            Verdict::Nothing => Err(dead()),
        }
    }
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        match self.gate.pass() {
            Verdict::Done => self.disk.write(offset, from, next),
            Verdict::Half => {
                let mut half = vec![0; from.total_bytes() / 2];
                assert_eq!(copy::load_slice(from, &mut half), half.len());
                self.file.write_all_at(&half, offset).unwrap();
                Err(dead())
            }
            Verdict::Nothing => Err(dead()),
        }
    }
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        None
    }
}

/// What a back-end comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Stopped,
}

struct BackEnd {
    ring: AnyRing<GatedDisk>,
    gate: Arc<Gate>,
}

impl BackEnd {
    fn start(machine: &Machine, base: u32) -> Self {
        let (disk, gate) = Self::disk(machine);
        Self { ring: machine.start_on(disk, base), gate }
    }

    /// What it writes to guest memory is marked in a log.
    fn start_logged(machine: &Machine, base: u32, log: Arc<DirtyLog>) -> Self {
        let (disk, gate) = Self::disk(machine);
        let memory = table_of(&machine.guest.file, machine.guest.size.memory_bytes());
        let mut ring = machine.start_in(memory.clone(), disk, base);
        ring.log_to(RingLog::new(log, memory, &machine.layout(base), Some(guest::ADDRESSES.used)));
        Self { ring, gate }
    }

    fn disk(machine: &Machine) -> (GatedDisk, Arc<Gate>) {
        let (gate, file) = (Arc::<Gate>::default(), machine.disk.try_clone().unwrap());
        (GatedDisk { disk: machine.mapped_disk(), file, gate: gate.clone() }, gate)
    }

    /// Its ring is taken back.
    fn stop(&mut self, random: &mut Random) {
        let since = Instant::now();
        while !self.ring.drain(Waker::noop()) {
            assert!(since.elapsed() < PATIENCE, "a ring is not given back");
            self.gate.grant(random);
        }
        assert!(self.gate.is_at_rest(), "a request is under way when its ring is given back");
    }

    /// A step of its media and of its ring. `None` if it has died in it.
    fn step(&mut self, random: &mut Random, may_die: bool) -> Option<()> {
        const POINTS: [Point; 4] = [Point::BeforeUsed, Point::RingStore, Point::AfterUsed, Point::BeforeCall];
        if random.below(4) != 0 {
            self.gate.grant(random);
        }
        if self.ring.has_work() {
            match may_die && random.below(3) == 0 {
                true => {
                    let (point, passes) = (POINTS[random.below(POINTS.len())], random.below(2) as u32);
                    failpoint::stops_at(point, passes, || self.ring.serve(Waker::noop()))?;
                }
                false => drop(self.ring.serve(Waker::noop())),
            }
            assert!(!self.ring.is_broken());
        }
        std::thread::yield_now();
        Some(())
    }

    /// Nothing of it happens any more. Returns how many requests were under way at once at most.
    fn end(mut self, machine: &mut Machine, end: End, random: &mut Random) -> usize {
        if end == End::Stopped {
            self.stop(random);
            machine.maybe_executed = machine.guest.requests.len();
            machine.reap();
            assert_eq!(self.ring.base(), machine.guest.used_base());
        }
        self.gate.die();
        // With it the device ends, and its threads.
        drop(self.ring);
        let most = self.gate.state.lock().unwrap().most;
        machine.maybe_executed = machine.guest.requests.len();
        machine.reap();
        machine.check_disk();
        most
    }
}

/// One of the requests that the driver makes: reads of other bytes are under way at the same time as any.
fn request(random: &mut Random, size: Size) -> GuestRequest {
    match random.below(2) {
        0 => guest::any_request(random, size),
        _ => GuestRequest::Read { sector: random.below(size.sectors), count: 1 },
    }
}

/// Runs a few batches, in each of which a back-end comes to an end at some step and another one goes on. Returns how many
/// requests were under way at once, on threads of their own and in all.
fn runs(kind: RingKind, base: Base, end: End, size: Size, seed: u64) -> (usize, usize) {
    let mut random = Random::new(seed);
    let mut machine = Machine::new(kind, size);
    let mut back_end = BackEnd::start(&machine, 0);
    let (mut most, mut most_begun) = (0, 0);
    for _ in 0..4 {
        // All that there may be, in every other batch.
        for _ in 0..=random.below(size.most).max(random.below(2) * (size.most - 1)) {
            machine.guest.offer(request(&mut random, size));
        }
        let (mut end_at, since) = (Some(1 + random.below(5 * size.most)), Instant::now());
        let mut step = 0;
        while machine.guest.seen < machine.guest.requests.len() {
            assert!(
                since.elapsed() < PATIENCE,
                "{} requests were done, and then no more",
                machine.guest.seen
            );
            step += 1;
            // It may die at any time, but not always before many are under way.
            let may_die = end == End::Killed && end_at.is_some() && random.below(size.most) < 8;
            let has_ended = end_at == Some(step) || back_end.step(&mut random, may_die).is_none();
            most_begun = most_begun.max(back_end.ring.device().unfinished().0);
            if has_ended {
                most = most.max(back_end.end(&mut machine, end, &mut random));
                back_end = BackEnd::start(&machine, machine.base(base));
                let used = machine.guest.used_base();
                assert_eq!(back_end.ring.base(), used, "it goes on behind what the driver has seen");
                end_at = None;
            }
            machine.reap();
        }
        machine.check_disk();
    }
    (most.max(back_end.end(&mut machine, end, &mut random)), most_begun)
}

fn run_all(size: Size, seeds: u64, least: (usize, usize)) {
    for kind in [RingKind::Split, RingKind::Packed] {
        for base in [Base::LastStop, Base::Used, Base::Available] {
            for end in [End::Killed, End::Stopped] {
                let most: Vec<_> = (0..seeds).map(|seed| runs(kind, base, end, size, seed)).collect();
                let at_once = most.iter().map(|it| it.0).max();
                let begun = most.iter().map(|it| it.1).max();
                assert!(
                    at_once >= Some(least.0) && begun >= Some(least.1),
                    "{kind:?}, {base:?}, {end:?}: only {at_once:?} at once, {begun:?} begun"
                );
            }
        }
    }
}

#[test]
fn many_requests_under_way_are_done_in_order_whatever_becomes_of_their_back_end() {
    run_all(Size::SMALL, 20, (4, 4));
}

/// As many as a ring may have begun, besides flushes: more than there are threads.
#[test]
fn as_many_requests_as_there_may_be_are_done_in_order_whatever_becomes_of_their_back_end() {
    run_all(Size::LARGE, 6, (MAX_IO_THREADS - 8, usize::from(MAX_PENDING_REQUESTS) - 38));
}

/// A migration: a copy of guest memory, of which pages are copied again that the log has marked.
struct Migration {
    bits: File,
    copy: Vec<u8>,
}

impl Migration {
    const PAGE_BYTES: usize = 4096;

    fn of(machine: &Machine) -> (Self, Arc<DirtyLog>) {
        let bits = memfd("pending-log", Self::PAGE_BYTES as u64);
        let log = Arc::new(DirtyLog::map(&bits, 0, Self::PAGE_BYTES as u64).unwrap());
        (Self { bits, copy: memory_of(machine) }, log)
    }

    /// Takes the marks, and copies what they say.
    fn copy_marked(&mut self, machine: &Machine) {
        let mut marks = vec![0; machine.guest.size.memory_bytes() as usize / Self::PAGE_BYTES / 8 + 1];
        self.bits.read_exact_at(&mut marks, 0).unwrap();
        self.bits.write_all_at(&vec![0; marks.len()], 0).unwrap();
        let memory = memory_of(machine);
        for (page, bytes) in memory.chunks(Self::PAGE_BYTES).enumerate() {
            if marks[page / 8] & 1 << (page % 8) != 0 {
                self.copy[page * Self::PAGE_BYTES..][..bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    fn check(&self, machine: &Machine) {
        for (page, (copy, is)) in
            self.copy.chunks(Self::PAGE_BYTES).zip(memory_of(machine).chunks(Self::PAGE_BYTES)).enumerate()
        {
            assert!(copy == is, "page {page} was written to, and is not marked");
        }
    }
}

fn memory_of(machine: &Machine) -> Vec<u8> {
    let mut memory = vec![0; machine.guest.size.memory_bytes() as usize];
    machine.guest.file.read_exact_at(&mut memory, 0).unwrap();
    memory
}

/// Batches are done, or stopped half way, while a front-end migrates; the copy has all in the end.
#[test]
fn what_comes_back_out_of_order_is_marked_in_the_dirty_log() {
    for (kind, seed) in
        [RingKind::Split, RingKind::Packed].into_iter().flat_map(|kind| (0..40).map(move |seed| (kind, seed)))
    {
        let mut random = Random::new(seed);
        let size = Size::SMALL;
        let mut machine = Machine::new(kind, size);
        let mut base = 0;
        for _ in 0..4 {
            while machine.guest.requests.len() - machine.guest.seen < size.most {
                machine.guest.offer(request(&mut random, size));
            }
            // What the driver writes is the front-end's to know.
            let (mut migration, log) = Migration::of(&machine);
            let mut back_end = BackEnd::start_logged(&machine, base, log);
            let steps = random.below(80);
            for _ in 0..steps {
                back_end.step(&mut random, false).unwrap();
                if random.below(3) == 0 {
                    migration.copy_marked(&machine);
                }
            }
            back_end.stop(&mut random);
            migration.copy_marked(&machine);
            migration.check(&machine);
            machine.maybe_executed = machine.guest.requests.len();
            machine.reap();
            base = machine.guest.used_base();
            assert_eq!(back_end.ring.base(), base);
            back_end.gate.die();
        }
    }
}
