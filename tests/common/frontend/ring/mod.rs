//! A ring laid out by hand, split or packed: every field can hold anything (VIRTIO 1.2 §2.7, §2.8).

pub mod packed;
mod split;

use std::fmt::Debug;
use std::ops::{Deref, DerefMut};

use self::packed::Packed;
use self::split::Split;
use super::event_fd::SharedEventFd;
use super::memory::{Memory, USER_BASE};
use super::request::{Answer, Request};
use super::{EVENT_IDX, RING_PACKED};

/// Descriptor flag: the chain goes on.
pub const NEXT: u16 = 1;
/// Descriptor flag: for the device to write.
pub const WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Length of a descriptor in bytes.
pub const DESCRIPTOR_BYTES: u64 = 16;

/// Most data in a request made by [`Ring::submit`], in bytes.
pub const DATA_BYTES: u64 = 32 << 10;

/// Memory of one request: a page for header and status, and the data.
const FRAME_BYTES: u64 = 4096 + DATA_BYTES;

/// Descriptors that [`Ring::submit`] may use for one request.
const SLOT_DESCRIPTORS: u16 = 4;

/// What a status byte holds before the device writes it.
pub const NO_STATUS: u8 = 0xee;

/// What a read's buffer holds before the device writes it.
pub const NO_DATA: u8 = 0xa5;

/// A descriptor without its place in a chain: address, bytes, flags.
pub type Part = (u64, u32, u16);

/// One entry of a split ring's descriptor table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one, if [`NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; DESCRIPTOR_BYTES as usize] {
        bytes_of(self.address, self.len, self.flags, self.next)
    }
}

/// A descriptor of either kind: the last two words are what the kind makes of them.
fn bytes_of(address: u64, len: u32, word: u16, last: u16) -> [u8; DESCRIPTOR_BYTES as usize] {
    let rest = u64::from(len) | u64::from(word) << 32 | u64::from(last) << 48;
    let mut bytes = [0; DESCRIPTOR_BYTES as usize];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..].copy_from_slice(&rest.to_le_bytes());
    bytes
}

/// Guest addresses of one request's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestBuffers {
    /// 16 bytes.
    pub header: u64,
    /// One byte.
    pub status: u64,
    /// [`DATA_BYTES`] bytes.
    pub data: u64,
}

/// A chain that the device has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain, or its buffer id.
    pub head: u16,
    /// Bytes written to it.
    pub bytes: u32,
}

/// Where a ring is, and how both sides notify each other: all that a back-end is told of it. Clones share it.
#[derive(Debug, Clone)]
pub struct Vring {
    /// Number of the queue.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// Where everything is.
    pub memory: Memory,
    /// Guest address of the descriptor table, or of the descriptor ring.
    pub descriptors: u64,
    /// Guest address of the available ring, or of the driver area.
    pub available: u64,
    /// Guest address of the used ring, or of the device area.
    pub used: u64,
    /// EVENT_IDX is negotiated.
    pub event_idx: bool,
    /// New requests are notified here.
    pub kick: SharedEventFd,
    /// Completions are notified here.
    pub call: SharedEventFd,
    /// A broken ring is notified here.
    pub err: SharedEventFd,
}

