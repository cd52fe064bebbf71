//! A guest in this process: rings in shared memory, with chains that are written once.
//!
//! For each request the driver only stores the sector, and for each batch the available index; so what is
//! measured is the device. [`Guest::copy_batch`] does the same copies without a device, from and to the same
//! bytes, behind the same stores of the driver.

use std::fs::File;
use std::hint::black_box;
use std::num::{NonZeroU16, NonZeroU64};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::Waker;

use virtio_bindings::bindings::virtio_blk as blk;

use vhost_user_pmem::copy::{Engine, Load, Persist, PrefetchHint, Segment, Segments, Store, store_fence};
use vhost_user_pmem::disk::{Disk as _, Geometry, MappedDisk};
use vhost_user_pmem::throttle::{Limits, Measure, Rate, Throttle};
use vhost_user_pmem::virtio::blk::{CacheMode, Device, Identity};
use vhost_user_pmem::virtio::memory::{MemoryTable, RegionSpec};
use vhost_user_pmem::virtio::queue::{RingAddresses, RingKind, RingLayout};
use vhost_user_pmem::worker::{Ring, RingKey, RingParts, Served, renew_limits};

use super::{fill, map, memfd};

/// Largest ring; what a table of `MOST_CHAINS` times its descriptors does not fit in has fewer chains.
const RING_SIZE: usize = 1024;
const MOST_CHAINS: usize = 64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What every request of a guest asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Flush,
    GetId,
    /// Of no sectors, so that nothing is given back.
    Discard,
    /// Of one sector.
    WriteZeroes,
    /// Of a type that does not exist.
    Unknown,
    /// A read beyond the end.
    Beyond,
}

/// How a guest is made.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub kind: Kind,
    /// Bytes of data of a read or write.
    pub payload_bytes: usize,
    /// Descriptors that they are in.
    pub pieces: usize,
    /// Requests made available at once.
    pub depth: usize,
    /// Header, data and status of a chain are in different ones of them.
    pub regions: usize,
    /// Batches go to all rings in turn.
    pub rings: usize,
    /// The rings are spread over them.
    pub devices: usize,
    pub indirect: bool,
    pub event_idx: bool,
    pub write_through: bool,
    /// Its disk has limits that are never reached.
    pub limits: bool,
    /// Each request is timed, as with `slow-ms=`.
    pub slow: bool,
}

impl Shape {
    /// The common request: one ring, one region, header, data and status in three descriptors.
    pub const fn new(kind: Kind, payload_bytes: usize, depth: usize) -> Self {
        let (indirect, event_idx, write_through, limits, slow) = (false, false, false, false, false);
        Self {
            kind,
            payload_bytes,
            pieces: 1,
            depth,
            regions: 1,
            rings: 1,
            devices: 1,
            indirect,
            event_idx,
            write_through,
            limits,
            slow,
        }
    }
}

/// A chain that is in its ring's table for good; addresses of the driver's mapping.
#[derive(Debug)]
struct Chain {
    sector: *mut u64,
    status: *mut u8,
    data: Vec<Segment>,
}

/// The driver's side of a ring.
#[derive(Debug)]
struct Driver {
    chains: Vec<Chain>,
    /// The indices of the two rings.
    available: &'static AtomicU16,
    used: &'static AtomicU16,
    /// Requests made available so far.
    offered: u16,
}

/// Guest memory and its rings, with the devices behind them.
#[derive(Debug)]
pub struct Guest {
    shape: Shape,
    table: Arc<MemoryTable>,
    devices: Vec<Arc<Device<MappedDisk>>>,
    drivers: Vec<Driver>,
    rings: Vec<Ring<MappedDisk>>,
    next_ring: usize,
    /// The disk's file once more, for the bare copies.
    media: *mut u8,
    engine: &'static Engine,
}

/// Regions of one file, which the driver has mapped as a whole; guest addresses have gaps between them.
#[derive(Debug)]
struct Memory {
    base: *mut u8,
    region_bytes: usize,
    /// Used so far, of each region.
    taken_bytes: Vec<usize>,
}

impl Memory {
    /// Guest address and the driver's of so many bytes.
    fn take(&mut self, region: usize, bytes: usize, align: usize) -> (u64, *mut u8) {
        let region = region % self.taken_bytes.len();
        let start = self.taken_bytes[region].next_multiple_of(align);
        self.taken_bytes[region] = start + bytes;
        assert!(start + bytes <= self.region_bytes, "guest memory is too small");
        let guest = region * 2 * self.region_bytes + start;
        (guest as u64, self.base.wrapping_add(region * self.region_bytes + start))
    }
}

