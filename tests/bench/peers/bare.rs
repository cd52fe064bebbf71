//! What a back-end would reach that had nothing else to do: the copy loop, a pair of wake-ups, and both together.

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use vhost_user_pmem::copy::{Engine, Load, Persist, PrefetchHint, Segment, Segments, Store, store_fence};
use vhost_user_pmem::worker::Cpus;
use vmm_sys_util::eventfd::EventFd;

use crate::common::{Random, map_huge, map_small, memfd, noise, quartiles};

/// Copies between two readings of the clock.
const BATCH: usize = 16;

/// What is written to an eventfd to wake the other side, and to end it.
const GO: u64 = 1;
const END: u64 = 2;

/// A disk and a guest's memory.
pub struct Bare {
    media: *mut u8,
    media_bytes: usize,
    guest: *mut u8,
    engine: Engine,
    random: Random,
}

impl Bare {
    /// Maps the disk, in huge pages or small ones, and buffers of so many bytes.
    pub fn new(image: &Path, buffer_bytes: usize, in_huge_pages: bool) -> Self {
        let file = File::options().read(true).write(true).open(image).unwrap();
        let media_bytes = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let media = if in_huge_pages { map_huge(&file, media_bytes) } else { map_small(&file, media_bytes) };
        let guest = noise(&memfd(buffer_bytes), buffer_bytes);
        Self { media, media_bytes, guest, engine: Engine::best(), random: Random(1) }
    }

    /// Copies a second, of random blocks, from or to `buffers` buffers in turn.
    pub fn rate(&mut self, is_write: bool, bytes: usize, buffers: usize, time: Duration) -> f64 {
        let begin = Instant::now();
        let mut copies = 0;
        while begin.elapsed() < time {
            self.batch(is_write, bytes, (copies..copies + BATCH).map(|copy| copy % buffers));
            copies += BATCH;
        }
        copies as f64 / begin.elapsed().as_secs_f64()
    }

    /// CPU time of a read in µs, if this side sleeps until it is woken for `depth` reads, and wakes the other one when
    /// all of them are done.
    pub fn woken_cpu_us(
        &mut self,
        bytes: usize,
        depth: usize,
        client: &Cpus,
        this: &Cpus,
        time: Duration,
    ) -> f64 {
        let [kick, call] = [(), ()].map(|()| EventFd::new(0).unwrap());
        this.pin_this_thread().unwrap();
        let found = std::thread::scope(|scope| {
            scope.spawn(|| {
                client.pin_this_thread().unwrap();
                let begin = Instant::now();
                while begin.elapsed() < time {
                    kick.write(GO).unwrap();
                    call.read().unwrap();
                }
                kick.write(END).unwrap();
            });
            let (begin, mut reads) = (cpu_time(), 0);
            while kick.read().unwrap() == GO {
                self.batch(false, bytes, 0..depth);
                call.write(GO).unwrap();
                reads += depth;
            }
            (cpu_time() - begin).as_secs_f64() * 1e6 / reads as f64
        });
        client.pin_this_thread().unwrap();
        found
    }

    /// A copy of a random block for each of these buffers.
    fn batch(&mut self, is_write: bool, bytes: usize, buffers: impl Iterator<Item = usize>) {
        for buffer in buffers {
            let place = self.random.below(self.media_bytes / bytes) * bytes;
            let buffer = self.guest.wrapping_add(buffer * bytes);
            self.copy(is_write, black_box(self.media.wrapping_add(place)), black_box(buffer), bytes);
        }
        store_fence();
    }

    fn copy(&self, is_write: bool, media: *mut u8, buffer: *mut u8, bytes: usize) {
        let segment = [Segment::new(buffer, bytes)];
        // SAFETY: the buffer lies in a mapping that stays.
        let segments = unsafe { Segments::new(&segment) };
        let left = if is_write {
            // SAFETY: both ranges lie in mappings that stay.
            self.engine.store(unsafe { Store::new(media, segments) }, Persist::FenceOnly, PrefetchHint::NONE)
        } else {
            // SAFETY: both ranges lie in mappings that stay.
            self.engine.load(unsafe { Load::new(media, segments) }, PrefetchHint::NONE)
        };
        assert_eq!(left, 0);
    }
}

/// Median µs from a write to an eventfd to an answer through another one, when both sides sleep in between.
pub fn wake_up_us(other_side: &Cpus, time: Duration) -> f64 {
    let [there, back] = [(), ()].map(|()| EventFd::new(0).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            other_side.pin_this_thread().unwrap();
            while there.read().unwrap() == GO {
                back.write(GO).unwrap();
            }
        });
        let (begin, mut found) = (Instant::now(), Vec::new());
        while begin.elapsed() < time {
            let start = Instant::now();
            there.write(GO).unwrap();
            back.read().unwrap();
            found.push(start.elapsed().as_secs_f64() * 1e6);
        }
        there.write(END).unwrap();
        let [_, median, _] = quartiles(found.into_iter());
        median
    })
}

/// What this thread has used.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}
