//! What a guest may have in its memory: rings, tables and requests that are laid out as they should be, and then patched.

use arbitrary::Arbitrary;
use vhost_user_pmem::virtio::queue::{RingAddresses, RingKind, RingLayout};

use crate::common::guarded::GuardedMemory;

/// Where everything is, in guest addresses: the first region has what the device only reads, but for the used ring.
pub const RINGS: u64 = 0x10_0000;
pub const AVAILABLE: u64 = RINGS + 0x1000;
pub const USED: u64 = RINGS + 0x2000;
pub const TABLES: u64 = RINGS + 0x3000;
const HEADERS: u64 = RINGS + 0x6000;
pub const CONTROL_END: u64 = RINGS + 0x7000;
const STATUSES: u64 = RINGS + 0x7000;
/// Right behind the first region, so that buffers run over the border.
const LOW: u64 = RINGS + REGION_BYTES;
/// By itself.
const HIGH: u64 = 0x1_0000_0000;
pub const REGION_BYTES: u64 = 32 << 10;

/// The regions of guest memory.
pub const SPANS: [(u64, u64); 3] = [(RINGS, REGION_BYTES), (LOW, REGION_BYTES), (HIGH, REGION_BYTES)];

/// Between guest addresses and those of the front-end.
pub const USER_BASE: u64 = 0x6000_0000_0000;

/// Size of the disk.
pub const DISK_SECTORS: u64 = 512;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Of a packed ring.
const AVAIL_BIT: u16 = 1 << 7;
const USED_BIT: u16 = 1 << 15;

/// An address: mostly one that could be meant.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Place {
    Low(u16),
    High(u16),
    Status(u8),
    Header(u8),
    Table(u8),
    Rings(u16),
    Border(i8),
    End(i8),
    Wild(u64),
}

impl Place {
    fn address(self) -> u64 {
        match self {
            Self::Low(offset) => LOW + u64::from(offset) % (REGION_BYTES + 0x100),
            Self::High(offset) => HIGH + u64::from(offset) % (REGION_BYTES + 0x100),
            Self::Status(number) => STATUSES + u64::from(number),
            Self::Header(number) => HEADERS + u64::from(number) * 16,
            Self::Table(number) => TABLES + u64::from(number) * 64,
            Self::Rings(offset) => RINGS + u64::from(offset) % (TABLES - RINGS),
            Self::Border(offset) => LOW.wrapping_add_signed(offset.into()),
            Self::End(offset) => (HIGH + REGION_BYTES).wrapping_add_signed(offset.into()),
            Self::Wild(address) => address,
        }
    }
}

/// A length in bytes.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Len {
    Sectors(u8),
    Few(u8),
    Some(u16),
    Wild(u32),
}

impl Len {
    fn bytes(self) -> u32 {
        match self {
            Self::Sectors(count) => u32::from(count) * 512,
            Self::Few(bytes) => bytes.into(),
            Self::Some(bytes) => bytes.into(),
            Self::Wild(bytes) => bytes,
        }
    }
}

/// A sector of a request or of a range.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Sector {
    Inside(u16),
    NearEnd(i8),
    Wild(u64),
}

impl Sector {
    fn number(self) -> u64 {
        match self {
            Self::Inside(sector) => u64::from(sector) % DISK_SECTORS,
            Self::NearEnd(sectors) => DISK_SECTORS.wrapping_add_signed(sectors.into()),
            Self::Wild(sector) => sector,
        }
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard([Range; 2]),
    WriteZeroes([Range; 2]),
    Other(u32),
}

/// A range of a request that has such.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Range {
    sector: Sector,
    sectors: u16,
    flags: u8,
}

impl Kind {
    const fn code(self) -> u32 {
        match self {
            Self::In => 0,
            Self::Out => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::Discard(_) => 11,
            Self::WriteZeroes(_) => 13,
            Self::Other(code) => code,
        }
    }

    const fn has_output(self) -> bool {
        matches!(self, Self::Out | Self::Discard(_) | Self::WriteZeroes(_))
    }
}

/// A chain: header, data in pieces, status.
#[derive(Debug, Clone, Arbitrary)]
pub struct Request {
    kind: Kind,
    sector: Sector,
    pieces: Vec<(Place, Len)>,
    is_indirect: bool,
}

/// Bytes that are not as they should be: where, counted from the start of the rings, and what.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Patch {
    pub area: Area,
    pub offset: u16,
    pub value: u64,
    pub bytes: u8,
}

/// What is patched.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Area {
    Table,
    Available,
    Used,
    Tables,
    Headers,
}

impl Patch {
    /// Guest address and bytes.
    pub fn parts(&self) -> (u64, Vec<u8>) {
        let (start, end) = match self.area {
            Area::Table => (RINGS, RINGS + 0x400),
            Area::Available => (AVAILABLE, AVAILABLE + 0x90),
            Area::Used => (USED, USED + 0x210),
            Area::Tables => (TABLES, HEADERS),
            Area::Headers => (HEADERS, CONTROL_END),
        };
        let bytes = self.value.to_le_bytes()[..1 + usize::from(self.bytes) % 8].to_vec();
        (start + u64::from(self.offset) % (end - start), bytes)
    }
}

/// How the ring is.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Shape {
    size: u8,
    start: u16,
    pub event_idx: bool,
    pub indirect: bool,
    pub write_through: bool,
    pub read_only: bool,
    pub flushes_slowly: bool,
    pub is_logged: bool,
}

