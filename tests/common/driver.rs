//! The `virtio-driver` crate as a client: nothing on this side of the socket was written here.
//!
//! [`Driver`] sends ordinary disk requests through the crate's `VirtioBlkQueue`; [`RawDriver`] sends requests
//! that it does not know (GET_ID, several segments in a discard) through the crate's plain `Virtqueue`.

#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libc::iovec;
use virtio_driver::virtqueue::{Virtqueue, VirtqueueLayout};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkTransport, VirtioFeatureFlags, VirtioTransport,
};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use super::{PATIENCE, is_readable, shared_memory, wait_readable};

/// Memory for the data of requests in bytes.
pub const DATA_BYTES: usize = 16 << 20;

/// How a client connects and waits.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Queues to set up.
    pub queues: usize,
    /// Descriptors in each of them.
    pub queue_size: u16,
    /// Feature bits of the ring, all of which must be offered.
    pub ring_features: VirtioFeatureFlags,
    /// Feature bits of the block device that are taken if they are offered.
    pub block_features: VirtioBlkFeatureFlags,
    /// Poll the used ring with notifications switched off, instead of sleeping until one comes.
    pub polled: bool,
}

impl Default for Options {
    fn default() -> Self {
        let ring_features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let block_features = VirtioBlkFeatureFlags::all();
        Self { queues: 1, queue_size: 128, ring_features, block_features, polled: false }
    }
}

/// A request; offsets and lengths are bytes. `into` and `from` are ranges of the client's data memory.
#[derive(Debug, Clone)]
pub enum Request {
    /// Disk to memory.
    Read { offset: u64, into: Vec<Range<usize>> },
    /// Memory to disk.
    Write { offset: u64, from: Vec<Range<usize>> },
    /// Make earlier writes last.
    Flush,
    /// The bytes are not needed any more.
    Discard { offset: u64, len: u64 },
    /// The bytes shall be zero.
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

/// What became of a request: `Err` holds an errno (EIO, ENOTSUP).
pub type Outcome = Result<(), i32>;

/// A connection to a disk.
pub struct Driver {
    /// Before the transport, whose memory they live in.
    queues: Vec<Queue>,
    transport: Box<VirtioBlkTransport>,
    memory: Arc<MmapRegion>,
}

impl Driver {
    /// Connects, and insists on getting every ring feature of `options`.
    pub fn connect(socket: &Path, options: Options) -> Self {
        let wanted = options.block_features.bits() | options.ring_features.bits();
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(socket.to_str().unwrap(), wanted).unwrap());
        let missing = options.ring_features.bits() & !transport.get_features();
        assert_eq!(missing, 0, "not offered: {:?}", VirtioFeatureFlags::from_bits_truncate(missing));

        let memory = Arc::new(share_data_memory(&mut *transport));
        let queues =
            VirtioBlkQueue::setup_queues(&mut *transport, options.queues, options.queue_size).unwrap();
        let queues = queues.into_iter().enumerate().map(|(index, mut ring)| {
            ring.set_used_notif_enabled(!options.polled);
            Queue {
                ring,
                kick: transport.get_submission_notifier(index),
                call: transport.get_completion_fd(index),
                memory: Arc::clone(&memory),
                polled: options.polled,
            }
        });
        Self { queues: queues.collect(), transport, memory }
    }

    /// Feature bits in force.
    pub fn features(&self) -> u64 {
        self.transport.get_features()
    }

    /// The disk's configuration space.
    pub fn config(&self) -> VirtioBlkConfig {
        self.transport.get_config().unwrap()
    }

    /// The queues, each usable from its own thread.
    pub fn queues(&mut self) -> &mut [Queue] {
        &mut self.queues
    }

    /// The first queue.
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.queues[0]
    }

    /// Stores `bytes` in data memory at `place`.
    pub fn put(&self, place: usize, bytes: &[u8]) {
        put(&self.memory, place, bytes);
    }

    /// The data memory in `range`.
    pub fn get(&self, range: Range<usize>) -> Vec<u8> {
        get(&self.memory, range)
    }
}

