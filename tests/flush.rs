//! Flushes that take long, on a disk whose syncs begin and end when the test says so. The server is embedded
//! with a disk of its own kind, as another program would; the client is `virtio-driver`.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs::File;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use common::driver::{Driver, Options, Queue, Request};
use common::frontend::Session;
use common::frontend::request::{OK, Request as RawRequest};
use common::{PATIENCE, pattern, wait_for};
use vhost_user_pmem::copy::{PrefetchHint, Segments};
use vhost_user_pmem::disk::{Disk, DiskError, Durability, FileLock, Geometry, MappedDisk};
use vhost_user_pmem::server::{ServeOptions, Server, Service};
use vhost_user_pmem::vhost_user::{ConfigRecord, DiskSocket, Listener, SocketAccess};
use vhost_user_pmem::virtio::blk::{Device, Identity};
use virtio_driver::VirtioBlkFeatureFlags;

const CAPACITY_BYTES: u64 = 1 << 20;

/// Memory that claims to need a sync, and lets the test hold each one.
#[derive(Debug)]
struct GatedDisk {
    bytes: MappedDisk,
    began: Mutex<Sender<()>>,
    /// A closed channel lets every sync pass.
    end: Mutex<Receiver<Result<(), ()>>>,
}

impl Disk for GatedDisk {
    fn geometry(&self) -> Geometry {
        self.bytes.geometry()
    }
    fn durability(&self) -> Durability {
        Durability::Page
    }
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        self.bytes.read(offset, into, next)
    }
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        self.bytes.write(offset, from, next)
    }
    fn fence(&self) {
        self.bytes.fence();
    }
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        None
    }
    fn flush(&self) -> Result<(), DiskError> {
        let _ = self.began.lock().unwrap().send(());
        match self.end.lock().unwrap().recv() {
            Ok(Err(())) => Err(DiskError::Unsupported),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.bytes.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError> {
        self.bytes.write_zeroes(offset, len, unmap)
    }
}

struct Bench {
    began: Receiver<()>,
    end: Sender<Result<(), ()>>,
    socket: PathBuf,
    _folder: tempfile::TempDir,
    /// Dropped before the channels above, so that its last flush passes: see [`Bench::finish`].
    server: Server<GatedDisk>,
}

impl Bench {
    /// One worker for all rings: whatever waits must not wait in it.
    fn new() -> Self {
        let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(CAPACITY_BYTES).unwrap();
        let geometry = Geometry { capacity_bytes: CAPACITY_BYTES, block_bytes: 512, read_only: false };
        let ((began_in, began), (end, end_out)) = (channel(), channel());
        let bytes = MappedDisk::new(file, geometry).unwrap();
        let disk = GatedDisk { bytes, began: Mutex::new(began_in), end: Mutex::new(end_out) };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gated.sock");
        let identity = Identity { name: "gated".into(), serial: [0; 20] };
        let socket = DiskSocket::Listening(Listener::bind(&path, &SocketAccess::default()).unwrap());
        let service = Service {
            device: Device::new(disk, identity, 4),
            lock: FileLock::none(),
            socket,
            cpus: None,
            postcopy: false,
            config_record: ConfigRecord::default(),
            template: None,
        };
        let options = ServeOptions { workers: NonZeroU16::new(1), ..ServeOptions::default() };
        let server = Server::serve(vec![service], options).unwrap();
        Self { began, end, socket: path, _folder: folder, server }
    }

    fn connect(&self) -> Driver {
        Driver::connect(&self.socket, Options { queues: 2, ..Options::default() })
    }

    fn sync_begins(&self) {
        self.began.recv_timeout(PATIENCE).expect("a sync begins");
    }

    fn sync_ends(&self, outcome: Result<(), ()>) {
        self.end.send(outcome).unwrap();
    }

    /// Stops the server; syncs from now on pass.
    fn finish(self) {
        let Self { end, server, .. } = self;
        drop(end);
        drop(server);
    }
}

fn start(queue: &mut Queue, request: &Request, tag: u64) {
    assert!(queue.submit(request, tag));
    queue.kick();
}

fn write(place: usize) -> Request {
    Request::Write { offset: 4096, from: std::iter::once(place..place + 512).collect() }
}

#[test]
fn a_slow_flush_holds_its_own_ring_and_nothing_else() {
    let bench = Bench::new();
    let mut driver = bench.connect();
    start(driver.queue(), &Request::Flush, 1);
    bench.sync_begins();
    start(driver.queue(), &write(0), 2);

    let bytes = pattern(7, 512);
    let other = &mut driver.queues()[1];
    other.write(8192, &bytes).unwrap();
    assert_eq!(other.read(8192, 512).unwrap(), bytes, "another ring of the same worker goes on");
    assert_eq!(driver.config().capacity.to_native(), CAPACITY_BYTES / 512, "and so does the control plane");
    assert!(driver.queue().completions().is_empty(), "the flush is not answered before the sync is done");

    bench.sync_ends(Ok(()));
    let mut done = Vec::new();
    while done.len() < 2 {
        done.extend(driver.queue().wait());
    }
    assert_eq!(done, [(1, Ok(())), (2, Ok(()))], "what came after it in its ring follows in order");
    bench.finish();
}

#[test]
fn no_flush_is_answered_by_a_sync_that_began_before_it_was_sent() {
    let bench = Bench::new();
    let mut driver = bench.connect();
    start(driver.queue(), &Request::Flush, 1);
    bench.sync_begins();
    driver.queues()[1].write(4096, &pattern(1, 512)).unwrap();
    start(&mut driver.queues()[1], &Request::Flush, 2);
    // A request of the first ring proves, after its answer, that the worker has seen both.
    bench.sync_ends(Ok(()));
    assert_eq!(driver.queue().wait(), [(1, Ok(()))]);
    bench.sync_begins();
    assert!(driver.queues()[1].completions().is_empty(), "the first sync did not cover the later write");
    bench.sync_ends(Ok(()));
    assert_eq!(driver.queues()[1].wait(), [(2, Ok(()))]);
    bench.finish();
}

#[test]
fn a_front_end_may_leave_while_its_flush_runs() {
    let bench = Bench::new();
    let mut driver = bench.connect();
    start(driver.queue(), &Request::Flush, 1);
    bench.sync_begins();
    drop(driver);
    let mut next = bench.connect();
    assert_eq!(next.queue().read(0, 512).unwrap(), [0; 512], "the sync still runs, the disk is served");
    bench.sync_ends(Ok(()));
    bench.finish();
}

#[test]
fn after_a_failed_sync_every_flush_fails() {
    let bench = Bench::new();
    let mut driver = bench.connect();
    for (tag, outcome) in [(1, Err(())), (2, Ok(()))] {
        start(driver.queue(), &Request::Flush, tag);
        bench.sync_begins();
        bench.sync_ends(outcome);
        assert_eq!(driver.queue().wait(), [(tag, Err(libc::EIO))]);
    }
    let counted = bench.server.totals("gated").unwrap();
    assert_eq!(counted.failures, 0, "counted when the ring stops");
    drop(driver);
    wait_for("the session ends", || (bench.server.totals("gated").unwrap().failures == 2).then_some(()));
    bench.finish();
}

/// A header, data, a status: it is taken together with the requests around it, and holds those behind it.
#[test]
fn a_flush_in_the_shape_of_a_write_holds_what_comes_behind_it_in_its_ring() {
    let bench = Bench::new();
    let session = Session::connect(&bench.socket);
    let mut ring = session.ring(0, 64);
    let flush = RawRequest { payload: vec![0; 512], ..RawRequest::flush() };
    ring.submit(&flush);
    ring.kick.signal();
    bench.sync_begins();
    bench.sync_ends(Ok(()));
    ring.wait();
    // The mode of the cache is settled by it: writes are done at once from now on.
    let fill = |byte| RawRequest::write(8, &[byte; 512]);
    let requests = [&fill(1), &flush, &fill(2), &RawRequest::read(8, 512)];
    let heads = requests.map(|request| ring.submit(request));
    ring.kick.signal();
    bench.sync_begins();
    let before = ring.wait();
    assert_eq!(before.head, heads[0]);
    assert_eq!(ring.next_used(), None, "nothing behind the flush is answered before the sync is done");
    bench.sync_ends(Ok(()));
    let behind = [1, 2, 3].map(|_| ring.wait());
    assert_eq!(behind.map(|used| used.head), [heads[1], heads[2], heads[3]]);
    assert_eq!(ring.answer(requests[3], behind[2]).data, [2; 512]);
    bench.finish();
}

/// QEMU that comes back after a restart of ours does not read the configuration again, and does not say that
/// its guest had switched to write-through.
#[test]
fn a_front_end_that_has_not_read_the_configuration_gets_every_write_persisted_until_it_flushes() {
    let bench = Bench::new();
    let session = Session::connect(&bench.socket);
    let mut ring = session.ring(0, 64);
    let write = RawRequest::write(8, &[7; 512]);
    for request in [&write, &RawRequest::flush()] {
        ring.submit(request);
        ring.kick.signal();
        bench.sync_begins();
        assert_eq!(ring.next_used(), None, "it is not answered before it persists");
        bench.sync_ends(Ok(()));
        ring.wait();
    }
    assert_eq!(ring.run(&write).status, OK);
    assert!(bench.began.try_recv().is_err(), "its guest relies on flushes");
    bench.finish();
}

#[test]
fn a_client_that_cannot_flush_gets_every_write_persisted() {
    let bench = Bench::new();
    let block_features = VirtioBlkFeatureFlags::all() - VirtioBlkFeatureFlags::FLUSH;
    let mut driver = Driver::connect(&bench.socket, Options { block_features, ..Options::default() });
    start(driver.queue(), &write(0), 1);
    bench.sync_begins();
    assert!(driver.queue().completions().is_empty(), "the write is not answered before it persists");
    bench.sync_ends(Ok(()));
    assert_eq!(driver.queue().wait(), [(1, Ok(()))]);
    drop(driver);

    let mut driver = bench.connect();
    driver.queue().write(4096, &pattern(2, 512)).unwrap();
    assert!(bench.began.try_recv().is_err(), "this one relies on flushes: no write is synced");
    bench.finish();
}

#[test]
fn what_zeroes_cost_the_media_is_counted() {
    let bench = Bench::new();
    let mut driver = bench.connect();
    let zeroes = |unmap| Request::WriteZeroes { offset: 0, len: 512 << 10, unmap };
    for unmap in [false, true] {
        assert_eq!(driver.queue().run(&zeroes(unmap)), Ok(()));
    }
    drop(driver);
    let totals = || bench.server.totals("gated").unwrap();
    wait_for("the session ends", || (totals().others == 2).then_some(()));
    let counted = totals();
    assert_eq!(
        (counted.written_bytes, counted.media_written_bytes),
        (0, 512 << 10),
        "the second time it is a hole"
    );
    bench.finish();
}
