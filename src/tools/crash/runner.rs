//! Runs a workload on the real rings and device over a recorded disk; what comes of it is a trace.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use super::driver::{Driver, MEMORY_BYTES, RING_SIZE, RINGS, addresses};
use super::media::Class;
use super::scheduler::{DriverWatch, FLUSHER, Preemption, ReleaseOnDrop, RingWaker, Scheduler};
use super::workload::{Random, Request, Workload};
use crate::copy::recording::{self, Logged, Omit, Recording};
use crate::copy::testing::memfd;
use crate::copy::{PrefetchHint, Segments};
use crate::disk::testing::pass_on;
use crate::disk::{
    Backing, BlockDisk, Disk, DiskError, Durability, EmulatedMedia, FileDisk, Geometry, MappedDisk,
};
use crate::log::LogLimit;
use crate::virtio::blk::{CacheMode, Device, Identity};
use crate::virtio::memory::testing::table_of;
use crate::virtio::queue::{RingKind, RingLayout};
use crate::worker::{Ring, RingKey, RingParts, Served};

/// The granularity in which a disk's mapping is synced, and space given back, in these tests, in bytes.
const UNIT_BYTES: u64 = 1024;

/// Which data path of `disk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskKind {
    /// Mapped, on media of this class.
    Mapped(Class),
    /// An ordinary file, behind the page cache.
    File,
    /// A block device, past the page cache.
    Device,
}

impl DiskKind {
    pub(super) const fn class(self) -> Class {
        match self {
            Self::Mapped(class) => class,
            Self::File | Self::Device => Class::Pages,
        }
    }

    /// Whether the kernel copies what is written: then nothing waits for a fence of ours.
    pub(super) const fn is_written_by_kernel(self) -> bool {
        matches!(self, Self::File | Self::Device)
    }
}

/// How far the flusher gets after each batch.
#[derive(Debug, Clone, Copy)]
pub(super) enum Schedule {
    /// Flushes are over before anything else is asked for.
    AtOnce,
    /// It is let go on so often after the first batch, the second, the third.
    AfterBatches([usize; 3]),
    /// By chance, also in the midst of a batch.
    Random(u64),
    /// After so many events of all rings, and then at once to the end of all it has to do.
    AfterEvents(usize),
}

/// How a workload is run.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunConfig {
    /// Which of the engines of this CPU.
    pub(super) engine: usize,
    /// The cache mode: 1, or 0, where each write persists before it is completed.
    pub(super) writeback: bool,
    pub(super) kind: DiskKind,
    /// Whether discards give space back, where that is a choice.
    pub(super) unmaps: bool,
    pub(super) schedule: Schedule,
    /// What is left out.
    pub(super) omit: Omit,
    /// A bug that the disk is given.
    pub(super) bug: Option<Bug>,
}

impl RunConfig {
    /// The best engine, and nothing left out.
    pub(super) const fn on(kind: DiskKind, writeback: bool) -> Self {
        let (unmaps, schedule, omit) = (true, Schedule::AtOnce, Omit::Nothing);
        Self { engine: 0, writeback, kind, unmaps, schedule, omit, bug: None }
    }
}

/// Bugs that a disk is given to see whether they are noticed. None leaves a sync out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// What was written while a sync ran is taken for clean when it is over.
    CleanAfterSync,
    /// A flush is answered while the sync that covers it still runs.
    AnswerDuringSync,
}

/// What a disk believes to be clean: as it is, or with a bug.
#[derive(Debug)]
pub(super) struct Belief {
    bug: Option<Bug>,
    /// Something was written since the last sync, as a disk with a bug believes.
    is_dirty: Mutex<bool>,
}

impl Belief {
    pub(super) const fn new(bug: Option<Bug>) -> Self {
        Self { bug, is_dirty: Mutex::new(true) }
    }

    pub(super) fn wrote(&self) {
        *self.is_dirty.lock().unwrap() = true;
    }

    pub(super) fn try_flush(&self, disk: &Backing) -> Option<Result<(), DiskError>> {
        match self.bug {
            None => disk.try_flush(),
            Some(_) => (!*self.is_dirty.lock().unwrap()).then_some(Ok(())),
        }
    }

    pub(super) fn flush(&self, disk: &Backing) -> Result<(), DiskError> {
        if self.bug == Some(Bug::AnswerDuringSync) {
            *self.is_dirty.lock().unwrap() = false;
        }
        let done = disk.flush();
        if self.bug == Some(Bug::CleanAfterSync) {
            *self.is_dirty.lock().unwrap() = false;
        }
        done
    }
}

/// A workload that was run, and everything that happened meanwhile.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    pub(super) class: Class,
    pub(super) before: Vec<u8>,
    pub(super) bad_at: Option<usize>,
    /// With their rings; those of a ring in its order.
    pub(super) requests: Vec<(usize, Request)>,
    /// Those that change bytes, in the order in which they were done, by their numbers.
    pub(super) order: Vec<usize>,
    pub(super) log: Vec<Logged>,
    /// What a reader of the disk saw at the end.
    pub(super) after: Vec<u8>,
}

