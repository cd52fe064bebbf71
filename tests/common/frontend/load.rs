//! A ring that is busy, and checks what it reads, while a test does something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::request::{OK, Request};
use super::ring::{Ring, Vring};
use crate::common::{Random, SECTOR_BYTES, pattern, wait_for};

/// Sectors that one load writes to, from the given one on.
pub const LOAD_SECTORS: u64 = 2048;

/// Sectors of one request.
const REQUEST_SECTORS: u64 = 8;

/// Requests under way at once.
const DEPTH: usize = 8;

/// Writes and reads back on a thread of its own, until it is stopped.
#[derive(Debug)]
pub struct Load {
    /// Where its ring is; eventfds may be replaced under way.
    pub vring: Vring,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<Ring>,
}

impl Load {
    /// Uses [`LOAD_SECTORS`] from `first_sector` on.
    pub fn start(ring: Ring, first_sector: u64) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let vring = ring.vring();
        let (is_stopped, counter) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            let mut ring = ring;
            let mut random = Random::new(first_sector);
            while !is_stopped.load(Ordering::Relaxed) {
                write_and_read(&mut ring, first_sector, &mut random);
                counter.fetch_add(2 * DEPTH as u64, Ordering::Relaxed);
            }
            ring
        });
        Self { vring, stop, done, thread }
    }

    /// Requests finished so far, all without an error.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until the load has gone on for a while.
    pub fn wait_for_progress(&self) {
        let goal = self.done() + 4 * DEPTH as u64;
        let moved = || {
            assert!(!self.thread.is_finished(), "the load has failed");
            (self.done() >= goal).then_some(())
        };
        wait_for("the load goes on", moved);
    }

    /// Ends the load; fails if anything went wrong with it.
    pub fn stop(self) -> Ring {
        self.wait_for_progress();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn write_and_read(ring: &mut Ring, first_sector: u64, random: &mut Random) {
    let places = LOAD_SECTORS / REQUEST_SECTORS / DEPTH as u64;
    let bytes = REQUEST_SECTORS as usize * SECTOR_BYTES;
    let at = random.below(places);
    let sectors = (0..DEPTH as u64).map(|lane| first_sector + (at + lane * places) * REQUEST_SECTORS);
    let sectors: Vec<u64> = sectors.collect();
    let contents: Vec<Vec<u8>> = sectors.iter().map(|_| pattern(random.next(), bytes)).collect();

    let writes = sectors.iter().zip(&contents).map(|(sector, bytes)| Request::write(*sector, bytes));
    batch(ring, &writes.collect::<Vec<_>>());
    let reads = sectors.iter().map(|sector| Request::read(*sector, bytes as u32));
    let read = batch(ring, &reads.collect::<Vec<_>>());
    assert!(read == contents, "ring {} read something else than it wrote", ring.index);
}

fn batch(ring: &mut Ring, requests: &[Request]) -> Vec<Vec<u8>> {
    let heads: Vec<u16> = requests.iter().map(|request| ring.submit(request)).collect();
    ring.notify();
    let mut data = Vec::new();
    for (request, head) in requests.iter().zip(heads) {
        let used = ring.wait();
        assert_eq!(used.head, head, "requests complete in order");
        let answer = ring.answer(request, used);
        assert_eq!(answer.status, OK, "{request:?}");
        data.push(answer.data);
    }
    data
}
