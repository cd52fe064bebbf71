//! A ring stops dead at each failpoint of a request's path, as by `kill -9`, and another one starts over the same guest
//! memory: the driver, its ring and the disk must agree.

mod guest;
mod pending;
mod power;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::task::Waker;

use self::guest::{Guest, GuestRequest, Size};
use super::workload::{Random, SECTOR_BYTES};
use crate::copy::testing::memfd;
use crate::copy::{self, PrefetchHint, Segments};
use crate::disk::testing::pass_on;
use crate::disk::{Disk, DiskError, Geometry, MappedDisk};
use crate::failpoint::{self, Point};
use crate::log::LogLimit;
use crate::virtio::blk::{CacheMode, Device, Identity};
use crate::virtio::memory::MemoryTable;
use crate::virtio::memory::testing::table_of;
use crate::virtio::queue::{RingKind, RingLayout};
use crate::worker::{AnyRing, Notifier, RingKey, RingParts, Served};

/// A disk that copies the first half of each request, passes a failpoint, and then copies all of it.
#[derive(Debug)]
struct HalfCopyDisk {
    disk: MappedDisk,
    file: File,
}

impl Disk for HalfCopyDisk {
    pass_on!(disk: geometry, durability, fence, try_flush, flush, discard, write_zeroes);
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        failpoint::reached(Point::BeforeCopy);
        let mut half = vec![0; into.total_bytes() / 2];
        self.file.read_exact_at(&mut half, offset).unwrap();
        assert_eq!(copy::store_slice(into, &half), half.len());
        failpoint::reached(Point::MidCopy);
        self.disk.read(offset, into, next)
    }
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        failpoint::reached(Point::BeforeCopy);
        let mut half = vec![0; from.total_bytes() / 2];
        assert_eq!(copy::load_slice(from, &mut half), half.len());
        self.file.write_all_at(&half, offset).unwrap();
        failpoint::reached(Point::MidCopy);
        self.disk.write(offset, from, next)
    }
}

/// The fewest requests that are published before others that were taken together with them are done.
const FIRST_PUBLISHED: usize = 4;

/// Which base a front-end sends when it starts a ring again.
#[derive(Debug, Clone, Copy)]
enum Base {
    /// That of the last orderly stop, or of the start (QEMU).
    LastStop,
    /// What is used (QEMU with a split ring).
    Used,
    /// What is available (Cloud Hypervisor).
    Available,
}

/// What outlives a back-end: guest memory, the disk's file, the call's eventfd.
struct Machine {
    guest: Guest,
    disk: File,
    call: File,
    /// What each sector holds after all requests that the driver has seen done.
    sectors: Vec<u64>,
    /// So many of the first requests may have been executed, in part or wholly, by a back-end that died.
    maybe_executed: usize,
    /// Each write is to persist before it is done.
    is_write_through: bool,
}

impl Machine {
    fn new(kind: RingKind, size: Size) -> Self {
        let guest = Guest::new(memfd("points-guest", size.memory_bytes()), kind, size);
        let disk = memfd("points-disk", size.disk_bytes());
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let call = File::from(rustix::event::eventfd(0, flags).unwrap());
        Self { guest, disk, call, sectors: vec![0; size.sectors], maybe_executed: 0, is_write_through: false }
    }

    /// A back-end: a new device, a new mapping of guest memory, a ring that knows nothing.
    fn start(&self, base: u32) -> AnyRing<HalfCopyDisk> {
        self.start_on(HalfCopyDisk { disk: self.mapped_disk(), file: self.disk.try_clone().unwrap() }, base)
    }

    fn mapped_disk(&self) -> MappedDisk {
        let capacity_bytes = self.guest.size.disk_bytes();
        let geometry = Geometry { capacity_bytes, block_bytes: 512, read_only: false };
        MappedDisk::new(self.disk.try_clone().unwrap(), geometry).unwrap()
    }

    fn start_on<D: Disk>(&self, disk: D, base: u32) -> AnyRing<D> {
        self.start_in(table_of(&self.guest.file, self.guest.size.memory_bytes()), disk, base)
    }

    fn cache(&self) -> CacheMode {
        match self.is_write_through {
            true => CacheMode::write_through(),
            false => CacheMode::unknown(true),
        }
    }

    fn layout(&self, base: u32) -> RingLayout {
        RingLayout {
            kind: self.guest.kind,
            size: u32::from(self.guest.ring_size()),
            addresses: guest::ADDRESSES,
            base,
            event_idx: false,
            indirect: false,
        }
    }

    fn start_in<D: Disk>(&self, memory: Arc<MemoryTable>, disk: D, base: u32) -> AnyRing<D> {
        let identity = Identity { name: "points".into(), serial: [b'x'; 20] };
        let parts = RingParts {
            key: RingKey { session: 0, index: 0 },
            layout: self.layout(base),
            memory,
            device: Arc::new(Device::new(disk, identity, 1)),
            cache: Arc::new(self.cache()),
            kick: Arc::new(File::open("/dev/null").unwrap()),
            call: Some(Arc::new(Notifier::new(self.call.try_clone().unwrap(), Arc::default()).unwrap())),
            err: None,
            connection: None,
            hold_ups: Arc::default(),
        };
        AnyRing::start(parts, Arc::new(LogLimit::default())).unwrap()
    }

    fn base(&self, base: Base) -> u32 {
        match base {
            Base::LastStop => 0,
            Base::Used => self.guest.used_base(),
            Base::Available => self.guest.available_base(),
        }
    }