/// The real disk, under the scheduler, with a bug if one is wanted.
#[derive(Debug)]
struct RecordedDisk {
    disk: Backing,
    recording: Recording,
    scheduler: Arc<Scheduler>,
    /// Changes in the order in which they were made: the ring, and how many bytes. A request done in slices makes several.
    changes: Arc<Mutex<Vec<(usize, u64)>>>,
    belief: Belief,
}

impl RecordedDisk {
    fn changes(&self, bytes: u64) {
        self.changes.lock().unwrap().push((recording::cpu().unwrap(), bytes));
    }

    fn changed<T>(&self, done: Result<T, DiskError>) -> Result<T, DiskError> {
        self.belief.wrote();
        done
    }
}

impl Disk for RecordedDisk {
    pass_on!(disk: geometry, durability, read, fence);
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        self.changes(from.total_bytes() as u64);
        self.changed(self.disk.write(offset, from, next))
    }
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        self.belief.try_flush(&self.disk)
    }
    fn flush(&self) -> Result<(), DiskError> {
        let _on_cpu = self.recording.on_cpu(FLUSHER);
        self.scheduler.pause();
        let done = self.belief.flush(&self.disk);
        self.scheduler.pause();
        done
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.changes(len);
        self.changed(self.disk.discard(offset, len))
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError> {
        self.changes(len);
        self.changed(self.disk.write_zeroes(offset, len, unmap))
    }
}

pub(super) fn backing(file: &File, workload: &Workload, config: RunConfig) -> Backing {
    let (file, capacity_bytes) = (file.try_clone().unwrap(), workload.before.len() as u64);
    let geometry = Geometry { capacity_bytes, block_bytes: 512, read_only: false };
    let (durability, deep_flush) = match config.kind {
        DiskKind::File => return Backing::File(FileDisk::new(file, geometry).unwrap()),
        DiskKind::Device => return Backing::Block(BlockDisk::on_file(file, geometry)),
        DiskKind::Mapped(Class::Lines) => (Durability::CacheLine, vec![]),
        DiskKind::Mapped(Class::Queues) => (Durability::CacheLine, vec![memfd("crash-deep-flush", 1)]),
        DiskKind::Mapped(Class::Pages | Class::Shared) => (Durability::Page, vec![]),
    };
    let bad_at = workload.bad_at.map(|at| at as u64);
    let media =
        EmulatedMedia { durability, deep_flush, unmaps: config.unmaps, unit_bytes: UNIT_BYTES, bad_at };
    Backing::Mapped(MappedDisk::emulated(file, media))
}

pub(super) fn rings<D: Disk>(guest: &File, disk: D, config: RunConfig) -> Vec<Ring<D>> {
    let identity = Identity { name: "crash".into(), serial: [b'x'; 20] };
    let device = Arc::new(Device::new(disk, identity, RINGS as u16));
    let cache = Arc::new(CacheMode::write_through());
    cache.set_writeback(config.writeback);
    let memory = table_of(guest, MEMORY_BYTES);
    let kick = Arc::new(File::open("/dev/null").unwrap());
    let start = |ring| {
        let (size, addresses) = (u32::from(RING_SIZE), addresses(ring));
        let parts = RingParts {
            key: RingKey { session: 0, index: ring as u16 },
            layout: RingLayout {
                kind: RingKind::Split,
                size,
                addresses,
                base: 0,
                event_idx: false,
                indirect: false,
            },
            memory: memory.clone(),
            device: device.clone(),
            cache: cache.clone(),
            kick: kick.clone(),
            call: None,
            err: None,
            connection: None,
            hold_ups: Arc::default(),
        };
        Ring::start(parts, Arc::new(LogLimit::default())).unwrap()
    };
    (0..RINGS).map(start).collect()
}

/// The rings of a run, each with a CPU and a driver of its own.
struct Runner {
    rings: Vec<Ring<RecordedDisk>>,
    drivers: Vec<Driver>,
    recording: Recording,
    scheduler: Arc<Scheduler>,
}

impl Runner {
    fn serve(&mut self, ring: usize) {
        // A step of its own, though nothing is stored by a flush that has no fence.
        self.recording.observe(ring);
        self.scheduler.serving(ring);
        let waker = Waker::from(Arc::new(RingWaker { ring, scheduler: self.scheduler.clone() }));
        let on_cpu = self.recording.on_cpu(ring);
        // A request that is done in slices takes several turns.
        let turns = || Some(self.rings[ring].serve(&waker));
        let served = std::iter::from_fn(turns).find(|served| *served != Served::More).unwrap();
        drop(on_cpu);
        self.recording.observe(ring);
        self.scheduler.served(ring, served == Served::Held);
        if served == Served::Idle {
            self.drivers[ring].reap();
        }
    }

