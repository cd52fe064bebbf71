//! The packed virtqueue (VIRTIO 1.2 §2.8), read and written through host pointers.
//!
//! [`Slots`] is its memory; where a ring that is started anew goes on is found by [`resume`].

#![allow(unsafe_code)]

mod position;
mod resume;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use super::chain::{Chain, Completion, Flaw, HEADER_BYTES, Head, Header};
use super::chain_builder::{ChainBuilder, peek_buffer, segment_buffer};
use super::contiguous::{Batch, Bounds, ChainAddresses, MappedChain, Next};
use super::descriptor::{DESCRIPTOR_BYTES, INDIRECT, NEXT, WRITE, indirect_len, read_halves};
use super::error::RingError;
use super::layout::{EVENT_BYTES, RingLayout};
use super::log::RingLog;
use super::notify::passed;
use super::{Indices, Virtqueue};
use crate::copy::{PrefetchHint, Segment};
use crate::failpoint::{self, Point};
use crate::limits::bounds::MAX_CHAIN;
use crate::virtio::memory::{BufferKind, MemoryTable, Translator};
use position::Position;
use slots::{AVAIL, Descriptor, OURS, Slots, USED};

/// Event suppression (VIRTIO 1.2 §2.8.10): notify always, never, or of one descriptor.
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const ONE_DESCRIPTOR: u16 = 2;

/// A chain that is finished and not published.
#[derive(Debug, Clone, Copy)]
struct Finished {
    id: u16,
    written_bytes: u32,
}

/// A packed ring, running.
#[derive(Debug)]
pub struct PackedQueue {
    slots: Slots,
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

// SAFETY: Q5: the segments are what is left of the last chain.
unsafe impl Send for PackedQueue {}

impl PackedQueue {
    /// Takes the next chain if it is contiguous; unless it `FILLS_CACHE`, only if the translator's cache has its parts.
    #[inline(always)]
    fn next_contiguous<const FILLS_CACHE: bool>(
        &mut self,
        mapped: &mut MappedChain,
        memory: &mut Translator,
    ) -> Option<()> {
        let (id, addresses, length) = self.contiguous(FILLS_CACHE, memory)?;
        mapped.map(FILLS_CACHE, id, addresses, memory)?;
        self.note_taken(length);
        Some(())
    }

    /// Header, data and status of the next chain, if it is available and contiguous, with its buffer id and its length in
    /// slots. If not, [`read_chain`](Self::read_chain) begins anew with it: nothing that was read here is used then.
    #[inline(always)]
    fn contiguous(&self, fills_cache: bool, memory: &mut Translator) -> Option<(u16, ChainAddresses, u16)> {
        let size = self.slots.size();
        if !self.slots.is_available(self.next_avail) || self.taken_slots >= size {
            return None;
        }
        let first = self.slots.read(self.next_avail.slot);
        match first.flags & (INDIRECT | NEXT | WRITE) {
            NEXT if size.wrapping_sub(self.taken_slots) >= 3 => {
                let second = self.slots.read(self.next_avail.advance(1, size).slot);
                let third = self.slots.read(self.next_avail.advance(2, size).slot);
                let has_flags = |it: &Descriptor, flags| it.flags & (INDIRECT | NEXT | WRITE) == flags;
                if !has_flags(&second, NEXT | second.flags & WRITE) || !has_flags(&third, WRITE) {
                    return None;
                }
                Some((third.id, chain_addresses([first, second, third])?, 3))
            }
            INDIRECT if self.indirect && first.len_bytes == 3 * DESCRIPTOR_BYTES => {
                let table = memory.translate(
                    fills_cache,
                    BufferKind::Request,
                    first.address,
                    first.len_bytes.into(),
                )?;
                let descriptors = [0, 1, 2].map(|index| {
                    // SAFETY: M1: the translator found the table's three descriptors.
                    let halves =
                        unsafe { read_halves(table.wrapping_add(index * DESCRIPTOR_BYTES as usize)) };
                    Descriptor::of(halves)
                });
                Some((first.id, chain_addresses(descriptors)?, 1))
            }
            _ => None,
        }
    }

