//! What an image of a ring means, as seen by somebody who only reads it: what may be written, and in which order chains come.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use vhost_user_pmem::virtio::queue::{RingKind, RingLayout};
use virtio_queue::desc::split::Descriptor as SplitDescriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::image::{AVAILABLE, CONTROL_END, RINGS, USED};
use crate::common::guarded::{GuardedMemory, found};

const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Most descriptors of a table that is looked into.
const MOST: u64 = 4096;

/// An image before anything is done with it.
pub struct View {
    /// Guest addresses that a descriptor lets the device write to: first, and one behind the last.
    writable: Vec<(u64, u64)>,
    /// The device does not write to what it reads the ring by.
    pub is_static: bool,
    /// Heads and the bytes that can be written to each chain, as `virtio-queue` reads them.
    chains: Vec<(u16, u64)>,
    used_bytes: u64,
    start: u16,
    /// The index that the driver has stored.
    available: u16,
}

impl View {
    /// Reads an image.
    pub fn of(memory: &GuardedMemory, layout: &RingLayout) -> Self {
        let size = u64::from(layout.size);
        let mut writable = Vec::new();
        let mut tables = Vec::new();
        for slot in 0..size {
            let (address, len, flags) = read_descriptor(memory, RINGS + slot * 16, layout.kind);
            if flags & INDIRECT != 0 {
                tables.push((address, u64::from(len) / 16));
            }
            writable.extend(writes(address, len, flags));
        }
        for (table, len) in tables.iter().flat_map(|(at, len)| (0..*len.min(&MOST)).map(move |it| (*at, it)))
        {
            let at = table.wrapping_add(len * 16);
            let (address, len, mut flags) = read_descriptor(memory, at, layout.kind);
            if layout.kind == RingKind::Packed {
                // It says nothing there (VIRTIO 1.2 §2.8.7).
                flags &= !INDIRECT;
            }
            writable.extend(writes(address, len, flags));
        }
        let used_bytes = match layout.kind {
            RingKind::Split => 4 + size * 8 + 2,
            RingKind::Packed => 4,
        };
        let is_control = |(start, end): &(u64, u64)| *start < CONTROL_END && *end > RINGS;
        let in_memory = |at: &(u64, u64)| {
            // Tables that are elsewhere may be written to.
            (RINGS..CONTROL_END).contains(&at.0) && at.0.saturating_add(at.1 * 16) <= CONTROL_END
        };
        let is_static = !writable.iter().any(is_control) && tables.iter().all(in_memory);
        let word = |at: u64| u16::from_le_bytes(memory.read(at, 2)[..].try_into().unwrap());
        let (start, available) = (word(USED + 2), word(AVAILABLE + 2));
        let chains = match layout.kind {
            RingKind::Split if is_static => chains(memory, layout, start),
            RingKind::Split | RingKind::Packed => Vec::new(),
        };
        Self { writable, is_static, chains, used_bytes, start, available }
    }

    /// Insists that only what may be written has changed.
    pub fn assert_changes(&self, memory: &GuardedMemory, before: &[u8], after: &[u8]) {
        for part in memory.parts() {
            let range = part.file_offset as usize..(part.file_offset + part.bytes) as usize;
            for address in
                changes(&before[range.clone()], &after[range]).map(|it| part.guest_start + it as u64)
            {
                let is_used = (USED..USED + self.used_bytes).contains(&address)
                    || self.used_bytes == 4 && (RINGS..RINGS + 0x400).contains(&address);
                let is_writable = |it: &(u64, u64)| (it.0..it.1).contains(&address);
                if !is_used && !self.writable.iter().any(is_writable) {
                    found(&format!("the byte at {address:#x} has changed, which no descriptor names"));
                }
            }
        }
    }

    /// Insists that the used ring has the chains in their order, and lengths that they have room for.
    pub fn assert_used(&self, memory: &GuardedMemory, layout: &RingLayout, is_broken: bool) {
        let size = layout.size;
        let word = |at: u64| u16::from_le_bytes(memory.read(at, 2)[..].try_into().unwrap());
        let used = word(USED + 2).wrapping_sub(self.start);
        let offered = self.available.wrapping_sub(self.start);
        if u32::from(offered) <= size && used > offered {
            found(&format!("{used} chains are used of {offered}"));
        }
        if !is_broken && used != offered {
            found(&format!("a ring is at rest with {used} of {offered} chains used"));
        }
        for (number, (head, room)) in self.chains.iter().enumerate().take(usize::from(used)) {
            let slot = u32::from(self.start.wrapping_add(number as u16)) % size;
            let element = memory.read(USED + 4 + u64::from(slot) * 8, 8);
            let [id, len] = [0, 4].map(|at| u32::from_le_bytes(element[at..at + 4].try_into().unwrap()));
            if id != u32::from(*head) {
                found(&format!("chain {number} is {head}, and used is {id}"));
            }
            if u64::from(len) > *room {
                found(&format!("{len} bytes are used of chain {head}, which has room for {room}"));
            }
        }
    }
}