    /// Serves those whose flush is done.
    fn serve_woken(&mut self) {
        (0..RINGS).filter(|ring| self.scheduler.is_woken(*ring)).collect::<Vec<_>>().into_iter().for_each(
            |ring| {
                self.serve(ring);
            },
        );
    }

    /// Everything that was asked of a ring is done.
    fn finish(&mut self, ring: usize) {
        while self.scheduler.is_held(ring) {
            while !self.scheduler.is_woken(ring) {
                assert!(self.scheduler.advance(), "ring {ring} waits for a flush that nobody does");
            }
            self.serve(ring);
        }
    }
}

/// Runs a workload: each batch is offered and then served, each ring by a CPU of its own.
pub(super) fn run(workload: &Workload, config: RunConfig) -> Trace {
    let guest = memfd("crash-guest", MEMORY_BYTES);
    let disk = memfd("crash-media", workload.before.len() as u64);
    disk.write_all_at(&workload.before, 0).unwrap();
    let mut random = match config.schedule {
        Schedule::Random(seed) => Some(Random::new(seed)),
        Schedule::AtOnce | Schedule::AfterBatches(_) | Schedule::AfterEvents(_) => None,
    };
    let scheduler = Scheduler::new(match config.schedule {
        Schedule::Random(seed) => Preemption::Random(Random::new(!seed)),
        Schedule::AfterEvents(events) => Preemption::AfterEvents(events),
        Schedule::AtOnce | Schedule::AfterBatches(_) => Preemption::Never,
    });
    let watcher = DriverWatch { guest: guest.try_clone().unwrap(), scheduler: scheduler.clone() };
    let recording = Recording::new(config.engine, config.omit, Arc::new(watcher));
    let changes = Arc::<Mutex<Vec<(usize, u64)>>>::default();
    let recorded = RecordedDisk {
        disk: backing(&disk, workload, config),
        recording: recording.clone(),
        scheduler: scheduler.clone(),
        changes: changes.clone(),
        belief: Belief::new(config.bug),
    };
    let rings = rings(&guest, recorded, config);
    let drivers = (0..RINGS).map(|ring| Driver::new(&guest, ring)).collect();
    let mut runner = Runner { rings, drivers, recording, scheduler: scheduler.clone() };
    // Dropped first: if this fails the flusher must not wait.
    let over = ReleaseOnDrop(scheduler);
    let mut asked: [VecDeque<Request>; RINGS] = Default::default();
    for (number, batch) in workload.batches.iter().enumerate() {
        runner.finish(batch.ring);
        for request in &batch.requests {
            runner.drivers[batch.ring].chain(request);
            asked[batch.ring].push_back(request.clone());
        }
        runner.drivers[batch.ring].offer();
        runner.serve(batch.ring);
        let turns = match config.schedule {
            Schedule::AtOnce => usize::MAX,
            Schedule::AfterBatches(turns) => turns.get(number).copied().unwrap_or(0),
            Schedule::AfterEvents(_) => 0,
            Schedule::Random(_) => random.as_mut().map_or(0, |random| random.below(4)),
        };
        for _ in 0..turns {
            if !runner.scheduler.advance() {
                break;
            }
        }
        runner.serve_woken();
        if matches!(config.schedule, Schedule::AtOnce) {
            // A batch whose requests are done in slices may wait for several flushes.
            runner.finish(batch.ring);
        }
    }
    (0..RINGS).for_each(|ring| runner.finish(ring));
    let log = runner.recording.log();
    drop(over);
    let mut after = vec![0; workload.before.len()];
    disk.read_exact_at(&mut after, 0).unwrap();
    let requests = in_order(asked, &changes.lock().unwrap());
    let (class, before, bad_at) = (config.kind.class(), workload.before.clone(), workload.bad_at);
    let order = (0..requests.len()).collect();
    Trace { class, before, bad_at, requests, order, log, after }
}

/// The requests as they were done: those that change bytes in this order of rings, flushes anywhere between.
fn in_order(mut asked: [VecDeque<Request>; RINGS], changes: &[(usize, u64)]) -> Vec<(usize, Request)> {
    let (mut requests, mut begun) = (Vec::new(), [0; RINGS]);
    for (ring, bytes) in changes {
        begun[*ring] += *bytes;
        while let Some(request) = asked[*ring].pop_front() {
            if !request.is_flush() && begun[*ring] < request.range().len() as u64 {
                // There are more slices to come.
                asked[*ring].push_front(request);
                break;
            }
            let is_change = !request.is_flush();
            requests.push((*ring, request));
            if is_change {
                begun[*ring] = 0;
                break;
            }
        }
    }
    for (ring, rest) in asked.into_iter().enumerate() {
        assert!(rest.iter().all(Request::is_flush), "asked for and never done");
        requests.extend(rest.into_iter().map(|request| (ring, request)));
    }
    requests
}
