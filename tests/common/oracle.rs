//! A second implementation of the disk, to compare the daemon with: `vhost-user-backend` and `virtio-queue` for
//! protocol and rings, and block requests handled as naively as possible on a `std::fs::File`.
//!
//! It shares nothing with the daemon but the rules, which are written down here once more:
//! - the status is the last byte of the device-writable part, the data are all bytes before it;
//! - the used length counts the bytes written contiguously from the start of that part;
//! - a request is checked completely before anything is done.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use rustix::fs::FallocateFlags;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_BARRIER, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;
const SERIAL_BYTES: usize = 20;

/// Another type for a flush (VIRTIO 1.2 §5.2.6.3).
const FLUSH_OUT: u32 = VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_OUT;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// What a disk offers, as far as it decides what becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Size in sectors.
    pub capacity_sectors: u64,
    /// Sectors in a block.
    pub block_sectors: u64,
    /// Changes are refused.
    pub read_only: bool,
    /// What GET_ID returns.
    pub serial: [u8; SERIAL_BYTES],
    /// Most data segments in a request.
    pub most_segments: u32,
    /// The limits of DISCARD.
    pub discard: RangeLimits,
    /// The limits of WRITE_ZEROES.
    pub write_zeroes: RangeLimits,
}

/// How much one DISCARD or WRITE_ZEROES may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeLimits {
    /// Most ranges in one request.
    pub most_ranges: u32,
}

impl Shape {
    /// The shape that a configuration space (VIRTIO 1.2 §5.2.4) describes.
    pub fn from_config(config: &[u8], read_only: bool, serial: [u8; SERIAL_BYTES]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
        Self {
            capacity_sectors: u64::from_le_bytes(config[..8].try_into().unwrap()),
            block_sectors: u64::from(u32_at(20)) / SECTOR_BYTES,
            read_only,
            serial,
            most_segments: u32_at(12),
            discard: RangeLimits { most_ranges: u32_at(40) },
            write_zeroes: RangeLimits { most_ranges: u32_at(52) },
        }
    }
}

/// The oracle, serving one front-end on a socket of its own.
#[derive(Debug)]
pub struct Oracle {
    session: JoinHandle<()>,
}

impl Oracle {
    /// Listens on `socket`, and serves `image` to the first front-end that comes.
    pub fn serve(socket: &Path, image: &Path, shape: Shape) -> Self {
        let mut listener = Listener::new(socket, true).unwrap();
        let image = image.to_owned();
        let session = std::thread::spawn(move || serve_one(&mut listener, &image, shape));
        Self { session }
    }

    /// Waits until the front-end has left and the image is no longer used.
    pub fn finish(self) {
        self.session.join().unwrap();
    }
}

/// Serves `image` to one front-end until it leaves.
fn serve_one(listener: &mut Listener, image: &Path, shape: Shape) {
    let file = File::options().read(true).write(!shape.read_only).open(image).unwrap();
    let backend = Backend { disk: Disk { file, shape }, memory: None, event_idx: false };
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Arc::new(RwLock::new(backend));
    let mut daemon = VhostUserDaemon::new("oracle".to_owned(), backend, memory).unwrap();
    daemon.start(listener).unwrap();
    // Ends with an error that says how the front-end left, which is of no interest.
    let _ = daemon.wait();
}

struct Backend {
    disk: Disk,
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
    event_idx: bool,
}

impl Backend {
    fn process(&self, vring: &VringRwLock) -> io::Result<()> {
        let memory = self.memory.as_ref().expect("a ring starts after the memory table came").memory();
        loop {
            let chain = vring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone());
            let Some(chain) = chain else { break };
            let head = chain.head_index();
            let used_bytes = self.disk.execute(&memory, chain);
            vring.add_used(head, used_bytes).map_err(io::Error::other)?;
        }
        if vring.needs_notification().map_err(io::Error::other)? {
            vring.signal_used_queue()?;
        }
        Ok(())
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
        let mut features = (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_BLK_F_SEG_MAX)
            | (1 << VIRTIO_BLK_F_BLK_SIZE)
            | (1 << VIRTIO_BLK_F_FLUSH)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if self.disk.shape.read_only {
            features |= 1 << VIRTIO_BLK_F_RO;
        } else {
            features |= (1 << VIRTIO_BLK_F_DISCARD) | (1 << VIRTIO_BLK_F_WRITE_ZEROES);
        }
        features
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
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

/// Status and the data to return, which may be shorter than the space for them.
struct Answer {
    status: u8,
    data: Vec<u8>,
}

impl Answer {
    fn status(status: u8) -> Self {
        Self { status, data: Vec::new() }
    }
}

struct Disk {
    file: File,
    shape: Shape,
}

impl Disk {
    /// Executes the request in `chain` and returns the used length in bytes.
    fn execute<M>(&self, memory: &GuestMemoryMmap, chain: DescriptorChain<M>) -> u32
    where
        M: Deref<Target = GuestMemoryMmap>,
    {
        let descriptors: Vec<Descriptor> = chain.collect();
        let is_writable = |descriptor: &&Descriptor| descriptor.is_write_only();
        let is_readable = |descriptor: &&Descriptor| !descriptor.is_write_only();
        let readable = gather(memory, descriptors.iter().filter(is_readable));
        // Written back as a whole, with most of it unchanged.
        let mut writable = gather(memory, descriptors.iter().filter(is_writable));
        let (status, space) = writable.split_last_mut().expect("every chain here has a status byte");

        let answer = if descriptors.iter().any(|descriptor| descriptor.len() == 0) {
            Answer::status(IOERR)
        } else {
            self.answer(&readable, space.len())
        };
        space[..answer.data.len()].copy_from_slice(&answer.data);
        *status = answer.status;
        let all_written = answer.data.len() == space.len();

        let mut source = writable.as_slice();
        for descriptor in descriptors.iter().filter(is_writable) {
            let (bytes, rest) = source.split_at(descriptor.len() as usize);
            memory.write_slice(bytes, descriptor.addr()).unwrap();
            source = rest;
        }
        answer.data.len() as u32 + u32::from(all_written)
    }

