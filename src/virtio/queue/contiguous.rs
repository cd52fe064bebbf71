//! Chains of the shape that nearly all have: a header, data in one piece, a status.
//!
//! As many of them as there are one after the other are taken at once, before the first of them is executed: so the cache
//! misses of all of them overlap. Each descriptor and each header is read exactly once, here.

#![allow(unsafe_code)]

use std::slice;

use super::chain::{Chain, Completion, HEADER_BYTES, Head, Header, StatusByte};
use super::descriptor::WRITE;
use super::error::RingError;
use crate::copy::{self, PrefetchHint, Segment, Segments};
use crate::virtio::memory::{BufferKind, Translator};

/// Chains taken at once.
const MOST: usize = 16;

/// Where header, data and status of a chain are, in guest addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChainAddresses {
    pub(super) header: u64,
    pub(super) data: u64,
    pub(super) data_bytes: u32,
    /// Of the data.
    pub(super) flags: u16,
    pub(super) status: u64,
}

/// A chain that is taken, and not executed.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))] // a cache line each
pub(super) struct MappedChain {
    header: Header,
    data: Segment,
    status: *mut u8,
    head: u16,
    /// Of the data.
    flags: u16,
    /// What its data is copied from, to be prefetched: the media, or the guest's buffer.
    source: PrefetchHint,
}

impl MappedChain {
    const NONE: Self = Self {
        header: [0; 2],
        data: Segment::EMPTY,
        status: std::ptr::null_mut(),
        head: 0,
        flags: 0,
        source: PrefetchHint::NONE,
    };

    /// Maps a chain and reads its header, if each part lies in one region; unless it `fills_cache`, only in regions that the
    /// translator's cache has. Where it returns `None`, what is left here is no chain.
    #[inline(always)]
    pub(super) fn map(
        &mut self,
        fills_cache: bool,
        head: u16,
        addresses: ChainAddresses,
        memory: &mut Translator,
    ) -> Option<()> {
        let ChainAddresses { header, data, data_bytes, flags, status } = addresses;
        let header = memory.translate(fills_cache, BufferKind::Request, header, u64::from(HEADER_BYTES))?;
        let data = memory.translate(fills_cache, BufferKind::Data, data, u64::from(data_bytes))?;
        let status = memory.translate(fills_cache, BufferKind::Request, status, 1)?;
        // SAFETY: M1: the translator found the 16 bytes in its table.
        self.header = unsafe { copy::load_words(header) }?.map(u64::from_le);
        self.data = Segment::new(data, data_bytes as usize);
        (self.status, self.head, self.flags) = (status, head, flags);
        Some(())
    }
}

/// How much may be taken at once.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Chains.
    pub chains: u16,
    /// Bytes of data, after which no other chain is taken.
    pub bytes: u32,
}

/// What comes behind the chains that were taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// As far as known, nothing.
    Nothing,
    /// Perhaps a chain of the common shape: there was no room for more.
    Any,
    /// One of another shape, or nothing.
    Other,
}

/// Room for chains that are taken at once, and the guest's memory that they are in.
#[derive(Debug)]
pub struct Batch {
    memory: Translator,
    /// The last one is never taken: it has the hint for what is behind the last chain, which is none.
    list: [MappedChain; MOST + 1],
    /// How many of them are taken.
    taken: u16,
    /// How many of these are executed.
    drained: u16,
    /// Bytes of data that may still be taken, less than none if the last one had more.
    left_bytes: i64,
}

// SAFETY: Q2: only the owner of this value uses the pointers. Q4: they lead into the table of `memory`.
unsafe impl Send for Batch {}

impl Batch {
    /// Room for chains in this memory.
    pub const fn new(memory: Translator) -> Self {
        Self { memory, list: [MappedChain::NONE; MOST + 1], taken: 0, drained: 0, left_bytes: 0 }
    }

    /// The memory.
    pub const fn memory(&mut self) -> &mut Translator {
        &mut self.memory
    }

    /// Takes chains as [`take_contiguous`](super::Virtqueue::take_contiguous) says. `read` takes the next one if it is of the
    /// common shape and in the translator's cache.
    #[inline(always)]
    pub(super) fn fill(
        &mut self,
        bounds: Bounds,
        mut read: impl FnMut(&mut MappedChain, &mut Translator) -> Option<()>,
        prefetch: impl Fn(&Header) -> Option<PrefetchHint>,
    ) -> Result<Next, RingError> {
        let room = usize::from(bounds.chains).min(MOST);
        (self.taken, self.drained, self.left_bytes) = (0, 0, i64::from(bounds.bytes));
        for place in self.list.get_mut(..room).unwrap_or_default() {
            let Some(()) = read(place, &mut self.memory) else { break };
            self.taken = self.taken.wrapping_add(1);
            self.left_bytes = self.left_bytes.wrapping_sub_unsigned(place.data.len() as u64);
            let Some(media) = prefetch(&place.header) else {
                place.source = PrefetchHint::NONE;
                break;
            };
            place.source = if place.flags & WRITE != 0 { media } else { PrefetchHint::new(place.data.ptr()) };
            if self.left_bytes <= 0 {
                break;
            }
        }
        self.end();
        self.check(Next::Any)
    }

