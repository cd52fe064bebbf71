//! The disk inside a daemon that is built on `vhost-user-backend`, over the socket.

#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

mod common;
#[path = "common/stock.rs"]
mod embedded;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost_user_pmem::copy::{PrefetchHint, Segments};
use vhost_user_pmem::disk::{self, Backing, Disk, DiskError, Durability, Geometry, OpenOptions};
use vhost_user_pmem::stock::Stock;
use vhost_user_pmem::virtio::blk::{Device, Identity};
use virtio_driver::{VirtioBlkFeatureFlags, VirtioFeatureFlags};

use common::daemon::Place;
use common::driver::{Driver, Options, RawDriver, Request as Io};
use common::frontend::load::{LOAD_SECTORS, Load};
use common::frontend::memory::{Memory, Span};
use common::frontend::request::{FLUSH, IOERR, OK, Request, UNSUPP, header};
use common::frontend::ring::{Descriptor, NEXT, Ring, WRITE};
use common::frontend::{self, PROTOCOL_FEATURES, SPANS, Session, assert_refused};
use common::{pattern, wait_for};
use embedded::Embedded;

const KIB: usize = 1 << 10;
const DISK_BYTES: u64 = 8 << 20;
const SERIAL: &[u8; 20] = b"embedded-0123456789\0";
const WRITEBACK_OFFSET: u32 = 32;

/// A disk that counts its flushes.
#[derive(Debug)]
struct Counted {
    disk: Backing,
    flushes: AtomicU32,
}

impl Disk for Counted {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn durability(&self) -> Durability {
        self.disk.durability()
    }

    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        self.disk.read(offset, into, next)
    }

    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        self.disk.write(offset, from, next)
    }

    /// Each flush takes a system call.
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        None
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError> {
        self.disk.write_zeroes(offset, len, unmap)
    }
}

/// A device on a file of its own, and a socket for each front-end that comes.
struct Scene {
    folder: TempDir,
    device: Arc<Device<Counted>>,
}

impl Scene {
    fn new(place: Place, options: &OpenOptions, queues: u16) -> Self {
        let folder = place.folder();
        let image = folder.path().join("disk.img");
        std::fs::write(&image, pattern(1, DISK_BYTES as usize)).unwrap();
        let disk = Counted { disk: disk::open(&image, options).unwrap().disk, flushes: AtomicU32::new(0) };
        let identity = Identity { name: "disk".to_owned(), serial: *SERIAL };
        Self { folder, device: Arc::new(Device::new(disk, identity, queues)) }
    }

    fn writable(place: Place) -> Self {
        Self::new(place, &OpenOptions::new("disk"), 4)
    }

    fn flushes(&self) -> u32 {
        self.device.disk().flushes.load(Ordering::SeqCst)
    }

    /// What is in the file.
    fn in_file(&self, offset: usize, len: usize) -> Vec<u8> {
        std::fs::read(self.folder.path().join("disk.img")).unwrap()[offset..offset + len].to_vec()
    }

    /// Awaits the next front-end.
    fn serve(&self) -> (PathBuf, Arc<Stock<Counted>>, Embedded) {
        let socket = self.folder.path().join("disk.sock");
        let stock = Arc::new(Stock::new(self.device.clone()).unwrap());
        let session = Embedded::serve(&socket, &stock);
        (socket, stock, session)
    }
}

#[test]
fn every_request_works_and_is_counted() {
    for place in Place::ALL {
        let scene = Scene::writable(place);
        let (socket, stock, session) = scene.serve();
        let mut driver = Driver::connect(&socket, Options { queues: 2, ..Options::default() });
        let config = driver.config();
        assert_eq!(config.capacity.to_native(), DISK_BYTES / 512);
        assert_eq!((config.num_queues.to_native(), config.writeback), (4, 1));
        assert_eq!(driver.features() & VirtioFeatureFlags::RING_PACKED.bits(), 0, "split rings only");

        let data = pattern(2, 64 * KIB);
        let [first, second] = driver.queues() else { panic!("two queues") };
        first.write(4096, &data).unwrap();
        assert!(scene.in_file(4096, data.len()) == data, "{place:?}: written");
        assert!(second.read(4096, data.len()).unwrap() == data, "{place:?}: read by another queue");
        let before = scene.flushes();
        first.run(&Io::Flush).unwrap();
        assert_eq!(scene.flushes(), before + 1);
        first.run(&Io::WriteZeroes { offset: 4096, len: 4096, unmap: false }).unwrap();
        first.run(&Io::Discard { offset: 1 << 20, len: 1 << 20 }).unwrap();
        assert_eq!(scene.in_file(4096, 4096), vec![0; 4096]);
        assert_eq!(first.write(DISK_BYTES, &data), Err(libc::EIO), "behind the end");
        assert_eq!(first.run(&Io::Discard { offset: DISK_BYTES, len: 512 }), Err(libc::EIO));
        drop(driver);
        session.finish();

        let counters = stock.counters();
        assert_eq!((counters.writes, counters.written_bytes), (1, 64 * KIB as u64));
        assert_eq!((counters.reads, counters.read_bytes), (1, 64 * KIB as u64));
        assert_eq!((counters.flushes, counters.others, counters.failures), (1, 2, 2));
    }
}