    /// Reads the chain at `next_avail` to its end. Returns its buffer id and its length in slots too.
    #[inline]
    fn read_chain(&mut self, memory: &mut Translator) -> Result<(ChainBuilder, u16, u16), RingError> {
        let mut builder = ChainBuilder::default();
        let (mut at, mut length) = (self.next_avail, 0_u16);
        let mut in_table = false;
        loop {
            // Slots that are taken and not published cannot be available again: then the chain is a loop.
            if self.taken_slots.wrapping_add(length) >= self.slots.size() {
                return Err(RingError::EndlessChain);
            }
            let Descriptor { address, len_bytes, id, flags } = self.slots.read(at.slot);
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
            at = at.advance(1, self.slots.size());
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
        // Of too many only the last one is read, where the status is.
        let first = if len > most { len - 1 } else { 0 };
        if len > most {
            builder.set_flaw(Flaw::TooMany);
        }
        for index in first..len {
            // SAFETY: M1: the translator found the table's `len` descriptors, and index < len.
            let halves = unsafe { read_halves(table.wrapping_add(index * DESCRIPTOR_BYTES as usize)) };
            let Descriptor { address, len_bytes, flags, .. } = Descriptor::of(halves);
            builder.push(address, len_bytes, flags & WRITE != 0, memory, &mut self.segments);
        }
        Ok(())
    }

    /// The chain at `next_avail` was taken, of so many slots.
    #[inline]
    fn note_taken(&mut self, length: u16) {
        self.next_avail = self.next_avail.advance(length, self.slots.size());
        self.taken.push_back(length);
        self.taken_slots = self.taken_slots.wrapping_add(length);
        self.stride = length;
    }

    /// Publishes a chain to the driver: the marks of its other slots first.
    #[inline]
    fn publish_chain(&self, head: Position, length: u16, chain: Finished) {
        let mut at = head;
        for _ in 1..length {
            at = at.advance(1, self.slots.size());
            let flags = u16::from_le(self.slots.flags(at.slot).load(Ordering::Relaxed));
            let marked = if at.wrap { flags | USED } else { flags & !USED } | OURS;
            failpoint::reached(Point::RingStore);
            self.slots.flags(at.slot).store(marked.to_le(), Ordering::Relaxed);
        }
        let direction = if chain.written_bytes > 0 { WRITE } else { 0 };
        let flags = direction | OURS | if head.wrap { AVAIL | USED } else { 0 };
        let used = u64::from(chain.written_bytes) | u64::from(chain.id) << 32 | u64::from(flags) << 48;
        failpoint::reached(Point::RingStore);
        self.slots.second_half(head.slot).store(used.to_le(), Ordering::Release);
    }

    /// Whether the driver wants to know that `slots` were used, up to `next_used`.
    #[inline]
    fn wants_call(&self, slots: u16) -> bool {
        let [off_wrap, flags] = self.slots.driver_event();
        match flags & 3 {
            DISABLE => false,
            ONE_DESCRIPTOR if self.event_idx => {
                // Slots of the pass before are counted below zero.
                let is_same_pass = (off_wrap & USED != 0) == self.next_used.wrap;
                let before = if is_same_pass { 0 } else { self.slots.size() };
                let (event, new) = ((off_wrap & !USED).wrapping_sub(before), self.next_used.slot);
                passed(event, new, new.wrapping_sub(slots))
            }
            _ => true,
        }
    }
}

impl Virtqueue for PackedQueue {
    /// Starts a ring where the one before it has stopped, as [`resume`] finds it.
    fn start(layout: &RingLayout, memory: &MemoryTable) -> Result<Self, RingError> {
        let slots = Slots::new(layout, memory)?;
        let start = resume::find(&slots, layout.base)?;
        slots.record(start);
        let most = usize::from(slots.size().min(MAX_CHAIN));
        Ok(Self {
            slots,
            next_avail: start,
            next_used: start,
            taken: VecDeque::with_capacity(most),
            taken_slots: 0,
            published: (start, 0),
            finished: Vec::with_capacity(most),
            event_idx: layout.event_idx,
            indirect: layout.indirect,
            stride: 1,
            segments: segment_buffer(),
        })
    }

    #[inline(always)]
    fn take_contiguous(
        &mut self,
        batch: &mut Batch,
        bounds: Bounds,
        prefetch: impl Fn(&Header) -> Option<PrefetchHint>,
    ) -> Result<Next, RingError> {
        let next =
            batch.fill(bounds, |mapped, memory| self.next_contiguous::<false>(mapped, memory), prefetch)?;
        if batch.is_empty() {
            batch.push(|mapped, memory| self.next_contiguous::<true>(mapped, memory))
        } else {
            Ok(next)
        }
    }

