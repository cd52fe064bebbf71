//! Back-ends that can do less than ours.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringRwLock};
use vhost_user_pmem::disk::{self, Backing, OpenOptions};
use vhost_user_pmem::stock::Stock;
use vhost_user_pmem::virtio::blk::{Device, Identity};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use crate::embedded::Embedded;
use crate::{assert_coherent, assert_error, bench, common, measured, number, point};

const DISK_BYTES: usize = 1 << 20;

struct Scene {
    folder: TempDir,
    device: Arc<Device<Backing>>,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.img");
        std::fs::write(&image, common::pattern(1, DISK_BYTES)).unwrap();
        let disk = disk::open(&image, &OpenOptions::new("disk")).unwrap().disk;
        let identity = Identity { name: "disk".to_owned(), serial: [0; 20] };
        Self { folder, device: Arc::new(Device::new(disk, identity, 1)) }
    }

    fn stock(&self) -> Stock<Backing> {
        Stock::new(self.device.clone()).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("disk.sock")
    }
}

#[test]
fn a_back_end_with_split_rings_only_is_not_asked_for_packed_ones() {
    let scene = Scene::new();
    let session = Embedded::serve(&scene.socket(), &Arc::new(scene.stock()));
    let refused = bench(&scene.socket(), &["--packed", "--rw", "write", "--runtime", "50ms"]);
    assert_error(&refused, 2, &["disk.sock", "offers no packed rings", "leave --packed out"]);
    session.finish();
    let image = std::fs::read(scene.folder.path().join("disk.img")).unwrap();
    assert!(image == common::pattern(1, DISK_BYTES), "it was written to");
}

/// Without memory slots, as SPDK.
struct NoSlots(Stock<Backing>);

impl VhostUserBackend for NoSlots {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.0.protocol_features() - VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn num_queues(&self) -> usize {
        self.0.num_queues()
    }

    fn max_queue_size(&self) -> usize {
        self.0.max_queue_size()
    }

    fn features(&self) -> u64 {
        self.0.features()
    }

    fn acked_features(&self, features: u64) {
        self.0.acked_features(features);
    }

    fn set_event_idx(&self, enabled: bool) {
        self.0.set_event_idx(enabled);
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.0.get_config(offset, size)
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.0.update_memory(memory)
    }

    fn exit_event(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.0.exit_event(thread)
    }

    fn handle_event(
        &self,
        event: u16,
        events: EventSet,
        vrings: &[VringRwLock],
        thread: usize,
    ) -> io::Result<()> {
        self.0.handle_event(event, events, vrings, thread)
    }
}

/// The tool connects to read the configuration, once more through its relay, and the same for the round and for reading back.
#[test]
fn a_back_end_without_memory_slots_is_measured_as_well() {
    let scene = Scene::new();
    let (socket, device) = (scene.socket(), scene.device.clone());
    let mut listener = vhost::vhost_user::Listener::new(&socket, true).unwrap();
    let server = std::thread::spawn(move || {
        for _ in 0..6 {
            let stock = NoSlots(Stock::new(device.clone()).unwrap());
            crate::embedded::serve_one(&mut listener, Arc::new(stock));
        }
    });
    let args = ["--rw", "randrw", "--verify", "--iodepth", "4", "--event", "--runtime", "200ms"];
    let report = measured(&socket, &args);
    assert_coherent(point(&report, 0), crate::BLOCK_BYTES);
    assert!(number(&report["peers"][0]["blocks_read_back"]) > 0, "{report}");
    server.join().unwrap();
}
