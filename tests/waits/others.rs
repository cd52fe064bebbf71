//! What others notice while a disk hangs: a neighbour's requests are done, and every message is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::daemon::Daemon;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::{Options, Session};
use crate::common::{metrics, pattern, wait_for};

/// Requests of the neighbour after which it has gone on.
const PROGRESS: usize = 50;

/// The front-end of the second disk, which reads back what it writes.
#[derive(Debug)]
pub(crate) struct Neighbour {
    stop: Arc<AtomicBool>,
    /// How long each write and its read took.
    times: Arc<Mutex<Vec<Duration>>>,
    thread: JoinHandle<()>,
}

impl Neighbour {
    pub(crate) fn start(daemon: &Daemon) -> Self {
        let session = Session::connect(&daemon.socket(1));
        let (stop, times) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let (is_stopped, of_all) = (Arc::clone(&stop), Arc::clone(&times));
        let thread = std::thread::spawn(move || {
            let mut ring = session.ring(0, 64);
            for number in 0.. {
                let (sector, bytes) = (number % 512 * 8, pattern(number, 4096));
                let begun = Instant::now();
                assert_eq!(ring.run(&Request::write(sector, &bytes)).status, OK);
                assert!(ring.run(&Request::read(sector, 4096)).data == bytes, "sector {sector}");
                let mut times: std::sync::MutexGuard<'_, Vec<Duration>> =
                    of_all.lock().unwrap_or_else(PoisonError::into_inner);
                times.push(begun.elapsed());
                drop(times);
                if is_stopped.load(Ordering::Relaxed) {
                    return;
                }
                // Two threads that wake each other without a pause may keep all others from two processors.
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self { stop, times, thread }
    }

    /// Waits until it has gone on from now. Returns the longest that one of 100 took, and of 2.
    pub(crate) fn wait_for_progress(&self) -> (Duration, Duration) {
        self.lock().clear();
        wait_for("the neighbour's requests are done", || {
            assert!(!self.thread.is_finished(), "the neighbour's requests have failed");
            (self.lock().len() >= PROGRESS).then_some(())
        });
        let mut times = std::mem::take(&mut *self.lock());
        times.sort_unstable();
        (times[times.len() * 99 / 100], times[times.len() / 2])
    }

    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Duration>> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says all that a front-end says, to the third disk and to the one that hangs as far as that waits for no media. Returns how long
/// the longest step took.
pub(crate) fn say_everything(daemon: &Daemon) -> Duration {
    let mut longest = Duration::ZERO;
    let mut step = |what: &mut dyn FnMut()| {
        let begun = Instant::now();
        what();
        longest = longest.max(begun.elapsed());
    };
    for options in Options::both_kinds() {
        let mut other = None;
        step(&mut || other = Some(Session::connect_with(&daemon.socket(2), &options)));
        let other = other.unwrap();
        let mut ring = other.new_ring(0, 64);
        step(&mut || other.start(&ring, 0).unwrap());
        step(&mut || assert_eq!(ring.run(&Request::write(0, &[1; 512])).status, OK));
        step(&mut || assert_eq!(ring.run(&Request::flush()).status, OK));
        step(&mut || drop(other.config(0, 60).unwrap()));
        let mut base = 0;
        step(&mut || base = other.stop(&ring.vring()));
        assert_eq!(base, ring.used_base());
        step(&mut || other.share_memory());
        step(&mut || other.start(&ring, base).unwrap());
        step(&mut || assert_eq!(ring.run(&Request::read(0, 512)).data, [1; 512]));
        let mut hung = None;
        step(&mut || hung = Some(Session::connect_with(&daemon.socket(0), &options)));
        step(&mut || drop(hung.as_ref().unwrap().config(0, 60).unwrap()));
        step(&mut || drop(metrics::read(&daemon.metrics_socket())));
    }
    longest
}
