//! Requests that a driver must not send, and the edges of those that it may (VIRTIO 1.2 §5.2.6).

use super::case::{CAPACITY, Row, Rows, SCRATCH, row};
use crate::common::frontend::request::{
    DISCARD, FLUSH, GET_ID, IN, IOERR, OK, OUT, UNSUPP, WRITE_ZEROES, header, range,
};
use crate::common::frontend::ring::WRITE;
use crate::table::Answer::Status;

/// Flag of a range: its space may be given back.
const UNMAP: u32 = 1;

/// Bit of a type: the request is a barrier.
const BARRIER: u32 = 1 << 31;

/// A sector whose first byte has an address of 65 bits: shifted without care it is sector 0.
const SHIFTED_TO_0: u64 = 1 << 55;

/// Ranges that a request may carry.
const MOST_RANGES: usize = 32;

/// The table.
pub(crate) fn rows() -> Rows {
    let all = [
        headers(),
        sectors(),
        lengths(),
        directions(),
        others(),
        obsolete(),
        unknown(),
        discards(),
        zeroes(),
    ];
    Rows::plain(all.into_iter().flatten().collect())
}

fn headers() -> Vec<Row> {
    vec![
        row("no header", Status(IOERR, 1), |case| {
            let parts = [case.status_part()];
            case.chain(&parts);
        }),
        row("no header, but data", Status(IOERR, 0), |case| {
            let parts = [case.data_part(512, WRITE), case.status_part()];
            case.chain(&parts);
        }),
        row("a header of one byte", Status(IOERR, 1), |case| {
            let parts = [(case.frame.header, 1, 0), case.status_part()];
            case.chain(&parts);
        }),
        row("a header without a sector", Status(IOERR, 0), |case| {
            let parts = [(case.frame.header, 8, 0), case.data_part(512, WRITE), case.status_part()];
            case.chain(&parts);
        }),
        row("a header of 15 bytes", Status(IOERR, 1), |case| {
            let parts = [(case.header(FLUSH, 0).frame.header, 15, 0), case.status_part()];
            case.chain(&parts);
        }),
        row("a header with something in the reserved field", Status(OK, 513), |case| {
            let mut bytes = header(IN, 0);
            bytes[4..8].fill(0xff);
            case.ring.memory.write(case.frame.header, &bytes);
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            case.chain(&parts);
        }),
    ]
}

fn sectors() -> Vec<Row> {
    vec![
        row("a read of the last sector", Status(OK, 513), |case| case.input(IN, CAPACITY - 1, 512)),
        row("a read behind the end", Status(IOERR, 0), |case| case.input(IN, CAPACITY, 512)),
        row("a read over the end", Status(IOERR, 0), |case| case.input(IN, CAPACITY - 1, 1024)),
        row("a read at the last sector number", Status(IOERR, 0), |case| case.input(IN, u64::MAX, 512)),
        row("a read that ends at 2^64 sectors", Status(IOERR, 0), |case| case.input(IN, u64::MAX, 1024)),
        row("a read at 2^55 sectors", Status(IOERR, 0), |case| case.input(IN, SHIFTED_TO_0, 512)),
        row("a read at 2^56 - 1 sectors", Status(IOERR, 0), |case| case.input(IN, 2 * SHIFTED_TO_0 - 1, 512)),
        row("a read at 2^63 sectors", Status(IOERR, 0), |case| case.input(IN, 1 << 63, 512)),
        row("a write of the last sector", Status(OK, 1), |case| case.output(OUT, CAPACITY - 1, 512)),
        row("a write behind the end", Status(IOERR, 1), |case| case.output(OUT, CAPACITY, 512)),
        row("a write over the end", Status(IOERR, 1), |case| case.output(OUT, CAPACITY - 1, 1024)),
        row("a write at the last sector number", Status(IOERR, 1), |case| case.output(OUT, u64::MAX, 512)),
        row("a write over 2^64 sectors", Status(IOERR, 1), |case| case.output(OUT, u64::MAX, 1024)),
        row("a write at 2^55 sectors", Status(IOERR, 1), |case| case.output(OUT, SHIFTED_TO_0, 512)),
        row("a write at 2^55 sectors and one", Status(IOERR, 1), |case| {
            case.output(OUT, SHIFTED_TO_0 + 1, 512)
        }),
        row("a read of nothing", Status(OK, 1), |case| case.bare(IN, 0)),
        row("a read of nothing at the end", Status(OK, 1), |case| case.bare(IN, CAPACITY)),
        row("a read of nothing behind the end", Status(IOERR, 1), |case| case.bare(IN, CAPACITY + 1)),
        row("a write of nothing", Status(OK, 1), |case| case.bare(OUT, 0)),
        row("a write of nothing behind the end", Status(IOERR, 1), |case| case.bare(OUT, u64::MAX)),
    ]
}