    fn answer(&self, readable: &[u8], space_bytes: usize) -> Answer {
        let Some((header, data)) = readable.split_at_checked(HEADER_BYTES) else {
            return Answer::status(IOERR);
        };
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        match kind & !VIRTIO_BLK_T_BARRIER {
            VIRTIO_BLK_T_IN => self.read(sector, data, space_bytes),
            VIRTIO_BLK_T_OUT => Answer::status(self.write(sector, data, space_bytes)),
            VIRTIO_BLK_T_FLUSH | FLUSH_OUT => Answer::status(status_of(self.file.sync_data())),
            VIRTIO_BLK_T_GET_ID => {
                Answer { status: OK, data: self.shape.serial[..space_bytes.min(SERIAL_BYTES)].to_vec() }
            }
            kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => {
                Answer::status(self.clear(kind, data))
            }
            _ => Answer::status(UNSUPP),
        }
    }

    fn read(&self, sector: u64, extra: &[u8], space_bytes: usize) -> Answer {
        let Some(offset) = self.offset(sector, space_bytes as u64) else { return Answer::status(IOERR) };
        if !extra.is_empty() {
            return Answer::status(IOERR);
        }
        let mut data = vec![0; space_bytes];
        match self.file.read_exact_at(&mut data, offset) {
            Ok(()) => Answer { status: OK, data },
            Err(_) => Answer::status(IOERR),
        }
    }

    fn write(&self, sector: u64, data: &[u8], space_bytes: usize) -> u8 {
        match self.offset(sector, data.len() as u64) {
            Some(offset) if space_bytes == 0 && !self.shape.read_only => {
                status_of(self.file.write_all_at(data, offset))
            }
            _ => IOERR,
        }
    }

    /// Where whole sectors inside the disk begin, in bytes. Blocks are a hint (VIRTIO 1.2 §5.2.5).
    fn offset(&self, sector: u64, bytes: u64) -> Option<u64> {
        let end = u128::from(sector) * u128::from(SECTOR_BYTES) + u128::from(bytes);
        let inside = end <= u128::from(self.shape.capacity_sectors * SECTOR_BYTES);
        (inside && bytes.is_multiple_of(SECTOR_BYTES)).then(|| sector * SECTOR_BYTES)
    }

    fn clear(&self, kind: u32, payload: &[u8]) -> u8 {
        if self.shape.read_only {
            return UNSUPP;
        }
        let (limits, known_flags) = match kind {
            VIRTIO_BLK_T_DISCARD => (self.shape.discard, 0),
            _ => (self.shape.write_zeroes, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP),
        };
        let (ranges, rest) = payload.as_chunks::<RANGE_BYTES>();
        if ranges.is_empty() || !rest.is_empty() {
            return IOERR;
        }
        if ranges.len() > limits.most_ranges as usize {
            return UNSUPP;
        }
        let mut checked = Vec::new();
        for range in ranges {
            let sector = u64::from_le_bytes(range[..8].try_into().unwrap());
            let sectors = u32::from_le_bytes(range[8..12].try_into().unwrap());
            let flags = u32::from_le_bytes(range[12..].try_into().unwrap());
            if flags & !known_flags != 0 {
                return UNSUPP;
            }
            let bytes = u64::from(sectors) * SECTOR_BYTES;
            match self.offset(sector, bytes) {
                // The longest range that is announced is a hint.
                Some(offset) => checked.push((offset, bytes, flags)),
                None => return IOERR,
            }
        }
        let unmap = |flags| kind == VIRTIO_BLK_T_DISCARD || flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        let clear_one = |(offset, bytes, flags)| match bytes {
            0 => Ok(()),
            _ if unmap(flags) => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, punch, offset, bytes).map_err(io::Error::from)
            }
            _ => self.file.write_all_at(&vec![0; bytes as usize], offset),
        };
        status_of(checked.into_iter().try_for_each(clear_one))
    }
}

fn gather<'a>(memory: &GuestMemoryMmap, descriptors: impl Iterator<Item = &'a Descriptor>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for descriptor in descriptors {
        let start = bytes.len();
        bytes.resize(start + descriptor.len() as usize, 0);
        memory.read_slice(&mut bytes[start..], descriptor.addr()).unwrap();
    }
    bytes
}

fn status_of(result: io::Result<()>) -> u8 {
    if result.is_ok() { OK } else { IOERR }
}
