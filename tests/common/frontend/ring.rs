//! A split ring laid out by hand: every field can hold anything (VIRTIO 1.2 §2.7).

use super::bell::Bell;
use super::memory::{Memory, USER_BASE};
use super::request::{Answer, Request};

/// Descriptor flag: the chain goes on at `next`.
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

/// Flag of the used ring: the device does not want to be kicked.
const NO_NOTIFY: u16 = 1;

/// What a status byte holds before the device writes it.
pub const NO_STATUS: u8 = 0xee;

/// What a read's buffer holds before the device writes it.
pub const NO_DATA: u8 = 0xa5;

/// One entry of a descriptor table.
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
        let [length, flags, next] =
            [u64::from(self.len), u64::from(self.flags) << 32, u64::from(self.next) << 48];
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..].copy_from_slice(&(length | flags | next).to_le_bytes());
        bytes
    }
}

/// Guest addresses of one request's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// 16 bytes.
    pub header: u64,
    /// One byte.
    pub status: u64,
    /// [`DATA_BYTES`] bytes.
    pub data: u64,
}

/// An entry of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes written to it.
    pub bytes: u32,
}

/// The driver's side of a queue.
#[derive(Debug)]
pub struct Ring {
    /// Number of the queue.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// Where everything is.
    pub memory: Memory,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// EVENT_IDX is negotiated.
    pub event_idx: bool,
    /// New requests are notified here.
    pub kick: Bell,
    /// Completions are notified here.
    pub call: Bell,
    /// A broken ring is notified here.
    pub err: Bell,
    frames: u64,
    /// Requests submitted by [`Ring::submit`], modulo the number of slots the next one's place.
    submitted: usize,
    /// What this side has written to the available index.
    offered: u16,
    /// What this side has taken from the used ring.
    seen: u16,
    /// The available index at the last notification, or when none was wanted.
    notified: u16,
}

impl Ring {
    /// A ring of `size` descriptors at new addresses in the first region of `memory`.
    pub fn new(memory: &Memory, index: u16, size: u16, event_idx: bool) -> Self {
        let slots = u64::from(size);
        let frames = u64::from(size / SLOT_DESCRIPTORS).max(1) * FRAME_BYTES;
        Self {
            index,
            size,
            memory: memory.clone(),
            descriptors: memory.allocate(slots * DESCRIPTOR_BYTES, 16),
            available: memory.allocate(6 + slots * 2, 2),
            used: memory.allocate(6 + slots * 8, 4),
            event_idx,
            kick: Bell::new(),
            call: Bell::new(),
            err: Bell::new(),
            frames: memory.allocate(frames, 4096),
            submitted: 0,
            offered: 0,
            seen: 0,
            notified: 0,
        }
    }

    /// Empties the ring as a driver does that begins anew.
    pub fn reset(&mut self) {
        let slots = usize::from(self.size);
        self.memory.fill(self.available, 6 + slots * 2, 0);
        self.memory.fill(self.used, 6 + slots * 8, 0);
        (self.submitted, self.offered, self.seen, self.notified) = (0, 0, 0, 0);
        self.call.take();
        self.err.take();
    }

    /// Makes a ring that was not used yet look as if `index` requests were done.
    pub fn begin_at(&mut self, index: u16) {
        self.memory.store_u16(self.available + 2, index);
        self.memory.store_u16(self.used + 2, index);
        (self.offered, self.seen, self.notified) = (index, index, index);
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
    pub fn frame(&self, slot: usize) -> Frame {
        let start = self.frames + slot as u64 * FRAME_BYTES;
        Frame { header: start, status: start + 2048, data: start + 4096 }
    }

    /// Writes one entry of the descriptor table.
    pub fn put(&self, index: u16, descriptor: Descriptor) {
        self.memory.write(self.descriptors + u64::from(index) * DESCRIPTOR_BYTES, &descriptor.to_bytes());
    }

    /// Makes the chain that begins at `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size);
        self.memory.store_u16(self.available + 4 + slot * 2, head);
        self.set_offered(self.offered.wrapping_add(1));
    }

    /// Writes the available index.
    pub fn set_offered(&mut self, index: u16) {
        self.offered = index;
        self.memory.store_u16(self.available + 2, index);
    }

    /// The available index as this side has written it.
    pub fn offered(&self) -> u16 {
        self.offered
    }

    /// Kicks as a driver does that has made chains available: only if the device wants it (§2.7.10).
    pub fn notify(&mut self) {
        let (old, new) = (self.notified, self.offered);
        self.notified = new;
        let is_wanted = if self.event_idx {
            let event = self.memory.load_u16(self.used + 4 + u64::from(self.size) * 8);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.memory.load_u16(self.used) & NO_NOTIFY == 0
        };
        if is_wanted {
            self.kick.ring();
        }
    }

    /// The used index as the device has written it.
    pub fn used_index(&self) -> u16 {
        self.memory.load_u16(self.used + 2)
    }

    /// Takes the next entry of the used ring, if there is one.
    pub fn next_used(&mut self) -> Option<Used> {
        if self.used_index() == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % self.size);
        let entry = self.memory.read(self.used + 4 + slot * 8, 8);
        let field = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        self.seen = self.seen.wrapping_add(1);
        Some(Used { head: u16::try_from(field(0)).unwrap(), bytes: field(4) })
    }

    /// Waits for the next entry of the used ring; looks at it only when notified.
    pub fn wait(&mut self) -> Used {
        loop {
            if self.event_idx {
                let event = self.available + 4 + u64::from(self.size) * 2;
                self.memory.store_u16(event, self.seen);
            }
            if let Some(used) = self.next_used() {
                return used;
            }
            self.call.wait(&format!("ring {} completes entry {}", self.index, self.seen));
        }
    }

    /// Lays out a request as three descriptors (two without data) and makes it available. Returns the head.
    pub fn submit(&mut self, request: &Request) -> u16 {
        let slot = self.submitted % self.slots();
        let head = slot as u16 * SLOT_DESCRIPTORS;
        let parts = self.fill_frame(slot, request);
        for (at, (address, len, flags)) in parts.iter().enumerate() {
            let index = head + at as u16;
            let next = if at + 1 < parts.len() { NEXT } else { 0 };
            self.put(
                index,
                Descriptor { address: *address, len: *len, flags: flags | next, next: index + 1 },
            );
        }
        self.submitted += 1;
        self.offer(head);
        head
    }

    /// What became of a request made by [`Ring::submit`].
    pub fn answer(&self, request: &Request, used: Used) -> Answer {
        let frame = self.frame(usize::from(used.head / SLOT_DESCRIPTORS));
        let data = self.memory.read(frame.data, request.writable_bytes as usize);
        Answer { status: self.memory.read(frame.status, 1)[0], used_bytes: used.bytes, data }
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
    fn fill_frame(&self, slot: usize, request: &Request) -> Vec<(u64, u32, u16)> {
        let frame = self.frame(slot);
        let readable = request.payload.len() as u32;
        assert!(u64::from(readable.max(request.writable_bytes)) <= DATA_BYTES);
        assert!(readable == 0 || request.writable_bytes == 0, "the frame has one place for data");
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
