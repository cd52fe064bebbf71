//! Chains whose end cannot be known, or that have no place for an answer: the ring is broken.

use super::case::{Case, END, QUEUE_SIZE, Row, Rows, WILD, row};
use crate::common::frontend::request::IN;
use crate::common::frontend::ring::{INDIRECT, NEXT, WRITE};
use crate::table::Answer::Broken;

/// An indirect descriptor of these numbers, made available; the table holds a good read.
fn indirect(case: &mut Case<'_>, address: u64, len: u32) {
    good_table(case);
    case.chain(&[(address, len, INDIRECT)]);
}

/// Writes a good read to the case's table; returns how many descriptors it has.
fn good_table(case: &mut Case<'_>) -> u16 {
    case.header(IN, 0);
    let parts = [case.header_part(), case.data_part(512, WRITE), case.status_part()];
    case.table_of(case.table, &parts);
    parts.len() as u16
}

/// Header, then data and status as they are given.
fn read_with(case: &mut Case<'_>, data: (u64, u32), status: (u64, u32)) {
    case.header(IN, 0);
    let parts = [case.header_part(), (data.0, data.1, WRITE), (status.0, status.1, WRITE)];
    case.chain(&parts);
}

/// The table.
pub(crate) fn rows() -> Rows {
    Rows {
        both: [tables(), without_status()].into_iter().flatten().collect(),
        split: [endless(), outside()].into_iter().flatten().collect(),
        packed: endless_packed(),
    }
}

fn endless_packed() -> Vec<Row> {
    vec![
        row("a chain round the ring to its own head", Broken, |case| {
            let parts = [(case.frame.data, 1, 0); QUEUE_SIZE as usize - 1];
            let last = (case.header(IN, 0).frame.status, 1, WRITE | NEXT);
            case.chain(&[parts.as_slice(), &[last]].concat());
        }),
        row("a chain of empty descriptors round the ring", Broken, |case| {
            case.chain(&[(0, 0, NEXT); QUEUE_SIZE as usize]);
        }),
        row("a chain of tables round the ring", Broken, |case| {
            good_table(case);
            case.chain(&[(case.table, 3 * 16, INDIRECT | NEXT); QUEUE_SIZE as usize]);
        }),
    ]
}

fn endless() -> Vec<Row> {
    vec![
        row("a descriptor that leads to itself", Broken, |case| {
            case.header(IN, 0).put(0, (case.frame.header, 16, NEXT), 0);
            case.offer(0);
        }),
        row("a loop of two", Broken, |case| {
            let (header, data) = (case.header_part(), case.data_part(512, WRITE));
            case.header(IN, 0).put(0, (header.0, 16, NEXT), 1).put(1, (data.0, 512, WRITE | NEXT), 0);
            case.offer(0);
        }),
        row("a loop behind the status", Broken, |case| {
            let (header, status) = (case.header_part(), case.status_part());
            case.header(IN, 0).put(0, (header.0, 16, NEXT), 1).put(1, (status.0, 1, WRITE | NEXT), 1);
            case.offer(0);
        }),
        row("a loop through the whole table", Broken, |case| {
            for index in 0..QUEUE_SIZE {
                case.put(index, (case.frame.data, 1, NEXT), (index + 1) % QUEUE_SIZE);
            }
            case.offer(5);
        }),
        row("a loop of empty descriptors", Broken, |case| {
            case.put(0, (0, 0, NEXT), 1).put(1, (0, 0, NEXT), 0);
            case.offer(0);
        }),
        row("a loop in an indirect table", Broken, |case| {
            let table = case.table;
            good_table(case);
            case.put_in(table, 1, (case.frame.data, 512, WRITE | NEXT), 0);
            case.put(0, (table, 3 * 16, INDIRECT), 0);
            case.offer(0);
        }),
    ]
}

