//! A driver of the test's own, and the guest memory that it lays its rings out in.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::workload::{Request, SECTOR_BYTES};
use crate::virtio::queue::RingAddresses;

pub(super) const RINGS: usize = 2;
pub(super) const RING_SIZE: u16 = 64;
/// Guest memory: for each ring a page for each of its areas, then the buffers of a batch.
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;
const RING_BYTES: u64 = BUFFERS + (256 << 10);
pub(super) const MEMORY_BYTES: u64 = RING_BYTES * RINGS as u64;

/// Where the areas of a ring are.
pub(super) const fn addresses(ring: usize) -> RingAddresses {
    RingAddresses { descriptors: area(ring, 0), available: area(ring, AVAIL), used: area(ring, USED) }
}

/// What a driver has written into guest memory.
#[derive(Debug)]
pub(super) struct Driver {
    guest: File,
    ring: usize,
    /// Chains made available so far.
    offered: u16,
    next_descriptor: u16,
    next_buffer: u64,
    /// Where the statuses of this batch are.
    statuses: Vec<u64>,
}

impl Driver {
    /// Of a ring that nothing was offered in.
    pub(super) fn new(guest: &File, ring: usize) -> Self {
        let guest = guest.try_clone().unwrap();
        let next_buffer = area(ring, BUFFERS);
        Self { guest, ring, offered: 0, next_descriptor: 0, next_buffer, statuses: Vec::new() }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.guest.write_all_at(bytes, at).unwrap();
    }

    fn buffer(&mut self, bytes: &[u8]) -> u64 {
        // On one ring whole sectors lie as a guest's kernel lays them, and direct I/O wants them.
        if self.ring == 0 && bytes.len().is_multiple_of(SECTOR_BYTES) {
            self.next_buffer = self.next_buffer.next_multiple_of(SECTOR_BYTES as u64);
        }
        let at = self.next_buffer;
        self.write(at, bytes);
        // Odd buffers begin at odd addresses.
        self.next_buffer += bytes.len() as u64 + 1;
        at
    }

    fn descriptor(&mut self, buffer: (u64, usize), flags: u16) {
        let index = self.next_descriptor;
        let mut bytes = buffer.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(buffer.1 as u32).to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&(index + 1).to_le_bytes());
        self.write(area(self.ring, 0) + u64::from(index) * 16, &bytes);
        self.next_descriptor += 1;
        assert!(self.next_descriptor <= RING_SIZE, "the batch does not fit the table");
    }

    /// Writes a chain; the driver makes it available with [`offer`](Self::offer).
    pub(super) fn chain(&mut self, request: &Request) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        let (kind, sector, pieces) = match request {
            Request::Flush => (VIRTIO_BLK_T_FLUSH, 0, vec![]),
            Request::Write { at, data, cuts } => {
                let starts = std::iter::once(&0).chain(cuts);
                let pieces = starts.zip(cuts).map(|(start, end)| data[*start..*end].to_vec());
                (VIRTIO_BLK_T_OUT, at / SECTOR_BYTES, pieces.collect())
            }
            Request::Zero { .. } | Request::Discard { .. } => {
                let (range, unmap) = (request.range(), matches!(request, Request::Zero { unmap: true, .. }));
                let mut bytes = ((range.start / SECTOR_BYTES) as u64).to_le_bytes().to_vec();
                bytes.extend_from_slice(&((range.len() / SECTOR_BYTES) as u32).to_le_bytes());
                bytes.extend_from_slice(&u32::from(unmap).to_le_bytes());
                let is_discard = matches!(request, Request::Discard { .. });
                let kind = if is_discard { VIRTIO_BLK_T_DISCARD } else { VIRTIO_BLK_T_WRITE_ZEROES };
                (kind, 0, vec![bytes])
            }
        };
        let head = self.next_descriptor;
        let header = [&kind.to_le_bytes()[..], &[0; 4], &(sector as u64).to_le_bytes()].concat();
        for piece in std::iter::once(header).chain(pieces) {
            let at = self.buffer(&piece);
            self.descriptor((at, piece.len()), NEXT);
        }
        let status = self.buffer(&[0xff]);
        self.descriptor((status, 1), WRITE);
        self.statuses.push(status);
        let slot = self.offered % RING_SIZE;
        self.write(area(self.ring, AVAIL) + 4 + u64::from(slot) * 2, &head.to_le_bytes());
        self.offered = self.offered.wrapping_add(1);
    }

    /// Whether the table has room for all of these.
    pub(super) fn has_room(&self, requests: &[Request]) -> bool {
        let descriptors = |request: &Request| match request {
            Request::Write { cuts, .. } => cuts.len() + 2,
            Request::Flush => 2,
            Request::Zero { .. } | Request::Discard { .. } => 3,
        };
        let wanted: usize = requests.iter().map(descriptors).sum();
        usize::from(self.next_descriptor) + wanted <= usize::from(RING_SIZE)
    }

    pub(super) fn offer(&self) {
        self.write(area(self.ring, AVAIL) + 2, &self.offered.to_le_bytes());
    }

    /// Every request of the batch was done well; its memory is used again.
    pub(super) fn reap(&mut self) {
        for at in std::mem::take(&mut self.statuses) {
            let mut status = [0xff];
            self.guest.read_exact_at(&mut status, at).unwrap();
            assert_eq!(status, [0], "a request failed");
        }
        (self.next_descriptor, self.next_buffer) = (0, area(self.ring, BUFFERS));
    }
}

const fn area(ring: usize, at: u64) -> u64 {
    ring as u64 * RING_BYTES + at
}

/// The used and the available index of every ring, as a driver sees them.
pub(super) fn indices(guest: &File) -> u64 {
    let word = |ring: usize, at: u64| {
        let mut bytes = [0; 2];
        guest.read_exact_at(&mut bytes, area(ring, at) + 2).unwrap();
        u64::from(u16::from_le_bytes(bytes))
    };
    (0..RINGS).fold(0, |all, ring| all << 32 | word(ring, USED) << 16 | word(ring, AVAIL))
}

/// Used and available index of a ring in what [`indices`] answered.
pub(super) fn indices_of(seen: u64, ring: usize) -> (usize, usize) {
    let both = seen >> ((RINGS - 1 - ring) * 32);
    (usize::from((both >> 16) as u16), usize::from(both as u16))
}