    /// The driver takes what is done: all of it in order, and each answer is one that it may get.
    fn reap(&mut self) -> usize {
        let done = self.guest.reap();
        for (number, request) in &done {
            match *request {
                GuestRequest::Flush => {}
                GuestRequest::Write { sector, count, word } => {
                    self.sectors[sector..sector + count].fill(word)
                }
                GuestRequest::Read { sector, count } => {
                    for sector in sector..sector + count {
                        let allowed = self.allowed(sector, number + 1..self.maybe_executed);
                        self.check_read(*number, sector, &allowed);
                    }
                }
            }
        }
        done.len()
    }

    fn check_read(&self, number: usize, sector: usize, allowed: &[u64]) {
        let GuestRequest::Read { sector: start, .. } = self.guest.requests[number] else { return };
        let bytes = self.guest.data(number, (sector - start) * SECTOR_BYTES, SECTOR_BYTES);
        assert_words(&bytes, allowed, &format!("request {number} reads sector {sector}"));
    }

    /// What a sector may hold: what it holds once everything is done that the driver has seen done, or what some
    /// of these later requests write.
    fn allowed(&self, sector: usize, later: std::ops::Range<usize>) -> Vec<u64> {
        let written =
            self.guest.requests.get(later).unwrap_or_default().iter().filter_map(|request| match *request {
                GuestRequest::Write { sector: start, count, word }
                    if (start..start + count).contains(&sector) =>
                {
                    Some(word)
                }
                _ => None,
            });
        std::iter::once(self.sectors[sector]).chain(written).collect()
    }

    /// The disk holds what was done, and of what was not nothing or something.
    fn check_disk(&self) {
        for sector in 0..self.sectors.len() {
            let mut bytes = vec![0; SECTOR_BYTES];
            self.disk.read_exact_at(&mut bytes, (sector * SECTOR_BYTES) as u64).unwrap();
            let under_way = self.guest.seen..self.guest.requests.len();
            assert_words(&bytes, &self.allowed(sector, under_way), &format!("sector {sector}"));
        }
    }

    fn is_called(&self) -> bool {
        let mut count = [0; 8];
        std::io::Read::read(&mut &self.call, &mut count).is_ok()
    }
}

fn assert_words(bytes: &[u8], allowed: &[u64], what: &str) {
    for word in bytes.as_chunks::<8>().0 {
        let word = u64::from_le_bytes(*word);
        assert!(allowed.contains(&word), "{what}: {word:#x} is none of {allowed:x?}");
    }
}

/// Runs a few batches, in one of which the back-end dies at a failpoint after it has passed there `passes` times.
/// Returns whether it did.
fn dies_at(kind: RingKind, base: Base, (point, passes): (Point, u32), batch: usize) -> bool {
    let mut random = Random::new((batch as u64) << 32 | u64::from(passes));
    let mut machine = Machine::new(kind, Size::SMALL);
    let mut ring = machine.start(0);
    let mut has_died = false;
    for number in 0..batch + 3 {
        let wanted = 1 + random.below(Size::SMALL.most);
        (0..wanted).for_each(|_| machine.guest.offer(guest::any_request(&mut random, Size::SMALL)));
        machine.is_called();
        if number != batch {
            assert_eq!(ring.serve(Waker::noop()), Served::Idle);
            assert!(machine.is_called());
            assert_eq!(machine.reap(), wanted);
            continue;
        }
        let served = failpoint::stops_at(point, passes, || ring.serve(Waker::noop()));
        has_died = served.is_none();
        drop(ring);
        machine.maybe_executed = machine.guest.requests.len();
        let seen = machine.reap();
        if has_died {
            // Of many that were taken together, the first ones are published before the others are done.
            let first = FIRST_PUBLISHED..(wanted + 1).saturating_sub(FIRST_PUBLISHED);
            match point {
                Point::BeforeCopy | Point::MidCopy | Point::BeforeUsed => {
                    assert!(seen == 0 || first.contains(&seen), "{point:?}: {seen} of {wanted}");
                }
                Point::AfterUsed | Point::BeforeCall => {
                    assert!(seen == wanted || first.contains(&seen), "{point:?}: {seen} of {wanted}");
                }
                // A split ring publishes all by its index, a packed ring one chain after the other.
                Point::RingStore => assert!(seen <= wanted),
                Point::NewLength => unreachable!("no disk grows here"),
            }
            // It can only have been called for those.
            assert!(!machine.is_called() || seen >= FIRST_PUBLISHED && !first.is_empty(), "{point:?}");
        }
        machine.check_disk();
        ring = machine.start(machine.base(base));
        assert_eq!(
            ring.base(),
            machine.guest.used_base(),
            "the ring goes on behind what the driver has seen"
        );
        assert_eq!(ring.serve(Waker::noop()), Served::Idle);
        assert_eq!(machine.reap(), wanted - seen, "each request is done once for the driver");
        machine.check_disk();
    }
    has_died
}

#[test]
fn a_ring_that_was_stopped_dead_at_any_failpoint_goes_on_as_if_it_had_not() {
    let points = [
        Point::BeforeCopy,
        Point::MidCopy,
        Point::BeforeUsed,
        Point::RingStore,
        Point::AfterUsed,
        Point::BeforeCall,
    ];
    for kind in [RingKind::Split, RingKind::Packed] {
        for base in [Base::LastStop, Base::Used, Base::Available] {
            for point in points {
                let mut deaths = 0;
                // Rings of other fill levels, over the end of the ring too.
                for batch in 0..24 {
                    let passes = (0..).take_while(|passes| dies_at(kind, base, (point, *passes), batch));
                    deaths += passes.count();
                }
                // One a batch at least, or one a request where the point is on each one's way.
                let is_often = matches!(point, Point::BeforeCopy | Point::MidCopy | Point::RingStore);
                assert!(deaths >= if is_often { 30 } else { 24 }, "{kind:?}, {base:?}, {point:?}: {deaths}");
            }
        }
    }
}