/// What a driver does with a ring of either kind. Chains are counted from the ring's start on, modulo 2^16.
trait DriverSide: Debug + Send {
    /// Bytes of the three areas, in the order of [`Vring`], each with its alignment.
    fn bytes(&self, size: u16) -> [(u64, u64); 3];
    /// Begins anew; the areas are empty.
    fn reset(&mut self);
    /// Sets the indices of a ring that was not used yet as if so many chains were done.
    fn begin_at(&mut self, at: &Vring, chains: u16);
    /// Lays out a chain that is not available yet, with this head or buffer id. All parts but the last lead on.
    fn prepare(&mut self, at: &Vring, head: u16, parts: &[Part]);
    /// Makes all chains available that were laid out, with one store.
    fn make_available(&mut self, at: &Vring);
    /// Chains made available.
    fn available_index(&self) -> u16;
    /// Chains used by the device.
    fn done(&self, at: &Vring) -> u16;
    /// Takes the next chain that was used.
    fn next_used(&mut self, at: &Vring) -> Option<Used>;
    /// Whether the device wants to hear of the chains made available since this was asked last.
    fn wants_kick(&mut self, at: &Vring) -> bool;
    /// With event indices: asks for a call once so many more chains, each of so many descriptors, are used than were
    /// taken so far, and one more.
    fn name_event(&mut self, at: &Vring, chains: u16, descriptors: u16);
    /// Asks for calls, or for none.
    fn set_calls(&mut self, at: &Vring, wanted: bool);
    /// How `GET_VRING_BASE` says it that everything used was taken.
    fn used_base(&self, at: &Vring) -> u32;
    /// The same for everything that was made available.
    fn available_base(&self, at: &Vring) -> u32;
    /// An indirect table of these parts, as it lies in memory.
    fn table(&self, parts: &[Part]) -> Vec<u8>;
}

/// What a driver keeps to itself.
#[derive(Debug)]
enum Kind {
    Split(Split),
    Packed(Packed),
}

/// The driver's side of a queue.
#[derive(Debug)]
pub struct Ring {
    vring: Vring,
    kind: Kind,
    frames: u64,
    /// Requests submitted by [`Ring::submit`], modulo the number of slots the next one's place.
    submitted: usize,
}

impl Deref for Ring {
    type Target = Vring;

    fn deref(&self) -> &Vring {
        &self.vring
    }
}

impl DerefMut for Ring {
    fn deref_mut(&mut self) -> &mut Vring {
        &mut self.vring
    }
}

impl Ring {
    /// A ring of `size` descriptors at new addresses in the first region of `memory`, as these feature bits say.
    pub fn new(memory: &Memory, index: u16, size: u16, features: u64) -> Self {
        Self::aligned(memory, index, size, features, 1)
    }

    /// As [`Self::new`], but no two of the areas in one page.
    pub fn on_pages(memory: &Memory, index: u16, size: u16, features: u64) -> Self {
        Self::aligned(memory, index, size, features, 4096)
    }

    fn aligned(memory: &Memory, index: u16, size: u16, features: u64, least: u64) -> Self {
        let kind = match features & RING_PACKED {
            0 => Kind::Split(Split::default()),
            _ => Kind::Packed(Packed::default()),
        };
        let [descriptors, available, used] = kind
            .side()
            .bytes(size)
            .map(|(bytes, alignment)| memory.allocate(bytes.next_multiple_of(least), alignment.max(least)));
        let frames = u64::from(size / SLOT_DESCRIPTORS).max(1) * FRAME_BYTES;
        let frames = memory.allocate(frames, 4096);
        let vring = Vring {
            index,
            size,
            memory: memory.clone(),
            descriptors,
            available,
            used,
            event_idx: features & EVENT_IDX != 0,
            kick: SharedEventFd::new(),
            call: SharedEventFd::new(),
            err: SharedEventFd::new(),
        };
        Self { vring, kind, frames, submitted: 0 }
    }

    fn side(&mut self) -> (&mut dyn DriverSide, &Vring) {
        match &mut self.kind {
            Kind::Split(split) => (split, &self.vring),
            Kind::Packed(packed) => (packed, &self.vring),
        }
    }

    fn split(&mut self) -> (&mut Split, &Vring) {
        match &mut self.kind {
            Kind::Split(split) => (split, &self.vring),
            Kind::Packed(_) => panic!("that is for a split ring"),
        }
    }

    /// All that a back-end is told of it.
    pub fn vring(&self) -> Vring {
        self.vring.clone()
    }

    /// Whether it is a packed one.
    pub fn is_packed(&self) -> bool {
        matches!(self.kind, Kind::Packed(_))
    }