/// Where bytes differ.
fn changes<'a>(before: &'a [u8], after: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    const PIECE: usize = 512;
    let pieces = before.chunks(PIECE).zip(after.chunks(PIECE)).enumerate();
    pieces.filter(|(_, (before, after))| before != after).flat_map(|(number, (before, after))| {
        let bytes = before.iter().zip(after).enumerate();
        bytes.filter(|(_, (before, after))| before != after).map(move |(at, _)| number * PIECE + at)
    })
}

fn read_descriptor(memory: &GuardedMemory, at: u64, kind: RingKind) -> (u64, u32, u16) {
    let bytes = memory.read(at, 16);
    let flags_at = if kind == RingKind::Split { 12 } else { 14 };
    let flags = u16::from_le_bytes(bytes[flags_at..flags_at + 2].try_into().unwrap());
    let address = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    (address, u32::from_le_bytes(bytes[8..12].try_into().unwrap()), flags)
}

fn writes(address: u64, len: u32, flags: u16) -> Option<(u64, u64)> {
    let end = address.saturating_add(len.into());
    (flags & WRITE != 0 && flags & INDIRECT == 0).then_some((address, end))
}

/// Another view of the same file.
fn other_view(memory: &GuardedMemory) -> GuestMemoryMmap {
    let region = |part: &crate::common::guarded::Part| {
        let place = vm_memory::FileOffset::new(memory.file().try_clone().unwrap(), part.file_offset);
        let mapping = MmapRegion::from_file(place, part.bytes as usize).unwrap();
        GuestRegionMmap::new(mapping, GuestAddress(part.guest_start)).unwrap()
    };
    GuestMemoryMmap::from_regions(memory.parts().iter().map(region).collect()).unwrap()
}

/// The chains that are available, as `virtio-queue` reads them: up to the first one that is not as it should be.
fn chains(memory: &GuardedMemory, layout: &RingLayout, start: u16) -> Vec<(u16, u64)> {
    thread_local! { static OTHER: std::cell::OnceCell<GuestMemoryMmap> = const { std::cell::OnceCell::new() }; }
    OTHER.with(|other| {
        let other = other.get_or_init(|| other_view(memory));
        let size = u16::try_from(layout.size).unwrap();
        let mut queue = Queue::new(size).unwrap();
        queue.set_size(size);
        queue.set_desc_table_address(Some(RINGS as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_next_avail(start);
        queue.set_next_used(start);
        queue.set_ready(true);
        let mut chains = Vec::new();
        while chains.len() < usize::from(size)
            && let Some(chain) = queue.pop_descriptor_chain(other)
        {
            let head = chain.head_index();
            let list: Vec<SplitDescriptor> = chain.collect();
            // It stops where something is wrong.
            let is_whole = list.last().is_some_and(|last| !last.has_next());
            let room = |it: &SplitDescriptor| if it.is_write_only() { u64::from(it.len()) } else { 0 };
            chains.push((head, if is_whole { list.iter().map(room).sum() } else { u64::MAX }));
        }
        chains
    })
}

/// Insists that each page that has changed has its mark.
pub fn assert_logged(memory: &GuardedMemory, before: &[u8], after: &[u8], log: &File) {
    const PAGE: usize = 4096;
    for part in memory.parts() {
        let range = part.file_offset as usize..(part.file_offset + part.bytes) as usize;
        let pages = before[range.clone()].chunks(PAGE).zip(after[range].chunks(PAGE));
        for (number, _) in pages.enumerate().filter(|(_, (before, after))| before != after) {
            let page = part.guest_start / PAGE as u64 + number as u64;
            let mut byte = [0];
            log.read_exact_at(&mut byte, page / 8).unwrap();
            if byte[0] >> (page % 8) & 1 == 0 {
                found(&format!("page {page:#x} has changed and is not marked in the dirty log"));
            }
        }
    }
}