/// Stores a value that the device reads.
fn put<T>(at: *mut u8, value: T) {
    // SAFETY: callers pass places of the driver's mapping, which no reference leads into.
    unsafe { at.cast::<T>().write_unaligned(value) };
}

/// The index of an available or used ring.
fn index(ring: *mut u8) -> &'static AtomicU16 {
    // SAFETY: in the driver's mapping, which stays for good, and aligned; only accessed atomically.
    unsafe { AtomicU16::from_ptr(ring.wrapping_add(2).cast()) }
}

impl Guest {
    /// A guest of this shape over the first `disk_bytes` of `disk`, which `media` is another mapping of.
    pub fn new(shape: Shape, disk: &File, disk_bytes: usize, media: *mut u8) -> Self {
        let descriptors = if shape.indirect { 1 } else { shape.pieces + 2 };
        let chains = MOST_CHAINS.min(1 << (RING_SIZE / descriptors).ilog2());
        assert!(shape.depth <= chains && shape.rings.is_multiple_of(shape.devices));
        let payload = shape.payload_bytes.next_multiple_of(4096) + 4096;
        let region_bytes = (shape.rings * chains * payload / shape.regions + shape.rings * (64 << 10))
            .next_multiple_of(2 << 20);
        let file = memfd(region_bytes * shape.regions);
        let base = map(&file, region_bytes * shape.regions, true);
        let mut memory = Memory { base, region_bytes, taken_bytes: vec![0; shape.regions] };
        let regions = (0..shape.regions).map(|region| RegionSpec {
            guest_start: (region * 2 * region_bytes) as u64,
            len_bytes: region_bytes as u64,
            user_start: (region * 2 * region_bytes) as u64,
            file_offset: (region * region_bytes) as u64,
            file: file.try_clone().unwrap(),
            charge: None,
        });
        let table = Arc::new(MemoryTable::map(regions.collect()).unwrap());
        let devices: Vec<_> = (0..shape.devices).map(|_| device(&shape, disk, disk_bytes, media)).collect();
        let (mut drivers, mut rings) = (Vec::new(), Vec::new());
        for ring in 0..shape.rings {
            let (addresses, driver) = lay_out(&mut memory, &shape, chains);
            drivers.push(driver);
            rings.push(start(&shape, ring, addresses, &table, &devices[ring % devices.len()]));
        }
        Self { shape, table, devices, drivers, rings, next_ring: 0, media, engine: Engine::get() }
    }

    /// A guest for each of its rings, of which each can be driven by a thread of its own.
    pub fn split(self) -> Vec<Self> {
        let Self { shape, table, devices, drivers, rings, media, engine, .. } = self;
        let each = drivers.into_iter().zip(rings);
        let guest = |(driver, ring)| Self {
            shape: Shape { rings: 1, ..shape },
            table: table.clone(),
            devices: devices.clone(),
            drivers: vec![driver],
            rings: vec![ring],
            next_ring: 0,
            media,
            engine,
        };
        each.map(guest).collect()
    }

    /// Makes a batch available, each request at the place that `place` says, in bytes.
    #[inline]
    fn offer(&mut self, mut place: impl FnMut(usize) -> usize) -> usize {
        let ring = self.next_ring;
        self.next_ring = (ring + 1) % self.drivers.len();
        let driver = &mut self.drivers[ring];
        let mask = driver.chains.len() - 1;
        for request in 0..self.shape.depth {
            let chain = &driver.chains[(usize::from(driver.offered) + request) & mask];
            // SAFETY: in the driver's mapping, aligned; the device reads it after the index.
            unsafe { chain.sector.write_volatile((place(request) / 512) as u64) };
        }
        driver.offered = driver.offered.wrapping_add(self.shape.depth as u16);
        driver.available.store(driver.offered, Ordering::Release);
        ring
    }

    /// Makes a batch available, as [`offer`](Self::offer), and has the device do it.
    #[inline]
    pub fn batch(&mut self, place: impl FnMut(usize) -> usize) {
        self.batch_between(place, || {});
    }

    /// As [`batch`](Self::batch), with `edge` called before and after the device's part.
    #[inline]
    pub fn batch_between(&mut self, place: impl FnMut(usize) -> usize, mut edge: impl FnMut()) {
        let ring = self.offer(place);
        edge();
        while self.rings[ring].serve(Waker::noop()) != Served::Idle {}
        edge();
        let driver = &self.drivers[ring];
        let used = driver.used.load(Ordering::Acquire);
        assert_eq!(used, driver.offered, "not every request came back");
    }