fn share_data_memory<C, R>(transport: &mut dyn VirtioTransport<C, R>) -> MmapRegion
where
    C: virtio_driver::ByteValued,
    R: Copy,
{
    let memory = shared_memory(DATA_BYTES);
    let fd = memory.file_offset().unwrap().file().as_raw_fd();
    transport.map_mem_region(memory.as_ptr().addr(), memory.size(), fd, 0).unwrap();
    memory
}

fn put(memory: &MmapRegion, place: usize, bytes: &[u8]) {
    memory.as_volatile_slice().write_slice(bytes, place).unwrap();
}

fn get(memory: &MmapRegion, range: Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0; range.len()];
    memory.as_volatile_slice().read_slice(&mut bytes, range.start).unwrap();
    bytes
}

/// One queue of a [`Driver`].
pub struct Queue {
    ring: VirtioBlkQueue<'static, u64>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    memory: Arc<MmapRegion>,
    polled: bool,
}

impl Queue {
    /// Puts a request into the ring, to be completed with `tag`; false when the ring is full.
    ///
    /// The back-end learns of it at the next [`Queue::kick`].
    pub fn submit(&mut self, request: &Request, tag: u64) -> bool {
        let submitted = match request {
            Request::Read { offset, into } => {
                let iov = self.iovecs(into);
                // SAFETY: the segments were checked to lie in the data memory, which outlives the ring, and
                // no reference into it is ever made.
                unsafe { self.ring.readv(*offset, iov.as_ptr(), iov.len(), tag) }
            }
            Request::Write { offset, from } => {
                let iov = self.iovecs(from);
                // SAFETY: the segments were checked to lie in the data memory, which outlives the ring.
                unsafe { self.ring.writev(*offset, iov.as_ptr(), iov.len(), tag) }
            }
            Request::Flush => self.ring.flush(tag),
            Request::Discard { offset, len } => self.ring.discard(*offset, *len, tag),
            Request::WriteZeroes { offset, len, unmap } => self.ring.write_zeroes(*offset, *len, *unmap, tag),
        };
        match submitted {
            Ok(()) => true,
            Err(error) if error.to_string() == "Not enough free descriptors" => false,
            Err(error) => panic!("{request:?}: {error}"),
        }
    }

    /// Tells the back-end about new requests, if it asked to be told.
    pub fn kick(&mut self) {
        if self.ring.avail_notif_needed() {
            self.kick.notify().unwrap();
        }
    }

    /// Waits until at least one request is completed; returns the tag and outcome of all that are.
    pub fn wait(&mut self) -> Vec<(u64, Outcome)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = self.completions();
            if !done.is_empty() {
                return done;
            }
            if self.polled {
                assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for a completion");
                std::thread::yield_now();
            } else {
                self.drain_notifications();
            }
        }
    }

    /// The tag and outcome of the requests that are completed by now.
    pub fn completions(&mut self) -> Vec<(u64, Outcome)> {
        let mut done = Vec::new();
        for completion in self.ring.completions() {
            let outcome = if completion.ret == 0 { Ok(()) } else { Err(-completion.ret) };
            done.push((completion.context, outcome));
        }
        done
    }

    /// Waits for a notification; returns how many had come together.
    pub fn drain_notifications(&self) -> u64 {
        wait_readable("a request's completion is notified", &*self.call);
        self.call.read().unwrap()
    }

    /// True when a notification has come that was not drained.
    pub fn is_notified(&self) -> bool {
        is_readable(&*self.call, Duration::ZERO)
    }

    /// Sends one request alone and waits for it.
    pub fn run(&mut self, request: &Request) -> Outcome {
        assert!(self.submit(request, u64::MAX), "no room for {request:?}");
        self.kick();
        let done = self.wait();
        let [(u64::MAX, outcome)] = done[..] else { panic!("only {request:?} was under way: {done:?}") };
        outcome
    }

    /// Reads `len` bytes; the start of the data memory is used for it.
    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        put(&self.memory, 0, &vec![0xa5; len]);
        self.run(&Request::Read { offset, into: vec![0..len] })?;
        Ok(get(&self.memory, 0..len))
    }

    /// Writes `bytes`; the start of the data memory is used for it.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Outcome {
        put(&self.memory, 0, bytes);
        self.run(&Request::Write { offset, from: vec![0..bytes.len()] })
    }

    fn iovecs(&self, segments: &[Range<usize>]) -> Vec<iovec> {
        let iovec_of = |segment: &Range<usize>| {
            assert!(segment.start <= segment.end && segment.end <= self.memory.size());
            let iov_base = self.memory.as_ptr().wrapping_add(segment.start).cast();
            iovec { iov_base, iov_len: segment.len() }
        };
        segments.iter().map(iovec_of).collect()
    }
}

