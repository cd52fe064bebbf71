//! A connection to a back-end: what it says of its disk, its queues, and memory for their data.
//!
//! `virtio-driver` is made of plain calls that wait without a limit for the back-end's answer; here each has one.

#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fs, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::retry_on_intr;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::tools::bench::slots::Relay;
use crate::tools::bench::{BenchError, Waiting, Work};
use crate::virtio::blk::SECTOR_BYTES;

/// How long a back-end may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The error of `virtio-driver` for back-ends without REPLY_ACK, CONFIG or CONFIGURE_MEM_SLOTS; the last can be replaced
/// by a [`Relay`].
const LACKS_FEATURES: &str = "Backend doesn't support required protocol features";

/// What a disk is like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    pub(super) capacity_bytes: u64,
    /// Its logical block size, 512 where it says none.
    pub(super) block_bytes: u32,
    pub(super) read_only: bool,
    pub(super) queues: usize,
}

/// A connection whose queues run.
pub(super) struct Client {
    pub(super) queues: Vec<Queue>,
    pub(super) monitor: Monitor,
}

/// What can be asked about a connection while its queues are in use.
pub(super) struct Monitor {
    socket: PathBuf,
    transport: Arc<VirtioBlkTransport>,
    calls: Vec<Arc<EventFd>>,
}

/// One queue and its buffers, one for each slot.
///
/// - **B1**: buffers lie in the shared mapping, which lives as long as the queue, and no Rust reference leads to their bytes.
pub(super) struct Queue {
    /// Before the transport, whose memory it lies in.
    ring: VirtioBlkQueue<'static, u16>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    waiting: Waiting,
    memory: Arc<MmapRegion>,
    first_byte: usize,
    slot_bytes: usize,
    block_bytes: usize,
    pub(super) index: usize,
    pub(super) kicks: u64,
    pub(super) calls: u64,
    _transport: Arc<VirtioBlkTransport>,
}

impl Client {
    /// Connects, and sets up the queues for `work`.
    pub(super) fn connect(socket: &Path, work: &Work) -> Result<Self, BenchError> {
        let mut transport = negotiate_within_limit(socket, work.packed)?;
        let disk = describe(&*transport, socket)?;
        let count = usize::from(work.queues.get());
        if disk.queues < count {
            let socket = socket.to_owned();
            return Err(BenchError::Queues { socket, offered: disk.queues, wanted: work.queues });
        }
        let (work, path) = (work.clone(), socket.to_owned());
        // Before the limit begins: on a busy machine it takes seconds, for which the back-end is not to blame.
        let memory = filled_buffers(&work).map_err(|source| BenchError::Local {
            socket: socket.to_owned(),
            step: "make the buffers",
            source,
        })?;
        within_limit(socket, move || {
            let protocol = |step| {
                let socket = path.clone();
                move |source| BenchError::Protocol { socket, step, source }
            };
            share(&mut *transport, &memory).map_err(protocol("share the buffers"))?;
            let size = u16::try_from(work.descriptors()).unwrap_or(u16::MAX);
            let rings = VirtioBlkQueue::setup_queues(&mut *transport, count, size)
                .map_err(protocol("start the queues"))?;
            let transport: Arc<VirtioBlkTransport> = Arc::from(transport);
            let queues = rings.into_iter().enumerate();
            let queues: Vec<_> =
                queues.map(|(index, ring)| Queue::new(ring, index, &transport, &memory, &work)).collect();
            let calls = queues.iter().map(|queue| Arc::clone(&queue.call)).collect();
            let monitor = Monitor { socket: path.clone(), transport, calls };
            Ok(Self { queues, monitor })
        })?
    }

    /// Connects to read what the disk is like, and disconnects.
    pub(super) fn inspect(socket: &Path, packed: bool) -> Result<Disk, BenchError> {
        let transport = negotiate_within_limit(socket, packed)?;
        let transport: Arc<VirtioBlkTransport> = Arc::from(transport);
        describe(&*transport, socket)
    }
}

/// Runs `call` on a thread of its own, and waits for it no longer than [`ANSWER_TIMEOUT`].
fn within_limit<T: Send + 'static>(
    socket: &Path,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BenchError> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(call()));
    receiver.recv_timeout(ANSWER_TIMEOUT).map_err(|error| match error {
        RecvTimeoutError::Timeout => {
            BenchError::Silent { socket: socket.to_owned(), seconds: ANSWER_TIMEOUT.as_secs() }
        }
        RecvTimeoutError::Disconnected => BenchError::Protocol {
            socket: socket.to_owned(),
            step: "agree with it",
            source: io::Error::other("the protocol's library gave up"),
        },
    })
}

