//! Chains of a bad form that can be answered, and chains of an unusual form that must work.

use super::case::{Case, END, QUEUE_SIZE, Row, Rows, SCRATCH, TABLE_SIZE, WILD, row};
use crate::common::frontend::request::{IN, IOERR, OK, OUT};
use crate::common::frontend::ring::packed::{AVAILABLE, USED};
use crate::common::frontend::ring::{INDIRECT, NEXT, Part, WRITE};
use crate::table::Answer::Status;

/// Flags that no version of the specification has defined.
const UNDEFINED: u16 = 0x4008;

const GIB: u32 = 1 << 30;

/// A read into data that is given.
fn read_to(case: &mut Case<'_>, address: u64, len: u32) {
    let parts = [case.header(IN, 0).header_part(), (address, len, WRITE), case.status_part()];
    case.chain(&parts);
}

/// A write from data that is given, where it must not go.
fn write_from(case: &mut Case<'_>, address: u64, len: u32) {
    let parts = [case.header(OUT, 0).header_part(), (address, len, 0), case.status_part()];
    case.chain(&parts);
}

/// A read whose parts are given.
fn read_of(case: &mut Case<'_>, parts: &[Part]) {
    case.header(IN, 0);
    case.chain(parts);
}

/// A read through an indirect table of these parts; the descriptor of the table may have flags, and something behind.
fn read_by_table(case: &mut Case<'_>, parts: &[Part], flags: u16, behind: &[Part]) {
    case.header(IN, 0).table_of(case.table, parts);
    let table = (case.table, parts.len() as u32 * 16, INDIRECT | flags);
    case.chain_at(3, &[&[table], behind].concat());
}

/// A piece in `count` descriptors of one byte each.
fn bytewise((address, _, flags): Part, count: u32) -> Vec<Part> {
    (0..u64::from(count)).map(|at| (address + at, 1, flags)).collect()
}

/// The table.
pub(crate) fn rows() -> Rows {
    let both = [nowhere(), empty(), out_of_order(), tables(), unusual(), unusual_tables()];
    Rows { both: both.into_iter().flatten().collect(), split: split(), packed: packed() }
}

fn nowhere() -> Vec<Row> {
    vec![
        row("a read to nowhere", Status(IOERR, 0), |case| read_to(case, WILD, 512)),
        row("a read to 0", Status(IOERR, 0), |case| read_to(case, 0, 512)),
        row("a read to the last address", Status(IOERR, 0), |case| read_to(case, u64::MAX, 512)),
        row("a read over the end of the addresses", Status(IOERR, 0), |case| {
            read_to(case, u64::MAX - 511, 1024)
        }),
        row("a read over a region's end", Status(IOERR, 0), |case| read_to(case, END - 100, 512)),
        row("a read of 4 GiB", Status(IOERR, 0), |case| read_to(case, case.frame.data, u32::MAX)),
        row("a write from nowhere", Status(IOERR, 1), |case| write_from(case, WILD, 512)),
        row("a write from the last address", Status(IOERR, 1), |case| write_from(case, u64::MAX, 512)),
        row("a write from over a region's end", Status(IOERR, 1), |case| write_from(case, END - 100, 512)),
        row("a header nowhere", Status(IOERR, 1), |case| {
            let parts = [(WILD, 16, 0), case.status_part()];
            case.chain(&parts);
        }),
        row("a header over a region's end", Status(IOERR, 1), |case| {
            let parts = [(END - 8, 16, 0), case.status_part()];
            case.chain(&parts);
        }),
        row("one piece of the data nowhere", Status(IOERR, 0), |case| {
            let data = case.frame.data;
            let pieces = [(data, 512, WRITE), (WILD, 512, WRITE), (data + 1024, 512, WRITE)];
            let parts = [&[case.header_part()], pieces.as_slice(), &[case.status_part()]].concat();
            read_of(case, &parts);
        }),
        row("more than 4 GiB in one chain", Status(IOERR, 0), |case| {
            let data = [(crate::common::frontend::SPANS[0].guest_start, GIB, WRITE); 5];
            let parts = [&[case.header_part()], data.as_slice(), &[case.status_part()]].concat();
            read_of(case, &parts);
        }),
    ]
}