#[test]
fn the_serial_number_is_given_and_unknown_requests_are_not_supported() {
    let scene = Scene::writable(Place::Tmpfs);
    let (socket, _, session) = scene.serve();
    let mut driver = RawDriver::connect(&socket);
    assert_eq!(driver.run(8, 0, &[], 20), (OK, SERIAL.to_vec()));
    assert_eq!(driver.run(8, 0, &[], 4), (OK, SERIAL[..4].to_vec()));
    assert_eq!(driver.run(77, 0, &[], 8).0, UNSUPP);
    let before = scene.flushes();
    assert_eq!(driver.run(FLUSH, 0, &[], 0).0, OK);
    assert_eq!(scene.flushes(), before + 1);
    drop(driver);
    session.finish();
}

#[test]
fn a_read_only_disk_takes_no_write() {
    let options = OpenOptions { read_only: true, ..OpenOptions::new("disk") };
    let scene = Scene::new(Place::Tmpfs, &options, 1);
    let (socket, _, session) = scene.serve();
    let mut driver = Driver::connect(&socket, Options::default());
    assert_ne!(driver.features() & VirtioBlkFeatureFlags::RO.bits(), 0);
    assert_eq!(driver.queue().write(0, &[1; 512]), Err(libc::EIO));
    assert!(driver.queue().read(0, 4096).unwrap() == pattern(1, DISK_BYTES as usize)[..4096]);
    drop(driver);
    session.finish();
}

#[test]
fn who_cannot_or_will_not_flush_gets_writes_that_persist() {
    let scene = Scene::writable(Place::Tmpfs);
    // A driver that has not acknowledged FLUSH never sends one.
    let (socket, _, session) = scene.serve();
    let block_features = VirtioBlkFeatureFlags::all() - VirtioBlkFeatureFlags::FLUSH;
    let mut driver = Driver::connect(&socket, Options { block_features, ..Options::default() });
    driver.config();
    driver.queue().write(0, &[1; 512]).unwrap();
    assert_eq!(scene.flushes(), 1, "a write that was not flushed is lost with the power");
    drop(driver);
    session.finish();

    let (socket, _, session) = scene.serve();
    let frontend = Session::connect(&socket);
    assert_eq!(frontend.config(WRITEBACK_OFFSET, 1).unwrap(), [1], "who looks may rely on flushes");
    let mut ring = frontend.ring(0, 64);
    let write = |ring: &mut Ring| ring.run(&Request::write(8, &[2; 512])).status;
    assert_eq!((write(&mut ring), scene.flushes()), (OK, 1), "this driver flushes itself");
    let set = |offset, bytes: &[u8]| {
        frontend.ask(|control| control.set_config(offset, VhostUserConfigFlags::WRITABLE, bytes))
    };
    set(WRITEBACK_OFFSET, &[0]).unwrap();
    assert_eq!(scene.flushes(), 2, "what was acknowledged before the switch persists");
    assert_eq!((write(&mut ring), scene.flushes()), (OK, 3));
    assert_eq!(frontend.config(WRITEBACK_OFFSET, 1).unwrap(), [0]);
    set(WRITEBACK_OFFSET, &[1]).unwrap();
    let flushes = scene.flushes();
    assert_eq!((write(&mut ring), scene.flushes()), (OK, flushes));
    // The crate ends the session behind it.
    assert_refused("a mode that does not exist", set(WRITEBACK_OFFSET, &[2]));
    drop((ring, frontend));
    session.finish();
}

