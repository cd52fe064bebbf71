//! A driver with a ring of either kind, which keeps all that it has asked for.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use crate::tools::crash::workload::{Random, SECTOR_BYTES};
use crate::virtio::queue::{RingAddresses, RingKind};

/// How much there is of everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Requests under way at most.
    pub(super) most: usize,
    /// Of the disk.
    pub(super) sectors: usize,
}

impl Size {
    /// Most requests touch what others touch.
    pub(super) const SMALL: Self = Self { most: 8, sectors: 8 };
    /// As many as a ring may have under way, on media that has room for them.
    pub(super) const LARGE: Self = Self { most: 128, sectors: 4096 };

    pub(super) const fn memory_bytes(self) -> u64 {
        BUFFERS + BUFFER_BYTES * self.most as u64
    }

    pub(super) const fn disk_bytes(self) -> u64 {
        (self.sectors * SECTOR_BYTES) as u64
    }
}

/// Descriptors of a request: header, data, status.
const PARTS: usize = 3;

pub(super) const ADDRESSES: RingAddresses = RingAddresses { descriptors: 0, available: 0x2000, used: 0x3000 };
const BUFFERS: u64 = 0x5000;
const BUFFER_BYTES: u64 = 0x1000;
const DATA: u64 = 0x200;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A request. Each word of 8 bytes that it writes is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestRequest {
    Read { sector: usize, count: usize },
    Write { sector: usize, count: usize, word: u64 },
    Flush,
}

pub(super) fn any_request(random: &mut Random, size: Size) -> GuestRequest {
    let sector = random.below(size.sectors - 1);
    let count = 1 + random.below(2);
    match random.below(5) {
        0 => GuestRequest::Flush,
        1 | 2 => GuestRequest::Read { sector, count },
        _ => GuestRequest::Write { sector, count, word: random.next() },
    }
}

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) file: File,
    pub(super) kind: RingKind,
    pub(super) size: Size,
    /// All requests so far, in order.
    pub(super) requests: Vec<GuestRequest>,
    /// How many of these were seen done.
    pub(super) seen: usize,
    /// Where each begins: its slot, counted without end, in a packed ring.
    starts: Vec<u64>,
}

impl Guest {
    pub(super) const fn new(file: File, kind: RingKind, size: Size) -> Self {
        Self { file, kind, size, requests: Vec::new(), seen: 0, starts: Vec::new() }
    }

