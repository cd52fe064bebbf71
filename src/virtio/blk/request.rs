//! What a chain asks: pure functions of its bytes and the disk's limits (VIRTIO 1.2 §5.2.6).
//!
//! All arithmetic on numbers that come from a guest is here and in [`super::units`].

#![deny(clippy::arithmetic_side_effects)]

use virtio_bindings::bindings::virtio_blk as spec;

use super::units::{Limits, MAX_RANGES, SECTOR_BYTES};
use crate::copy::{self, Segments};
use crate::limits::bounds::MAX_SLICE_BYTES;
use crate::throttle::Kind;
use crate::virtio::memory::speculation::below;
use crate::virtio::queue::{ContiguousChain, Header};

/// Length of one range of a DISCARD or WRITE_ZEROES: sector, number of sectors, flags.
const RANGE_BYTES: usize = 16;

/// The only flag of a range (WRITE_ZEROES).
const UNMAP: u32 = spec::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

/// Bit of a type that drivers older than VIRTIO 1.0 may set: a request is done after all that came before it. All are.
const BARRIER: u32 = spec::VIRTIO_BLK_T_BARRIER;

/// What drivers older than VIRTIO 1.0 may call a flush (VIRTIO 1.2 §5.2.6.3): both types mean the same.
const FLUSH_OUT: u32 = spec::VIRTIO_BLK_T_FLUSH | spec::VIRTIO_BLK_T_OUT;

/// The types of requests are all lower (VIRTIO 1.2 §5.2.6).
const TYPES_END: u64 = 16;
const _: () = assert!((spec::VIRTIO_BLK_T_WRITE_ZEROES as u64) < TYPES_END);

/// Why a request is answered without being tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorStatus {
    /// `VIRTIO_BLK_S_IOERR`.
    IoError,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

/// The status of a request that is done.
pub(super) const OK: u8 = status_byte(spec::VIRTIO_BLK_S_OK);

impl ErrorStatus {
    /// The status that the driver reads.
    pub(super) const fn status(self) -> u8 {
        status_byte(match self {
            Self::IoError => spec::VIRTIO_BLK_S_IOERR,
            Self::Unsupported => spec::VIRTIO_BLK_S_UNSUPP,
        })
    }
}

/// The statuses are 0, 1 and 2.
const fn status_byte(status: u32) -> u8 {
    let [byte, _, _, _] = status.to_le_bytes();
    byte
}

/// A request that cannot be out of range any more.
#[derive(Debug)]
pub enum Operation<'a> {
    /// Fill `into` from `offset`, in bytes.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Where to.
        into: Segments<'a>,
    },
    /// Store `from` at `offset`, in bytes.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Where from.
        from: Segments<'a>,
    },
    /// Everything acknowledged before must persist.
    Flush,
    /// The serial number, as much of it as there is room for.
    GetId {
        /// Where to.
        into: Segments<'a>,
    },
    /// These bytes are not needed; see [`parse_ranges`].
    Discard {
        /// The ranges, still the guest's: read once.
        payload: Segments<'a>,
    },
    /// These bytes shall be zero; see [`parse_ranges`].
    WriteZeroes {
        /// As above.
        payload: Segments<'a>,
    },
}

impl Operation<'_> {
    /// What a person calls it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::GetId { .. } => "get id",
            Self::Discard { .. } => "discard",
            Self::WriteZeroes { .. } => "write zeroes",
        }
    }
}

/// Checks what a header (type, reserved, sector) asks against the limits.
///
/// # Errors
/// How the request is to be refused.
#[inline(always)]
pub fn parse<'a>(
    header: &Header,
    readable: Segments<'a>,
    writable: Segments<'a>,
    limits: &Limits,
) -> Result<Operation<'a>, ErrorStatus> {
    let [_, sector] = *header;
    match kind(header) & !BARRIER {
        spec::VIRTIO_BLK_T_IN => {
            let offset = transfer(sector, &writable, &readable, limits)?;
            Ok(Operation::Read { offset, into: writable })
        }
        spec::VIRTIO_BLK_T_OUT => {
            let offset = transfer(sector, &readable, &writable, limits)?;
            if limits.read_only {
                return Err(ErrorStatus::IoError);
            }
            Ok(Operation::Write { offset, from: readable })
        }
        code => parse_other(code, readable, writable, limits),
    }
}

/// As [`parse`], for what moves no blocks of data.
#[inline(never)]
fn parse_other<'a>(
    code: u32,
    readable: Segments<'a>,
    writable: Segments<'a>,
    limits: &Limits,
) -> Result<Operation<'a>, ErrorStatus> {
    // The compiler makes a table of jumps of this, into which a type that is none must not lead either.
    match u32::try_from(below(code.into(), TYPES_END)).unwrap_or(0) {
        spec::VIRTIO_BLK_T_FLUSH | FLUSH_OUT => Ok(Operation::Flush),
        spec::VIRTIO_BLK_T_GET_ID => Ok(Operation::GetId { into: writable }),
        spec::VIRTIO_BLK_T_DISCARD if !limits.read_only => Ok(Operation::Discard { payload: readable }),
        spec::VIRTIO_BLK_T_WRITE_ZEROES if !limits.read_only => {
            Ok(Operation::WriteZeroes { payload: readable })
        }
        _ => Err(ErrorStatus::Unsupported),
    }
}