    /// Makes a batch available, and does nothing but its copies.
    #[inline]
    pub fn copy_batch(&mut self, mut place: impl FnMut(usize) -> usize) {
        let mut places = [0; MOST_CHAINS];
        let ring = self.offer(|request| {
            places[request] = place(request);
            places[request]
        });
        let driver = &self.drivers[ring];
        let mask = driver.chains.len() - 1;
        let first = usize::from(driver.offered.wrapping_sub(self.shape.depth as u16));
        for (request, place) in places.iter().take(self.shape.depth).enumerate() {
            let chain = &driver.chains[(first + request) & mask];
            let media = black_box(self.media.wrapping_add(*place));
            // SAFETY: the chain's data is in the driver's mapping, to which no reference exists.
            let data = unsafe { Segments::new(black_box(&chain.data)) };
            let left = match self.shape.kind {
                // SAFETY: the caller's places are inside of the disk, which is mapped for good.
                Kind::Read => self.engine.load(unsafe { Load::new(media, data) }, PrefetchHint::NONE),
                // SAFETY: the caller's places are inside of the disk, which is mapped for good.
                Kind::Write => self.engine.store(
                    unsafe { Store::new(media, data) },
                    Persist::FenceOnly,
                    PrefetchHint::NONE,
                ),
                _ => 0,
            };
            assert_eq!(left, 0);
        }
        store_fence();
    }

    /// Forgets what the driver did for [`copy_batch`](Self::copy_batch): the device has not seen it.
    pub fn take_back(&mut self) {
        for driver in &mut self.drivers {
            driver.offered = driver.used.load(Ordering::Acquire);
            driver.available.store(driver.offered, Ordering::Release);
        }
    }

    /// The status of the last request of the last batch.
    pub fn status(&self) -> u8 {
        let ring = (self.next_ring + self.drivers.len() - 1) % self.drivers.len();
        let driver = &self.drivers[ring];
        let last = usize::from(driver.offered.wrapping_sub(1)) & (driver.chains.len() - 1);
        // SAFETY: in the driver's mapping.
        unsafe { driver.chains[last].status.read_volatile() }
    }

    /// Where everything lies that all rings of a device use: the device, its disk, the table of memory.
    pub fn shared(&self) -> Vec<(&'static str, Range<usize>)> {
        fn place<T>(of: &T) -> Range<usize> {
            let start = std::ptr::from_ref(of).addr();
            start..start + size_of::<T>()
        }
        let devices = self.devices.iter();
        let each = devices.flat_map(|device| [("device", place(&**device)), ("disk", place(device.disk()))]);
        each.chain([("memory table", place(&*self.table))]).collect()
    }
}

fn device(shape: &Shape, disk: &File, disk_bytes: usize, media: *mut u8) -> Arc<Device<MappedDisk>> {
    let geometry = Geometry { capacity_bytes: disk_bytes as u64, block_bytes: 512, read_only: false };
    let disk = MappedDisk::new(disk.try_clone().unwrap(), geometry).unwrap();
    // With what is there, so that every page is in the page tables.
    let all = [Segment::new(media, disk_bytes)];
    // SAFETY: the caller's mapping of the same file stays.
    disk.write(0, unsafe { Segments::new(&all) }, PrefetchHint::NONE).unwrap();
    let device = Device::new(disk, Identity { name: "bench".into(), serial: [b'x'; 20] }, 1);
    if shape.limits {
        let rate = Rate { average: NonZeroU64::new(1 << 40).unwrap(), burst: None };
        let limits = Limits::default().with(Measure::Iops, Some(rate)).with(Measure::Bps, Some(rate));
        device.set_throttle(Some(Arc::new(Throttle::new(limits))));
    }
    device.slow().set_threshold_ms(NonZeroU16::new(60_000).filter(|_| shape.slow));
    Arc::new(device)
}

fn start(
    shape: &Shape,
    ring: usize,
    addresses: RingAddresses,
    memory: &Arc<MemoryTable>,
    device: &Arc<Device<MappedDisk>>,
) -> Ring<MappedDisk> {
    let cache = CacheMode::write_through();
    cache.set_writeback(!shape.write_through);
    let (event_idx, indirect) = (shape.event_idx, shape.indirect);
    let layout =
        RingLayout { kind: RingKind::Split, size: RING_SIZE as u32, addresses, base: 0, event_idx, indirect };
    let parts = RingParts {
        key: RingKey { session: 0, index: ring as u16 },
        layout,
        memory: memory.clone(),
        device: device.clone(),
        cache: Arc::new(cache),
        kick: Arc::new(File::open("/dev/null").unwrap()),
        call: None,
        err: None,
        connection: None,
        hold_ups: Arc::default(),
    };
    let mut ring = Ring::start(parts, Arc::default()).unwrap();
    renew_limits(&mut ring);
    ring
}

