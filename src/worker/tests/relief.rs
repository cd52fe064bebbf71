//! Writes that a worker does itself, and that media holds up.

use std::num::NonZeroU16;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use super::{disk, guest, ring, status};
use crate::copy::{PrefetchHint, Segments};
use crate::disk::testing::pass_on;
use crate::disk::{Disk, DiskError, MappedDisk};
use crate::worker::{AnyRing, Polling, Pool, RingKey};

/// How long a step may take on a machine that is busy.
const STEP_TIME: Duration = Duration::from_secs(60);

/// What a write waits for, and which thread did it.
#[derive(Debug, Default)]
struct Gate {
    is_open: Mutex<bool>,
    changed: Condvar,
    writer: Mutex<Option<ThreadId>>,
}

impl Gate {
    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait_for_writer(&self) -> ThreadId {
        let writer = || *self.writer.lock().unwrap();
        wait_until(|| writer().is_some());
        writer().unwrap()
    }
}

/// A disk whose writes are thought to be quick.
#[derive(Debug)]
struct GatedDisk {
    disk: MappedDisk,
    gate: Arc<Gate>,
}

impl Disk for GatedDisk {
    pass_on!(disk: geometry, durability, read, fence, try_flush, flush, discard, write_zeroes);
    fn may_wait(&self) -> bool {
        true
    }
    fn changes_exclude_each_other(&self) -> bool {
        true
    }
    fn writes_are_quick(&self) -> bool {
        true
    }
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        *self.gate.writer.lock().unwrap() = Some(std::thread::current().id());
        let is_open = self.gate.is_open.lock().unwrap();
        drop(self.gate.changed.wait_while(is_open, |is_open| !*is_open).unwrap());
        self.disk.write(offset, from, next)
    }
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < STEP_TIME, "it does not come");
        std::thread::yield_now();
    }
}

/// A guest that asks for one write.
struct Writer {
    guest: std::fs::File,
    gate: Arc<Gate>,
    key: RingKey,
}

impl Writer {
    fn new(session: u64) -> (Self, AnyRing<GatedDisk>) {
        let (guest, gate) = (guest(1), Arc::<Gate>::default());
        let ring = ring(GatedDisk { disk: disk(), gate: gate.clone() }, &guest, session);
        (Self { guest, gate, key: RingKey { session, index: 0 } }, ring)
    }

    fn is_answered(&self) -> bool {
        status(&self.guest) == 0
    }
}

#[test]
fn a_worker_that_a_write_holds_up_is_relieved() {
    let pool = Pool::new(NonZeroU16::new(1), Polling::DEFAULT);
    let mut hung = Vec::new();
    // One disk after the other, until three hang.
    for session in 0..3 {
        let (writer, ring) = Writer::new(session);
        let id = pool.attach(ring, None).unwrap();
        let thread = writer.gate.wait_for_writer();
        hung.push((writer, id, thread));
        // The same worker serves others, and answers whoever asks it.
        let (other, ring) = Writer::new(100 + session);
        other.gate.open();
        let id = pool.attach(ring, None).unwrap();
        wait_until(|| other.is_answered());
        assert!(!hung.iter().any(|(_, _, thread)| *thread == other.gate.wait_for_writer()));
        assert_eq!(pool.count(STEP_TIME).len(), hung.len() + 1);
        assert_eq!(pool.detach(id, other.key).unwrap().base(), 1);
        assert_eq!(pool.threads(), 1);
    }
    assert!(hung.iter().all(|(writer, ..)| !writer.is_answered()));
    let (unfinished, oldest) = pool.count(STEP_TIME)[0].0.unfinished();
    assert_eq!((unfinished, oldest.unwrap().name.operation), (1, "write"), "it is known what hangs");
    let (last, ..) = hung.pop().unwrap();
    for (writer, id, _) in hung {
        // Given back when nothing of it is under way any more.
        std::thread::scope(|scope| {
            let detached = scope.spawn(|| pool.detach(id, writer.key));
            writer.gate.open();
            assert_eq!(detached.join().unwrap().unwrap().base(), 1);
        });
        assert!(writer.is_answered());
    }
    // The end waits for no thread that hangs.
    pool.stop();
    assert!(!last.is_answered());
    last.gate.open();
}

#[test]
fn a_worker_does_quick_writes_itself_and_is_not_relieved() {
    let pool = Pool::new(NonZeroU16::new(1), Polling::Never);
    let mut threads = Vec::new();
    for session in 0..20 {
        let (writer, ring) = Writer::new(session);
        writer.gate.open();
        let id = pool.attach(ring, None).unwrap();
        wait_until(|| writer.is_answered());
        threads.push(writer.gate.wait_for_writer());
        assert_eq!(pool.detach(id, writer.key).unwrap().base(), 1);
    }
    threads.dedup();
    assert!(threads.len() < 10, "each was handed to another thread: {threads:?}");
    pool.stop();
}