fn negotiate_within_limit(socket: &Path, packed: bool) -> Result<Box<VirtioBlkTransport>, BenchError> {
    let path = socket.to_owned();
    within_limit(socket, move || negotiate(&path, packed))?
}

/// Offers packed rings only if `packed`, and then fails unless the back-end has them.
fn negotiate(socket: &Path, packed: bool) -> Result<Box<VirtioBlkTransport>, BenchError> {
    let to_error = |source: io::Error| {
        let socket = socket.to_owned();
        match source.raw_os_error() {
            Some(libc::ECONNRESET | libc::EPIPE) | None => {
                BenchError::Protocol { socket, step: "negotiate with it", source }
            }
            Some(_) => BenchError::Connect { source: connect_cause(&socket, source), socket },
        }
    };
    let path =
        socket.to_str().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename)).map_err(to_error)?;
    // The library's error of a missing file has no number.
    fs::metadata(socket).map_err(to_error)?;
    // In a packed ring the library's decision whether to kick rests on a count of descriptors in 16 bits, which wraps
    // while a busy back-end asks for no kick: with event indices a kick would be lost now and then.
    let ring = if packed { VirtioFeatureFlags::RING_PACKED } else { VirtioFeatureFlags::RING_EVENT_IDX };
    let features = VirtioFeatureFlags::VERSION_1.bits() | ring.bits() | VirtioBlkFeatureFlags::all().bits();
    let connect = |path: &str| VhostUser::new(path, features);
    let connected = connect(path).or_else(|error| {
        if error.to_string() != LACKS_FEATURES {
            return Err(error);
        }
        let relay = Relay::start(socket)?;
        connect(relay.path.to_str().ok_or(error)?)
    });
    let transport: Box<VirtioBlkTransport> = Box::new(connected.map_err(to_error)?);
    if packed && transport.get_features() & ring.bits() == 0 {
        return Err(BenchError::NotPacked { socket: socket.to_owned() });
    }
    Ok(transport)
}

/// What an error of connecting to a path means.
fn connect_cause(socket: &Path, source: io::Error) -> io::Error {
    let cause = match source.kind() {
        io::ErrorKind::NotFound => "there is no such socket",
        // Also of files that are no sockets.
        io::ErrorKind::ConnectionRefused => match fs::metadata(socket) {
            Ok(found) if !found.file_type().is_socket() => {
                return io::Error::new(io::ErrorKind::InvalidInput, "it is no socket");
            }
            _ => "nobody listens on it",
        },
        _ => return source,
    };
    io::Error::new(source.kind(), cause)
}

fn describe(transport: &VirtioBlkTransport, socket: &Path) -> Result<Disk, BenchError> {
    let config = transport.get_config().map_err(|source| BenchError::Protocol {
        socket: socket.to_owned(),
        step: "read the disk's configuration",
        source,
    })?;
    let features = VirtioBlkFeatureFlags::from_bits_truncate(transport.get_features());
    let block_bytes =
        if features.contains(VirtioBlkFeatureFlags::BLK_SIZE) { u32::from(config.blk_size) } else { 0 };
    let queues = if features.contains(VirtioBlkFeatureFlags::MQ) {
        usize::from(u16::from(config.num_queues))
    } else {
        1
    };
    Ok(Disk {
        capacity_bytes: u64::from(config.capacity).saturating_mul(SECTOR_BYTES),
        block_bytes: if block_bytes == 0 { 512 } else { block_bytes },
        read_only: features.contains(VirtioBlkFeatureFlags::RO),
        queues,
    })
}

/// The buffers of all queues, where the back-end sees them.
/// Memory for the buffers of all queues. Its pages are filled: neither page faults nor a page that is in every cache are
/// measured.
fn filled_buffers(work: &Work) -> io::Result<Arc<MmapRegion>> {
    let bytes = work.slot_bytes() * u64::from(work.depth.get()) * u64::from(work.queues.get());
    let file = fs::File::from(rustix::fs::memfd_create("vhost-user-pmem-bench", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes)?;
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    let memory = MmapRegion::from_file(FileOffset::new(file, 0), length).map_err(io::Error::other)?;
    let mut noise = vec![0; length];
    for (word, bytes) in (0..).zip(noise.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&super::verify::mix(word).to_le_bytes());
    }
    memory.as_volatile_slice().write_slice(&noise, 0).map_err(io::Error::other)?;
    Ok(Arc::new(memory))
}

fn share(transport: &mut VirtioBlkTransport, memory: &MmapRegion) -> io::Result<()> {
    let fd = memory.file_offset().map_or(-1, |file| file.file().as_raw_fd());
    transport.map_mem_region(memory.as_ptr().addr(), memory.size(), fd, 0).map(drop)
}

