//! The packed virtqueue (VIRTIO 1.2 §2.8), walked over host pointers.
//!
//! There is no used index in memory; a ring started anew finds its place all the same (`architecture.md`, D2):
//!
//! - A chain's used descriptor is one store of 8 bytes at its head, and chains are published in order. What is
//!   published at any instant is a prefix of what was fetched.
//! - Before that store the USED bits of the chain's other slots are set as well. Drivers pass them over, and they
//!   write their own inverse of the wrap counter there, which is what the bit is then: so only the device ever
//!   changes a USED bit, and the slots used in this pass are those whose bit equals the wrap counter.
//! - After a batch, the place is recorded in the device area where an event offset could be, which a driver reads
//!   only if the flags beside it say so: ours never do. A crash between the two leaves a record that is behind by
//!   slots that all bear the mark.
//!
//! - All slots that it gives back bear our mark besides. What a device of another make has used since our record does
//!   not.
//!
//! So the place is the first slot without the mark, from the record on. The front-end's base counts in a ring
//! that has no record of ours, or one that its slots contradict; a base that its slots contradict is refused.

#![allow(unsafe_code)]

mod contiguous;
mod position;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use self::position::Position;
use super::chain::{Chain, Completion, Flaw, Head, Header};
use super::chain_builder::{
    ChainBuilder, DESCRIPTOR_BYTES, INDIRECT, NEXT, WRITE, indirect_len, peek_buffer, read_halves,
    segment_buffer,
};
use super::contiguous::{Batch, Bounds, Next};
use super::layout::{EVENT_BYTES, area};
use super::notify::passed;
use super::{MAX_CHAIN, RingError, RingKind, RingLayout, RingLog, Virtqueue};
use crate::copy::{PrefetchHint, Segment};
use crate::failpoint::{self, Point};
use crate::virtio::memory::{BufferKind, MemoryTable, Translator};

/// Descriptor flags (VIRTIO 1.2 §2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Marks what we have used, by a flag that means nothing: drivers look at the two above in what they get back, and
/// write all flags anew.
const OURS: u16 = 1 << 14;

/// Event suppression (VIRTIO 1.2 §2.8.10): notify always, never, or of one descriptor.
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const ONE_DESCRIPTOR: u16 = 2;

/// A descriptor, read once.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    len_bytes: u32,
    id: u16,
    flags: u16,
}

impl Descriptor {
    #[inline]
    fn of([address, rest]: [u64; 2]) -> Self {
        let [l0, l1, l2, l3, i0, i1, f0, f1] = rest.to_le_bytes();
        let (id, flags) = (u16::from_le_bytes([i0, i1]), u16::from_le_bytes([f0, f1]));
        Self { address, len_bytes: u32::from_le_bytes([l0, l1, l2, l3]), id, flags }
    }
}

/// A chain that is finished and not published.
#[derive(Debug, Clone, Copy)]
struct Finished {
    id: u16,
    written_bytes: u32,
}

/// A packed ring, running.
#[derive(Debug)]
pub struct PackedQueue {
    ring: *mut u8,
    driver: *mut u8,
    device: *mut u8,
    size: u16,
    next_avail: Position,
    next_used: Position,
    /// Lengths of the chains taken and not published, in slots. There are never more of them than slots, nor than are done
    /// in one turn: room for more is not made before.
    taken: VecDeque<u16>,
    /// Their sum.
    taken_slots: u16,
    /// What was published last: from where, and how many slots.
    published: (Position, u16),
    /// Those to be published, the first of `taken`.
    finished: Vec<Finished>,
    event_idx: bool,
    indirect: bool,
    /// Slots of the last chain taken: the next ones are probably as long.
    stride: u16,
    /// Scratch for one chain, allocated once: D7.
    segments: Vec<Segment>,
}

// SAFETY: the pointers lead into guest memory that the ring's owner keeps mapped, and only the one thread
// that owns the ring uses them.
unsafe impl Send for PackedQueue {}

