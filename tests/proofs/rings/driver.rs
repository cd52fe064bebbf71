//! A driver, as simple as it can be, for both kinds of rings: it counts without wrapping, and reads memory only as a driver
//! may. And a device: the ring of `src`, and what chains of it are taken with.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use super::queue::{
    Batch, Bounds, Completion, Next, PackedQueue, RingAddresses, RingKind, RingLayout, SplitQueue, Virtqueue,
};
use crate::copy::PrefetchHint;
use crate::guest::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use crate::virtio::memory::{MemoryTable, RegionSpec, Translator};

const MEMORY_BYTES: u64 = 0x2000;
const AVAILABLE: u64 = 0x80;
const USED: u64 = 0x100;
/// Bytes of the ring: nothing behind them is written by either side, but for the status.
pub const RING_BYTES: usize = 0x180;
const BUFFERS: u64 = 0x1000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u16 = 1 << 7;
const USED_FLAG: u16 = 1 << 15;

/// What a ring is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub kind: RingKind,
    pub size: u16,
    pub event_idx: bool,
    /// Where a split ring's indices stand at first.
    pub start: u16,
}

/// A queue whose hidden state can be asked for.
pub trait Queue: Virtqueue + Clone + Send + 'static {
    fn hidden(&self) -> u16;
}

impl Queue for SplitQueue {
    fn hidden(&self) -> u16 {
        SplitQueue::hidden(self)
    }
}

impl Queue for PackedQueue {
    fn hidden(&self) -> u16 {
        PackedQueue::hidden(self)
    }
}

/// The memory that both share.
#[derive(Debug, Clone)]
pub struct Guest {
    table: Arc<MemoryTable>,
    base: usize,
    pub shape: Shape,
}

impl Guest {
    pub fn new(shape: Shape) -> Self {
        let file = File::from(rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY_BYTES).unwrap();
        let spec = RegionSpec {
            guest_start: 0,
            len_bytes: MEMORY_BYTES,
            user_start: 0,
            file_offset: 0,
            file,
            charge: None,
        };
        let table = Arc::new(MemoryTable::map(vec![spec]).unwrap());
        let base = table.resolve_user(0, 1).unwrap().expose_provenance();
        Self { table, base, shape }
    }

    /// In a model: its words are loom's from now on, all zero but for the indices.
    pub fn begin(&self) {
        let (at, size) = (|offset: u64| self.base + offset as usize, usize::from(self.shape.size));
        match self.shape.kind {
            RingKind::Split => crate::guest::begin(&[
                (at(0), 8, size * 2),
                (at(AVAILABLE), 2, 3 + size),
                (at(USED), 2, 2),
                (at(USED + 4), 4, size * 2),
                (at(USED + 4) + size * 8, 2, 1),
            ]),
            RingKind::Packed => {
                crate::guest::begin(&[(at(0), 8, size * 2), (at(AVAILABLE), 4, 1), (at(USED), 2, 2)])
            }
        }
        self.place();
    }

    /// Outside of one: all zero but for the indices.
    pub fn clear(&self) {
        self.restore(&[0; RING_BYTES]);
        self.place();
    }

    fn place(&self) {
        if matches!(self.shape.kind, RingKind::Split) {
            self.u16(AVAILABLE + 2).store(self.shape.start, Ordering::Relaxed);
            self.u16(USED + 2).store(self.shape.start, Ordering::Relaxed);
        }
    }

    pub fn snapshot(&self) -> [u8; RING_BYTES] {
        // SAFETY: mapped, and nobody else is there.
        unsafe { std::ptr::with_exposed_provenance::<[u8; RING_BYTES]>(self.base).read() }
    }

    pub fn restore(&self, bytes: &[u8; RING_BYTES]) {
        // SAFETY: mapped as long as the table, and aligned.
        unsafe { std::ptr::with_exposed_provenance_mut::<[u8; RING_BYTES]>(self.base).write(*bytes) };
    }

    fn at<T>(&self, offset: u64) -> *mut T {
        std::ptr::with_exposed_provenance_mut(self.base + offset as usize)
    }

    fn u16(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: mapped as long as the table, and aligned.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }
    }

    fn u32(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: mapped as long as the table, and aligned.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }
    }

    fn u64(&self, offset: u64) -> &AtomicU64 {
        // SAFETY: mapped as long as the table, and aligned.
        unsafe { AtomicU64::from_ptr(self.at(offset)) }
    }
}

/// How many slots a chain takes, its id, and how many bytes the device is to say that it wrote.
pub type Offered = (u16, u16, u32);

#[derive(Debug, Clone)]
pub struct Driver {
    guest: Guest,
    /// Chains made available, and slots; the same of those that came back. They never wrap.
    pub chains: u16,
    slots: u16,
    reaped_chains: u16,
    reaped_slots: u16,
    /// Slots when it last checked whether to kick.
    checked: u16,
    checked_chains: u16,
    /// What is under way, in order.
    pub under_way: VecDeque<Offered>,
}

