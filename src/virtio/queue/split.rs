//! The split virtqueue (VIRTIO 1.2 §2.7), walked over host pointers.
//!
//! virtio-queue's `Queue` takes 134 ns for a request of three descriptors without its payload where this
//! walker takes 11 (`crates.md`); it is the oracle of this one's property test.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::chain::{Chain, Completion, Flaw, Head};
use super::layout::area;
use super::notify::{NO_INTERRUPT, NO_NOTIFY, passed};
use super::walk::{
    DESCRIPTOR_BYTES, INDIRECT, NEXT, WRITE, Walk, indirect_len, peek_buffer, read_halves, scratch,
};
use super::{RingAddresses, RingError, RingKind, RingLayout, RingLog, Virtqueue};
use crate::copy::Segment;
use crate::stop_point::{self, Point};
use crate::virtio::memory::{MemoryTable, Translator};

/// A descriptor, read once.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    len_bytes: u32,
    flags: u16,
    next: u16,
}

/// A table of descriptors that is mapped: the ring's own, or an indirect one.
#[derive(Debug, Clone, Copy)]
struct Table {
    base: *const u8,
    len: u16,
}

impl Table {
    #[inline]
    fn read(&self, index: u16) -> Result<Descriptor, RingError> {
        if index >= self.len {
            return Err(RingError::DescriptorIndex(index, self.len));
        }
        let at = self.base.wrapping_add(usize::from(index) * DESCRIPTOR_BYTES as usize);
        // SAFETY: the table's `len` descriptors are mapped (checked when it was made) and index < len.
        let [address, rest] = unsafe { read_halves(at) };
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
        let (flags, next) = (u16::from_le_bytes([f0, f1]), u16::from_le_bytes([n0, n1]));
        Ok(Descriptor { address, len_bytes: u32::from_le_bytes([l0, l1, l2, l3]), flags, next })
    }
}

/// A split ring, running.
#[derive(Debug)]
pub struct SplitQueue {
    table: Table,
    available: *const u8,
    used: *mut u8,
    mask: u16,
    next_avail: u16,
    next_used: u16,
    published: u16,
    event_idx: bool,
    indirect: bool,
    max_indirect: u16,
    /// Scratch for one chain, allocated once: D7.
    segments: Vec<Segment>,
}

// SAFETY: the pointers lead into guest memory that the ring's owner keeps mapped, and only the one thread
// that owns the ring uses them.
unsafe impl Send for SplitQueue {}

impl SplitQueue {
    /// The word at `offset` of the available ring.
    #[inline]
    fn available_word(&self, offset: usize) -> &AtomicU16 {
        let at = self.available.wrapping_add(offset);
        // SAFETY: `offset` is even and inside the area checked in `start`, which stays mapped while the ring
        // lives; the word is only ever accessed atomically.
        unsafe { AtomicU16::from_ptr(at.cast_mut().cast()) }
    }

    /// The word at `offset` of the used ring.
    #[inline]
    fn used_word(&self, offset: usize) -> &AtomicU16 {
        let at = self.used.wrapping_add(offset);
        // SAFETY: as above.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    /// How many chains the driver has made available beyond those taken.
    #[inline]
    fn waiting(&self) -> Result<u16, RingError> {
        let index = u16::from_le(self.available_word(2).load(Ordering::Acquire));
        let ahead = index.wrapping_sub(self.next_avail);
        if ahead > self.table.len {
            return Err(RingError::AvailIndex(ahead, self.table.len));
        }
        Ok(ahead)
    }

    /// Walks a chain to its end, filling `segments` with the readable and then the writable ranges.
    #[inline]
    fn walk(&mut self, head: u16, memory: &mut Translator) -> Result<Walk, RingError> {
        self.segments.clear();
        let mut walk = Walk::default();
        let (mut table, mut index) = (self.table, head);
        let (mut left, mut in_table) = (table.len, false);
        loop {
            left = left.checked_sub(1).ok_or(RingError::EndlessChain)?;
            let descriptor = table.read(index)?;
            if descriptor.flags & INDIRECT != 0 && !in_table {
                if !self.indirect || descriptor.flags & NEXT != 0 {
                    walk.flawed(Flaw::Indirect);
                }
                table = self.indirect_table(&descriptor, memory)?;
                (index, left, in_table) = (0, table.len, true);
                continue;
            }
            if descriptor.flags & INDIRECT != 0 {
                walk.flawed(Flaw::Indirect);
            } else {
                let Descriptor { address, len_bytes, flags, .. } = descriptor;
                walk.take(address, len_bytes, flags & WRITE != 0, memory, &mut self.segments);
            }
            if descriptor.flags & NEXT == 0 {
                break;
            }
            index = descriptor.next;
        }
        walk.end()
    }

    fn indirect_table(&self, descriptor: &Descriptor, memory: &mut Translator) -> Result<Table, RingError> {
        let len = indirect_len(descriptor.len_bytes, self.max_indirect)?;
        let base = memory
            .resolve(descriptor.address, u64::from(descriptor.len_bytes))
            .ok_or(RingError::IndirectUnmapped(descriptor.address))?;
        Ok(Table { base, len })
    }
}

impl Virtqueue for SplitQueue {
    /// Starts a ring where its used index stands: whatever a front-end thinks, that is what was done.
    fn start(layout: &RingLayout, memory: &MemoryTable) -> Result<Self, RingError> {
        let size = RingKind::Split.check_size(layout.size)?;
        let slots = u64::from(size);
        let event_bytes = if layout.event_idx { 2 } else { 0 };
        let RingAddresses { descriptors, available, used } = layout.addresses;
        let table_bytes = slots * u64::from(DESCRIPTOR_BYTES);
        let table = area(memory, "descriptor table", descriptors, table_bytes, 16)?;
        let max_indirect = layout.max_indirect.max(size);
        let mut queue = Self {
            table: Table { base: table, len: size },
            available: area(memory, "available ring", available, 4 + slots * 2 + event_bytes, 2)?,
            used: area(memory, "used ring", used, 4 + slots * 8 + event_bytes, 4)?,
            mask: size.wrapping_sub(1),
            next_avail: 0,
            next_used: 0,
            published: 0,
            event_idx: layout.event_idx,
            indirect: layout.indirect,
            max_indirect,
            segments: scratch(size, max_indirect),
        };
        let start = u16::from_le(queue.used_word(2).load(Ordering::Acquire));
        (queue.next_avail, queue.next_used, queue.published) = (start, start, start);
        Ok(queue)
    }