    #[inline]
    fn pop<'a>(&'a mut self, memory: &'a mut Translator) -> Result<Option<Chain<'a>>, RingError> {
        if !self.slots.is_available(self.next_avail) {
            return Ok(None);
        }
        let builder = self.read_chain(memory);
        // What was read may be zeroes in place of lost memory then: no request may be made of it.
        if memory.is_lost() {
            return Err(RingError::GuestMemoryLost);
        }
        let (builder, id, length) = builder?;
        self.note_taken(length);
        // SAFETY: Q4: `read_chain` has filled `segments` by this translator.
        unsafe { builder.build(Head::new(id), &mut self.segments, memory) }.map(Some)
    }

    /// Supposes that chains are as long as the last one was: else their heads could not be found without reading them.
    #[inline]
    fn peek(&mut self, ahead: u16, memory: &mut Translator) -> Option<Header> {
        let by = self.stride.checked_mul(ahead).filter(|by| *by < self.slots.size())?;
        let at = self.next_avail.advance(by, self.slots.size());
        if !self.slots.is_available(at) {
            return None;
        }
        let mut first = self.slots.read(at.slot);
        if first.flags & INDIRECT != 0 {
            let table = memory.resolve(BufferKind::Request, first.address, u64::from(DESCRIPTOR_BYTES))?;
            // SAFETY: M1: the translator found the table's first descriptor.
            first = Descriptor::of(unsafe { read_halves(table) });
        }
        peek_buffer(first.address, memory)
    }

    #[inline]
    fn has_available(&self) -> bool {
        self.slots.is_available(self.next_avail)
    }

    /// If chains are as long as the last one was.
    #[inline]
    fn has_more_than(&self, chains: u16) -> bool {
        let by = self.stride.checked_mul(chains).filter(|by| *by < self.slots.size());
        by.is_some_and(|by| self.slots.is_available(self.next_avail.advance(by, self.slots.size())))
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
            self.next_used = self.next_used.advance(length, self.slots.size());
            slots = slots.wrapping_add(length);
        }
        self.finished.clear();
        self.taken_slots = self.taken_slots.wrapping_sub(slots);
        self.published = (start, slots);
        failpoint::reached(Point::RingStore);
        self.slots.record(self.next_used);
        // The driver stores its event structure, then reads descriptors; we do the reverse. With a full barrier on both sides
        // one of us sees the other's store.
        fence(Ordering::SeqCst);
        self.wants_call(slots)
    }

    #[inline]
    fn park_kicks(&mut self) {
        self.slots.device_word(2).store(DISABLE.to_le(), Ordering::Relaxed);
    }

    /// Never for one descriptor only: the record has the place of its offset.
    #[inline]
    fn arm_kicks(&mut self) -> bool {
        self.slots.device_word(2).store(ENABLE.to_le(), Ordering::Relaxed);
        // The driver stores descriptors, then loads this; we do the reverse, with a full barrier on both sides.
        fence(Ordering::SeqCst);
        self.has_available()
    }

    fn log(&self, log: &RingLog) {
        let (start, slots) = self.published;
        for number in 0..slots {
            log.mark_mapped(
                self.slots.slot(start.advance(number, self.slots.size()).slot),
                u64::from(DESCRIPTOR_BYTES),
            );
        }
        log.mark_mapped(self.slots.device_area(), EVENT_BYTES);
    }

    fn log_all(&self, log: &RingLog) {
        log.mark_mapped(self.slots.slot(0), u64::from(self.slots.size()) * u64::from(DESCRIPTOR_BYTES));
        log.mark_mapped(self.slots.device_area(), EVENT_BYTES);
    }

    fn base(&self) -> u32 {
        self.next_used.to_base()
    }

    #[cold]
    fn indices(&self) -> Indices {
        let (size, taken, used) = (self.slots.size(), self.next_avail.slot, self.next_used.slot);
        Indices { size, available: None, taken, used, shown: used }
    }
}

/// The parts of a chain, if its descriptors are a header, data and a status; of their flags only the direction counts.
#[inline(always)]
fn chain_addresses([header, data, status]: [Descriptor; 3]) -> Option<ChainAddresses> {
    let is_header = header.flags & WRITE == 0 && header.len_bytes == HEADER_BYTES;
    if !is_header || status.flags & WRITE == 0 || status.len_bytes != 1 {
        return None;
    }
    Some(ChainAddresses {
        header: header.address,
        data: data.address,
        data_bytes: data.len_bytes,
        flags: data.flags,
        status: status.address,
    })
}