/// Writes a ring and all its chains into guest memory.
fn lay_out(memory: &mut Memory, shape: &Shape, chains: usize) -> (RingAddresses, Driver) {
    let (descriptors, table) = memory.take(0, RING_SIZE * 16, 4096);
    let (available, avail_host) = memory.take(0, 6 + RING_SIZE * 2, 4096);
    let (used, used_host) = memory.take(0, 6 + RING_SIZE * 8, 4096);
    // Nobody wants to be called: neither by the flag nor by an event index that is never passed soon.
    put(avail_host, 1_u16);
    let stride = RING_SIZE / chains;
    for slot in 0..RING_SIZE {
        put(avail_host.wrapping_add(4 + slot * 2), (slot % chains * stride) as u16);
    }
    let chain = |chain| {
        let table = table.wrapping_add(chain * stride * 16);
        write_chain(memory, shape, chain, table, chain * stride)
    };
    let chains = (0..chains).map(chain).collect();
    let driver = Driver { chains, available: index(avail_host), used: index(used_host), offered: 0 };
    (RingAddresses { descriptors, available, used }, driver)
}

/// Writes one chain, of which `table` is the first descriptor and has the number `head`.
fn write_chain(memory: &mut Memory, shape: &Shape, chain: usize, table: *mut u8, head: usize) -> Chain {
    let Shape { kind, payload_bytes, pieces, .. } = *shape;
    let mut region = chain * (pieces + 2);
    let mut take = |memory: &mut Memory, bytes, align| {
        region += 1;
        memory.take(region, bytes, align)
    };
    let code = match kind {
        Kind::Read | Kind::Beyond => blk::VIRTIO_BLK_T_IN,
        Kind::Write => blk::VIRTIO_BLK_T_OUT,
        Kind::Flush => blk::VIRTIO_BLK_T_FLUSH,
        Kind::GetId => blk::VIRTIO_BLK_T_GET_ID,
        Kind::Discard => blk::VIRTIO_BLK_T_DISCARD,
        Kind::WriteZeroes => blk::VIRTIO_BLK_T_WRITE_ZEROES,
        Kind::Unknown => 99,
    };
    let header = take(memory, 17, 64);
    put(header.1, code);
    let mut list = vec![(header.0, 16, 0)];
    let (mut data, data_flags) =
        (Vec::new(), if matches!(kind, Kind::Read | Kind::Beyond) { WRITE } else { 0 });
    match kind {
        Kind::Read | Kind::Write | Kind::Beyond => {
            let piece_bytes = payload_bytes / pieces;
            for _ in 0..pieces {
                let (guest, host) = take(memory, piece_bytes, piece_bytes.next_power_of_two().min(4096));
                fill(host, piece_bytes);
                list.push((guest, piece_bytes, data_flags));
                data.push(Segment::new(host, piece_bytes));
            }
        }
        Kind::GetId => list.push((take(memory, 20, 64).0, 20, WRITE)),
        Kind::Discard | Kind::WriteZeroes => {
            let (guest, host) = take(memory, 16, 64);
            put(host.wrapping_add(8), u32::from(kind == Kind::WriteZeroes));
            list.push((guest, 16, 0));
        }
        Kind::Flush | Kind::Unknown => {}
    }
    // Linux has it behind the header, in the same cache line.
    let behind = (header.0 + 16, header.1.wrapping_add(16));
    let status = if shape.regions == 1 { behind } else { take(memory, 1, 64) };
    list.push((status.0, 1, WRITE));
    // In a table of its own the chain begins at 0.
    let (at, first) = match shape.indirect {
        true => {
            let bytes = list.len() * 16;
            let (guest, host) = take(memory, bytes, 64);
            describe(table, guest, bytes, INDIRECT, 0);
            (host, 0)
        }
        false => (table, head),
    };
    for (index, (guest, bytes, flags)) in list.iter().enumerate() {
        let next = if index + 1 < list.len() { NEXT } else { 0 };
        describe(at.wrapping_add(index * 16), *guest, *bytes, flags | next, first + index + 1);
    }
    Chain { sector: header.1.wrapping_add(8).cast(), status: status.1, data }
}

fn describe(at: *mut u8, guest: u64, bytes: usize, flags: u16, next: usize) {
    put(at, guest);
    put(at.wrapping_add(8), bytes as u32);
    put(at.wrapping_add(12), flags);
    put(at.wrapping_add(14), next as u16);
}