/// The memory of one raw request; the crate places it where the back-end sees it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawRequest {
    header: [u8; 16],
    readable: [u8; RAW_BYTES],
    writable: [u8; RAW_BYTES],
    status: u8,
}

/// Most bytes of data in a [`RawRequest`].
pub const RAW_BYTES: usize = 256;

/// A connection for requests that `VirtioBlkQueue` cannot form: one queue, one request at a time.
pub struct RawDriver {
    /// Before the transport, whose memory it lives in.
    ring: Virtqueue<'static, RawRequest>,
    transport: VhostUser<VirtioBlkConfig, RawRequest>,
}

impl RawDriver {
    const QUEUE_SIZE: u16 = 16;

    /// Connects to a disk.
    pub fn connect(socket: &Path) -> Self {
        let features = VirtioFeatureFlags::VERSION_1.bits() | VirtioBlkFeatureFlags::all().bits();
        let mut transport = VhostUser::new(socket.to_str().unwrap(), features).unwrap();
        let features = VirtioFeatureFlags::from_bits_truncate(transport.get_features());
        let layout = VirtqueueLayout::new::<RawRequest>(1, usize::from(Self::QUEUE_SIZE), features).unwrap();
        let translator = transport.iova_translator();
        let memory = transport.alloc_queue_mem(&layout).unwrap();
        // SAFETY: the transport keeps this mapping until it is dropped, which is after the ring, and never
        // touches it.
        let memory = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr(), memory.len()) };
        let mut ring = Virtqueue::new(translator, memory, Self::QUEUE_SIZE, features).unwrap();
        transport.setup_queues(std::slice::from_ref(&ring)).unwrap();
        ring.set_used_notif_enabled(true);
        Self { ring, transport }
    }

    /// Sends header, `readable` and a buffer for `writable_bytes`; returns the status and that buffer.
    pub fn run(&mut self, kind: u32, sector: u64, readable: &[u8], writable_bytes: usize) -> (u8, Vec<u8>) {
        let mut frame = RawRequest {
            header: [0; 16],
            readable: [0; RAW_BYTES],
            writable: [0xa5; RAW_BYTES],
            status: 0xff,
        };
        frame.header[..4].copy_from_slice(&kind.to_le_bytes());
        frame.header[8..].copy_from_slice(&sector.to_le_bytes());
        frame.readable[..readable.len()].copy_from_slice(readable);

        let prepare = |place: &mut RawRequest, add: &mut dyn FnMut(iovec, bool) -> std::io::Result<()>| {
            *place = frame;
            add(iovec_of(&mut place.header), false)?;
            if !readable.is_empty() {
                add(iovec_of(&mut place.readable[..readable.len()]), false)?;
            }
            if writable_bytes > 0 {
                add(iovec_of(&mut place.writable[..writable_bytes]), true)?;
            }
            add(iovec_of(std::slice::from_mut(&mut place.status)), true)
        };
        let id = self.ring.add_request(prepare).unwrap();
        self.transport.get_submission_notifier(0).notify().unwrap();
        loop {
            if let Some(done) = self.ring.completions().next() {
                assert_eq!(done.id, id, "the only request is the one that completes");
                return (done.req.status, done.req.writable[..writable_bytes].to_vec());
            }
            let call = self.transport.get_completion_fd(0);
            wait_readable("a request's completion is notified", &*call);
            call.read().unwrap();
        }
    }
}

fn iovec_of(bytes: &mut [u8]) -> iovec {
    iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}