impl Driver {
    pub fn new(guest: &Guest) -> Self {
        let (guest, under_way) = (guest.clone(), VecDeque::new());
        Self {
            guest,
            chains: 0,
            slots: 0,
            reaped_chains: 0,
            reaped_slots: 0,
            checked: 0,
            checked_chains: 0,
            under_way,
        }
    }

    fn size(&self) -> u16 {
        self.guest.shape.size
    }

    fn is_split(&self) -> bool {
        matches!(self.guest.shape.kind, RingKind::Split)
    }

    /// What it knows, as far as it matters to what comes.
    pub fn key(&self) -> impl std::hash::Hash + use<> {
        let counts = [self.chains, self.slots, self.reaped_chains, self.reaped_slots, self.checked];
        (counts, self.under_way.clone())
    }

    pub fn has_room(&self, slots: u16) -> bool {
        self.slots - self.reaped_slots + slots <= self.size()
    }

    pub fn has_to_check(&self) -> bool {
        self.slots != self.checked
    }

    /// Makes a chain available: with one descriptor a status alone, with two a header before it, with three data between them.
    pub fn offer(&mut self, slots: u16) -> Offered {
        let head = self.slots % self.size();
        let id = if self.is_split() { head } else { self.slots % 7 * 257 + 9 };
        let offered = (slots, id, u32::from(self.chains) + 1);
        let lens: &[u32] = match slots {
            1 => &[1],
            2 => &[16, 1],
            _ => &[16, 32, 1],
        };
        for (number, len) in (0..slots).zip(lens).rev() {
            let is_last = number + 1 == slots;
            let flags = if is_last { WRITE } else { NEXT };
            let address = BUFFERS + u64::from(self.slots + number) * 64 % 0x800;
            let slot = self.slots + number;
            let at = u64::from(slot % self.size()) * 16;
            let (flags, last) = match self.is_split() {
                true => (flags, (slot + 1) % self.size()),
                false => (id, flags | self.marks(slot, AVAIL, USED_FLAG)),
            };
            self.guest.u64(at).store(address, Ordering::Relaxed);
            let second = u64::from(*len) | u64::from(flags) << 32 | u64::from(last) << 48;
            // In a packed ring the first slot's flags make the chain available.
            self.guest.u64(at + 8).store(second, Ordering::Release);
        }
        self.chains += 1;
        self.slots += slots;
        if self.is_split() {
            let index = self.guest.shape.start.wrapping_add(self.chains - 1);
            self.guest.u16(AVAILABLE + 4 + u64::from(index % self.size()) * 2).store(head, Ordering::Relaxed);
            self.guest.u16(AVAILABLE + 2).store(index.wrapping_add(1), Ordering::Release);
        }
        self.under_way.push_back(offered);
        offered
    }

    /// A slot's marks, in a pass whose wrap counter is 1 or 0.
    fn marks(&self, slot: u16, odd: u16, even: u16) -> u16 {
        if (slot / self.size()).is_multiple_of(2) { odd } else { even }
    }