fn empty() -> Vec<Row> {
    vec![
        row("empty data to write to", Status(IOERR, 1), |case| read_to(case, case.frame.data, 0)),
        row("empty data to read from", Status(IOERR, 1), |case| write_from(case, case.frame.data, 0)),
        row("an empty piece amid the data", Status(IOERR, 0), |case| {
            let data = case.frame.data;
            let parts = [case.header_part(), (data, 512, WRITE), (data, 0, WRITE), (data, 512, WRITE)];
            let parts = [parts.as_slice(), &[case.status_part()]].concat();
            read_of(case, &parts);
        }),
        row("an empty descriptor before the header", Status(IOERR, 1), |case| {
            let parts = [(case.frame.header, 0, 0), case.header_part(), case.status_part()];
            read_of(case, &parts);
        }),
        row("an empty descriptor behind the status", Status(IOERR, 1), |case| {
            let parts = [case.header_part(), case.status_part(), (case.frame.data, 0, WRITE)];
            read_of(case, &parts);
        }),
        row("an empty descriptor nowhere", Status(IOERR, 0), |case| {
            let parts =
                [case.header_part(), case.data_part(512, WRITE), (WILD, 0, WRITE), case.status_part()];
            read_of(case, &parts);
        }),
    ]
}

fn out_of_order() -> Vec<Row> {
    vec![
        row("readable behind writable", Status(IOERR, 0), |case| {
            let data = case.frame.data + 1024;
            let parts = [case.header_part(), case.data_part(512, WRITE), (data, 512, 0), case.status_part()];
            read_of(case, &parts);
        }),
        row("readable behind the status", Status(IOERR, 1), |case| {
            let parts = [case.header_part(), case.status_part(), case.data_part(512, 0)];
            read_of(case, &parts);
        }),
        row("the status before the header", Status(IOERR, 1), |case| {
            let parts = [case.status_part(), case.header_part()];
            read_of(case, &parts);
        }),
        row("the header amid the data", Status(IOERR, 0), |case| {
            let parts = [case.data_part(512, WRITE), case.header_part(), case.status_part()];
            read_of(case, &parts);
        }),
    ]
}

fn tables() -> Vec<Row> {
    vec![
        row("a table in a table", Status(IOERR, 1), |case| {
            let inner = [case.header_part(), case.status_part()];
            case.table_of(case.inner, &inner);
            let parts = [case.header_part(), (case.inner, 2 * 16, INDIRECT), case.status_part()];
            read_by_table(case, &parts, 0, &[]);
        }),
        row("a table in a table, nowhere", Status(IOERR, 0), |case| {
            let (header, data, status) = (case.header_part(), case.data_part(512, WRITE), case.status_part());
            read_by_table(case, &[header, (WILD, 16, INDIRECT), data, status], 0, &[]);
        }),
        row("a table that leads on", Status(IOERR, 1), |case| {
            let parts = [case.header_part(), case.status_part()];
            read_by_table(case, &parts, 0, &[case.data_part(512, 0)]);
        }),
        row("a table that leads on, with data", Status(IOERR, 0), |case| {
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            read_by_table(case, &parts, 0, &[case.data_part(512, 0)]);
        }),
    ]
}