    /// Empties the ring as a driver does that begins anew.
    pub fn reset(&mut self) {
        let bytes = self.kind.side().bytes(self.size);
        for (address, (bytes, _)) in [self.descriptors, self.available, self.used].into_iter().zip(bytes) {
            self.memory.fill(address, bytes as usize, 0);
        }
        self.side().0.reset();
        self.submitted = 0;
        self.call.take();
        self.err.take();
    }

    /// Makes a ring that was not used yet as it is after so many chains, in a packed ring of one descriptor each.
    pub fn begin_at(&mut self, chains: u16) {
        let (side, at) = self.side();
        side.begin_at(at, chains);
    }

    /// The address in the front-end's own space under which a guest address is announced.
    pub fn user(address: u64) -> u64 {
        USER_BASE.wrapping_add(address)
    }

    /// Requests that [`Ring::submit`] can have under way.
    pub fn slots(&self) -> usize {
        usize::from((self.size / SLOT_DESCRIPTORS).max(1))
    }

    /// Memory of the request in this slot.
    pub fn buffers(&self, slot: usize) -> RequestBuffers {
        let start = self.frames + slot as u64 * FRAME_BYTES;
        RequestBuffers { header: start, status: start + 2048, data: start + 4096 }
    }

    /// Writes one entry of a split ring's descriptor table.
    pub fn put(&self, index: u16, descriptor: Descriptor) {
        self.memory.write(self.descriptors + u64::from(index) * DESCRIPTOR_BYTES, &descriptor.to_bytes());
    }

    /// Makes the chain of a split ring available that begins at `head`.
    pub fn offer(&mut self, head: u16) {
        let (split, at) = self.split();
        split.announce(at, head);
        split.make_available(at);
    }

    /// Writes a split ring's available index.
    pub fn set_available_index(&mut self, index: u16) {
        let (split, at) = self.split();
        split.set_available_index(at, index);
    }

    /// Lays out a chain that is not available yet: it has this head, and its descriptors are those from there on; in
    /// a packed ring it has this buffer id, and the next descriptors. All parts but the last lead on.
    pub fn prepare(&mut self, head: u16, parts: &[Part]) {
        let (side, at) = self.side();
        side.prepare(at, head, parts);
    }

    /// Makes all chains available that were laid out, with one store.
    pub fn make_available(&mut self) {
        let (side, at) = self.side();
        side.make_available(at);
    }

    /// Lays out a chain and makes it available.
    pub fn chain(&mut self, head: u16, parts: &[Part]) {
        self.prepare(head, parts);
        self.make_available();
    }

    /// Writes an indirect table of these parts.
    pub fn put_table(&self, address: u64, parts: &[Part]) {
        self.memory.write(address, &self.kind.side().table(parts));
    }

    /// A chain that never ends breaks the ring.
    pub fn break_it(&mut self) {
        let header = self.buffers(0).header;
        if self.is_packed() {
            self.chain(0, &vec![(header, 16, NEXT); usize::from(self.size)]);
        } else {
            self.put(0, Descriptor { address: header, len: 16, flags: NEXT, next: 0 });
            self.offer(0);
        }
        self.kick.signal();
    }

    /// How many chains this side has made available, modulo 2^16.
    pub fn available_index(&self) -> u16 {
        self.kind.side().available_index()
    }

    /// Kicks as a driver does that has made chains available: only if the device wants it (§2.7.10, §2.8.21.3.1).
    pub fn notify(&mut self) {
        let (side, at) = self.side();
        if side.wants_kick(at) {
            self.kick.signal();
        }
    }

    /// How many chains the device has used: a split ring's used index.
    pub fn used_index(&self) -> u16 {
        self.kind.side().done(&self.vring)
    }

    /// Where the device stands that has used [`Self::used_index`] chains, as `GET_VRING_BASE` says it.
    pub fn used_base(&self) -> u32 {
        self.kind.side().used_base(&self.vring)
    }

