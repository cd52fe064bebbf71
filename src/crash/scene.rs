//! The real device over a recorded disk: rings in guest memory, driven by a driver of the test's own.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::task::Waker;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::history::{History, Request, SECTOR_BYTES};
use crate::copy::recording::{Forgets, Logged, Recording};
use crate::copy::{self, Persist, Segments};
use crate::disk::{Disk, DiskError, Durability, Geometry, Mapping};
use crate::log_limit::LogLimit;
use crate::virtio::blk::{CacheMode, Device, Identity};
use crate::virtio::memory::{MemoryTable, RegionSpec};
use crate::virtio::queue::{RingAddresses, RingLayout};
use crate::worker::{Ring, RingKey, RingParts, Served};

pub(super) const RINGS: usize = 2;
const RING_SIZE: u16 = 64;
/// Guest memory: a page for each area of each ring, then the buffers of a batch.
const RING_AREAS: u64 = 0x4000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = RING_AREAS * RINGS as u64;
const MEMORY_BYTES: u64 = BUFFERS + (256 << 10);

/// How a history is played.
#[derive(Debug, Clone, Copy)]
pub(super) struct Play {
    /// Which of the engines of this CPU.
    pub(super) engine: usize,
    /// The cache mode: 1, or 0, where each write persists before it is completed.
    pub(super) writeback: bool,
    /// Whether a flush of the disk passes a fence itself; the one of the batch comes after it anyway.
    pub(super) flush_fences: bool,
    /// What is left out.
    pub(super) forgets: Forgets,
}

/// A history that was played, and what the media got.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) before: Vec<u8>,
    /// In the order in which they were done, with their rings.
    pub(super) requests: Vec<(usize, Request)>,
    pub(super) log: Vec<Logged>,
    /// What a reader of the disk saw at the end.
    pub(super) after: Vec<u8>,
}

/// A disk on media whose durability is that of the cache line: the real mapping, the real fence.
#[derive(Debug)]
struct Medium {
    mapping: Mapping,
    flush_fences: bool,
}

impl Disk for Medium {
    fn geometry(&self) -> Geometry {
        Geometry { capacity_bytes: self.mapping.len_bytes(), block_bytes: 512, read_only: false }
    }
    fn durability(&self) -> Durability {
        Durability::CacheLine
    }
    fn read(&self, offset: u64, into: Segments<'_>) -> Result<(), DiskError> {
        self.mapping.read(offset, into)
    }
    fn write(&self, offset: u64, from: Segments<'_>) -> Result<(), DiskError> {
        self.mapping.write(offset, from)
    }
    fn fence(&self) {
        copy::store_fence();
    }
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        Some(self.flush())
    }
    fn flush(&self) -> Result<(), DiskError> {
        if self.flush_fences {
            self.fence();
        }
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), DiskError> {
        self.mapping.zero(offset, len)
    }
}

/// What a driver has written into guest memory.
#[derive(Debug)]
struct Driver {
    guest: File,
    /// Chains made available so far.
    offered: [u16; RINGS],
    next_descriptor: u16,
    next_buffer: u64,
    /// Where the statuses of this batch are.
    statuses: Vec<u64>,
}

impl Driver {
    fn write(&self, at: u64, bytes: &[u8]) {
        self.guest.write_all_at(bytes, at).unwrap();
    }

    fn buffer(&mut self, bytes: &[u8]) -> u64 {
        let at = self.next_buffer;
        self.write(at, bytes);
        // Odd buffers begin at odd addresses.
        self.next_buffer += bytes.len() as u64 + 1;
        at
    }

    fn descriptor(&mut self, ring: usize, buffer: (u64, usize), flags: u16) {
        let index = self.next_descriptor;
        let mut bytes = buffer.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(buffer.1 as u32).to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&(index + 1).to_le_bytes());
        self.write(area(ring, 0) + u64::from(index) * 16, &bytes);
        self.next_descriptor += 1;
        assert!(self.next_descriptor <= RING_SIZE, "the batch does not fit the table");
    }

    /// Writes a chain; the driver shows it with [`offer`](Self::offer).
    fn chain(&mut self, ring: usize, request: &Request) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        let (kind, sector, pieces) = match request {
            Request::Flush => (VIRTIO_BLK_T_FLUSH, 0, vec![]),
            Request::Write { at, data, cuts } => {
                let starts = std::iter::once(&0).chain(cuts);
                let pieces = starts.zip(cuts).map(|(start, end)| data[*start..*end].to_vec());
                (VIRTIO_BLK_T_OUT, at / SECTOR_BYTES, pieces.collect())
            }
            Request::Zero { range } => {
                let mut bytes = ((range.start / SECTOR_BYTES) as u64).to_le_bytes().to_vec();
                bytes.extend_from_slice(&((range.len() / SECTOR_BYTES) as u32).to_le_bytes());
                bytes.extend_from_slice(&[0; 4]);
                (VIRTIO_BLK_T_WRITE_ZEROES, 0, vec![bytes])
            }
        };
        let head = self.next_descriptor;
        let header = [&kind.to_le_bytes()[..], &[0; 4], &(sector as u64).to_le_bytes()].concat();
        for piece in std::iter::once(header).chain(pieces) {
            let at = self.buffer(&piece);
            self.descriptor(ring, (at, piece.len()), NEXT);
        }
        let status = self.buffer(&[0xff]);
        self.descriptor(ring, (status, 1), WRITE);
        self.statuses.push(status);
        let slot = self.offered[ring] % RING_SIZE;
        self.write(area(ring, AVAIL) + 4 + u64::from(slot) * 2, &head.to_le_bytes());
        self.offered[ring] = self.offered[ring].wrapping_add(1);
    }

    fn offer(&self, ring: usize) {
        self.write(area(ring, AVAIL) + 2, &self.offered[ring].to_le_bytes());
    }

    /// Every request of the batch was done well; its memory is used again.
    fn reap(&mut self) {
        for at in std::mem::take(&mut self.statuses) {
            let mut status = [0xff];
            self.guest.read_exact_at(&mut status, at).unwrap();
            assert_eq!(status, [0], "a request failed");
        }
        (self.next_descriptor, self.next_buffer) = (0, BUFFERS);
    }
}

