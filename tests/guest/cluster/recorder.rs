//! A front-end that knows what has been acknowledged: numbered records, several under way, and flushes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::common::driver::{Driver, Options, Outcome, Queue, Request};
use super::super::common::wait_long_for;
use super::super::soak::in_guest::{RECORD_BYTES, claim, record};

/// Of a disk that has as many or more.
const BLOCKS: u64 = 8192;

/// Writes under way at once, between two flushes.
const BATCH: u64 = 8;

/// The flush's tag; those of writes are below.
const FLUSH: u64 = BATCH;

/// Between two looks at the ring.
const LOOK: Duration = Duration::from_millis(1);

/// Where a record belongs: the next ones overwrite it some rounds later.
fn offset(index: u64) -> u64 {
    index % BLOCKS * RECORD_BYTES as u64
}

/// A thread that writes and flushes until it is told to stop.
#[derive(Debug)]
pub struct Recorder {
    seed: u64,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Records before this one have been written, and a flush that was sent after them has been answered.
    acknowledged: AtomicU64,
}

/// What has to be on the disk.
#[derive(Debug, Clone, Copy)]
pub struct Records {
    seed: u64,
    /// So many have been acknowledged.
    pub count: u64,
}

impl Records {
    pub fn new(seed: u64) -> Self {
        Self { seed, count: 0 }
    }

    /// The first `count` of them have been acknowledged.
    pub fn of(seed: u64, count: u64) -> Self {
        Self { seed, count }
    }

    /// Reads the whole disk behind `socket` and insists on the last acknowledged record of each block, or one that was
    /// under way.
    pub fn check(self, socket: &Path) {
        let mut driver = Driver::connect(socket, Options::default());
        for block in 0..BLOCKS.min(self.count) {
            let rounds = (self.count - 1 - block) / BLOCKS;
            let least = block + rounds * BLOCKS;
            let found = driver.queue().read(offset(block), RECORD_BYTES).unwrap();
            let claimed = claim(&found);
            let Some((seed, index)) = claimed else { panic!("block {block}: record {least} is not there") };
            assert!(seed == self.seed && index % BLOCKS == block, "block {block}: {claimed:?}");
            assert!(
                index >= least,
                "block {block}: {index} in place of {least}: an acknowledged write is lost"
            );
            // Those of a batch whose flush was not answered may be there as well.
            assert!(index < self.count + BATCH, "block {block}: {index} was never sent");
            assert!(found == record(seed, index), "block {block}: record {index} is torn");
        }
    }

    /// Goes on behind `socket` for ever, and says after each flush how many are acknowledged.
    pub fn write_on(mut self, socket: &Path) {
        let mut driver = Driver::connect(socket, Options::default());
        let shared = Shared::default();
        while batch(&mut driver, self.seed, self.count, &shared).is_some() {
            self.count += BATCH;
            println!("ACK {}", self.count);
        }
    }

    /// Goes on behind `socket`.
    pub fn go_on(self, socket: &Path) -> Recorder {
        let shared = Arc::new(Shared::default());
        shared.acknowledged.store(self.count, Ordering::Release);
        let (theirs, socket) = (Arc::clone(&shared), socket.to_owned());
        let thread = std::thread::spawn(move || {
            let mut driver = Driver::connect(&socket, Options::default());
            let mut first = self.count;
            while !theirs.stop.load(Ordering::Acquire)
                && batch(&mut driver, self.seed, first, &theirs).is_some()
            {
                first += BATCH;
                theirs.acknowledged.store(first, Ordering::Release);
            }
        });
        Recorder { seed: self.seed, shared, thread }
    }
}

impl Recorder {
    /// So many have been acknowledged by now.
    fn count(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until `more` have been acknowledged.
    pub fn await_more(&self, more: u64) {
        let wanted = self.count() + more;
        wait_long_for("more writes are acknowledged", || {
            assert!(!self.thread.is_finished(), "a write or a flush has failed");
            (self.count() >= wanted).then_some(())
        });
    }

    /// Ends, whether the disk still answers or not. What was acknowledged when this was called, or since.
    pub fn stop(self) -> Records {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
        Records { seed: self.seed, count: self.shared.acknowledged.load(Ordering::Acquire) }
    }
}

/// Writes a batch and flushes it. None when it is told to stop before that is done.
fn batch(driver: &mut Driver, seed: u64, first: u64, shared: &Shared) -> Option<()> {
    let place = |number: u64| usize::try_from(number).unwrap() * RECORD_BYTES;
    for number in 0..BATCH {
        driver.put(place(number), &record(seed, first + number));
        let from = vec![place(number)..place(number + 1)];
        let request = Request::Write { offset: offset(first + number), from };
        assert!(driver.queue().submit(&request, number), "the ring has room for a batch");
    }
    let queue = driver.queue();
    await_all(queue, BATCH, shared)?;
    assert!(queue.submit(&Request::Flush, FLUSH));
    await_all(queue, 1, shared)
}

fn await_all(queue: &mut Queue, count: u64, shared: &Shared) -> Option<()> {
    queue.kick();
    let mut done: Vec<(u64, Outcome)> = Vec::new();
    while (done.len() as u64) < count {
        done.extend(queue.completions());
        if shared.stop.load(Ordering::Acquire) {
            return None;
        }
        std::thread::sleep(LOOK);
    }
    for (tag, outcome) in done {
        assert_eq!(outcome, Ok(()), "request {tag}");
    }
    Some(())
}