fn lengths() -> Vec<Row> {
    vec![
        row("a read of one byte", Status(IOERR, 0), |case| case.input(IN, 0, 1)),
        row("a read of 511 bytes", Status(IOERR, 0), |case| case.input(IN, 0, 511)),
        row("a read of 513 bytes", Status(IOERR, 0), |case| case.input(IN, 0, 513)),
        row("a write of one byte", Status(IOERR, 1), |case| case.output(OUT, 0, 1)),
        row("a write of 1000 bytes", Status(IOERR, 1), |case| case.output(OUT, 0, 1000)),
        row("a read of more than the disk has", Status(IOERR, 0), |case| {
            let whole = (crate::common::frontend::SPANS[0].guest_start, 1 << 30, WRITE);
            let parts = [case.header(IN, 0).header_part(), whole, case.status_part()];
            case.chain(&parts);
        }),
    ]
}

fn directions() -> Vec<Row> {
    vec![
        row("a read with something behind the header", Status(IOERR, 0), |case| {
            let header = (case.header(IN, 0).frame.header, 17, 0);
            let parts = [header, case.data_part(512, WRITE), case.status_part()];
            case.chain(&parts);
        }),
        row("a read of data that is for reading", Status(IOERR, 1), |case| case.output(IN, 0, 512)),
        row("a write with room for more than the status", Status(IOERR, 0), |case| {
            case.status = case.frame.status + 1;
            let status = (case.frame.status, 2, WRITE);
            let parts = [case.header(OUT, 0).header_part(), case.data_part(512, 0), status];
            case.chain(&parts);
        }),
        row("a write of data that is for writing", Status(IOERR, 0), |case| case.input(OUT, 0, 512)),
    ]
}

fn others() -> Vec<Row> {
    vec![
        row("a flush", Status(OK, 1), |case| case.bare(FLUSH, 0)),
        row("a flush of a sector", Status(OK, 1), |case| case.bare(FLUSH, u64::MAX)),
        row("the serial number", Status(OK, 21), |case| case.input(GET_ID, 0, 20)),
        row("a part of the serial number", Status(OK, 6), |case| case.input(GET_ID, 0, 5)),
        row("the serial number in too large a buffer", Status(OK, 20), |case| case.input(GET_ID, 0, 512)),
        row("the serial number to nowhere", Status(OK, 1), |case| case.bare(GET_ID, 0)),
        row("the serial number byte by byte", Status(OK, 21), |case| {
            let data = case.header(GET_ID, 7).frame.data;
            let bytes: Vec<_> = (0..20).map(|at| (data + 2 * at, 1, WRITE)).collect();
            let parts = [&[case.header_part()], bytes.as_slice(), &[case.status_part()]].concat();
            case.chain(&parts);
        }),
    ]
}

/// Drivers older than VIRTIO 1.0 may set a bit for a barrier in any type (SLOF does), and have two types for a flush and for
/// SCSI commands.
fn obsolete() -> Vec<Row> {
    vec![
        row("a read with a barrier", Status(OK, 513), |case| case.input(BARRIER | IN, 0, 512)),
        row("a read in pieces with a barrier", Status(OK, 1025), |case| {
            let data = case.header(BARRIER | IN, 0).frame.data;
            let pieces = [(data, 512, WRITE), (data + 1024, 512, WRITE)];
            let parts = [&[case.header_part()], pieces.as_slice(), &[case.status_part()]].concat();
            case.chain(&parts);
        }),
        row("a read of nothing with a barrier", Status(OK, 1), |case| case.bare(BARRIER, 0)),
        row("a read behind the end with a barrier", Status(IOERR, 0), |case| {
            case.input(BARRIER | IN, CAPACITY, 512);
        }),
        row("a write with a barrier", Status(OK, 1), |case| case.output(BARRIER | OUT, SCRATCH, 512)),
        row("a flush with a barrier", Status(OK, 1), |case| case.bare(BARRIER | FLUSH, 0)),
        row("the other type of a flush", Status(OK, 1), |case| case.bare(FLUSH | OUT, 0)),
        row("the serial number with a barrier", Status(OK, 21), |case| case.input(BARRIER | GET_ID, 0, 20)),
        row("a SCSI command, which is not offered", Status(UNSUPP, 0), |case| case.input(2, 0, 16)),
        row("the other type of a SCSI command", Status(UNSUPP, 1), |case| case.output(3, 0, 16)),
    ]
}