    /// Takes one chain, wherever it lies, or none.
    #[cold]
    #[inline(never)]
    pub(super) fn push(
        &mut self,
        read: impl FnOnce(&mut MappedChain, &mut Translator) -> Option<()>,
    ) -> Result<Next, RingError> {
        let [place, ..] = &mut self.list;
        let Some(()) = read(place, &mut self.memory) else { return self.check(Next::Other) };
        self.taken = 1;
        self.left_bytes = self.left_bytes.wrapping_sub_unsigned(place.data.len() as u64);
        self.end();
        self.check(Next::Any)
    }

    /// What is behind the chains that are taken is not known.
    #[inline]
    fn end(&mut self) {
        if let Some(behind) = self.list.get_mut(usize::from(self.taken)) {
            behind.source = PrefetchHint::NONE;
        }
    }

    /// If guest memory is lost, what was read may be zeroes in its place: no request may be made of it.
    #[inline]
    fn check(&mut self, next: Next) -> Result<Next, RingError> {
        if self.memory.is_lost() {
            self.taken = 0;
            return Err(RingError::GuestMemoryLost);
        }
        Ok(next)
    }

    /// How many bytes were left of the bounds when the last one was taken; less than none if it had more.
    #[inline]
    pub const fn left_bytes(&self) -> i64 {
        self.left_bytes
    }

    /// How many are left.
    #[inline]
    pub const fn len(&self) -> u16 {
        self.taken.saturating_sub(self.drained)
    }

    /// Whether none are.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next ones, up to so many, in the ring's order. Each is to be completed, unless the ring is given up.
    #[inline(always)]
    pub fn drain(&mut self, most: u16) -> impl Iterator<Item = ContiguousChain<'_>> {
        let start = self.drained;
        self.drained = start.wrapping_add(most.min(self.len()));
        let range = usize::from(start)..=usize::from(self.drained);
        let memory = &self.memory;
        self.list.get(range).unwrap_or_default().windows(2).filter_map(move |pair| {
            let [mapped, behind] = pair else { return None };
            Some(ContiguousChain { mapped, next_source: behind.source, memory })
        })
    }
}

/// A chain of the common shape, popped: it borrows the batch until it is finished.
#[derive(Debug)]
#[must_use = "a popped chain must be completed"]
pub struct ContiguousChain<'a> {
    mapped: &'a MappedChain,
    next_source: PrefetchHint,
    memory: &'a Translator,
}

impl<'a> ContiguousChain<'a> {
    /// The header, read once.
    #[inline]
    pub const fn header(&self) -> &'a Header {
        &self.mapped.header
    }

    /// What the data of the chain behind it is copied from, if that is known.
    #[inline]
    pub const fn next_source(&self) -> PrefetchHint {
        self.next_source
    }

    /// The data: room for what the device sends if it [is writable](Self::is_writable), else what the driver sends.
    #[inline]
    pub const fn data(&self) -> Segments<'a> {
        let data = &self.mapped.data;
        // SAFETY: Q4: the batch's translator has found the bytes, and is borrowed for 'a. M2: no reference leads there.
        unsafe { Segments::with_total(slice::from_ref(data), data.len()) }
    }

    /// Length of the data, which a descriptor has said.
    #[inline]
    pub const fn data_bytes(&self) -> u32 {
        let [l0, l1, l2, l3, ..] = (self.mapped.data.len() as u64).to_le_bytes();
        u32::from_le_bytes([l0, l1, l2, l3])
    }

    /// Whether the data is the device's to write.
    #[inline]
    pub const fn is_writable(&self) -> bool {
        self.mapped.flags & WRITE != 0
    }

    /// Stores the status and completes the chain, of whose device-writable part so many bytes were written without a
    /// gap, the status included if there is none before it. `None`: the status has no place any more.
    #[inline(always)]
    pub fn finish(self, status: u8, written_bytes: u32) -> Option<Completion> {
        // SAFETY: Q4: the batch's translator has found the byte, and is borrowed for 'a.
        let is_stored = unsafe { copy::store_byte(self.mapped.status, status) };
        is_stored.then(|| Head::new(self.mapped.head).complete(written_bytes))
    }

    /// The same in the form of any other chain.
    #[inline]
    pub fn into_chain(self) -> Chain<'a> {
        let (head, header) = (Head::new(self.mapped.head), self.mapped.header);
        let data = self.data();
        // SAFETY: Q4: the batch's translator has found the byte in this table.
        let status = unsafe { StatusByte::new(self.mapped.status, self.memory.table()) };
        let (readable, writable) =
            if self.is_writable() { (Segments::empty(), data) } else { (data, Segments::empty()) };
        let data_bytes = writable.total_bytes() as u64;
        Chain { head, header, flaw: None, readable, writable, status, data_bytes }
    }
}