    #[inline]
    fn pop<'a>(&'a mut self, memory: &'a mut Translator) -> Result<Option<Chain<'a>>, RingError> {
        if self.waiting()? == 0 {
            return Ok(None);
        }
        let slot = usize::from(self.next_avail & self.mask);
        let head = u16::from_le(self.available_word(4 + slot * 2).load(Ordering::Relaxed));
        let walk = self.walk(head, memory);
        // What was read is not the driver's then: no request may be made of it.
        if memory.is_lost() {
            return Err(RingError::GuestMemoryLost);
        }
        let walk = walk?;
        self.next_avail = self.next_avail.wrapping_add(1);
        // SAFETY: the walk has filled `segments` by this translator.
        Ok(Some(unsafe { walk.into_chain(Head::new(head), &mut self.segments, memory) }))
    }

    #[inline]
    fn peek<const N: usize>(&self, ahead: u16, memory: &mut Translator) -> Option<[u8; N]> {
        if self.waiting().ok()? <= ahead {
            return None;
        }
        let slot = usize::from(self.next_avail.wrapping_add(ahead) & self.mask);
        let head = u16::from_le(self.available_word(4 + slot * 2).load(Ordering::Relaxed));
        let mut first = self.table.read(head).ok()?;
        if first.flags & INDIRECT != 0 {
            let base = memory.resolve(first.address, u64::from(DESCRIPTOR_BYTES))?;
            first = Table { base, len: 1 }.read(0).ok()?;
        }
        peek_buffer(first.address, memory)
    }

    #[inline]
    fn has_available(&self) -> bool {
        self.waiting() != Ok(0)
    }

    #[inline]
    fn complete(&mut self, completion: Completion) {
        stop_point::reached(Point::RingStore);
        let slot = usize::from(self.next_used & self.mask);
        let element = [u32::from(completion.head()).to_le(), completion.written_bytes().to_le()];
        let at = self.used.wrapping_add(4 + slot * 8).cast::<[u32; 2]>();
        // SAFETY: the slot is inside the used ring checked in `start`, which is aligned to 4 bytes.
        unsafe { at.write_volatile(element) };
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        stop_point::reached(Point::RingStore);
        self.used_word(2).store(new.to_le(), Ordering::Release);
        self.published = new;
        // The driver writes what it wants and then reads the used index: one of us sees the other.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.available_word(4 + usize::from(self.table.len) * 2);
            return passed(u16::from_le(event.load(Ordering::Relaxed)), new, old);
        }
        u16::from_le(self.available_word(0).load(Ordering::Relaxed)) & NO_INTERRUPT == 0
    }

    #[inline]
    fn park_kicks(&mut self) {
        // With EVENT_IDX an old event index parks by itself: the driver is past it.
        if !self.event_idx {
            self.used_word(0).store(NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    #[inline]
    fn arm_kicks(&mut self) -> bool {
        if self.event_idx {
            let event = self.used_word(4 + usize::from(self.table.len) * 8);
            event.store(self.next_avail.to_le(), Ordering::Relaxed);
        } else {
            self.used_word(0).store(0, Ordering::Relaxed);
        }
        // The driver makes chains available and then reads this: one of us sees the other.
        fence(Ordering::SeqCst);
        self.has_available()
    }

    fn log(&self, log: &RingLog) {
        for number in 0..self.next_used.wrapping_sub(self.published) {
            let slot = u64::from(self.published.wrapping_add(number) & self.mask);
            log.mark_used(4 + slot * 8, 8);
        }
        log.mark_used(0, 4);
        if self.event_idx {
            log.mark_used(4 + u64::from(self.table.len) * 8, 2);
        }
    }

    fn log_all(&self, log: &RingLog) {
        let event_bytes = if self.event_idx { 2 } else { 0 };
        log.mark_used(0, 4 + u64::from(self.table.len) * 8 + event_bytes);
    }

    fn base(&self) -> u32 {
        u32::from(self.next_used)
    }
}