    /// Whether the device wants to be told of what was made available since the last time.
    pub fn kick_is_wanted(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.checked_chains, self.chains);
        (self.checked, self.checked_chains) = (self.slots, self.chains);
        match self.guest.shape {
            Shape { kind: RingKind::Packed, .. } => self.guest.u16(USED + 2).load(Ordering::Relaxed) != 1,
            Shape { event_idx: true, start, .. } => {
                let event = self.guest.u16(USED + 4 + u64::from(self.size()) * 8).load(Ordering::Relaxed);
                // Walked, not reckoned: whether one of the new ones has the number that the device has named.
                (old..new).any(|chain| start.wrapping_add(chain) == event)
            }
            _ => self.guest.u16(USED).load(Ordering::Relaxed) & 1 == 0,
        }
    }

    /// It polls the ring anyway.
    pub fn park_calls(&self) {
        match self.guest.shape {
            Shape { kind: RingKind::Packed, .. } => {
                self.guest.u32(AVAILABLE).store(1 << 16, Ordering::Relaxed)
            }
            Shape { event_idx: false, .. } => self.guest.u16(AVAILABLE).store(1, Ordering::Relaxed),
            _ => {}
        }
    }

    /// It wants to be called when the chain that is `ahead` after the next one to come back does; returns whether that is so
    /// already.
    pub fn want_call(&self, ahead: u16) -> bool {
        let at = self.reaped_chains + ahead;
        let slot =
            self.reaped_slots + self.under_way.iter().take(usize::from(ahead)).map(|it| it.0).sum::<u16>();
        match self.guest.shape {
            Shape { kind: RingKind::Packed, event_idx: true, .. } => {
                let off_wrap = slot % self.size() | self.marks(slot, 1 << 15, 0);
                self.guest.u32(AVAILABLE).store(u32::from(off_wrap) | 2 << 16, Ordering::Relaxed);
            }
            Shape { kind: RingKind::Packed, .. } => self.guest.u32(AVAILABLE).store(0, Ordering::Relaxed),
            Shape { event_idx: true, start, .. } => {
                let event = self.guest.u16(AVAILABLE + 4 + u64::from(self.size()) * 2);
                event.store(start.wrapping_add(at), Ordering::Relaxed);
            }
            _ => self.guest.u16(AVAILABLE).store(0, Ordering::Relaxed),
        }
        fence(Ordering::SeqCst);
        self.has_used(at, slot)
    }

    /// Whether the chain of this number has come back, which begins in this slot.
    fn has_used(&self, chain: u16, slot: u16) -> bool {
        if self.is_split() {
            let index = self.guest.u16(USED + 2).load(Ordering::Acquire);
            return index.wrapping_sub(self.guest.shape.start).wrapping_sub(chain).cast_signed() > 0;
        }
        let at = u64::from(slot % self.size()) * 16;
        let flags = (self.guest.u64(at + 8).load(Ordering::Acquire) >> 48) as u16;
        flags & (AVAIL | USED_FLAG) == self.marks(slot, AVAIL | USED_FLAG, 0)
    }

    /// Takes the next chain that came back: it must be the first under way. Returns whether there was one.
    pub fn reap(&mut self) -> Result<bool, String> {
        let Some(&(slots, id, written)) = self.under_way.front() else { return Ok(false) };
        if !self.has_used(self.reaped_chains, self.reaped_slots) {
            return Ok(false);
        }
        let found = if self.is_split() {
            let index = self.guest.shape.start.wrapping_add(self.reaped_chains);
            let at = USED + 4 + u64::from(index % self.size()) * 8;
            [at, at + 4].map(|at| self.guest.u32(at).load(Ordering::Relaxed))
        } else {
            let at = u64::from(self.reaped_slots % self.size()) * 16;
            let second = self.guest.u64(at + 8).load(Ordering::Relaxed);
            [(second >> 32) as u16 as u32, second as u32]
        };
        if found != [u32::from(id), written] {
            return Err(format!("came back: {found:?}, not {id} with {written} bytes"));
        }
        self.under_way.pop_front();
        self.reaped_chains += 1;
        self.reaped_slots += slots;
        Ok(true)
    }

    /// Whether nothing is used but what was reaped.
    pub fn has_more_to_reap(&self) -> bool {
        !self.under_way.is_empty() && self.has_used(self.reaped_chains, self.reaped_slots)
    }
}

/// A device's end of the ring.
pub struct Device<Q> {
    guest: Guest,
    pub queue: Q,
    batch: Batch,
}

impl<Q: Queue> Device<Q> {
    pub fn start(guest: &Guest) -> Self {
        let Shape { kind, size, event_idx, .. } = guest.shape;
        let addresses = RingAddresses { descriptors: 0, available: AVAILABLE, used: USED };
        let layout = RingLayout { kind, size: size.into(), addresses, base: 0, event_idx, indirect: false };
        let queue = Q::start(&layout, &guest.table).unwrap();
        Self { guest: guest.clone(), queue, batch: Batch::new(Translator::new(guest.table.clone())) }
    }

    /// Takes the next chain, as a worker does, and completes it with so many bytes; but for giving that back.
    pub fn take(&mut self, written: u32) -> Result<Option<(u16, u16, Completion)>, String> {
        let bounds = Bounds { chains: 1, bytes: 1 << 20 };
        let next = self.queue.take_contiguous(&mut self.batch, bounds, |_| Some(PrefetchHint::NONE));
        let next = next.map_err(|error| error.to_string())?;
        if let Some(chain) = self.batch.drain(1).next() {
            let address = chain.data().as_slice()[0].ptr().addr() - self.guest.base;
            let completion = chain.into_chain().head.complete(written);
            return Ok(Some((3, slot_of(address - 64), completion)));
        }
        if next == Next::Nothing {
            return Ok(None);
        }
        let chain = self.queue.pop(self.batch.memory()).map_err(|error| error.to_string())?;
        Ok(chain.map(|chain| {
            let slots = if chain.flaw.is_none() { 2 + chain.writable.as_slice().len() as u16 } else { 1 };
            let completion = chain.head.complete(written);
            (slots, u16::MAX, completion)
        }))
    }
}

/// Which slot, since the beginning, a buffer is of; but for whole turns of all buffers.
const fn slot_of(address: usize) -> u16 {
    ((address - BUFFERS as usize) / 64) as u16
}