impl Monitor {
    /// Asks the back-end whether it is still there. The error says how it left.
    pub(super) fn probe(&self) -> Result<(), BenchError> {
        let transport = Arc::clone(&self.transport);
        let answer = within_limit(&self.socket, move || transport.get_config().map(|_| ()));
        match answer {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(BenchError::HungUp { socket: self.socket.clone(), source }),
            Err(_) => Err(self.stalled(ANSWER_TIMEOUT)),
        }
    }

    pub(super) fn stalled(&self, time: Duration) -> BenchError {
        BenchError::Stalled { socket: self.socket.clone(), seconds: time.as_secs() }
    }

    /// Wakes whoever sleeps for a call.
    pub(super) fn wake_all(&self) {
        for call in &self.calls {
            // Ignored: it fails only if the counter is full, and then nobody sleeps.
            let _ = call.write(1);
        }
    }
}

/// What a request asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// It has no block, and is not counted.
    Flush,
}

impl Queue {
    fn new(
        mut ring: VirtioBlkQueue<'static, u16>,
        index: usize,
        transport: &Arc<VirtioBlkTransport>,
        memory: &Arc<MmapRegion>,
        work: &Work,
    ) -> Self {
        // With event indices the back-end calls nobody who has not enabled it.
        ring.set_used_notif_enabled(work.waiting == Waiting::Event);
        let slot_bytes = usize::try_from(work.slot_bytes()).unwrap_or(usize::MAX);
        Self {
            ring,
            kick: transport.get_submission_notifier(index),
            call: transport.get_completion_fd(index),
            waiting: work.waiting,
            memory: Arc::clone(memory),
            first_byte: index * usize::from(work.depth.get()) * slot_bytes,
            slot_bytes,
            block_bytes: usize::try_from(work.block_bytes).unwrap_or(usize::MAX),
            index,
            kicks: 0,
            calls: 0,
            _transport: Arc::clone(transport),
        }
    }

    /// Puts the write of a slot's buffer to `offset` into the ring, or the read into it, or a flush.
    pub(super) fn submit(&mut self, kind: Kind, offset: u64, slot: u16) -> io::Result<()> {
        let start = self.start_of(slot);
        let buffer =
            self.memory.as_volatile_slice().subslice(start, self.block_bytes).map_err(io::Error::other)?;
        let (pointer, length) = (buffer.ptr_guard_mut().as_ptr(), buffer.len());
        match kind {
            // SAFETY: B1: the buffer is a slice of the mapping, checked by `subslice`.
            Kind::Write => unsafe { self.ring.write_raw(offset, pointer, length, slot) },
            // SAFETY: B1: the buffer is a slice of the mapping, checked by `subslice`.
            Kind::Read => unsafe { self.ring.read_raw(offset, pointer, length, slot) },
            Kind::Flush => self.ring.flush(slot),
        }
    }

    /// Tells the back-end of what was submitted, if it wants to know.
    pub(super) fn kick(&mut self) -> io::Result<()> {
        if self.ring.avail_notif_needed() {
            self.kicks += 1;
            self.kick.notify()?;
        }
        Ok(())
    }

    /// Adds the slots that are completed, and 0 or their errno.
    pub(super) fn completions(&mut self, done: &mut Vec<(u16, i32)>) {
        done.extend(self.ring.completions().map(|completion| (completion.context, -completion.ret)));
    }

    /// How completions are waited for.
    pub(super) const fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// Sleeps until the back-end calls.
    pub(super) fn wait_for_call(&mut self) -> io::Result<()> {
        self.await_call(None)
    }

    /// Counts the calls that were not waited for.
    pub(super) fn drain_calls(&mut self) -> io::Result<()> {
        self.await_call(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    /// Reads the eventfd once it is not zero. A read alone might not wait: back-ends share the open file and may have
    /// made it non-blocking.
    fn await_call(&mut self, limit: Option<&Timespec>) -> io::Result<()> {
        let ready = retry_on_intr(|| poll(&mut [PollFd::new(&*self.call, PollFlags::IN)], limit))?;
        if ready > 0 {
            self.calls += self.call.read()?;
        }
        Ok(())
    }

    /// Stores what a slot is to write.
    pub(super) fn put(&self, slot: u16, block: &[u8]) -> io::Result<()> {
        self.memory.as_volatile_slice().write_slice(block, self.start_of(slot)).map_err(io::Error::other)
    }

    /// Loads what a slot has read.
    pub(super) fn get(&self, slot: u16, block: &mut [u8]) -> io::Result<()> {
        self.memory.as_volatile_slice().read_slice(block, self.start_of(slot)).map_err(io::Error::other)
    }

    fn start_of(&self, slot: u16) -> usize {
        self.first_byte + usize::from(slot) * self.slot_bytes
    }
}