/// Whatever the driver's reasons: the framing is free (VIRTIO 1.2 §2.7.4).
fn unusual() -> Vec<Row> {
    vec![
        row("the header in two", Status(OK, 513), |case| {
            let header = case.frame.header;
            let parts = [(header, 5, 0), (header + 5, 11, 0), case.data_part(512, WRITE), case.status_part()];
            read_of(case, &parts);
        }),
        row("the header byte by byte", Status(OK, 513), |case| {
            let parts = [case.data_part(512, WRITE), case.status_part()];
            let parts = [bytewise(case.header_part(), 16), parts.to_vec()].concat();
            read_of(case, &parts);
        }),
        row("the header over two pages", Status(OK, 513), |case| {
            let place = case.frame.data + 4096 - 7;
            case.ring.memory.write(place, &crate::common::frontend::request::header(IN, 0));
            let parts = [(place, 16, 0), case.data_part(512, WRITE), case.status_part()];
            case.chain(&parts);
        }),
        row("the header and the data in one", Status(OK, 1), |case| {
            case.header(OUT, SCRATCH);
            let parts = [(case.frame.header, 16 + 512, 0), case.status_part()];
            case.chain(&parts);
        }),
        row("the data and the status in one", Status(OK, 513), |case| {
            case.status = case.frame.data + 512;
            let parts = [case.header_part(), case.data_part(513, WRITE)];
            read_of(case, &parts);
        }),
        row("data in odd pieces", Status(OK, 1025), |case| {
            let data = case.frame.data;
            let pieces = [(data + 1, 1, WRITE), (data + 3, 1021, WRITE), (data + 2001, 2, WRITE)];
            let parts = [&[case.header_part()], pieces.as_slice(), &[case.status_part()]].concat();
            read_of(case, &parts);
        }),
        row("a chain as long as the ring", Status(OK, 513), |case| {
            let pieces = u32::from(QUEUE_SIZE) - 3;
            let rest = (case.frame.data + u64::from(pieces), 512 - pieces, WRITE);
            let data = bytewise(case.data_part(0, WRITE), pieces);
            let parts = [vec![case.header_part()], data, vec![rest, case.status_part()]].concat();
            assert_eq!(parts.len(), usize::from(QUEUE_SIZE));
            read_of(case, &parts);
        }),
        row("an undefined flag", Status(OK, 513), |case| {
            let (data, status) = (case.frame.data, case.frame.status);
            let parts =
                [(case.frame.header, 16, UNDEFINED), (data, 512, WRITE | UNDEFINED), (status, 1, WRITE)];
            read_of(case, &parts);
        }),
    ]
}

fn unusual_tables() -> Vec<Row> {
    vec![
        row("a table", Status(OK, 513), |case| {
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            read_by_table(case, &parts, 0, &[]);
        }),
        row("a table that says it is for writing", Status(OK, 513), |case| {
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            read_by_table(case, &parts, WRITE, &[]);
        }),
        row("a table of as many descriptors as are allowed", Status(OK, 1537), |case| {
            let pieces = u32::from(TABLE_SIZE) - 3;
            let rest = (case.frame.data + u64::from(pieces), 1536 - pieces, WRITE);
            let data = bytewise(case.data_part(0, WRITE), pieces);
            let parts = [vec![case.header_part()], data, vec![rest, case.status_part()]].concat();
            assert_eq!(parts.len(), usize::from(TABLE_SIZE));
            read_by_table(case, &parts, 0, &[]);
        }),
        row("a read by a table of one descriptor more", Status(IOERR, 0), |case| {
            let data = vec![case.data_part(512, WRITE); usize::from(TABLE_SIZE) - 1];
            let parts = [vec![case.header_part()], data, vec![case.status_part()]].concat();
            read_by_table(case, &parts, 0, &[]);
        }),
        row("a write by a table of one descriptor more", Status(IOERR, 0), |case| {
            let data = vec![case.data_part(512, 0); usize::from(TABLE_SIZE) - 1];
            let parts = [vec![case.header_part()], data, vec![case.status_part()]].concat();
            case.header(OUT, 0).table_of(case.table, &parts);
            case.chain(&[(case.table, parts.len() as u32 * 16, INDIRECT)]);
        }),
        row("a table of 515 descriptors and half a one", Status(IOERR, 0), |case| {
            let data = vec![case.data_part(512, WRITE); 513];
            let parts = [vec![case.header_part()], data, vec![case.status_part()]].concat();
            case.header(IN, 0).table_of(case.table, &parts);
            case.chain(&[(case.table, 515 * 16 + 8, INDIRECT)]);
        }),
        row("a read of 515 segments, as Windows asks for", Status(OK, 515 * 512 + 1), |case| {
            let data = vec![case.data_part(512, WRITE); 515];
            let parts = [vec![case.header_part()], data, vec![case.status_part()]].concat();
            read_by_table(case, &parts, 0, &[]);
        }),
        row("data over many regions' borders in a long table", Status(IOERR, 0), |case| {
            let data = vec![(END - 256, 512, WRITE); usize::from(TABLE_SIZE) - 2];
            let parts = [vec![case.header_part()], data, vec![case.status_part()]].concat();
            read_by_table(case, &parts, 0, &[]);
        }),
        row("a table at an odd address", Status(OK, 513), |case| {
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            case.table += 3;
            read_by_table(case, &parts, 0, &[]);
        }),
        row("a table that is the last of a region", Status(OK, 513), |case| {
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            case.table = END - 3 * 16;
            read_by_table(case, &parts, 0, &[]);
        }),
    ]
}