    /// Where it will stand that has used all chains that are available.
    pub fn available_base(&self) -> u32 {
        self.kind.side().available_base(&self.vring)
    }

    /// Takes the next chain that was used, if there is one.
    pub fn next_used(&mut self) -> Option<Used> {
        let (side, at) = self.side();
        side.next_used(at)
    }

    /// With event indices: asks for a call when so many chains more are used than were taken so far, and one more. Each
    /// has so many descriptors.
    pub fn name_event(&mut self, chains: u16, descriptors: u16) {
        let (side, at) = self.side();
        side.name_event(at, chains, descriptors);
    }

    /// Without event indices: asks for calls, or for none.
    pub fn set_calls(&mut self, wanted: bool) {
        let (side, at) = self.side();
        side.set_calls(at, wanted);
    }

    /// Waits for the next chain to be used; reads the ring only when notified.
    pub fn wait(&mut self) -> Used {
        loop {
            if self.event_idx {
                self.name_event(0, 0);
            }
            if let Some(used) = self.next_used() {
                return used;
            }
            self.call.wait(&format!("ring {} uses chain {}", self.index, self.used_index()));
        }
    }

    /// Lays out a request as three descriptors (two without data) and makes it available. Returns the head.
    pub fn submit(&mut self, request: &Request) -> u16 {
        let slot = self.submitted % self.slots();
        let head = slot as u16 * SLOT_DESCRIPTORS;
        let parts = self.fill_frame(slot, request);
        self.submitted += 1;
        self.chain(head, &parts);
        head
    }

    /// What became of a request made by [`Ring::submit`].
    pub fn answer(&self, request: &Request, used: Used) -> Answer {
        let frame = self.buffers(usize::from(used.head / SLOT_DESCRIPTORS));
        let data = self.memory.read(frame.data, request.writable_bytes as usize);
        Answer { status: self.memory.read(frame.status, 1)[0], used_bytes: used.bytes, data }
    }

    /// Reads `bytes` from `sector` on to `data`, a guest address that need not be the ring's memory; returns the status.
    pub fn read_to(&mut self, sector: u64, data: u64, bytes: u32) -> u8 {
        let frame = self.buffers(0);
        self.memory.write(frame.header, &Request::read(sector, bytes).header());
        self.memory.fill(frame.status, 1, NO_STATUS);
        self.chain(0, &[(frame.header, 16, 0), (data, bytes, WRITE), (frame.status, 1, WRITE)]);
        self.kick.signal();
        assert_eq!(self.wait().head, 0);
        self.memory.read(frame.status, 1)[0]
    }

    /// Does one request alone.
    pub fn run(&mut self, request: &Request) -> Answer {
        let head = self.submit(request);
        self.notify();
        let used = self.wait();
        assert_eq!(used.head, head, "the only request is the one that completes");
        self.answer(request, used)
    }

    /// Addresses, lengths and directions of a request's parts.
    fn fill_frame(&self, slot: usize, request: &Request) -> Vec<Part> {
        let frame = self.buffers(slot);
        let readable = request.payload.len() as u32;
        assert!(u64::from(readable.max(request.writable_bytes)) <= DATA_BYTES);
        assert!(readable == 0 || request.writable_bytes == 0, "a request has one place for data");
        self.memory.write(frame.header, &request.header());
        self.memory.fill(frame.status, 1, NO_STATUS);
        self.memory.write(frame.data, &request.payload);
        let mut parts = vec![(frame.header, 16, 0)];
        if readable > 0 {
            parts.push((frame.data, readable, 0));
        }
        if request.writable_bytes > 0 {
            self.memory.fill(frame.data, request.writable_bytes as usize, NO_DATA);
            parts.push((frame.data, request.writable_bytes, WRITE));
        }
        parts.push((frame.status, 1, WRITE));
        parts
    }
}

impl Kind {
    fn side(&self) -> &dyn DriverSide {
        match self {
            Self::Split(split) => split,
            Self::Packed(packed) => packed,
        }
    }
}