impl PackedQueue {
    #[inline]
    fn slot(&self, slot: u16) -> *mut u8 {
        debug_assert!(slot < self.size);
        self.ring.wrapping_add(usize::from(slot) * DESCRIPTOR_BYTES as usize)
    }

    /// The flags of a slot.
    #[inline]
    fn flags(&self, slot: u16) -> &AtomicU16 {
        let at = self.slot(slot).wrapping_add(14);
        // SAFETY: the slot is inside the ring checked in `start`, which stays mapped while this lives, and is
        // aligned to 16 bytes; the driver's side of it is another processor.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    /// The half of a slot that length, id and flags share.
    #[inline]
    fn second_half(&self, slot: u16) -> &AtomicU64 {
        let at = self.slot(slot).wrapping_add(8);
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    /// Reads a slot; what the driver wrote before its flags is seen with them.
    #[inline]
    fn read(&self, slot: u16) -> Descriptor {
        let second = u64::from_le(self.second_half(slot).load(Ordering::Acquire));
        // SAFETY: as in `flags`.
        let first = unsafe { AtomicU64::from_ptr(self.slot(slot).cast()) };
        Descriptor::of([u64::from_le(first.load(Ordering::Relaxed)), second])
    }

    /// Both words of the driver's area, of one moment.
    #[inline]
    fn driver_event(&self) -> [u16; 2] {
        // SAFETY: 4 bytes, aligned to 4, checked in `start`.
        let both = unsafe { AtomicU32::from_ptr(self.driver.cast()) };
        let [o0, o1, f0, f1] = u32::from_le(both.load(Ordering::Relaxed)).to_le_bytes();
        [u16::from_le_bytes([o0, o1]), u16::from_le_bytes([f0, f1])]
    }

    /// A word of the device's area: the offset, where our record is, or the flags.
    #[inline]
    fn device_word(&self, offset: usize) -> &AtomicU16 {
        let at = self.device.wrapping_add(offset);
        // SAFETY: 4 bytes, aligned to 4, checked in `start`; `offset` is 0 or 2.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    #[inline]
    fn is_available(&self, at: Position) -> bool {
        let flags = u16::from_le(self.flags(at.slot).load(Ordering::Acquire));
        (flags & AVAIL != 0) == at.wrap && (flags & USED != 0) != at.wrap
    }

    /// Whether we have used this slot in this pass. The driver may have offered it for the next one since.
    fn is_marked(&self, at: Position) -> bool {
        let flags = u16::from_le(self.flags(at.slot).load(Ordering::Acquire));
        let is_offered_again = (flags & AVAIL != 0) != at.wrap;
        (flags & USED != 0) == at.wrap && (is_offered_again || flags & OURS != 0)
    }

    /// Whether some device has used the chain here in this pass, and the driver has not offered another one since.
    fn is_used(&self, at: Position) -> bool {
        let Descriptor { address, len_bytes, id, flags } = self.read(at.slot);
        let is_blank = (address, len_bytes, id, flags) == (0, 0, 0, 0);
        (flags & USED != 0) == at.wrap && (flags & AVAIL != 0) == at.wrap && !is_blank
    }

    /// Marks what a device of another make has left unmarked in the pass before this place. Those slots are the
    /// driver's: what it offers meanwhile stays.
    fn adopt(&self, mut at: Position) {
        for _ in 0..self.size {
            let flags = self.flags(at.slot);
            let before = flags.load(Ordering::Acquire);
            let bits = u16::from_le(before);
            if (bits & AVAIL != 0) != at.wrap && (bits & USED != 0) == at.wrap {
                let marked = (bits ^ USED).to_le();
                let _ = flags.compare_exchange(before, marked, Ordering::AcqRel, Ordering::Relaxed);
            }
            at = at.advance(1, self.size);
        }
    }

    /// Where the device that drove this ring last has stopped, whatever stopped it.
    fn find(&self, base: u32) -> Result<Position, RingError> {
        let word = u16::from_le(self.device_word(0).load(Ordering::Acquire));
        if let Some(mut at) = Position::from_record(word, self.size) {
            for _ in 0..self.size {
                if !self.is_marked(at) {
                    break;
                }
                at = at.advance(1, self.size);
            }
            if self.agrees(at) {
                return Ok(at);
            }
        }
        let mut start = Position::from_base(base, self.size)?;
        if base == 0 && u16::from_le(self.flags(0).load(Ordering::Acquire)) & USED != 0 {
            // That is not said of a ring that never ran, but of one whose first pass is over.
            start.wrap = false;
        }
        if self.is_used(start) {
            return Err(RingError::StaleBase(start.slot));
        }
        self.adopt(start);
        Ok(start)
    }

    /// Whether a ring can look like that after what was used up to `at`: the slot before it bears the mark of the
    /// pass that it was in, and none of those that are available from there on bears that of this one, except in
    /// the very next chain, if that was about to be published.
    fn agrees(&self, mut at: Position) -> bool {
        let mut is_next_chain = false;
        (1..=self.size).all(|count| {
            let flags = u16::from_le(self.flags(at.slot).load(Ordering::Acquire));
            let counts = count == self.size || (flags & AVAIL != 0) == at.wrap;
            let is_possible = is_next_chain || !counts || (flags & USED != 0) != at.wrap;
            is_next_chain = flags & NEXT != 0 && (is_next_chain || count == 1);
            at = at.advance(1, self.size);
            is_possible
        })
    }

    /// Writes down that everything before this was used.
    #[inline]
    fn record(&self, at: Position) {
        self.device_word(0).store(at.to_record(self.size).to_le(), Ordering::Release);
    }

    /// Walks the chain at `next_avail` to its end. Returns its buffer id and its length in slots too.
    #[inline]
    fn read_chain(&mut self, memory: &mut Translator) -> Result<(ChainBuilder, u16, u16), RingError> {
        let mut builder = ChainBuilder::default();
        let (mut at, mut length) = (self.next_avail, 0_u16);
        let mut in_table = false;
        loop {
            // What is taken and not published is not the driver's to offer again.
            if self.taken_slots.wrapping_add(length) >= self.size {
                return Err(RingError::EndlessChain);
            }
            let Descriptor { address, len_bytes, id, flags } = self.read(at.slot);
            if flags & INDIRECT != 0 {
                if !self.indirect || flags & NEXT != 0 || length > 0 {
                    builder.set_flaw(Flaw::Indirect);
                }
                if length == 0 {
                    self.read_table(&mut builder, address, len_bytes, memory)?;
                    in_table = true;
                }
            } else if !in_table {
                builder.push(address, len_bytes, flags & WRITE != 0, memory, &mut self.segments);
            }
            length = length.wrapping_add(1);
            if flags & NEXT == 0 {
                return Ok((builder, id, length));
            }
            at = at.advance(1, self.size);
        }
    }

    /// An indirect table is a chain of all its descriptors, whatever their flags say but for the direction
    /// (VIRTIO 1.2 §2.8.7).
    fn read_table(
        &mut self,
        builder: &mut ChainBuilder,
        address: u64,
        len_bytes: u32,
        memory: &mut Translator,
    ) -> Result<(), RingError> {
        let (len, is_whole) = indirect_len(len_bytes)?;
        let table = memory
            .resolve(BufferKind::Request, address, u64::from(len) * u64::from(DESCRIPTOR_BYTES))
            .ok_or(RingError::IndirectUnmapped(address))?;
        if !is_whole {
            builder.set_flaw(Flaw::IndirectLength);
        }
        let (len, most) = (len as usize, usize::from(MAX_CHAIN));
        // Of too many only the last one is looked at, where the status is.
        let first = if len > most { len - 1 } else { 0 };
        if len > most {
            builder.set_flaw(Flaw::TooMany);
        }
        for index in first..len {
            // SAFETY: the table's `len` descriptors are mapped, as the translator says.
            let halves = unsafe { read_halves(table.wrapping_add(index * DESCRIPTOR_BYTES as usize)) };
            let Descriptor { address, len_bytes, flags, .. } = Descriptor::of(halves);
            builder.push(address, len_bytes, flags & WRITE != 0, memory, &mut self.segments);
        }
        Ok(())
    }

    /// The chain at `next_avail` was taken, of so many slots.
    #[inline]
    fn note_taken(&mut self, length: u16) {
        self.next_avail = self.next_avail.advance(length, self.size);
        self.taken.push_back(length);
        self.taken_slots = self.taken_slots.wrapping_add(length);
        self.stride = length;
    }

    /// Shows a chain to the driver: the marks of its other slots first.
    #[inline]
    fn publish_chain(&self, head: Position, length: u16, chain: Finished) {
        let mut at = head;
        for _ in 1..length {
            at = at.advance(1, self.size);
            let flags = u16::from_le(self.flags(at.slot).load(Ordering::Relaxed));
            let marked = if at.wrap { flags | USED } else { flags & !USED } | OURS;
            failpoint::reached(Point::RingStore);
            self.flags(at.slot).store(marked.to_le(), Ordering::Relaxed);
        }
        let direction = if chain.written_bytes > 0 { WRITE } else { 0 };
        let flags = direction | OURS | if head.wrap { AVAIL | USED } else { 0 };
        let used = u64::from(chain.written_bytes) | u64::from(chain.id) << 32 | u64::from(flags) << 48;
        failpoint::reached(Point::RingStore);
        self.second_half(head.slot).store(used.to_le(), Ordering::Release);
    }

    /// Whether the driver wants to know that `slots` were used, up to `next_used`.
    #[inline]
    fn wants_call(&self, slots: u16) -> bool {
        let [off_wrap, flags] = self.driver_event();
        match flags & 3 {
            DISABLE => false,
            ONE_DESCRIPTOR if self.event_idx => {
                // Slots of the pass before are counted below zero.
                let is_same_pass = (off_wrap & USED != 0) == self.next_used.wrap;
                let before = if is_same_pass { 0 } else { self.size };
                let (event, new) = ((off_wrap & !USED).wrapping_sub(before), self.next_used.slot);
                passed(event, new, new.wrapping_sub(slots))
            }
            _ => true,
        }
    }
}

impl Virtqueue for PackedQueue {
    /// Starts a ring where the one before it has stopped; see the module.
    fn start(layout: &RingLayout, memory: &MemoryTable) -> Result<Self, RingError> {
        let size = RingKind::Packed.check_size(layout.size)?;
        let [ring, driver, device] = layout.areas();
        let mut queue = Self {
            ring: area(memory, "descriptor ring", ring, 16)?,
            driver: area(memory, "driver area", driver, 4)?,
            device: area(memory, "device area", device, 4)?,
            size,
            next_avail: Position::START,
            next_used: Position::START,
            taken: VecDeque::with_capacity(usize::from(size.min(MAX_CHAIN))),
            taken_slots: 0,
            published: (Position::START, 0),
            finished: Vec::with_capacity(usize::from(size.min(MAX_CHAIN))),
            event_idx: layout.event_idx,
            indirect: layout.indirect,
            stride: 1,
            segments: segment_buffer(),
        };
        let start = queue.find(layout.base)?;
        (queue.next_avail, queue.next_used) = (start, start);
        queue.record(start);
        Ok(queue)
    }

    #[inline(always)]
    fn take_contiguous(
        &mut self,
        batch: &mut Batch,
        bounds: Bounds,
        expect: impl Fn(&Header) -> Option<PrefetchHint>,
    ) -> Result<Next, RingError> {
        let next =
            batch.fill(bounds, |mapped, memory| self.next_contiguous::<false>(mapped, memory), expect)?;
        if batch.is_empty() {
            batch.push(|mapped, memory| self.next_contiguous::<true>(mapped, memory))
        } else {
            Ok(next)
        }
    }

    #[inline]
    fn pop<'a>(&'a mut self, memory: &'a mut Translator) -> Result<Option<Chain<'a>>, RingError> {
        if !self.is_available(self.next_avail) {
            return Ok(None);
        }
        let builder = self.read_chain(memory);
        // What was read is not the driver's then: no request may be made of it.
        if memory.is_lost() {
            return Err(RingError::GuestMemoryLost);
        }
        let (builder, id, length) = builder?;
        self.note_taken(length);
        // SAFETY: the walk has filled `segments` by this translator.
        unsafe { builder.build(Head::new(id), &mut self.segments, memory) }.map(Some)
    }

    /// Chains are taken to be as long as the last one was: only so their heads can be found without a walk.
    #[inline]
    fn peek(&mut self, ahead: u16, memory: &mut Translator) -> Option<Header> {
        let by = self.stride.checked_mul(ahead).filter(|by| *by < self.size)?;
        let at = self.next_avail.advance(by, self.size);
        if !self.is_available(at) {
            return None;
        }
        let mut first = self.read(at.slot);
        if first.flags & INDIRECT != 0 {
            let table = memory.resolve(BufferKind::Request, first.address, u64::from(DESCRIPTOR_BYTES))?;
            // SAFETY: mapped, as the translator says.
            first = Descriptor::of(unsafe { read_halves(table) });
        }
        peek_buffer(first.address, memory)
    }

    #[inline]
    fn has_available(&self) -> bool {
        self.is_available(self.next_avail)
    }

    /// If chains are as long as the last one was.
    #[inline]
    fn has_more_than(&self, chains: u16) -> bool {
        let by = self.stride.checked_mul(chains).filter(|by| *by < self.size);
        by.is_some_and(|by| self.is_available(self.next_avail.advance(by, self.size)))
    }

    #[inline]
    fn complete(&mut self, completion: Completion) {
        let (id, written_bytes) = (completion.head(), completion.written_bytes());
        self.finished.push(Finished { id, written_bytes });
    }

    #[inline]
    fn publish(&mut self) -> bool {
        if self.finished.is_empty() {
            return false;
        }
        let (start, mut slots) = (self.next_used, 0_u16);
        for index in 0..self.finished.len() {
            let (Some(chain), Some(length)) = (self.finished.get(index), self.taken.pop_front()) else {
                break;
            };
            self.publish_chain(self.next_used, length, *chain);
            self.next_used = self.next_used.advance(length, self.size);
            slots = slots.wrapping_add(length);
        }
        self.finished.clear();
        self.taken_slots = self.taken_slots.wrapping_sub(slots);
        self.published = (start, slots);
        failpoint::reached(Point::RingStore);
        self.record(self.next_used);
        // The driver writes what it wants and then looks for used descriptors: one of us sees the other.
        fence(Ordering::SeqCst);
        self.wants_call(slots)
    }

    #[inline]
    fn park_kicks(&mut self) {
        self.device_word(2).store(DISABLE.to_le(), Ordering::Relaxed);
    }

    /// Never for one descriptor only: the place of its offset is taken by the record.
    #[inline]
    fn arm_kicks(&mut self) -> bool {
        self.device_word(2).store(ENABLE.to_le(), Ordering::Relaxed);
        // The driver makes chains available and then reads this: one of us sees the other.
        fence(Ordering::SeqCst);
        self.has_available()
    }

    fn log(&self, log: &RingLog) {
        let (start, slots) = self.published;
        for number in 0..slots {
            log.mark_mapped(self.slot(start.advance(number, self.size).slot), u64::from(DESCRIPTOR_BYTES));
        }
        log.mark_mapped(self.device, EVENT_BYTES);
    }

    fn log_all(&self, log: &RingLog) {
        log.mark_mapped(self.ring, u64::from(self.size) * u64::from(DESCRIPTOR_BYTES));
        log.mark_mapped(self.device, EVENT_BYTES);
    }

    fn base(&self) -> u32 {
        self.next_used.to_base()
    }
}
