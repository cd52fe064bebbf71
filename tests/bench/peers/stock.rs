//! A plain back-end on `vhost-user-backend` and `virtio-queue`: what one gets from these crates without more.
//!
//! Each data descriptor is one `pread` or `pwrite` between the file and guest memory, as in cloud-hypervisor's back-end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, RwLock};

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{
    Address as _, Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend as _, GuestMemoryMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

const SECTOR_BYTES: u64 = 512;
const CONFIG_BYTES: usize = 60;

/// Serves `image` on `socket`, one front-end after another, for ever.
pub fn serve(socket: &Path, image: &Path) {
    let mut listener = Listener::new(socket, true).unwrap();
    loop {
        let file = File::options().read(true).write(true).open(image).unwrap();
        let backend = Arc::new(RwLock::new(Backend { file, memory: None, event_idx: false }));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("stock".to_owned(), backend, memory).unwrap();
        daemon.start(&mut listener).unwrap();
        // Ends with an error that says how the front-end left, which is of no interest.
        let _ = daemon.wait();
    }
}

struct Backend {
    file: File,
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
    event_idx: bool,
}

type Chain = DescriptorChain<vm_memory::GuestMemoryLoadGuard<GuestMemoryMmap>>;

impl Backend {
    fn process(&self, vring: &VringRwLock) -> io::Result<()> {
        let memory = self.memory.as_ref().expect("a ring starts after the memory table came").memory();
        let mut any = false;
        loop {
            let chain = vring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone());
            let Some(chain) = chain else { break };
            let head = chain.head_index();
            let used_bytes = self.execute(&memory, chain);
            vring.add_used(head, used_bytes).map_err(io::Error::other)?;
            any = true;
        }
        if any && vring.needs_notification().map_err(io::Error::other)? {
            vring.signal_used_queue()?;
        }
        Ok(())
    }

    fn execute(&self, memory: &GuestMemoryMmap, mut chain: Chain) -> u32 {
        let header = chain.next().expect("the benchmark sends a header");
        let kind: u32 = memory.read_obj(header.addr()).unwrap();
        let sector: u64 = memory.read_obj(header.addr().unchecked_add(8)).unwrap();
        let (mut offset, mut written, mut status) = (sector * SECTOR_BYTES, 1, VIRTIO_BLK_S_OK);
        if kind == VIRTIO_BLK_T_FLUSH && self.file.sync_data().is_err() {
            status = VIRTIO_BLK_S_IOERR;
        }
        for descriptor in chain {
            if descriptor.is_write_only() && descriptor.len() == 1 {
                memory.write_obj(u8::try_from(status).unwrap(), descriptor.addr()).unwrap();
                break;
            }
            match self.transfer(memory, kind, offset, descriptor) {
                Ok(bytes) => written += bytes,
                Err(_) => status = VIRTIO_BLK_S_IOERR,
            }
            offset += u64::from(descriptor.len());
        }
        written
    }

    /// Moves the bytes of a descriptor; how many of them were written to guest memory.
    fn transfer(&self, memory: &GuestMemoryMmap, kind: u32, offset: u64, it: Descriptor) -> io::Result<u32> {
        let length = usize::try_from(it.len()).unwrap();
        let slice = memory.get_slice(it.addr(), length).map_err(io::Error::other)?;
        let guard = slice.ptr_guard_mut();
        // SAFETY: the slice lies in guest memory, which is mapped while the guard lives; the benchmark's client leaves
        // the buffers of requests under way alone.
        let bytes = unsafe { std::slice::from_raw_parts_mut(guard.as_ptr(), length) };
        match kind {
            VIRTIO_BLK_T_IN => self.file.read_exact_at(bytes, offset).map(|()| it.len()),
            VIRTIO_BLK_T_OUT => self.file.write_all_at(bytes, offset).map(|()| 0),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_BLK_F_BLK_SIZE)
            | (1 << VIRTIO_BLK_F_FLUSH)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    /// Capacity and block size; everything else is 0 (VIRTIO 1.2 §5.2.4).
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let sectors = self.file.metadata().unwrap().len() / SECTOR_BYTES;
        let mut config = vec![0; CONFIG_BYTES];
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        config[20..24].copy_from_slice(&512_u32.to_le_bytes());
        let (start, length) = (offset as usize, size as usize);
        config.resize(config.len().max(start + length), 0);
        config[start..start + length].to_vec()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        event: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let vring = &vrings[usize::from(event)];
        if !self.event_idx {
            return self.process(vring);
        }
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            self.process(vring)?;
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}
