//! No cache line is written for each request by two workers.
//!
//! What rings share is read before and after requests. Counts that go up and down again would not be seen, but need locked
//! instructions, which `ci/bench instructions` counts.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "bench/common/mod.rs"]
mod common;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use common::guest::{Guest, Kind, Shape};
use common::{map, memfd};
use vhost_user_pmem::disk::MappedDisk;
use vhost_user_pmem::worker::Ring;

const DISK_BYTES: usize = 2 << 20;

/// Processors fetch lines of 64 bytes in pairs.
const LINES_BYTES: usize = 128;

/// This process's memory, padding and all.
fn peek(range: &Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0; range.len()];
    File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, range.start as u64).unwrap();
    bytes
}

#[test]
fn requests_write_to_nothing_that_rings_share() {
    let disk = memfd(DISK_BYTES);
    let media = map(&disk, DISK_BYTES, true);
    for kind in [Kind::Read, Kind::Write, Kind::Flush, Kind::GetId, Kind::Discard, Kind::Unknown] {
        let shape = Shape { rings: 2, ..Shape::new(kind, 4096, 32) };
        let mut guest = Guest::new(shape, &disk, DISK_BYTES, media);
        let shared = guest.shared();
        let look = || shared.iter().map(|(what, place)| (*what, peek(place))).collect::<Vec<_>>();
        let before = look();
        for batch in 0..200 {
            guest.batch(|request| (batch + request) * 4096 % DISK_BYTES);
        }
        for (before, after) in before.iter().zip(look()) {
            assert_eq!(*before, after, "{kind:?} writes to the {}", after.0);
        }
    }
}

/// Its counters and the queue's indices change with each request; the allocator may put another one beside it.
#[test]
fn a_ring_has_its_cache_lines_for_itself() {
    assert_eq!(align_of::<Ring<MappedDisk>>() % LINES_BYTES, 0);
}