fn unknown() -> Vec<Row> {
    vec![
        row("type 2", Status(UNSUPP, 1), |case| case.bare(2, 0)),
        row("type 3", Status(UNSUPP, 0), |case| case.input(3, 0, 512)),
        row("get lifetime, which is not offered", Status(UNSUPP, 0), |case| case.input(10, 0, 512)),
        row("secure erase, which is not offered", Status(UNSUPP, 1), |case| {
            case.ranges(14, &[range(SCRATCH, 8, 0)]);
        }),
        row("a zone append, which is not offered", Status(UNSUPP, 1), |case| case.output(15, 0, 512)),
        row("get lifetime with a barrier", Status(UNSUPP, 0), |case| case.input(BARRIER | 10, 0, 512)),
        row("type 2^32 - 1", Status(UNSUPP, 1), |case| case.output(u32::MAX, 0, 512)),
        row("a type in the wrong byte order", Status(UNSUPP, 1), |case| case.output(1 << 24, 0, 512)),
    ]
}

fn discards() -> Vec<Row> {
    vec![
        row("a discard", Status(OK, 1), |case| case.ranges(DISCARD, &[range(SCRATCH, 8, 0)])),
        row("a discard of many ranges", Status(OK, 1), |case| {
            case.ranges(DISCARD, &[range(SCRATCH, 8, 0); MOST_RANGES]);
        }),
        row("a discard of one range too many", Status(UNSUPP, 1), |case| {
            case.ranges(DISCARD, &[range(SCRATCH, 8, 0); MOST_RANGES + 1]);
        }),
        row("a discard of no range", Status(IOERR, 1), |case| case.bare(DISCARD, 0)),
        row("a discard of half a range", Status(IOERR, 1), |case| case.output(DISCARD, 0, 8)),
        row("a discard of a range and a byte", Status(IOERR, 1), |case| case.output(DISCARD, 0, 17)),
        row("a discard to unmap", Status(UNSUPP, 1), |case| case.ranges(DISCARD, &[range(0, 8, UNMAP)])),
        row("a discard with a reserved flag", Status(UNSUPP, 1), |case| {
            case.ranges(DISCARD, &[range(0, 8, 2)])
        }),
        row("a discard with every flag", Status(UNSUPP, 1), |case| {
            case.ranges(DISCARD, &[range(0, 8, u32::MAX)]);
        }),
        row("a discard behind the end", Status(IOERR, 1), |case| {
            case.ranges(DISCARD, &[range(CAPACITY, 8, 0)])
        }),
        row("a discard over the end", Status(IOERR, 1), |case| {
            case.ranges(DISCARD, &[range(CAPACITY - 4, 8, 0)]);
        }),
        row("a discard at 2^55 sectors", Status(IOERR, 1), |case| {
            case.ranges(DISCARD, &[range(SHIFTED_TO_0, 8, 0)]);
        }),
        row("a discard over 2^64 sectors", Status(IOERR, 1), |case| {
            case.ranges(DISCARD, &[range(u64::MAX - 3, 8, 0)]);
        }),
        row("a discard of 2^32 - 1 sectors", Status(IOERR, 1), |case| {
            case.ranges(DISCARD, &[range(0, u32::MAX, 0)]);
        }),
        row("a discard of 2^23 sectors, which are 4 GiB", Status(IOERR, 1), |case| {
            case.ranges(DISCARD, &[range(0, 1 << 23, 0)]);
        }),
        row("a discard whose second range is bad", Status(IOERR, 1), |case| {
            case.ranges(DISCARD, &[range(0, 8, 0), range(CAPACITY, 8, 0)]);
        }),
    ]
}

