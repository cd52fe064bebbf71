//! The split virtqueue (VIRTIO 1.2 §2.7), read and written through host pointers.
//!
//! virtio-queue's `Queue` takes 134 ns for a request of three descriptors without its payload where this
//! walker takes 11; it is the oracle of this one's property test.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::chain::{Chain, Completion, Flaw, HEADER_BYTES, Head, Header};
use super::chain_builder::{ChainBuilder, peek_buffer, segment_buffer};
use super::contiguous::{Batch, Bounds, ChainAddresses, MappedChain, Next};
use super::descriptor::{DESCRIPTOR_BYTES, INDIRECT, NEXT, WRITE, indirect_len, read_split};
use super::error::RingError;
use super::layout::{RingKind, RingLayout, area};
use super::log::RingLog;
use super::notify::{NO_INTERRUPT, NO_NOTIFY, passed};
use super::{Indices, Virtqueue};
use crate::copy::{PrefetchHint, Segment};
use crate::failpoint::{self, Point};
use crate::virtio::memory::{BufferKind, MemoryTable, Translator};

/// A descriptor, read once.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    len_bytes: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Whether it has this length and exactly these flags.
    #[inline(always)]
    const fn is(self, len_bytes: u32, flags: u16) -> bool {
        self.len_bytes == len_bytes && self.flags == flags
    }
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
        self.get(index).ok_or(RingError::DescriptorIndex(index, self.len))
    }

    #[inline(always)]
    fn get(&self, index: u16) -> Option<Descriptor> {
        if index >= self.len {
            return None;
        }
        let at = self.base.wrapping_add(usize::from(index) * DESCRIPTOR_BYTES as usize);
        // SAFETY: Q1, M1: the table's `len` descriptors are mapped, and index < len.
        let (address, len_bytes, [flags, next]) = unsafe { read_split(at) };
        Some(Descriptor { address, len_bytes, flags, next })
    }

    /// Header, data and status of the chain that begins with a descriptor of this table, if it is contiguous.
    #[inline(always)]
    fn contiguous(&self, header: Descriptor) -> Option<ChainAddresses> {
        if !header.is(HEADER_BYTES, NEXT) {
            return None;
        }
        let data = self.get(header.next)?;
        if data.flags & !WRITE != NEXT {
            return None;
        }
        let status = self.get(data.next)?;
        if !status.is(1, WRITE) {
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
}

/// A split ring, running.
#[derive(Debug)]
pub struct SplitQueue {
    table: Table,
    available: *const u8,
    used: *mut u8,
    mask: u16,
    next_avail: u16,
    /// The available index when it was last read.
    seen_avail: u16,
    next_used: u16,
    published: u16,
    event_idx: bool,
    indirect: bool,
    /// Scratch for one chain, allocated once: D7.
    segments: Vec<Segment>,
}

// SAFETY: Q2: only the one thread that owns the ring uses the pointers. Q1: they are good on any.
unsafe impl Send for SplitQueue {}

impl SplitQueue {
    /// The word at `offset` of the available ring.
    #[inline]
    fn available_word(&self, offset: usize) -> &AtomicU16 {
        let at = self.available.wrapping_add(offset);
        // SAFETY: Q1: `offset` is even and inside of the available ring. Q3: an atomic.
        unsafe { AtomicU16::from_ptr(at.cast_mut().cast()) }
    }

    /// The word at `offset` of the used ring.
    #[inline]
    fn used_word(&self, offset: usize) -> &AtomicU16 {
        let at = self.used.wrapping_add(offset);
        // SAFETY: Q1: `offset` is even and inside of the used ring. Q3: an atomic.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    /// How many chains the driver has made available beyond those taken, as far as known.
    #[inline]
    const fn known(&self) -> u16 {
        self.seen_avail.wrapping_sub(self.next_avail)
    }

    #[cold]
    #[inline(never)]
    const fn overrun(&self, ahead: u16) -> RingError {
        RingError::AvailIndex(ahead, self.table.len)
    }

    /// As [`known`](Self::known), with the index read again.
    #[inline]
    pub(super) fn waiting(&self) -> Result<u16, RingError> {
        let index = u16::from_le(self.available_word(2).load(Ordering::Acquire));
        let ahead = index.wrapping_sub(self.next_avail);
        if ahead > self.table.len {
            return Err(self.overrun(ahead));
        }
        Ok(ahead)
    }

    /// How many chains are available, of `most`; reads the index only if fewer are known.
    #[inline]
    fn available(&mut self, most: u16) -> Result<u16, RingError> {
        if self.known() < most {
            match self.waiting() {
                Ok(ahead) => self.seen_avail = self.next_avail.wrapping_add(ahead),
                // The chains that are known are served before the ring breaks.
                Err(_) if self.known() > 0 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.known().min(most))
    }

    /// The head of a chain that is available.
    #[inline]
    fn head(&self, ahead: u16) -> u16 {
        let slot = usize::from(self.next_avail.wrapping_add(ahead) & self.mask);
        u16::from_le(self.available_word(4 + slot * 2).load(Ordering::Relaxed))
    }

    /// Takes the next chain if it is contiguous; unless it `FILLS_CACHE`, only if the translator's cache has its parts.
    #[inline(always)]
    fn next_contiguous<const FILLS_CACHE: bool>(
        &mut self,
        mapped: &mut MappedChain,
        memory: &mut Translator,
    ) -> Option<()> {
        let head = self.head(0);
        mapped.map(FILLS_CACHE, head, self.contiguous(FILLS_CACHE, head, memory)?, memory)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Some(())
    }

    /// Header, data and status of the chain at `head`, if it is contiguous. If not, [`read_chain`](Self::read_chain) begins anew with
    /// it: nothing that was read here is used then.
    #[inline(always)]
    fn contiguous(&self, fills_cache: bool, head: u16, memory: &mut Translator) -> Option<ChainAddresses> {
        let first = self.table.get(head)?;
        if first.flags & INDIRECT == 0 {
            return self.table.contiguous(first);
        }
        if !first.is(3 * DESCRIPTOR_BYTES, INDIRECT) || !self.indirect {
            return None;
        }
        let table_bytes = 3 * u64::from(DESCRIPTOR_BYTES);
        let table = Table {
            base: memory.translate(fills_cache, BufferKind::Request, first.address, table_bytes)?,
            len: 3,
        };
        table.contiguous(table.get(0)?)
    }

    /// Reads the chain at `head` to its end, filling `segments` with the readable and then the writable ranges.
    fn read_chain(&mut self, head: u16, memory: &mut Translator) -> Result<ChainBuilder, RingError> {
        let mut builder = ChainBuilder::default();
        let (mut table, mut index) = (self.table, head);
        let (mut left, mut in_table) = (table.len, false);
        loop {
            left = left.checked_sub(1).ok_or(RingError::EndlessChain)?;
            let descriptor = table.read(index)?;
            let Descriptor { address, len_bytes, flags, next } = descriptor;
            if flags & INDIRECT == 0 {
                builder.push(address, len_bytes, flags & WRITE != 0, memory, &mut self.segments);
            } else if in_table {
                builder.set_flaw(Flaw::Indirect);
            } else {
                if !self.indirect || flags & NEXT != 0 {
                    builder.set_flaw(Flaw::Indirect);
                }
                let (len, is_whole) = indirect_len(len_bytes)?;
                if !is_whole {
                    builder.set_flaw(Flaw::IndirectLength);
                }
                table = indirect_table(address, len, memory)?;
                (index, left, in_table) = (0, table.len, true);
                continue;
            }
            if flags & NEXT == 0 {
                return Ok(builder);
            }
            index = next;
        }
    }
}

/// The table of so many descriptors; of more than an index can name, the first ones.
#[inline]
fn indirect_table(address: u64, len: u32, memory: &mut Translator) -> Result<Table, RingError> {
    let base = memory.resolve(BufferKind::Request, address, u64::from(len) * u64::from(DESCRIPTOR_BYTES));
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    Ok(Table { base: base.ok_or(RingError::IndirectUnmapped(address))?, len })
}

impl Virtqueue for SplitQueue {
    /// Starts a ring at its used index, which says what was done, whatever base the front-end has sent.
    fn start(layout: &RingLayout, memory: &MemoryTable) -> Result<Self, RingError> {
        let size = RingKind::Split.check_size(layout.size)?;
        let [table, available, used] = layout.areas();
        let table = area(memory, "descriptor table", table, 16)?;
        let mut queue = Self {
            table: Table { base: table, len: size },
            available: area(memory, "available ring", available, 2)?,
            used: area(memory, "used ring", used, 4)?,
            mask: size.wrapping_sub(1),
            next_avail: 0,
            seen_avail: 0,
            next_used: 0,
            published: 0,
            event_idx: layout.event_idx,
            indirect: layout.indirect,
            segments: segment_buffer(),
        };
        let start = u16::from_le(queue.used_word(2).load(Ordering::Acquire));
        (queue.next_avail, queue.seen_avail) = (start, start);
        (queue.next_used, queue.published) = (start, start);
        Ok(queue)
    }

    #[inline(always)]
    fn take_contiguous(
        &mut self,
        batch: &mut Batch,
        bounds: Bounds,
        prefetch: impl Fn(&Header) -> Option<PrefetchHint>,
    ) -> Result<Next, RingError> {
        let chains = self.available(bounds.chains)?;
        if chains == 0 {
            return Ok(Next::Nothing);
        }
        let bounds = Bounds { chains, ..bounds };
        let mut next =
            batch.fill(bounds, |mapped, memory| self.next_contiguous::<false>(mapped, memory), prefetch)?;
        if batch.is_empty() {
            next = batch.push(|mapped, memory| self.next_contiguous::<true>(mapped, memory))?;
        }
        Ok(if self.known() == 0 { Next::Nothing } else { next })
    }

    #[cold]
    #[inline(never)]
    fn pop<'a>(&'a mut self, memory: &'a mut Translator) -> Result<Option<Chain<'a>>, RingError> {
        if self.available(1)? == 0 {
            return Ok(None);
        }
        let head = self.head(0);
        let builder = self.read_chain(head, memory);
        // What was read may be zeroes in place of lost memory then: no request may be made of it.
        if memory.is_lost() {
            return Err(RingError::GuestMemoryLost);
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        // SAFETY: Q4: `read_chain` has filled `segments` by this translator.
        unsafe { builder?.build(Head::new(head), &mut self.segments, memory) }.map(Some)
    }

    #[inline]
    fn peek(&mut self, ahead: u16, memory: &mut Translator) -> Option<Header> {
        if self.available(ahead.wrapping_add(1)).ok()? <= ahead {
            return None;
        }
        let mut first = self.table.get(self.head(ahead))?;
        if first.flags & INDIRECT != 0 {
            let base = memory.resolve(BufferKind::Request, first.address, u64::from(DESCRIPTOR_BYTES))?;
            first = Table { base, len: 1 }.get(0)?;
        }
        peek_buffer(first.address, memory)
    }

    #[inline]
    fn has_available(&self) -> bool {
        self.waiting() != Ok(0)
    }

    #[inline]
    fn has_more_than(&self, chains: u16) -> bool {
        self.waiting().is_ok_and(|waiting| waiting > chains)
    }

    #[inline]
    fn complete(&mut self, completion: Completion) {
        failpoint::reached(Point::RingStore);
        let slot = usize::from(self.next_used & self.mask);
        let at = self.used.wrapping_add(4 + slot * 8).cast::<u32>();
        // SAFETY: Q1: the first half of a slot of the used ring, aligned to 4 bytes. Q3: volatile.
        unsafe { at.write_volatile(u32::from(completion.head()).to_le()) };
        // SAFETY: Q1: the second half of the slot. Q3: volatile.
        unsafe { at.wrapping_add(1).write_volatile(completion.written_bytes().to_le()) };
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        failpoint::reached(Point::RingStore);
        self.used_word(2).store(new.to_le(), Ordering::Release);
        self.published = new;
        // The driver stores its event index or flags, then loads the used index; we do the reverse. With a full barrier on
        // both sides one of us sees the other's store.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.available_word(4 + usize::from(self.table.len) * 2);
            return passed(u16::from_le(event.load(Ordering::Relaxed)), new, old);
        }
        u16::from_le(self.available_word(0).load(Ordering::Relaxed)) & NO_INTERRUPT == 0
    }

    #[inline]
    fn park_kicks(&mut self) {
        // With EVENT_IDX nothing is to be stored: the driver is past the old event index, and kicks only when it passes one.
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
        // The driver stores the available index, then loads this; we do the reverse, with a full barrier on both sides.
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
        u32::from(self.published)
    }

    #[cold]
    fn indices(&self) -> Indices {
        Indices {
            size: self.table.len,
            available: Some(u16::from_le(self.available_word(2).load(Ordering::Relaxed))),
            taken: self.next_avail,
            used: self.next_used,
            shown: self.published,
        }
    }
}
