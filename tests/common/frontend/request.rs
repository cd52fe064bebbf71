//! Requests of a block device (VIRTIO 1.2 §5.2.6).

/// Request type: disk to memory.
pub const IN: u32 = 0;
/// Request type: memory to disk.
pub const OUT: u32 = 1;
/// Request type: make earlier writes persist.
pub const FLUSH: u32 = 4;
/// Request type: the serial number.
pub const GET_ID: u32 = 8;
/// Request type: sectors are not needed.
pub const DISCARD: u32 = 11;
/// Request type: sectors shall be zero.
pub const WRITE_ZEROES: u32 = 13;

/// Status: done.
pub const OK: u8 = 0;
/// Status: failed.
pub const IOERR: u8 = 1;
/// Status: not known here.
pub const UNSUPP: u8 = 2;

/// A request before it is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// One of the types above, or any other.
    pub kind: u32,
    /// First sector.
    pub sector: u64,
    /// What the device reads behind the header.
    pub payload: Vec<u8>,
    /// What the device may write before the status.
    pub writable_bytes: u32,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// [`OK`], [`IOERR`], [`UNSUPP`].
    pub status: u8,
    /// As the used ring says.
    pub used_bytes: u32,
    /// What is in the writable part now.
    pub data: Vec<u8>,
}

impl Request {
    /// Disk to memory.
    pub fn read(sector: u64, bytes: u32) -> Self {
        Self { kind: IN, sector, payload: Vec::new(), writable_bytes: bytes }
    }

    /// Memory to disk.
    pub fn write(sector: u64, bytes: &[u8]) -> Self {
        Self { kind: OUT, sector, payload: bytes.to_vec(), writable_bytes: 0 }
    }

    /// The serial number.
    pub fn get_id() -> Self {
        Self { kind: GET_ID, sector: 0, payload: Vec::new(), writable_bytes: 20 }
    }

    /// Make earlier writes last.
    pub fn flush() -> Self {
        Self { kind: FLUSH, sector: 0, payload: Vec::new(), writable_bytes: 0 }
    }

    /// Type and sector as they lie in memory.
    pub fn header(&self) -> [u8; 16] {
        header(self.kind, self.sector)
    }
}

/// A request's header as it lies in memory.
pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// A range of a DISCARD or WRITE_ZEROES as it lies in memory.
pub fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}
