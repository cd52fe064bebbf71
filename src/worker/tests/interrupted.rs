//! A turn in which a copy is ended: nothing of it is published, and all of it is done again where the ring goes on.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use super::{AVAILABLE, USED, disk, guest, ring, status};
use crate::copy::fault::interruption::{self, Interruptible};
use crate::copy::{PrefetchHint, Segments};
use crate::disk::testing::pass_on;
use crate::disk::{Disk, DiskError, MappedDisk};
use crate::virtio::queue::RingError;

/// One of whose reads the given one is ended, counted from 1.
#[derive(Debug)]
struct PunchedDisk {
    disk: MappedDisk,
    may_wait: bool,
    ended: u64,
    reads: Arc<AtomicU64>,
}

impl PunchedDisk {
    fn is_ended(&self) -> bool {
        let is_ended = self.reads.fetch_add(1, Ordering::Relaxed) + 1 == self.ended;
        if is_ended {
            interruption::pretend();
        }
        is_ended
    }
}

impl Disk for PunchedDisk {
    pass_on!(disk: geometry, durability, write, fence, try_flush, flush, discard, write_zeroes);
    fn may_wait(&self) -> bool {
        self.may_wait
    }
    fn try_read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> bool {
        !self.is_ended() && self.disk.read(offset, into, next).is_ok()
    }
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        if self.is_ended() {
            return Err(DiskError::Unsupported);
        }
        self.disk.read(offset, into, next)
    }
}

fn used_index(guest: &std::fs::File) -> u16 {
    let mut index = [0; 2];
    guest.read_exact_at(&mut index, USED + 2).unwrap();
    u16::from_le_bytes(index)
}

/// Two reads, of which the first or second is ended.
fn check(may_wait: bool, ended: u64) {
    let guest = guest(0);
    guest.write_all_at(&[0, 0, 2, 0, 0, 0, 0, 0], AVAILABLE).unwrap();
    let reads = Arc::new(AtomicU64::new(0));
    let punched = |ended| PunchedDisk { disk: disk(), may_wait, ended, reads: reads.clone() };
    let task = Arc::new(Interruptible::default());
    let _on = task.on_this_thread();
    let mut first = ring(punched(ended), &guest, 1);
    let hold_ups = first.hold_ups().clone();
    hold_ups.move_by(|| {});
    first.serve(Waker::noop());
    while !first.drain(Waker::noop()) {
        std::thread::yield_now();
    }
    let case = format!("may wait: {may_wait}, {ended} of 2");
    assert_eq!(first.standing().2, Some(&RingError::Interrupted), "{case}");
    let counters = first.counters();
    assert_eq!((used_index(&guest), first.base(), counters.broken_rings), (0, 0, 0), "{case}");
    assert!(!first.has_work() && hold_ups.count() == 1 && hold_ups.is_apart(), "{case}");
    drop(first);
    assert!(interruption::take());
    guest.write_all_at(&[0xff], super::STATUS).unwrap();
    reads.store(0, Ordering::Relaxed);
    let mut second = ring(punched(0), &guest, 1);
    while used_index(&guest) != 2 {
        second.serve(Waker::noop());
    }
    let again = second.counters().reads;
    assert_eq!((status(&guest), again, reads.load(Ordering::Relaxed)), (0, 2, 2), "{case}: both again");
}

#[test]
fn a_turn_that_was_ended_is_not_published_and_done_again() {
    for may_wait in [false, true] {
        for ended in [1, 2] {
            check(may_wait, ended);
        }
    }
}
