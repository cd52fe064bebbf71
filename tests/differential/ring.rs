//! A ring whose every byte is chosen by the test: `vhost`'s front-end for the session, and batches of chains
//! that are laid out once and given to several back-ends.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::desc::split::{Descriptor, VirtqUsedElem};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

use crate::common::{shared_memory, wait_readable};

/// Guest address of the data memory.
pub const DATA_BASE: u64 = (1 << 32) - DATA_BORDER as u64;
/// Its size in bytes.
pub const DATA_BYTES: usize = 1 << 20;
/// It is made of two regions that meet here, where the addresses get out of 32 bits' reach.
pub const DATA_BORDER: usize = DATA_BYTES / 2;

/// The rings have a memory region of their own, which is not compared: a back-end may ask for notifications
/// as it likes.
const RINGS_BASE: u64 = 0;
const RINGS_BYTES: usize = 64 << 10;
const AVAIL: usize = 0x4000;
const USED: usize = 0x8000;
/// `flags` and `idx` come before the entries of either ring.
const ENTRIES: usize = 4;
const IDX: usize = 2;

/// How a ring is set up.
#[derive(Debug, Clone, Copy)]
pub struct RingOptions {
    pub queue_size: u16,
    pub event_idx: bool,
    /// Where both indices start.
    pub base: u16,
    /// Bits of the block device to acknowledge.
    pub device_features: u64,
}

/// Chains laid out in guest memory.
#[derive(Debug, Default)]
pub struct Batch {
    /// Entries of the descriptor table.
    pub descriptors: Vec<(u16, Descriptor)>,
    /// Heads in the order in which they are made available.
    pub heads: Vec<u16>,
    /// What the data memory holds at the start.
    pub data: Vec<u8>,
    /// Ask for one notification at the end instead of one as soon as possible (EVENT_IDX only).
    pub notify_late: bool,
}

/// All that a back-end made of a batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Aftermath {
    /// Head and used length of each completion, in order.
    pub used: Vec<(u32, u32)>,
    /// The data memory.
    pub data: Vec<u8>,
}

/// One started ring of one session.
pub struct Ring {
    frontend: Frontend,
    options: RingOptions,
    rings: MmapRegion,
    data: [MmapRegion; 2],
    kick: EventFd,
    call: EventFd,
    avail_idx: u16,
    used_idx: u16,
}

impl Ring {
    /// Negotiates and starts queue 0 of the back-end at `socket`.
    pub fn start(socket: &Path, options: RingOptions) -> Self {
        let frontend = Frontend::connect(socket, 1).unwrap();
        let mut ring = Self {
            frontend,
            options,
            rings: shared_memory(RINGS_BYTES),
            data: [shared_memory(DATA_BORDER), shared_memory(DATA_BYTES - DATA_BORDER)],
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            avail_idx: options.base,
            used_idx: options.base,
        };
        ring.negotiate();
        ring.share_memory();
        ring.start_queue();
        ring
    }