impl Shape {
    /// What the ring is started with.
    pub fn layout(&self, kind: RingKind) -> RingLayout {
        let size = match kind {
            RingKind::Split => 1 << (self.size % 7),
            RingKind::Packed => 1 + u32::from(self.size) % 64,
        };
        let user = |address: u64| USER_BASE + address;
        let addresses =
            RingAddresses { descriptors: user(RINGS), available: user(AVAILABLE), used: user(USED) };
        RingLayout { kind, size, addresses, base: 0, event_idx: self.event_idx, indirect: self.indirect }
    }
}

/// Lays requests out in memory.
pub struct Builder<'a> {
    pub memory: &'a GuardedMemory,
    layout: RingLayout,
    start: u16,
    /// Next descriptor, chains offered, tables and headers in use.
    slot: u32,
    pub offered: u16,
    tables: u64,
    headers: u64,
}

impl<'a> Builder<'a> {
    /// An empty ring, which begins where the shape says.
    pub fn new(memory: &'a GuardedMemory, shape: &Shape, layout: RingLayout) -> Self {
        // A packed ring is a fresh one: patches make it another.
        let start = if layout.kind == RingKind::Split { shape.start } else { 0 };
        if layout.kind == RingKind::Split {
            memory.write(AVAILABLE + 2, &start.to_le_bytes());
            memory.write(USED + 2, &start.to_le_bytes());
        }
        let slot = u32::from(start) % layout.size;
        Self { memory, layout, start, slot, offered: 0, tables: 0, headers: 0 }
    }

    /// Descriptors of a request: address, length, flags.
    fn parts(&mut self, request: &Request) -> Vec<(u64, u32, u16)> {
        let header = HEADERS + self.headers % 64 * 32;
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&request.kind.code().to_le_bytes());
        bytes[8..].copy_from_slice(&request.sector.number().to_le_bytes());
        self.memory.write(header, &bytes);
        let mut parts = vec![(header, 16, 0)];
        if let Kind::Discard(ranges) | Kind::WriteZeroes(ranges) = request.kind {
            let at = header + 16;
            let range = ranges[usize::from(request.pieces.len() > 2)];
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&range.sector.number().to_le_bytes());
            bytes[8..12].copy_from_slice(&u32::from(range.sectors).to_le_bytes());
            bytes[12..].copy_from_slice(&u32::from(range.flags & 3).to_le_bytes());
            self.memory.write(at, &bytes);
            parts.push((at, 16, 0));
        }
        let direction = if request.kind.has_output() { 0 } else { WRITE };
        let data = request.pieces.iter().take(6);
        parts.extend(data.map(|(place, len)| (place.address(), len.bytes(), direction)));
        parts.push((STATUSES + self.headers % 256, 1, WRITE));
        self.headers += 1;
        parts
    }

    /// Makes a chain available, if the ring has room for it.
    pub fn offer(&mut self, request: &Request) {
        let mut parts = self.parts(request);
        if request.is_indirect {
            let table = TABLES + self.tables % 64 * 192;
            let bytes: Vec<u8> = self.linked(&parts, 0).into_iter().flatten().collect();
            self.memory.write(table, &bytes);
            self.tables += 1;
            parts = vec![(table, bytes.len() as u32, INDIRECT)];
        }
        if self.slot - u32::from(self.start) % self.layout.size + parts.len() as u32 > self.layout.size {
            return;
        }
        match self.layout.kind {
            RingKind::Split => self.offer_split(&parts),
            RingKind::Packed => self.offer_packed(&parts),
        }
        self.slot += parts.len() as u32;
        self.offered += 1;
    }

    /// Descriptors as they lie in a table, from this number on.
    fn linked(&self, parts: &[(u64, u32, u16)], first: u32) -> Vec<[u8; 16]> {
        let last = parts.len() - 1;
        let describe = |(index, &(address, len, flags)): (usize, &(u64, u32, u16))| {
            let next = (first + index as u32 + 1) % self.layout.size.max(64);
            let (flags, next) = if index < last { (flags | NEXT, next as u16) } else { (flags, 0) };
            descriptor(address, len, flags, next)
        };
        parts.iter().enumerate().map(describe).collect()
    }

    fn offer_split(&mut self, parts: &[(u64, u32, u16)]) {
        let size = self.layout.size;
        for (index, mut bytes) in self.linked(parts, 0).into_iter().enumerate() {
            let slot = |index: usize| (self.slot + index as u32) % size;
            bytes[14..].copy_from_slice(&(slot(index + 1) as u16).to_le_bytes());
            self.memory.write(RINGS + u64::from(slot(index)) * 16, &bytes);
        }
        let place = u32::from(self.start.wrapping_add(self.offered)) % size;
        self.memory.write(AVAILABLE + 4 + u64::from(place) * 2, &((self.slot % size) as u16).to_le_bytes());
        let index = self.start.wrapping_add(self.offered).wrapping_add(1);
        self.memory.write(AVAILABLE + 2, &index.to_le_bytes());
    }

    fn offer_packed(&mut self, parts: &[(u64, u32, u16)]) {
        let size = self.layout.size;
        for (index, &(address, len, flags)) in parts.iter().enumerate() {
            let at = self.slot + index as u32;
            let wrap = if at < size { AVAIL_BIT } else { USED_BIT };
            let next = if index + 1 < parts.len() { NEXT } else { 0 };
            let bytes = descriptor(address, len, self.offered, flags | next | wrap);
            self.memory.write(RINGS + u64::from(at % size) * 16, &bytes);
        }
    }
}

/// The last two words are flags and next, or id and flags.
fn descriptor(address: u64, len: u32, word: u16, last: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&word.to_le_bytes());
    bytes[14..].copy_from_slice(&last.to_le_bytes());
    bytes
}
