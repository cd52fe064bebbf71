//! The real device over a recorded disk, in a history.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use super::driver::{Driver, MEMORY_BYTES, RING_SIZE, RINGS, addresses};
use super::media::Class;
use super::scheduler::{Baton, Bell, FLUSHER, Moments, Over, Watcher};
use super::workload::{History, Random, Request};
use crate::copy::Segments;
use crate::copy::recording::{self, Forgets, Logged, Recording};
use crate::disk::{
    Backing, BlockDisk, Disk, DiskError, Durability, EmulatedMedia, FileDisk, Geometry, MappedDisk,
};
use crate::log::LogLimit;
use crate::virtio::blk::{CacheMode, Device, Identity};
use crate::virtio::memory::{MemoryTable, RegionSpec};
use crate::virtio::queue::{RingKind, RingLayout};
use crate::worker::{Ring, RingKey, RingParts, Served};

/// What a disk's mapping is synced by, and its holes consist of, in these tests.
const UNIT_BYTES: u64 = 1024;

/// Which disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Mapped, on media of this class.
    Mapped(Class),
    /// An ordinary file, behind the page cache.
    File,
    /// A block device, past it.
    Device,
}

impl Kind {
    pub(super) const fn class(self) -> Class {
        match self {
            Self::Mapped(class) => class,
            Self::File | Self::Device => Class::Pages,
        }
    }

    /// Whether it is the kernel that copies what is written: nothing waits for a fence then.
    pub(super) const fn is_written_by_kernel(self) -> bool {
        matches!(self, Self::File | Self::Device)
    }
}

/// How far the flusher gets after each batch.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// Flushes are over before anything else is asked for.
    AtOnce,
    /// It goes on as often after the first batch, the second, the third.
    Steps([usize; 3]),
    /// By chance, also in the midst of a batch.
    Random(u64),
    /// After so many events of all rings, and then at once to the end of all it has to do.
    Between(usize),
}

/// How a history is played.
#[derive(Debug, Clone, Copy)]
pub(super) struct Play {
    /// Which of the engines of this CPU.
    pub(super) engine: usize,
    /// The cache mode: 1, or 0, where each write persists before it is completed.
    pub(super) writeback: bool,
    pub(super) kind: Kind,
    /// Whether discards give space back, where that is a choice.
    pub(super) unmaps: bool,
    pub(super) pace: Pace,
    /// What is left out.
    pub(super) forgets: Forgets,
    /// What the disk does wrong.
    pub(super) mistake: Option<Mistake>,
}

impl Play {
    /// The best engine, and nothing left out.
    pub(super) const fn on(kind: Kind, writeback: bool) -> Self {
        let (unmaps, pace, forgets) = (true, Pace::AtOnce, Forgets::Nothing);
        Self { engine: 0, writeback, kind, unmaps, pace, forgets, mistake: None }
    }
}

/// What a disk may do wrong without any sync being left out of those that it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mistake {
    /// What was written while a sync ran is taken for clean when it is over.
    CleanAfterSync,
    /// A flush is answered while the sync that covers it still runs.
    AnswerDuringSync,
}

/// A history that was played, and what the media got.
#[derive(Debug, Clone)]
pub(super) struct Played {
    pub(super) class: Class,
    pub(super) before: Vec<u8>,
    pub(super) bad_at: Option<usize>,
    /// In the order in which they were done, with their rings.
    pub(super) requests: Vec<(usize, Request)>,
    pub(super) log: Vec<Logged>,
    /// What a reader of the disk saw at the end.
    pub(super) after: Vec<u8>,
}

/// The real disk, and who does what on it when.
#[derive(Debug)]
struct Recorded {
    disk: Backing,
    recording: Recording,
    baton: Arc<Baton>,
    /// What changed bytes, in the order in which it was done: the ring, and how many. Some requests are done in slices.
    changes: Arc<Mutex<Vec<(usize, u64)>>>,
    mistake: Option<Mistake>,
    /// Something was written since, as the mistaken see it.
    is_dirty: Mutex<bool>,
}

