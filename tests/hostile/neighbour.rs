//! An honest front-end of another disk, which reads back and compares all that it writes, and knows how long each request
//! took.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::frontend::Session;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::{Random, pattern, wait_for};

/// Bytes of a request.
const BYTES: u32 = 4096;

/// Where it writes: so many places of [`BYTES`].
const PLACES: u64 = 512;

/// Requests after which it has gone on.
const PROGRESS: usize = 4;

/// Between a read and the next write: two threads that wake each other without one have kept all others from two processors, those
/// of the kernel included, for a minute (Linux 6.18 without preemption).
const PAUSE: Duration = Duration::from_micros(200);

/// Its thread.
#[derive(Debug)]
pub(crate) struct Neighbour {
    stop: Arc<AtomicBool>,
    /// How long each request took that was done since this was asked last.
    times: Arc<Mutex<Vec<Duration>>>,
    thread: JoinHandle<()>,
}

impl Neighbour {
    /// One request at a time, until it is stopped.
    pub(crate) fn start(socket: &Path) -> Self {
        let session = Session::connect(socket);
        let stop = Arc::new(AtomicBool::new(false));
        let times = Arc::new(Mutex::default());
        let (is_stopped, of_all) = (stop.clone(), times.clone());
        let thread = std::thread::spawn(move || {
            let (mut ring, mut random) = (session.ring(0, 64), Random::new(1));
            while !is_stopped.load(Ordering::Relaxed) {
                let both = write_and_read(&mut ring, &mut random);
                lock(&of_all).extend(both);
                std::thread::sleep(PAUSE);
            }
        });
        Self { stop, times, thread }
    }

    /// How long each request took that was done since this was asked last.
    pub(crate) fn take_times(&self) -> Vec<Duration> {
        std::mem::take(&mut *lock(&self.times))
    }

    /// Nothing that it read was wrong.
    pub(crate) fn assert_at_work(&self) {
        assert!(!self.thread.is_finished(), "the neighbour's requests have failed");
    }

    /// Waits until some more requests were done, and what they read was right.
    pub(crate) fn wait_for_progress(&self) {
        let goal = lock(&self.times).len() + PROGRESS;
        wait_for("the neighbour's requests are done", || {
            self.assert_at_work();
            (lock(&self.times).len() >= goal).then_some(())
        });
    }

    /// Ends it; fails if anything it read was wrong.
    pub(crate) fn stop(self) {
        self.wait_for_progress();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn lock(times: &Mutex<Vec<Duration>>) -> MutexGuard<'_, Vec<Duration>> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes something new and reads it back; returns how long either took.
fn write_and_read(ring: &mut Ring, random: &mut Random) -> [Duration; 2] {
    let sector = random.below(PLACES) * u64::from(BYTES) / 512;
    let bytes = pattern(random.next(), BYTES as usize);
    let start = Instant::now();
    let written = ring.run(&Request::write(sector, &bytes));
    let middle = Instant::now();
    let read = ring.run(&Request::read(sector, BYTES));
    let end = Instant::now();
    assert_eq!((written.status, read.status), (OK, OK), "sector {sector}");
    assert!(read.data == bytes, "sector {sector}: something else was read than was written");
    [middle - start, end - middle]
}
