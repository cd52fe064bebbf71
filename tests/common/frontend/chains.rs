//! Random requests as random chains: data in pieces of any length at any place, in tables or not.

use super::memory::{Memory, Span};
use super::request::{DISCARD, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES, header, range};
use super::ring::{DESCRIPTOR_BYTES, INDIRECT, Part, Ring, WRITE};
use crate::common::{Random, SECTOR_BYTES};

/// Regions next to each other, so that buffers run from one into the other, and one far away.
pub const SPANS: [Span; 3] = [
    Span { guest_start: 1 << 20, bytes: 12 << 20 },
    Span { guest_start: 13 << 20, bytes: 2 << 20 },
    Span { guest_start: 1 << 32, bytes: 2 << 20 },
];

/// Where data may be: nothing else is there.
pub const DATA: [Span; 2] =
    [Span { guest_start: 11 << 20, bytes: 4 << 20 }, Span { guest_start: 1 << 32, bytes: 2 << 20 }];

/// Sectors of the disk that requests ask for; some are behind its end.
pub const SECTORS: u64 = 4096;

/// Descriptors of one chain at most.
const CHAIN: u16 = 8;

/// Lays out random chains in the ring, to be made available by `ring.make_available()`. Returns what may be written to: addresses
/// and lengths in bytes.
pub fn lay_out(ring: &mut Ring, random: &mut Random, count: u16, tables: &Tables) -> Vec<(u64, u64)> {
    lay(ring, random, count, tables, false)
}

/// The same of requests of which none writes to what another one has: a back-end may do them at the same time.
pub fn lay_out_apart(ring: &mut Ring, random: &mut Random, count: u16, tables: &Tables) {
    lay(ring, random, count, tables, true);
}

fn lay(ring: &mut Ring, random: &mut Random, count: u16, tables: &Tables, is_apart: bool) -> Vec<(u64, u64)> {
    let (mut writable, mut all) = (Vec::new(), Vec::new());
    for number in 0..count {
        let mut parts = loop {
            let parts = parts(&ring.memory, random, tables.headers + u64::from(number) * 256);
            if !is_apart || !all.iter().any(|other| parts.iter().any(|part| meddles(part, other))) {
                break parts;
            }
        };
        all.extend(parts.iter().copied());
        if random.one_in(12) {
            // A descriptor of no bytes: the request is refused, and nothing but its status written.
            let (status, ..) = parts[parts.len() - 1];
            parts.insert(1, (tables.headers, 0, 0));
            writable.push((status, 1));
        } else {
            let written = parts.iter().filter(|(.., flags)| flags & WRITE != 0);
            writable.extend(written.map(|(address, len, _)| (*address, u64::from(*len))));
        }
        let head = number * CHAIN;
        if random.one_in(2) {
            let table = tables.indirect + u64::from(head) * DESCRIPTOR_BYTES;
            ring.put_table(table, &parts);
            parts = vec![(table, parts.len() as u32 * DESCRIPTOR_BYTES as u32, INDIRECT)];
        }
        ring.prepare(head, &parts);
    }
    writable
}

/// Whether one of two parts is written, and both have a byte in common.
fn meddles(&(one, one_bytes, one_flags): &Part, &(two, two_bytes, two_flags): &Part) -> bool {
    let is_written = (one_flags | two_flags) & WRITE != 0;
    is_written && one < two + u64::from(two_bytes) && two < one + u64::from(one_bytes)
}

/// Places that stay the driver's.
#[derive(Debug)]
pub struct Tables {
    headers: u64,
    indirect: u64,
}

impl Tables {
    /// For as many chains as the ring has room for.
    pub fn new(ring: &Ring) -> Self {
        let allocate = |bytes| ring.memory.allocate(bytes, 4096);
        Self { headers: allocate(u64::from(ring.size) * 256), indirect: allocate(u64::from(ring.size) * 16) }
    }

    /// How many chains that is.
    pub fn chains(ring: &Ring) -> u16 {
        ring.size / CHAIN
    }
}

/// A request's parts.
fn parts(memory: &Memory, random: &mut Random, at: u64) -> Vec<Part> {
    let kind = random.pick(&[IN, IN, IN, IN, OUT, OUT, GET_ID, FLUSH, DISCARD, WRITE_ZEROES, 77]);
    // Some are done in slices of 1 MiB.
    let sectors = if random.one_in(40) { 2049 + random.below(1000) } else { 1 + random.below(24) };
    let sector = random.below(SECTORS);
    memory.write(at, &header(kind, sector));
    let data = sectors * SECTOR_BYTES as u64;
    let mut parts = vec![(at, 16, 0)];
    match kind {
        IN => parts.extend(pieces(random, data, WRITE)),
        OUT => parts.extend(pieces(random, data, 0)),
        GET_ID => parts.extend(pieces(random, 20, WRITE)),
        DISCARD | WRITE_ZEROES => {
            memory.write(at + 16, &range(sector, sectors as u32, 0));
            parts.push((at + 16, 16, 0));
        }
        _ => {}
    }
    parts.extend(pieces(random, 1, WRITE));
    parts
}

/// So many bytes in a few pieces, each anywhere.
fn pieces(random: &mut Random, bytes: u64, flags: u16) -> Vec<Part> {
    let mut pieces = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let len = if pieces.len() < 3 { 1 + random.below(left) } else { left };
        let zone = random.pick(&DATA);
        let address = zone.guest_start + random.below(zone.bytes - len);
        pieces.push((address, len as u32, flags));
        left -= len;
    }
    pieces
}