fn outside() -> Vec<Row> {
    vec![
        row("next is the ring's size", Broken, |case| {
            case.header(IN, 0).put(0, (case.frame.header, 16, NEXT), QUEUE_SIZE);
            case.offer(0);
        }),
        row("next is 65535", Broken, |case| {
            case.header(IN, 0).put(0, (case.frame.header, 16, NEXT), u16::MAX);
            case.offer(0);
        }),
        row("the head is the ring's size", Broken, |case| case.offer(QUEUE_SIZE)),
        row("the head is 65535", Broken, |case| case.offer(u16::MAX)),
        row("the available index is one too far ahead", Broken, |case| {
            case.bare(IN, 0);
            let last = case.ring.available_index().wrapping_sub(1);
            case.ring.set_available_index(last.wrapping_add(QUEUE_SIZE + 1));
        }),
        row("the available index is behind", Broken, |case| {
            let last = case.ring.available_index();
            case.ring.set_available_index(last.wrapping_sub(1));
        }),
        row("the available index is half the way round", Broken, |case| {
            let last = case.ring.available_index();
            case.ring.set_available_index(last.wrapping_add(0x8000));
        }),
        row("next is behind the end of an indirect table", Broken, |case| {
            good_table(case);
            case.put_in(case.table, 1, (case.frame.data, 512, WRITE | NEXT), 3);
            case.put(0, (case.table, 3 * 16, INDIRECT), 0);
            case.offer(0);
        }),
        row("next in an indirect table is 65535", Broken, |case| {
            good_table(case);
            case.put_in(case.table, 0, (case.frame.header, 16, NEXT), u16::MAX);
            case.put(0, (case.table, 3 * 16, INDIRECT), 0);
            case.offer(0);
        }),
        row("an indirect table of a byte too few", Broken, |case| indirect(case, case.table, 3 * 16 - 1)),
        row("a table of one descriptor that leads on", Broken, |case| {
            good_table(case);
            case.put(0, (case.table, 16, INDIRECT), 0);
            case.offer(0);
        }),
    ]
}

fn tables() -> Vec<Row> {
    vec![
        row("an indirect table of no bytes", Broken, |case| indirect(case, case.table, 0)),
        row("an indirect table of one byte", Broken, |case| indirect(case, case.table, 1)),
        row("an indirect table of 4 GiB", Broken, |case| indirect(case, case.table, u32::MAX - 15)),
        row("an indirect table at 0", Broken, |case| indirect(case, 0, 3 * 16)),
        row("an indirect table nowhere", Broken, |case| indirect(case, WILD, 3 * 16)),
        row("an indirect table over the end of the addresses", Broken, |case| {
            indirect(case, u64::MAX - 15, 3 * 16);
        }),
        row("an indirect table over a region's end", Broken, |case| {
            good_table(case);
            let parts = [case.header_part(), case.data_part(512, WRITE)];
            case.table_of(END - 32, &parts);
            case.chain(&[(END - 32, 3 * 16, INDIRECT)]);
        }),
    ]
}

fn without_status() -> Vec<Row> {
    vec![
        row("a header and nothing else", Broken, |case| {
            let parts = [case.header(IN, 0).header_part()];
            case.chain(&parts);
        }),
        row("nothing that can be written", Broken, |case| {
            let parts = [case.header(IN, 0).header_part(), case.data_part(512, 0), (case.frame.status, 1, 0)];
            case.chain(&parts);
        }),
        row("an empty status", Broken, |case| {
            let parts = [case.header(IN, 0).header_part(), (case.frame.status, 0, WRITE)];
            case.chain(&parts);
        }),
        row("an empty descriptor alone", Broken, |case| case.chain(&[(case.frame.status, 0, WRITE)])),
        row("status nowhere", Broken, |case| read_with(case, (case.frame.data, 512), (WILD, 1))),
        row("status at 0", Broken, |case| read_with(case, (case.frame.data, 512), (0, 1))),
        row("status at the last address", Broken, |case| {
            read_with(case, (case.frame.data, 512), (u64::MAX, 1))
        }),
        row("status just behind a region", Broken, |case| read_with(case, (case.frame.data, 512), (END, 1))),
        row("status over a region's end", Broken, |case| {
            read_with(case, (case.frame.data, 512), (END - 1, 2))
        }),
        row("data and status in one, the status outside", Broken, |case| {
            let parts = [case.header(IN, 0).header_part(), (END - 512, 513, WRITE)];
            case.chain(&parts);
        }),
        row("everything nowhere", Broken, |case| case.chain(&[(WILD, 16, 0), (WILD, 512, 2), (WILD, 1, 2)])),
        row("status nowhere in an indirect table", Broken, |case| {
            let parts = [case.header(IN, 0).header_part(), case.data_part(512, WRITE), (WILD, 1, WRITE)];
            case.table_of(case.table, &parts);
            case.chain(&[(case.table, 3 * 16, INDIRECT)]);
        }),
    ]
}