const fn area(ring: usize, at: u64) -> u64 {
    ring as u64 * RING_AREAS + at
}

/// The used and the available index of every ring, as a driver sees them.
fn indices(guest: &File) -> u64 {
    let word = |ring: usize, at: u64| {
        let mut bytes = [0; 2];
        guest.read_exact_at(&mut bytes, area(ring, at) + 2).unwrap();
        u64::from(u16::from_le_bytes(bytes))
    };
    (0..RINGS).fold(0, |all, ring| all << 32 | word(ring, USED) << 16 | word(ring, AVAIL))
}

/// Used and available index of a ring in what [`indices`] answered.
pub(super) fn indices_of(seen: u64, ring: usize) -> (usize, usize) {
    let both = seen >> ((RINGS - 1 - ring) * 32);
    (usize::from((both >> 16) as u16), usize::from(both as u16))
}

fn memfd(name: &str, len_bytes: u64) -> File {
    let file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len_bytes).unwrap();
    file
}

fn rings(guest: &File, disk: &File, play: Play) -> Vec<Ring<Medium>> {
    let len_bytes = disk.metadata().unwrap().len();
    let mapping = Mapping::new(disk, len_bytes, false).unwrap().persisting(Persist::Lines);
    let identity = Identity { name: "crash".into(), serial: [b'x'; 20] };
    let medium = Medium { mapping, flush_fences: play.flush_fences };
    let device = Arc::new(Device::new(medium, identity, RINGS as u16));
    let cache = Arc::new(CacheMode::write_through());
    cache.set_writeback(play.writeback);
    let file = guest.try_clone().unwrap();
    let spec = RegionSpec { guest_start: 0, len_bytes: MEMORY_BYTES, user_start: 0, file_offset: 0, file };
    let memory = Arc::new(MemoryTable::map(vec![spec]).unwrap());
    let kick = Arc::new(File::open("/dev/null").unwrap());
    let start = |ring| {
        let addresses = RingAddresses {
            descriptors: area(ring, 0),
            available: area(ring, AVAIL),
            used: area(ring, USED),
        };
        let size = u32::from(RING_SIZE);
        let parts = RingParts {
            key: RingKey { session: 0, index: ring as u16 },
            layout: RingLayout { size, addresses, event_idx: false, indirect: false, max_indirect: 0 },
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

/// Plays a history: each batch is offered and then served, each ring by a CPU of its own.
pub(super) fn play(history: &History, play: Play) -> Played {
    let guest = memfd("crash-guest", MEMORY_BYTES);
    let disk = memfd("crash-media", history.before.len() as u64);
    disk.write_all_at(&history.before, 0).unwrap();
    let mut rings = rings(&guest, &disk, play);
    let mut driver = Driver {
        guest: guest.try_clone().unwrap(),
        offered: [0; RINGS],
        next_descriptor: 0,
        next_buffer: BUFFERS,
        statuses: Vec::new(),
    };
    let recording = Recording::start(play.engine, play.forgets, Box::new(move || indices(&guest)));
    let mut requests = Vec::new();
    for step in &history.steps {
        recording.on_cpu(step.ring);
        for request in &step.requests {
            driver.chain(step.ring, request);
            requests.push((step.ring, request.clone()));
        }
        driver.offer(step.ring);
        // A step of its own, though nothing is stored by a flush that has no fence.
        recording.look();
        assert_eq!(rings[step.ring].serve(Waker::noop()), Served::Idle);
        recording.look();
        driver.reap();
    }
    let log = recording.finish();
    let mut after = vec![0; history.before.len()];
    disk.read_exact_at(&mut after, 0).unwrap();
    Played { before: history.before.clone(), requests, log, after }
}
