//! Requests in memory that are slow: a flush, which is named before it has ended and counted once.

use std::num::NonZeroU16;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{disk, guest, ring, status};
use crate::copy::{PrefetchHint, Segments};
use crate::disk::{Disk, DiskError, Durability, Geometry, MappedDisk};
use crate::virtio::blk::{Device, Timed};
use crate::worker::{Polling, Pool, tell_held_up};

/// How long a step may take on a machine that is busy.
const STEP_TIME: Duration = Duration::from_secs(60);

const READ: u32 = 0;
const FLUSH: u32 = 4;

/// Memory that needs a sync, and holds up who reads it; both end when the test says so.
#[derive(Debug)]
struct GatedDisk {
    disk: MappedDisk,
    end: Mutex<Receiver<()>>,
}

impl Disk for GatedDisk {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn durability(&self) -> Durability {
        Durability::Page
    }
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        let _ = self.end.lock().unwrap().recv();
        self.disk.read(offset, into, next)
    }
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        self.disk.write(offset, from, next)
    }
    fn fence(&self) {
        self.disk.fence();
    }
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        None
    }
    fn flush(&self) -> Result<(), DiskError> {
        // When the test is over, each passes.
        let _ = self.end.lock().unwrap().recv();
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.disk.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError> {
        self.disk.write_zeroes(offset, len, unmap)
    }
}

/// A worker with a ring whose request waits.
fn waiting(
    kind: u32,
    threshold_ms: u16,
) -> (Pool<GatedDisk>, Arc<Device<GatedDisk>>, std::fs::File, Sender<()>) {
    let (end, end_out) = channel();
    let guest = guest(kind);
    let ring = ring(GatedDisk { disk: disk(), end: Mutex::new(end_out) }, &guest, 0);
    let device = ring.device().clone();
    device.slow().set_threshold_ms(NonZeroU16::new(threshold_ms));
    let pool = Pool::new(NonZeroU16::new(1), Polling::Never);
    pool.attach(ring, None).unwrap();
    (pool, device, guest, end)
}

fn held_flush(threshold_ms: u16) -> (Pool<GatedDisk>, Arc<Device<GatedDisk>>, std::fs::File, Sender<()>) {
    let (pool, device, guest, end) = waiting(FLUSH, threshold_ms);
    wait_until(|| device.unfinished().0 == 1);
    (pool, device, guest, end)
}

fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + STEP_TIME;
    while !is_so() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_held_flush_is_named_while_it_waits_and_counted_once() {
    let (pool, device, guest, end) = held_flush(1);
    wait_until(|| {
        pool.tell_slow();
        device.slow().requests() == 1
    });
    assert!(status(&guest) == 0xff, "it waits");
    pool.tell_slow();
    // When this has been answered, that was done.
    assert_eq!(pool.count(STEP_TIME).len(), 1);
    let _ = device.slow().take_may_wait();
    pool.tell_slow();
    assert_eq!(pool.count(STEP_TIME).len(), 1);
    assert!(!device.slow().take_may_wait(), "there is nothing more to say");
    end.send(()).unwrap();
    wait_until(|| status(&guest) == 0 && device.latency().counts(Timed::Flush).count() == 1);
    assert_eq!(device.slow().requests(), 1);
    drop(end);
    pool.stop();
}

#[test]
fn one_that_is_not_slow_yet_is_looked_at_again() {
    let (pool, device, guest, end) = held_flush(60_000);
    pool.tell_slow();
    assert_eq!(pool.count(STEP_TIME).len(), 1);
    assert!(device.slow().take_may_wait());
    // It is slow by what is said from now on.
    device.slow().set_threshold_ms(NonZeroU16::new(1));
    wait_until(|| {
        pool.tell_slow();
        device.slow().requests() == 1
    });
    // And no other from now on.
    device.slow().set_threshold_ms(None);
    pool.renew_limits(STEP_TIME);
    end.send(()).unwrap();
    wait_until(|| status(&guest) == 0);
    assert_eq!(device.slow().requests(), 1);
    drop(end);
    pool.stop();
}

/// Nobody but who looks from outside can say so.
#[test]
fn a_request_that_holds_up_its_worker_is_named_meanwhile_and_counted_once() {
    let (pool, device, guest, end) = waiting(READ, 1);
    wait_until(|| {
        tell_held_up(&device);
        device.slow().requests() == 1
    });
    assert!(status(&guest) == 0xff, "it waits");
    tell_held_up(&device);
    assert_eq!(device.slow().requests(), 1);
    end.send(()).unwrap();
    let timed = || device.latency().counts(Timed::Read).count();
    wait_until(|| status(&guest) == 0 && timed() == 1);
    assert!(
        device.slow().hands().iter().all(|hand| hand.take_slow(Duration::ZERO).is_none()),
        "it has ended"
    );
    // When this has been answered, its turn is over.
    assert_eq!(pool.count(STEP_TIME).len(), 1);
    assert_eq!(device.slow().requests(), 1);
    drop(end);
    pool.stop();
    drop(guest);
    assert!(device.slow().hands().is_empty(), "it goes with its ring");
}

/// What of memory waits is timed, although most of what does not is not.
#[test]
fn a_held_flush_is_timed() {
    const HELD: Duration = Duration::from_millis(20);
    let (pool, device, guest, end) = held_flush(0);
    std::thread::sleep(HELD);
    end.send(()).unwrap();
    let timed = || device.latency().counts(Timed::Flush);
    wait_until(|| status(&guest) == 0 && timed().count() == 1 && timed().sum_seconds() >= HELD.as_secs_f64());
    drop(end);
    pool.stop();
}