impl Recorded {
    fn changes(&self, bytes: u64) {
        self.changes.lock().unwrap().push((recording::cpu().unwrap(), bytes));
    }

    fn changed<T>(&self, done: Result<T, DiskError>) -> Result<T, DiskError> {
        *self.is_dirty.lock().unwrap() = true;
        done
    }
}

impl Disk for Recorded {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn durability(&self) -> Durability {
        self.disk.durability()
    }
    fn read(&self, offset: u64, into: Segments<'_>) -> Result<(), DiskError> {
        self.disk.read(offset, into)
    }
    fn write(&self, offset: u64, from: Segments<'_>) -> Result<(), DiskError> {
        self.changes(from.total_bytes() as u64);
        self.changed(self.disk.write(offset, from))
    }
    fn fence(&self) {
        self.disk.fence();
    }
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        match self.mistake {
            None => self.disk.try_flush(),
            Some(_) => (!*self.is_dirty.lock().unwrap()).then_some(Ok(())),
        }
    }
    fn flush(&self) -> Result<(), DiskError> {
        let _on_cpu = self.recording.on_cpu(FLUSHER);
        self.baton.pause();
        if self.mistake == Some(Mistake::AnswerDuringSync) {
            *self.is_dirty.lock().unwrap() = false;
        }
        let done = self.disk.flush();
        if self.mistake == Some(Mistake::CleanAfterSync) {
            *self.is_dirty.lock().unwrap() = false;
        }
        self.baton.pause();
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

fn memfd(name: &str, len_bytes: u64) -> File {
    let file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len_bytes).unwrap();
    file
}

fn backing(file: &File, history: &History, play: Play) -> Backing {
    let (file, capacity_bytes) = (file.try_clone().unwrap(), history.before.len() as u64);
    let geometry = Geometry { capacity_bytes, block_bytes: 512, read_only: false };
    let (durability, deep_flush) = match play.kind {
        Kind::File => return Backing::File(FileDisk::new(file, geometry).unwrap()),
        Kind::Device => return Backing::Block(BlockDisk::on_file(file, geometry)),
        Kind::Mapped(Class::Lines) => (Durability::CacheLine, vec![]),
        Kind::Mapped(Class::Queues) => (Durability::CacheLine, vec![memfd("crash-deep-flush", 1)]),
        Kind::Mapped(Class::Pages | Class::Shared) => (Durability::Page, vec![]),
    };
    let bad_at = history.bad_at.map(|at| at as u64);
    let how = EmulatedMedia { durability, deep_flush, unmaps: play.unmaps, unit_bytes: UNIT_BYTES, bad_at };
    Backing::Mapped(MappedDisk::emulated(file, how))
}

fn rings(guest: &File, disk: Recorded, play: Play) -> Vec<Ring<Recorded>> {
    let identity = Identity { name: "crash".into(), serial: [b'x'; 20] };
    let device = Arc::new(Device::new(disk, identity, RINGS as u16));
    let cache = Arc::new(CacheMode::write_through());
    cache.set_writeback(play.writeback);
    let file = guest.try_clone().unwrap();
    let spec = RegionSpec {
        guest_start: 0,
        len_bytes: MEMORY_BYTES,
        user_start: 0,
        file_offset: 0,
        file,
        charge: None,
    };
    let memory = Arc::new(MemoryTable::map(vec![spec]).unwrap());
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
        };
        Ring::start(parts, Arc::new(LogLimit::default())).unwrap()
    };
    (0..RINGS).map(start).collect()
}

/// Rings, each with a CPU and a driver of its own.
struct Scene {
    rings: Vec<Ring<Recorded>>,
    drivers: Vec<Driver>,
    recording: Recording,
    baton: Arc<Baton>,
}

