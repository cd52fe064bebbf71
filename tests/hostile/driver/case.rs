//! A row of the table, and what it is built with.

use crate::common::frontend::SPANS;
use crate::common::frontend::request::header;
use crate::common::frontend::ring::{Descriptor, INDIRECT, NO_DATA, NO_STATUS, Part, RequestBuffers, Ring};
use crate::table::Answer;

/// Descriptors in the ring under test: fewer than an indirect table may have.
pub(crate) const QUEUE_SIZE: u16 = 64;

/// Most descriptors in an indirect table, whatever the ring's size: Windows' driver sends more than are announced.
pub(crate) const TABLE_SIZE: u16 = 1024;

/// Size of the disk.
pub(crate) const DISK_BYTES: u64 = 64 << 20;

/// Size of the disk in the unit of requests.
pub(crate) const CAPACITY: u64 = DISK_BYTES / 512;

/// The part of the disk that no row changes.
pub(crate) const KEPT_BYTES: u64 = 1 << 20;

/// A sector that rows may write to.
pub(crate) const SCRATCH: u64 = 2 * KEPT_BYTES / 512;

/// The disk's serial number.
pub(crate) const SERIAL: &str = "malformed-0123456789";

/// A chain, and what becomes of it.
#[derive(Clone)]
pub(crate) struct Row {
    /// What is wrong with it, or strange.
    pub(crate) name: &'static str,
    /// What becomes of it.
    pub(crate) expected: Answer,
    /// Lays it out and makes it available.
    pub(crate) build: fn(&mut Case<'_>),
}

/// A row.
pub(crate) fn row(name: &'static str, expected: Answer, build: fn(&mut Case<'_>)) -> Row {
    Row { name, expected, build }
}

/// Rows for rings of each kind.
#[derive(Default)]
pub(crate) struct Rows {
    /// For both.
    pub(crate) both: Vec<Row>,
    /// What only a split ring can say.
    pub(crate) split: Vec<Row>,
    /// What only a packed ring can say.
    pub(crate) packed: Vec<Row>,
}

impl Rows {
    /// Those that are nothing special.
    pub(crate) fn plain(both: Vec<Row>) -> Self {
        Self { both, ..Self::default() }
    }

    /// All that a ring of this kind can say.
    pub(crate) fn of(&self, packed: bool) -> impl Iterator<Item = &Row> {
        self.both.iter().chain(if packed { &self.packed } else { &self.split })
    }
}

/// Somewhere that is not guest memory.
pub(crate) const WILD: u64 = 0xdead_0000;

/// The end of the first region; behind it is a gap.
pub(crate) const END: u64 = SPANS[0].guest_start + SPANS[0].bytes;

/// How [`Case::chain`] lays out what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As descriptors of the ring.
    Direct,
    /// As an indirect table.
    Indirect,
}

/// The ring and the memory of one chain.
pub(crate) struct Case<'a> {
    /// The ring under test, quiet.
    pub(crate) ring: &'a mut Ring,
    layout: Layout,
    /// Memory of a request.
    pub(crate) frame: RequestBuffers,
    /// Memory of an indirect table.
    pub(crate) table: u64,
    /// Memory of another one.
    pub(crate) inner: u64,
    /// Where the status is expected.
    pub(crate) status: u64,
    /// Which head is expected in the used ring.
    pub(crate) head: u16,
}

impl<'a> Case<'a> {
    /// Clean memory.
    pub(crate) fn new(ring: &'a mut Ring, layout: Layout) -> Self {
        let (frame, tables) = (ring.buffers(0), ring.buffers(1));
        ring.memory.fill(frame.header, 2048, 0);
        ring.memory.fill(frame.status, 64, NO_STATUS);
        ring.memory.fill(frame.data, 16 << 10, NO_DATA);
        ring.memory.fill(tables.data, 16 << 10, 0);
        let status = frame.status;
        Self { ring, layout, frame, table: tables.data, inner: tables.data + (8 << 10), status, head: 0 }
    }

    /// Writes the request's header.
    pub(crate) fn header(&self, kind: u32, sector: u64) -> &Self {
        self.ring.memory.write(self.frame.header, &header(kind, sector));
        self
    }

    /// Writes what a request carries behind its header.
    pub(crate) fn payload(&self, bytes: &[u8]) -> &Self {
        self.ring.memory.write(self.frame.data, bytes);
        self
    }

    /// The header as a descriptor.
    pub(crate) fn header_part(&self) -> Part {
        (self.frame.header, 16, 0)
    }

    /// The status as a descriptor.
    pub(crate) fn status_part(&self) -> Part {
        (self.frame.status, 1, 2)
    }

    /// The request's data as a descriptor.
    pub(crate) fn data_part(&self, bytes: u32, flags: u16) -> Part {
        (self.frame.data, bytes, flags)
    }

    /// Writes one descriptor of a split ring's table.
    pub(crate) fn put(&self, index: u16, (address, len, flags): Part, next: u16) -> &Self {
        self.ring.put(index, Descriptor { address, len, flags, next });
        self
    }

    /// Writes one descriptor of a split ring's table in memory.
    pub(crate) fn put_in(&self, table: u64, index: u16, (address, len, flags): Part, next: u16) -> &Self {
        let bytes = Descriptor { address, len, flags, next }.to_bytes();
        self.ring.memory.write(table + u64::from(index) * 16, &bytes);
        self
    }

    /// Writes a whole table to memory, each descriptor leading to the next.
    pub(crate) fn table_of(&self, table: u64, parts: &[Part]) -> &Self {
        self.ring.put_table(table, parts);
        self
    }

    /// Makes the chain of a split ring available that begins at `head`.
    pub(crate) fn offer(&mut self, head: u16) {
        self.head = head;
        self.ring.offer(head);
    }

    /// A chain of these, made available.
    pub(crate) fn chain(&mut self, parts: &[Part]) {
        self.chain_at(0, parts);
    }

    /// A chain of these with this head or buffer id, made available.
    pub(crate) fn chain_at(&mut self, head: u16, parts: &[Part]) {
        self.head = head;
        match self.layout {
            Layout::Direct => self.ring.chain(head, parts),
            Layout::Indirect => {
                self.ring.put_table(self.table, parts);
                self.ring.chain(head, &[(self.table, parts.len() as u32 * 16, INDIRECT)]);
            }
        }
    }

    /// Header, data that the device writes, and status.
    pub(crate) fn input(&mut self, kind: u32, sector: u64, bytes: u32) {
        self.header(kind, sector);
        let parts = [self.header_part(), self.data_part(bytes, 2), self.status_part()];
        self.chain(&parts);
    }

    /// Header, data that the device reads, and status.
    pub(crate) fn output(&mut self, kind: u32, sector: u64, bytes: u32) {
        self.header(kind, sector);
        let parts = [self.header_part(), self.data_part(bytes, 0), self.status_part()];
        self.chain(&parts);
    }

    /// Header and status.
    pub(crate) fn bare(&mut self, kind: u32, sector: u64) {
        self.header(kind, sector);
        let parts = [self.header_part(), self.status_part()];
        self.chain(&parts);
    }

    /// A request that carries ranges (DISCARD, WRITE_ZEROES).
    pub(crate) fn ranges(&mut self, kind: u32, ranges: &[[u8; 16]]) {
        self.payload(ranges.as_flattened());
        self.output(kind, 0, ranges.len() as u32 * 16);
    }
}
