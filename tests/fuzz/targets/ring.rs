//! Rings in memory that the guest has filled with anything, and may go on changing on another thread while a worker reads.
//!
//! Whatever it is, no byte beyond the disk or guest memory is touched (guards and canaries, [`guarded`](crate::common::guarded)).
//! Where nobody changes the image meanwhile, and the device writes to nothing that it reads: the used ring has the chains in their
//! order with lengths that are possible, nothing else in memory has changed but what a writable descriptor names, and the
//! dirty log, if there is one, has a mark for each page that has.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use arbitrary::{Arbitrary, Unstructured};
use vhost_user_pmem::virtio::blk::{CacheMode, Device, Identity};
use vhost_user_pmem::virtio::memory::{DirtyLog, MemoryTable, RegionSpec};
use vhost_user_pmem::virtio::queue::{PackedQueue, RingKind, RingLog, SplitQueue, Virtqueue};
use vhost_user_pmem::worker::{Ring, RingKey, RingParts, Served};

use super::image::{Builder, DISK_SECTORS, Patch, Request, SPANS, Shape, USED, USER_BASE};
use super::race::Racer;
use super::view::{self, View};
use crate::common::guarded::{GuardedDisk, GuardedMemory, guard_mappings};

/// Turns of the ring, after which a driver that makes chains available for ever is left alone.
const TURNS: usize = 64;

/// Bytes of the dirty log: a bit for each page up to the end of memory.
const LOG_BYTES: u64 = 256 << 10;

#[derive(Debug, Arbitrary)]
struct Input {
    shape: Shape,
    requests: Vec<Request>,
    patches: Vec<Patch>,
    /// What another thread writes over and over while the ring is served.
    race: Vec<Patch>,
}

/// What lasts from one input to the next.
struct World {
    memory: GuardedMemory,
    table: Arc<MemoryTable>,
    /// One that can be written, and one that cannot.
    devices: [Arc<Device<GuardedDisk>>; 2],
    log: (File, Arc<DirtyLog>),
    kick: Arc<File>,
    racer: Racer,
}

impl World {
    fn new() -> Self {
        let memory = GuardedMemory::new(&SPANS);
        let spec = |part: &crate::common::guarded::Part| RegionSpec {
            guest_start: part.guest_start,
            len_bytes: part.bytes,
            user_start: USER_BASE + part.guest_start,
            file_offset: part.file_offset,
            file: memory.file().try_clone().unwrap(),
            charge: None,
        };
        let table = Arc::new(MemoryTable::map(memory.parts().iter().map(spec).collect()).unwrap());
        assert_eq!(
            guard_mappings(memory.file(), &[memory.view()]),
            SPANS.len(),
            "no guards around guest memory"
        );
        let device = |read_only| {
            let disk = GuardedDisk::new(DISK_SECTORS * 512, read_only);
            let identity = Identity { name: "fuzz".into(), serial: *b"fuzz0123456789abcdef" };
            Arc::new(Device::new(disk, identity, 1))
        };
        let log = File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        log.set_len(LOG_BYTES).unwrap();
        let map = Arc::new(DirtyLog::map(&log, 0, LOG_BYTES).unwrap());
        let kick = Arc::new(File::open("/dev/null").unwrap());
        vhost_user_pmem::copy::fault::install().unwrap();
        let racer = Racer::start(memory.clone());
        Self { memory, table, devices: [false, true].map(device), log: (log, map), kick, racer }
    }

    /// The world of this thread: tests run several at once.
    fn with<T>(run: impl FnOnce(&Self) -> T) -> T {
        thread_local! { static WORLD: OnceLock<World> = const { OnceLock::new() }; }
        WORLD.with(|world| run(world.get_or_init(Self::new)))
    }

    fn parts(&self, kind: RingKind, shape: &Shape) -> RingParts<GuardedDisk> {
        let device = self.devices[usize::from(shape.read_only)].clone();
        device.disk().flushes_slowly.store(shape.flushes_slowly, Ordering::Relaxed);
        let cache = CacheMode::write_through();
        cache.set_writeback(!shape.write_through);
        RingParts {
            key: RingKey { session: 0, index: 0 },
            layout: shape.layout(kind),
            memory: self.table.clone(),
            device,
            cache: Arc::new(cache),
            kick: self.kick.clone(),
            call: None,
            err: None,
            connection: None,
            hold_ups: Arc::default(),
        }
    }
}

/// Split rings.
pub fn split(data: &[u8]) {
    run::<SplitQueue>(RingKind::Split, data);
}

/// Packed rings.
pub fn packed(data: &[u8]) {
    run::<PackedQueue>(RingKind::Packed, data);
}

fn run<Q: Virtqueue>(kind: RingKind, data: &[u8]) {
    if let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) {
        World::with(|world| try_image::<Q>(world, kind, &input));
    }
}

fn try_image<Q: Virtqueue>(world: &World, kind: RingKind, input: &Input) {
    let Input { shape, requests, patches, race } = input;
    let World { memory, .. } = world;
    memory.clear();
    let parts = world.parts(kind, shape);
    let layout = parts.layout;
    let mut builder = Builder::new(memory, shape, layout);
    requests.iter().take(64).for_each(|request| builder.offer(request));
    for patch in patches {
        let (address, bytes) = patch.parts();
        memory.write(address, &bytes);
    }
    let before = (race.is_empty()).then(|| (memory.snapshot(), View::of(memory, &layout)));
    let Ok(mut ring) = Ring::<GuardedDisk, Q>::start(parts, Arc::default()) else { return };
    if shape.is_logged {
        world.log.0.write_all_at(&[0; LOG_BYTES as usize], 0).unwrap();
        let log = RingLog::new(world.log.1.clone(), world.table.clone(), &layout, Some(USED));
        ring.log_to(log);
    }
    let racing = (!race.is_empty()).then(|| world.racer.race(race.iter().map(Patch::parts).collect()));
    let is_over = serve(&mut ring);
    drop(racing);
    memory.assert_canaries();
    let Some((before, view)) = before else { return };
    let after = memory.snapshot();
    if shape.is_logged {
        view::assert_logged(memory, &before, &after, &world.log.0);
    }
    if view.is_static {
        view.assert_changes(memory, &before, &after);
        if is_over && kind == RingKind::Split {
            view.assert_used(memory, &layout, ring.is_broken());
        }
    }
}

/// Serves the ring until it is empty, broken, or enough was done; whether it is one of the first two.
fn serve<Q: Virtqueue>(ring: &mut Ring<GuardedDisk, Q>) -> bool {
    for _ in 0..TURNS {
        match ring.serve(Waker::noop()) {
            Served::More | Served::Begun => {}
            Served::Held => {
                while ring.serve(Waker::noop()) == Served::Held {
                    std::thread::yield_now()
                }
            }
            Served::Idle if ring.arm() => {}
            Served::Idle => return true,
        }
    }
    false
}