    /// Room for all requests; chains run over the end of the packed one.
    pub(super) const fn ring_size(&self) -> u16 {
        let descriptors = self.size.most * PARTS;
        match self.kind {
            RingKind::Split => descriptors.next_power_of_two() as u16,
            RingKind::Packed => descriptors as u16 + 1,
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    const fn buffer(&self, number: usize) -> u64 {
        BUFFERS + (number % self.size.most) as u64 * BUFFER_BYTES
    }

    /// Data of a request as it is in its buffer.
    pub(super) fn data(&self, number: usize, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, self.buffer(number) + DATA + at as u64).unwrap();
        bytes
    }

    pub(super) fn offer(&mut self, request: GuestRequest) {
        let number = self.requests.len();
        assert!(number - self.seen < self.size.most);
        let buffer = self.buffer(number);
        let (kind, sector, data) = match request {
            GuestRequest::Flush => (VIRTIO_BLK_T_FLUSH, 0, None),
            GuestRequest::Read { sector, count } => (VIRTIO_BLK_T_IN, sector, Some((count, WRITE))),
            GuestRequest::Write { sector, count, word } => {
                self.write(buffer + DATA, &word.to_le_bytes().repeat(count * SECTOR_BYTES / 8));
                (VIRTIO_BLK_T_OUT, sector, Some((count, 0)))
            }
        };
        self.write(buffer, &[&kind.to_le_bytes()[..], &[0; 4], &(sector as u64).to_le_bytes()].concat());
        self.write(buffer + 16, &[0xff]);
        let data = data.map(|(count, flags)| (buffer + DATA, count * SECTOR_BYTES, flags));
        let parts = [Some((buffer, 16, 0)), data, Some((buffer + 16, 1, WRITE))];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        let start = self.starts.last().copied().unwrap_or(0) + self.parts_of(number.wrapping_sub(1));
        self.starts.push(start);
        self.requests.push(request);
        match self.kind {
            RingKind::Split => self.offer_split(number, &parts),
            RingKind::Packed => self.offer_packed(number, start, &parts),
        }
    }

    /// Descriptors of a request that was asked.
    fn parts_of(&self, number: usize) -> u64 {
        match self.requests.get(number) {
            None => 0,
            Some(GuestRequest::Flush) => PARTS as u64 - 1,
            Some(_) => PARTS as u64,
        }
    }

    fn offer_split(&self, number: usize, parts: &[(u64, usize, u16)]) {
        let head = number % self.size.most * PARTS;
        for (place, (address, len, flags)) in (head..).zip(parts) {
            let next = if place + 1 < head + parts.len() { NEXT } else { 0 };
            let half = u64::from(flags | next) << 32 | (place as u64 + 1) << 48 | *len as u64;
            self.write(place as u64 * 16, &[address.to_le_bytes(), half.to_le_bytes()].concat());
        }
        let slot = number as u64 % u64::from(self.ring_size());
        self.write(ADDRESSES.available + 4 + slot * 2, &(head as u16).to_le_bytes());
        self.write(ADDRESSES.available + 2, &(number as u16 + 1).to_le_bytes());
    }

    /// The last descriptor first, so that the head's flags come last.
    fn offer_packed(&self, number: usize, start: u64, parts: &[(u64, usize, u16)]) {
        for (place, (address, len, flags)) in parts.iter().enumerate().rev() {
            let (slot, wrap) = self.place(start + place as u64);
            let next = if place + 1 < parts.len() { NEXT } else { 0 };
            let flags = flags | next | if wrap { AVAIL } else { USED };
            let half = ((number % self.size.most) as u64 * 7) << 32 | u64::from(flags) << 48 | *len as u64;
            self.write(slot * 16, &[address.to_le_bytes(), half.to_le_bytes()].concat());
        }
    }

    const fn place(&self, position: u64) -> (u64, bool) {
        let size = self.ring_size() as u64;
        (position % size, (position / size).is_multiple_of(2))
    }

    /// Takes what is done: in the order in which it was asked, and well.
    pub(super) fn reap(&mut self) -> Vec<(usize, GuestRequest)> {
        let mut done = Vec::new();
        while let Some(request) = self.requests.get(self.seen).copied()
            && let Some((id, written)) = self.next_used()
        {
            let expected = self.seen % self.size.most * if self.kind == RingKind::Split { PARTS } else { 7 };
            assert_eq!(usize::from(id), expected, "request {} completes in its turn", self.seen);
            let read_bytes =
                if let GuestRequest::Read { count, .. } = request { count * SECTOR_BYTES } else { 0 };
            assert_eq!(written as usize, read_bytes + 1);
            assert_eq!(self.read(self.buffer(self.seen) + 16), [0], "request {} succeeds", self.seen);
            done.push((self.seen, request));
            self.seen += 1;
        }
        done
    }

    fn next_used(&self) -> Option<(u16, u32)> {
        let at = match self.kind {
            RingKind::Split => {
                let used = u16::from_le_bytes(self.read(ADDRESSES.used + 2));
                let slot = self.seen as u64 % u64::from(self.ring_size());
                (used != self.seen as u16).then_some(ADDRESSES.used + 4 + slot * 8)?
            }
            RingKind::Packed => {
                let (slot, wrap) = self.place(self.starts[self.seen]);
                let flags = u16::from_le_bytes(self.read(slot * 16 + 14));
                let is_used = (flags & AVAIL != 0) == wrap && (flags & USED != 0) == wrap;
                is_used.then_some(slot * 16 + 8)?
            }
        };
        let [first, second] = [at, at + 4].map(|at| u32::from_le_bytes(self.read(at)));
        Some(match self.kind {
            RingKind::Split => (first as u16, second),
            RingKind::Packed => (second as u16, first),
        })
    }

    /// What is done, as `GET_VRING_BASE` would say it.
    pub(super) fn used_base(&self) -> u32 {
        self.base(self.seen)
    }

    /// What is asked, in the same form.
    pub(super) fn available_base(&self) -> u32 {
        self.base(self.requests.len())
    }

    fn base(&self, number: usize) -> u32 {
        match self.kind {
            RingKind::Split => u32::from(number as u16),
            RingKind::Packed => {
                let before = number.wrapping_sub(1);
                let end = self.starts.get(before).map_or(0, |start| start + self.parts_of(before));
                let (slot, wrap) = self.place(end);
                (slot as u32 | u32::from(wrap) << 15) * 0x1_0001
            }
        }
    }
}