impl Scene {
    fn serve(&mut self, ring: usize) {
        // A step of its own, though nothing is stored by a flush that has no fence.
        self.recording.look(ring);
        self.baton.serving(ring);
        let waker = Waker::from(Arc::new(Bell { ring, baton: self.baton.clone() }));
        let on_cpu = self.recording.on_cpu(ring);
        // A request that is done in slices takes several turns.
        let turns = || Some(self.rings[ring].serve(&waker));
        let served = std::iter::from_fn(turns).find(|served| *served != Served::More).unwrap();
        drop(on_cpu);
        self.recording.look(ring);
        self.baton.served(ring, served == Served::Held);
        if served == Served::Idle {
            self.drivers[ring].reap();
        }
    }

    /// Serves those whose flush is done.
    fn serve_woken(&mut self) {
        (0..RINGS).filter(|ring| self.baton.is_rung(*ring)).collect::<Vec<_>>().into_iter().for_each(
            |ring| {
                self.serve(ring);
            },
        );
    }

    /// Everything that was asked of a ring is done.
    fn finish(&mut self, ring: usize) {
        while self.baton.is_held(ring) {
            while !self.baton.is_rung(ring) {
                assert!(self.baton.advance(), "ring {ring} waits for a flush that nobody does");
            }
            self.serve(ring);
        }
    }
}

/// Plays a history: each batch is offered and then served, each ring by a CPU of its own.
pub(super) fn play(history: &History, play: Play) -> Played {
    let guest = memfd("crash-guest", MEMORY_BYTES);
    let disk = memfd("crash-media", history.before.len() as u64);
    disk.write_all_at(&history.before, 0).unwrap();
    let mut random = match play.pace {
        Pace::Random(seed) => Some(Random::new(seed)),
        Pace::AtOnce | Pace::Steps(_) | Pace::Between(_) => None,
    };
    let baton = Baton::new(match play.pace {
        Pace::Random(seed) => Moments::Random(Random::new(!seed)),
        Pace::Between(events) => Moments::After(events),
        Pace::AtOnce | Pace::Steps(_) => Moments::Never,
    });
    let watcher = Watcher { guest: guest.try_clone().unwrap(), baton: baton.clone() };
    let recording = Recording::new(play.engine, play.forgets, Arc::new(watcher));
    let changes = Arc::<Mutex<Vec<(usize, u64)>>>::default();
    let recorded = Recorded {
        disk: backing(&disk, history, play),
        recording: recording.clone(),
        baton: baton.clone(),
        changes: changes.clone(),
        mistake: play.mistake,
        is_dirty: Mutex::new(true),
    };
    let rings = rings(&guest, recorded, play);
    let drivers = (0..RINGS).map(|ring| Driver::new(&guest, ring)).collect();
    let mut scene = Scene { rings, drivers, recording, baton: baton.clone() };
    // Dropped first: if this fails the flusher must not wait.
    let over = Over(baton);
    let mut asked: [VecDeque<Request>; RINGS] = Default::default();
    for (number, step) in history.steps.iter().enumerate() {
        scene.finish(step.ring);
        for request in &step.requests {
            scene.drivers[step.ring].chain(request);
            asked[step.ring].push_back(request.clone());
        }
        scene.drivers[step.ring].offer();
        scene.serve(step.ring);
        let turns = match play.pace {
            Pace::AtOnce => usize::MAX,
            Pace::Steps(turns) => turns.get(number).copied().unwrap_or(0),
            Pace::Between(_) => 0,
            Pace::Random(_) => random.as_mut().map_or(0, |random| random.below(4)),
        };
        for _ in 0..turns {
            if !scene.baton.advance() {
                break;
            }
        }
        scene.serve_woken();
        if matches!(play.pace, Pace::AtOnce) {
            // A batch whose requests are done in slices may wait for several flushes.
            scene.finish(step.ring);
        }
    }
    (0..RINGS).for_each(|ring| scene.finish(ring));
    let log = scene.recording.log();
    drop(over);
    let mut after = vec![0; history.before.len()];
    disk.read_exact_at(&mut after, 0).unwrap();
    let requests = in_order(asked, &changes.lock().unwrap());
    let (class, before, bad_at) = (play.kind.class(), history.before.clone(), history.bad_at);
    Played { class, before, bad_at, requests, log, after }
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