#[test]
fn a_ring_goes_on_where_its_used_index_stands() {
    let scene = Scene::writable(Place::Tmpfs);
    let (socket, _, session) = scene.serve();
    let frontend = Session::connect(&socket);
    let mut ring = frontend.ring(0, 64);
    for sector in 0..5 {
        assert_eq!(ring.run(&Request::read(sector, 512)).status, OK);
    }
    // The daemon is gone; its guest makes requests meanwhile.
    let memory = frontend.memory.clone();
    drop(frontend);
    session.finish();
    let writes = [7_u8, 8, 9].map(|byte| Request::write(u64::from(byte), &[byte; 512]));
    let heads = writes.each_ref().map(|write| ring.submit(write));

    let (socket, stock, session) = scene.serve();
    let mut frontend = Session::open(&socket, &[Span { guest_start: 0, bytes: 4096 }]);
    frontend.memory = memory;
    frontend.negotiate(&frontend::Options::default());
    frontend.share_memory();
    // Cloud Hypervisor's base: what the guest has made available.
    frontend.start_base_last(&ring, ring.available_index().into()).unwrap();
    for (write, head) in writes.iter().zip(heads) {
        let used = ring.wait();
        assert_eq!(used.head, head);
        assert_eq!(ring.answer(write, used).status, OK);
    }
    assert_eq!(scene.in_file(7 * 512, 512), [7; 512]);
    assert_eq!(stock.counters().writes, 3, "each once");
    drop(frontend);
    session.finish();
}

#[test]
fn a_broken_ring_breaks_alone_and_can_be_started_anew() {
    let scene = Scene::writable(Place::Tmpfs);
    let (socket, stock, session) = scene.serve();
    let frontend = Session::connect(&socket);
    let load = Load::start(frontend.ring(0, 256), LOAD_SECTORS);
    let mut ring = frontend.ring(1, 64);
    let frame = ring.buffers(0);
    type Part = (u64, u32, u16, u16);
    let chains: [(&str, &[Part]); 3] = [
        ("a loop behind the status", &[(frame.header, 16, NEXT, 1), (frame.status, 1, WRITE | NEXT, 1)]),
        ("a chain that leads out of the table", &[(frame.header, 16, NEXT, 64)]),
        ("no place for the status", &[(frame.header, 16, 0, 0)]),
    ];
    for (number, (what, parts)) in chains.into_iter().enumerate() {
        ring.memory.write(frame.header, &header(FLUSH, 0));
        for (index, &(address, len, flags, next)) in parts.iter().enumerate() {
            ring.put(index as u16, Descriptor { address, len, flags, next });
        }
        ring.offer(0);
        ring.kick.signal();
        let broken = || (stock.counters().broken_rings == number as u64 + 1).then_some(());
        wait_for(&format!("{what} has broken the ring"), broken);
        load.wait_for_progress();
        frontend.stop(&ring);
        ring.reset();
        frontend.start(&ring, 0).unwrap();
        assert_eq!(ring.run(&Request::read(0, 512)).status, OK, "after {what}");
    }
    drop((load.stop(), ring, frontend));
    session.finish();
}

#[test]
fn memory_that_is_truncated_costs_the_requests_that_touch_it() {
    let scene = Scene::writable(Place::Tmpfs);
    let (socket, _, session) = scene.serve();
    let frontend = Session::connect(&socket);
    let mut ring = frontend.ring(0, 64);
    let [first, second] = SPANS;
    assert_eq!(ring.read_to(0, second.guest_start, 4096), OK);
    rustix::fs::ftruncate(frontend.memory.fd(), first.bytes).unwrap();
    assert_eq!(ring.read_to(0, second.guest_start, 4096), IOERR);
    assert_eq!(ring.run(&Request::read(0, 512)).status, OK, "elsewhere");
    drop(frontend);
    session.finish();
}

#[test]
fn memory_that_was_taken_back_is_not_written_to() {
    const PAGE: u64 = 4096;
    const EXTRA: u64 = 1 << 36;
    let scene = Scene::writable(Place::Tmpfs);
    let (socket, _, session) = scene.serve();
    let frontend = Session::connect(&socket);
    assert_ne!(frontend.features & PROTOCOL_FEATURES, 0);
    let mut ring = frontend.ring(0, 64);
    let extra = Memory::new(&[Span { guest_start: EXTRA, bytes: 4 * PAGE }]);
    let region = extra.announcement().remove(0);
    assert_eq!(ring.read_to(0, EXTRA, 4096), IOERR, "not there yet");
    frontend.ask(|control| control.add_mem_region(&region)).unwrap();
    assert_eq!(ring.read_to(0, EXTRA, 4096), OK);
    assert!(extra.read(EXTRA, 4096) == pattern(1, DISK_BYTES as usize)[..4096]);
    extra.fill(EXTRA, 4096, 0);
    frontend.ask(|control| control.remove_mem_region(&region)).unwrap();
    assert_eq!(ring.read_to(0, EXTRA, 4096), IOERR, "not there any more");
    assert_eq!(extra.read(EXTRA, 4096), [0; 4096]);
    drop(frontend);
    session.finish();
}