fn split() -> Vec<Row> {
    vec![
        row("descriptors in falling order", Status(OK, 513), |case| {
            let (header, data, status) = (case.header_part(), case.data_part(512, WRITE), case.status_part());
            case.header(IN, 0).put(QUEUE_SIZE - 1, (header.0, 16, NEXT), 20);
            case.put(20, (data.0, 512, WRITE | NEXT), 0).put(0, status, 0);
            case.offer(QUEUE_SIZE - 1);
        }),
        row("next without the flag", Status(OK, 513), |case| {
            let (header, data, status) = (case.header_part(), case.data_part(512, WRITE), case.status_part());
            case.header(IN, 0).put(0, (header.0, 16, NEXT), 1);
            case.put(1, (data.0, 512, WRITE | NEXT), 2).put(2, status, u16::MAX);
            case.offer(0);
        }),
        row("a table of more descriptors than the chain has", Status(OK, 513), |case| {
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            case.header(IN, 0).table_of(case.table, &parts);
            case.put(0, (case.table, u32::from(TABLE_SIZE) * 16, INDIRECT), 0);
            case.offer(0);
        }),
        row("a table of many more, of which none is used", Status(OK, 513), |case| {
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            case.header(IN, 0).table_of(case.table, &parts);
            case.put(0, (case.table, 65_539 * 16, INDIRECT), 0);
            case.offer(0);
        }),
    ]
}

fn packed() -> Vec<Row> {
    vec![
        row("a buffer id beyond the ring", Status(OK, 513), |case| {
            let parts = [case.header(IN, 0).header_part(), case.data_part(512, WRITE), case.status_part()];
            case.chain_at(u16::MAX, &parts);
        }),
        row("the same buffer id again", Status(OK, 513), |case| {
            let parts = [case.header(IN, 0).header_part(), case.data_part(512, WRITE), case.status_part()];
            case.chain_at(u16::MAX, &parts);
        }),
        row("flags in a table that only the ring has", Status(OK, 513), |case| {
            let (header, data, status) = (case.header_part(), case.data_part(512, WRITE), case.status_part());
            let flags = NEXT | AVAILABLE | USED;
            let parts =
                [(header.0, 16, flags), (data.0, 512, WRITE | AVAILABLE), (status.0, 1, WRITE | flags)];
            read_by_table(case, &parts, 0, &[]);
        }),
        row("a table with empty descriptors at its end", Status(IOERR, 0), |case| {
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            case.header(IN, 0).table_of(case.table, &parts);
            case.chain(&[(case.table, 5 * 16, INDIRECT)]);
        }),
        row("a table behind a descriptor", Status(IOERR, 0), |case| {
            let parts = [case.data_part(512, WRITE), case.status_part()];
            case.header(IN, 0).table_of(case.table, &parts);
            let header = case.header_part();
            case.chain(&[
                header,
                (case.table, 2 * 16, INDIRECT),
                case.data_part(512, WRITE),
                case.status_part(),
            ]);
        }),
    ]
}

/// For a session without INDIRECT_DESC.
pub(crate) fn rows_without_indirect() -> Rows {
    Rows::plain(vec![
        row("a table that was not negotiated", Status(IOERR, 0), |case| {
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            read_by_table(case, &parts, 0, &[]);
        }),
        row("a table without data that was not negotiated", Status(IOERR, 1), |case| {
            let parts = [case.header_part(), case.status_part()];
            read_by_table(case, &parts, 0, &[]);
        }),
        row("no table", Status(OK, 513), |case| {
            let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
            read_of(case, &parts);
        }),
    ])
}
