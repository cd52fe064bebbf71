//! No request allocates: once a ring has started, its thread asks the allocator for nothing.

#![allow(unsafe_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "bench/common/mod.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::guest::{Guest, Kind, Shape};
use common::{Random, map, memfd};

const DISK_BYTES: usize = 2 << 20;
const BATCHES: usize = 200;

thread_local! {
    /// Calls of this thread while it is watched.
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, which counts.
struct Counting;

fn count() {
    if IS_WATCHED.get() {
        CALLS.set(CALLS.get() + 1);
    }
}

// SAFETY: everything is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations.
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations.
        unsafe { System.realloc(at, layout, bytes) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's obligations.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls of the allocator, to give back as well as to get, in the device's part of thousands of requests.
fn calls(shape: Shape) -> u64 {
    let disk = memfd(DISK_BYTES);
    let media = map(&disk, DISK_BYTES, true);
    let mut guest = Guest::new(shape, &disk, DISK_BYTES, media);
    let blocks = DISK_BYTES / shape.payload_bytes.next_power_of_two().max(512);
    let mut random = Random(7);
    let mut place = |_| match shape.kind {
        Kind::Beyond => DISK_BYTES,
        _ => random.below(blocks) * (DISK_BYTES / blocks),
    };
    // What happens once in a process or a ring, as the choice of the engine, has happened then.
    for _ in 0..shape.rings {
        guest.batch(&mut place);
    }
    CALLS.set(0);
    for _ in 0..BATCHES {
        guest.batch_between(&mut place, || IS_WATCHED.set(!IS_WATCHED.get()));
    }
    assert_eq!(guest.status() != 0, matches!(shape.kind, Kind::Unknown | Kind::Beyond));
    CALLS.get()
}

#[test]
fn the_allocator_is_watched() {
    IS_WATCHED.set(true);
    drop(std::hint::black_box(Box::new(7)));
    IS_WATCHED.set(false);
    assert_eq!(CALLS.get(), 2);
}

#[test]
fn no_request_allocates() {
    let read = Shape::new(Kind::Read, 4096, 32);
    let write = Shape { kind: Kind::Write, ..read };
    for kind in [
        Kind::Read,
        Kind::Write,
        Kind::Flush,
        Kind::GetId,
        Kind::Discard,
        Kind::WriteZeroes,
        Kind::Unknown,
        Kind::Beyond,
    ] {
        assert_eq!(calls(Shape { kind, ..read }), 0, "{kind:?}");
    }
    assert_eq!(calls(Shape { write_through: true, ..write }), 0, "write-through");
    for shape in [read, write] {
        assert_eq!(calls(Shape { event_idx: true, ..shape }), 0, "event index");
        assert_eq!(calls(Shape { indirect: true, pieces: 8, ..shape }), 0, "indirect");
        assert_eq!(
            calls(Shape { payload_bytes: 58 * 512, pieces: 58, depth: 16, ..shape }),
            0,
            "60 descriptors"
        );
        assert_eq!(calls(Shape { regions: 64, ..shape }), 0, "64 regions");
        assert_eq!(calls(Shape { rings: 4, devices: 2, ..shape }), 0, "4 rings");
        assert_eq!(calls(Shape { payload_bytes: 1 << 20, depth: 2, ..shape }), 0, "1 MiB");
    }
}