fn zeroes() -> Vec<Row> {
    vec![
        row("zeroes", Status(OK, 1), |case| case.ranges(WRITE_ZEROES, &[range(SCRATCH, 8, 0)])),
        row("zeroes, unmapped", Status(OK, 1), |case| case.ranges(WRITE_ZEROES, &[range(SCRATCH, 8, UNMAP)])),
        row("zeroes in the last sector", Status(OK, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(CAPACITY - 1, 1, 0)]);
        }),
        row("zeroes in many ranges", Status(OK, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(SCRATCH, 8, UNMAP); MOST_RANGES]);
        }),
        row("zeroes in one range too many", Status(UNSUPP, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(0, 8, 0); MOST_RANGES + 1]);
        }),
        row("zeroes in no range", Status(IOERR, 1), |case| case.bare(WRITE_ZEROES, 0)),
        row("zeroes in 15 bytes of a range", Status(IOERR, 1), |case| case.output(WRITE_ZEROES, 0, 15)),
        row("zeroes with a reserved flag", Status(UNSUPP, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(0, 8, 2)]);
        }),
        row("zeroes with a reserved flag and unmap", Status(UNSUPP, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(0, 8, 0x8000_0001)]);
        }),
        row("zeroes behind the end", Status(IOERR, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(CAPACITY, 1, 0)]);
        }),
        row("zeroes over the end", Status(IOERR, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(CAPACITY - 1, 2, UNMAP)]);
        }),
        row("zeroes at 2^55 sectors", Status(IOERR, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(SHIFTED_TO_0, 1, 0)]);
        }),
        row("zeroes over 2^64 sectors", Status(IOERR, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(u64::MAX, 2, 0)]);
        }),
        row("zeroes in 2^32 - 1 sectors", Status(IOERR, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(0, u32::MAX, 0)]);
        }),
        row("zeroes in all the rest of the disk, over the announced limit", Status(OK, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(SCRATCH, (CAPACITY - SCRATCH) as u32, 0)]);
        }),
        row("zeroes that reach behind the end, over the limit", Status(IOERR, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(0, CAPACITY as u32 + 1, 0)]);
        }),
        row("zeroes whose last range is bad", Status(IOERR, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(0, 8, 0), range(8, 8, UNMAP), range(u64::MAX, 1, 0)]);
        }),
    ]
}

/// For a disk that is read only.
pub(crate) fn rows_read_only() -> Rows {
    Rows::plain(vec![
        row("a read", Status(OK, 513), |case| case.input(IN, 0, 512)),
        row("a flush", Status(OK, 1), |case| case.bare(FLUSH, 0)),
        row("the serial number", Status(OK, 21), |case| case.input(GET_ID, 0, 20)),
        row("a write", Status(IOERR, 1), |case| case.output(OUT, 0, 512)),
        row("a write of nothing", Status(IOERR, 1), |case| case.bare(OUT, 0)),
        row("a write behind the end", Status(IOERR, 1), |case| case.output(OUT, u64::MAX, 512)),
        row("a discard", Status(UNSUPP, 1), |case| case.ranges(DISCARD, &[range(0, 8, 0)])),
        row("zeroes", Status(UNSUPP, 1), |case| case.ranges(WRITE_ZEROES, &[range(0, 8, 0)])),
        row("zeroes, unmapped", Status(UNSUPP, 1), |case| case.ranges(WRITE_ZEROES, &[range(0, 8, UNMAP)])),
        row("a read behind the end", Status(IOERR, 0), |case| case.input(IN, CAPACITY, 512)),
    ])
}

/// For a disk with blocks of 4096 bytes on media without blocks: they are a hint.
pub(crate) fn rows_large_blocks() -> Rows {
    Rows::plain(vec![
        row("a read of a block", Status(OK, 4097), |case| case.input(IN, 8, 4096)),
        row("a read of a sector", Status(OK, 513), |case| case.input(IN, 0, 512)),
        row("a read inside a block", Status(OK, 513), |case| case.input(IN, 1, 512)),
        row("a read of a block and a half", Status(OK, 6145), |case| case.input(IN, 0, 6144)),
        row("a read of the last sector", Status(OK, 513), |case| case.input(IN, CAPACITY - 1, 512)),
        row("a read of half a sector", Status(IOERR, 0), |case| case.input(IN, 0, 256)),
        row("a read behind the end", Status(IOERR, 0), |case| case.input(IN, CAPACITY, 4096)),
        row("a write of a block", Status(OK, 1), |case| case.output(OUT, SCRATCH, 4096)),
        row("a write of a sector", Status(OK, 1), |case| case.output(OUT, SCRATCH + 3, 512)),
        row("a discard of a block", Status(OK, 1), |case| case.ranges(DISCARD, &[range(SCRATCH, 8, 0)])),
        row("a discard of a sector", Status(OK, 1), |case| case.ranges(DISCARD, &[range(SCRATCH + 1, 1, 0)])),
        row("zeroes inside a block", Status(OK, 1), |case| {
            case.ranges(WRITE_ZEROES, &[range(SCRATCH + 1, 5, 0)]);
        }),
    ])
}