/// Which way a transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the guest.
    Read,
    /// From the guest.
    Write,
}

/// Which way a chain of the common shape asks for and has its data for.
#[inline(always)]
pub(super) const fn direction(chain: &ContiguousChain<'_>) -> Option<Direction> {
    match kind(chain.header()) {
        spec::VIRTIO_BLK_T_IN if chain.is_writable() => Some(Direction::Read),
        spec::VIRTIO_BLK_T_OUT if !chain.is_writable() => Some(Direction::Write),
        _ => None,
    }
}

/// Offset in bytes of the transfer that a chain of the common shape asks for, if it is one of whole units inside the
/// disk that is done in one go.
#[inline(always)]
pub(super) fn offset_of(chain: &ContiguousChain<'_>, limits: &Limits) -> Option<u64> {
    let [_, sector] = *chain.header();
    let bytes = chain.data().total_bytes() as u64;
    // No bits but those of a whole number of sectors that is less than a slice.
    if bytes & !MAX_SLICE_BYTES.wrapping_sub(SECTOR_BYTES) != 0 {
        return None;
    }
    limits.offset_bytes(sector, bytes / SECTOR_BYTES)
}

/// Where a request that begins with this header will read or write, if that is what it asks: a guess, of which
/// nothing is checked.
#[inline(always)]
pub(super) const fn guess_offset(header: &Header) -> Option<u64> {
    let [_, sector] = *header;
    match kind(header) {
        spec::VIRTIO_BLK_T_IN | spec::VIRTIO_BLK_T_OUT => Some(sector.wrapping_mul(SECTOR_BYTES)),
        _ => None,
    }
}

/// How limits count a request that begins with this header.
pub const fn kind_for_limits(header: &Header) -> Kind {
    match kind(header) & !BARRIER {
        spec::VIRTIO_BLK_T_IN => Kind::Read,
        spec::VIRTIO_BLK_T_OUT | spec::VIRTIO_BLK_T_DISCARD | spec::VIRTIO_BLK_T_WRITE_ZEROES => Kind::Write,
        _ => Kind::Other,
    }
}

/// The type of a request.
#[inline]
pub(super) const fn kind(header: &Header) -> u32 {
    let [first, _] = *header;
    let [t0, t1, t2, t3, ..] = first.to_le_bytes();
    u32::from_le_bytes([t0, t1, t2, t3])
}

/// Offset in bytes of a transfer of whole blocks inside the disk, with no data in the other direction.
#[inline]
fn transfer(
    sector: u64,
    data: &Segments<'_>,
    other_direction: &Segments<'_>,
    limits: &Limits,
) -> Result<u64, ErrorStatus> {
    let data_bytes = data.total_bytes() as u64;
    if other_direction.total_bytes() > 0 || !data_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(ErrorStatus::IoError);
    }
    limits.offset_bytes(sector, data_bytes / SECTOR_BYTES).ok_or(ErrorStatus::IoError)
}

/// A range of a DISCARD or WRITE_ZEROES, inside the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// The space may be given back (WRITE_ZEROES).
    pub unmap: bool,
}

/// The ranges of one request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ranges {
    list: [Range; MAX_RANGES as usize],
    count: usize,
}

impl Ranges {
    /// In the guest's order.
    pub fn as_slice(&self) -> &[Range] {
        self.list.get(..self.count).unwrap_or_default()
    }
}

/// Reads the ranges of a DISCARD (or, with `zeroes`, of a WRITE_ZEROES) and checks each before any is done.
///
/// # Errors
/// How the request is to be refused.
pub fn parse_ranges(payload: Segments<'_>, zeroes: bool, limits: &Limits) -> Result<Ranges, ErrorStatus> {
    let mut bytes = [[0; RANGE_BYTES]; MAX_RANGES as usize];
    let total = payload.total_bytes();
    if total == 0 || !total.is_multiple_of(RANGE_BYTES) {
        return Err(ErrorStatus::IoError);
    }
    if total > bytes.as_flattened().len() {
        return Err(ErrorStatus::Unsupported);
    }
    if copy::load_slice(payload, bytes.as_flattened_mut()) != total {
        return Err(ErrorStatus::IoError);
    }
    let mut ranges = Ranges { list: Default::default(), count: total / RANGE_BYTES };
    for (range, raw) in ranges.list.iter_mut().zip(bytes).take(ranges.count) {
        *range = parse_range(raw, zeroes, limits)?;
    }
    Ok(ranges)
}

fn parse_range(raw: [u8; RANGE_BYTES], zeroes: bool, limits: &Limits) -> Result<Range, ErrorStatus> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = raw;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    let known = if zeroes { UNMAP } else { 0 };
    let flags = u32::from_le_bytes(flags);
    if flags & !known != 0 {
        return Err(ErrorStatus::Unsupported);
    }
    // The longest range that is announced is a hint as well: some drivers (libblkio 1.5) do not heed it.
    let offset = limits.offset_bytes(sector, u64::from(count)).ok_or(ErrorStatus::IoError)?;
    let len_bytes = u64::from(count).saturating_mul(SECTOR_BYTES);
    Ok(Range { offset, len_bytes, unmap: flags & UNMAP != 0 })
}