    fn negotiate(&mut self) {
        let mut wanted = (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | self.options.device_features;
        if self.options.event_idx {
            wanted |= 1 << VIRTIO_RING_F_EVENT_IDX;
        }
        let frontend = &mut self.frontend;
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        assert_eq!(wanted & !offered, 0, "features that are not offered");
        frontend.set_features(wanted).unwrap();
        let protocol = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG;
        let offered = frontend.get_protocol_features().unwrap();
        assert!(offered.contains(protocol));
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    fn share_memory(&self) {
        let region = |base: u64, memory: &MmapRegion| VhostUserMemoryRegionInfo {
            guest_phys_addr: base,
            memory_size: memory.size() as u64,
            userspace_addr: memory.as_ptr().addr() as u64,
            mmap_offset: 0,
            mmap_handle: memory.file_offset().unwrap().file().as_raw_fd(),
        };
        let regions = [
            region(RINGS_BASE, &self.rings),
            region(DATA_BASE, &self.data[0]),
            region(DATA_BASE + DATA_BORDER as u64, &self.data[1]),
        ];
        self.frontend.set_mem_table(&regions).unwrap();
    }

    fn start_queue(&mut self) {
        self.store(AVAIL + IDX, self.avail_idx);
        self.store(USED + IDX, self.used_idx);
        let rings = self.rings.as_ptr().addr();
        let config = VringConfigData {
            queue_max_size: self.options.queue_size,
            queue_size: self.options.queue_size,
            flags: 0,
            desc_table_addr: rings as u64,
            used_ring_addr: (rings + USED) as u64,
            avail_ring_addr: (rings + AVAIL) as u64,
            log_addr: None,
        };
        self.frontend.set_vring_num(0, self.options.queue_size).unwrap();
        self.frontend.set_vring_addr(0, &config).unwrap();
        self.frontend.set_vring_base(0, self.options.base).unwrap();
        self.frontend.set_vring_call(0, &self.call).unwrap();
        self.frontend.set_vring_kick(0, &self.kick).unwrap();
        self.frontend.set_vring_enable(0, true).unwrap();
    }

    /// The first `bytes` of the configuration space.
    pub fn config(&mut self, bytes: u32) -> Vec<u8> {
        let space = vec![0; bytes as usize];
        self.frontend.get_config(0, bytes, VhostUserConfigFlags::WRITABLE, &space).unwrap().1
    }

    /// Makes a batch available and waits until all of it is used.
    pub fn run(&mut self, batch: &Batch) -> Aftermath {
        let (lower, upper) = batch.data.split_at(DATA_BORDER);
        self.data[0].as_volatile_slice().write_slice(lower, 0).unwrap();
        self.data[1].as_volatile_slice().write_slice(upper, 0).unwrap();
        for (index, descriptor) in &batch.descriptors {
            let place = usize::from(*index) * size_of::<Descriptor>();
            self.rings.as_volatile_slice().write_obj(*descriptor, place).unwrap();
        }
        let before = self.avail_idx;
        for &head in &batch.heads {
            let slot = usize::from(self.avail_idx % self.options.queue_size);
            self.store(AVAIL + ENTRIES + 2 * slot, head);
            self.avail_idx = self.avail_idx.wrapping_add(1);
        }
        let target = self.avail_idx;
        self.want_notification(if batch.notify_late { target.wrapping_sub(1) } else { self.used_idx });
        self.store(AVAIL + IDX, target);
        if self.kick_is_wanted(before) {
            self.kick.write(1).unwrap();
        }

        let mut used = Vec::new();
        loop {
            used.extend(self.take_used());
            if self.used_idx == target {
                break;
            }
            if !batch.notify_late {
                self.want_notification(self.used_idx);
                if self.load(USED + IDX) != self.used_idx {
                    continue;
                }
            }
            wait_readable(
                &format!("{} of {} requests are used", used.len() + 1, batch.heads.len()),
                &self.call,
            );
            self.call.read().unwrap();
        }
        let mut data = vec![0; DATA_BYTES];
        let (lower, upper) = data.split_at_mut(DATA_BORDER);
        self.data[0].as_volatile_slice().read_slice(lower, 0).unwrap();
        self.data[1].as_volatile_slice().read_slice(upper, 0).unwrap();
        Aftermath { used, data }
    }

    fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        let idx = self.load(USED + IDX);
        let fresh = idx.wrapping_sub(self.used_idx);
        assert!(fresh <= self.avail_idx.wrapping_sub(self.used_idx), "more used than made available");
        while self.used_idx != idx {
            let slot = usize::from(self.used_idx % self.options.queue_size);
            let place = USED + ENTRIES + size_of::<VirtqUsedElem>() * slot;
            let element: VirtqUsedElem = self.rings.as_volatile_slice().read_obj(place).unwrap();
            used.push((element.id(), element.len()));
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        used
    }

    /// Asks for a notification when the used index passes `event`.
    fn want_notification(&self, event: u16) {
        if self.options.event_idx {
            self.store(AVAIL + ENTRIES + 2 * usize::from(self.options.queue_size), event);
            fence(Ordering::SeqCst);
        }
    }

    /// Whether the back-end wants to hear that the available index went on from `before`.
    fn kick_is_wanted(&self, before: u16) -> bool {
        fence(Ordering::SeqCst);
        if !self.options.event_idx {
            return self.load(USED) & (VRING_USED_F_NO_NOTIFY as u16) == 0;
        }
        let entries = size_of::<VirtqUsedElem>() * usize::from(self.options.queue_size);
        let event = self.load(USED + ENTRIES + entries);
        let behind = self.avail_idx.wrapping_sub(event).wrapping_sub(1);
        behind < self.avail_idx.wrapping_sub(before)
    }

    fn load(&self, place: usize) -> u16 {
        u16::from_le(self.rings.as_volatile_slice().load(place, Ordering::Acquire).unwrap())
    }

    fn store(&self, place: usize, value: u16) {
        self.rings.as_volatile_slice().store(value.to_le(), place, Ordering::Release).unwrap();
    }
}
