//! Two rings of a disk on two CPUs against one on one: `Ring::serve` on pinned threads, and the bare loop over the same
//! copies beside it, which says what the machine has to give.
//!
//! `cargo bench --bench scaling [-- ROUNDS]`, or `ci/bench scaling`. A line has the medians, and the quartiles, of what
//! two do of what one does: by the clock, which needs two CPUs that nobody else uses, and by the threads' CPU time, in
//! which a cache line that both write would show. `--count` counts instructions under callgrind instead, and fails when a
//! request takes more of them beside another thread, or a locked one. *Cold*: random blocks; *hot*: one block each.

#![allow(unsafe_code, missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::cast_possible_truncation)]

#[allow(dead_code, reason = "the other benchmark uses more of it")]
mod callgrind;
mod common;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use vhost_user_pmem::worker::Cpus;

use callgrind::Special;
use common::guest::{Guest, Kind, Shape};
use common::{Random, memfd, noise, quartiles};

const DISK_BYTES: usize = 1 << 30;
/// Of the disk whose requests are counted.
const SMALL_DISK_BYTES: usize = 2 << 20;
const BLOCK_BYTES: usize = 4096;
const DEPTH: usize = 32;
const WINDOW: Duration = Duration::from_millis(50);
const COUNTED_BATCHES: usize = 64;
/// How much more instructions two may take.
const TOLERANCE: f64 = 0.01;

/// What a thread drives: nobody else uses its part of guest memory.
struct Lane {
    guest: Guest,
    cpu: usize,
    random: Random,
    is_hot: bool,
}

// SAFETY: its pointers lead into mappings that stay for good, and into ring and chains that no other lane uses.
unsafe impl Send for Lane {}

/// What some threads have done in a window.
#[derive(Clone, Copy)]
struct Done {
    per_second: f64,
    cpu_ns: f64,
}

impl Lane {
    fn all(kind: Kind, is_hot: bool, disk_bytes: usize) -> Vec<Self> {
        let disk = memfd(disk_bytes);
        let media = noise(&disk, disk_bytes);
        let shape = Shape { rings: 2, ..Shape::new(kind, BLOCK_BYTES, DEPTH) };
        let guests = Guest::new(shape, &disk, disk_bytes, media).split();
        let lane = |(cpu, guest)| Self { guest, cpu, random: Random(cpu as u64), is_hot };
        guests.into_iter().enumerate().map(lane).collect()
    }

    /// A batch at places of its own.
    #[inline]
    fn batch(&mut self, in_ring: bool, disk_bytes: usize) {
        let Self { guest, cpu, random, is_hot } = self;
        let place = |_| match is_hot {
            true => *cpu * BLOCK_BYTES * 2,
            false => random.below(disk_bytes / BLOCK_BYTES) * BLOCK_BYTES,
        };
        if in_ring { guest.batch(place) } else { guest.copy_batch(place) }
    }

    /// Batches for as long as the window is; answers requests a second, and nanoseconds of CPU time that all took.
    fn run(&mut self, in_ring: bool, start: &Barrier) -> (f64, f64, f64) {
        self.cpu.to_string().parse::<Cpus>().unwrap().pin_this_thread().unwrap();
        start.wait();
        let (begin, cpu, mut batches) = (Instant::now(), cpu_ns(), 0);
        while begin.elapsed() < WINDOW {
            self.batch(in_ring, DISK_BYTES);
            batches += 1;
        }
        let requests = f64::from(batches) * DEPTH as f64;
        let done = (requests, requests / begin.elapsed().as_secs_f64(), cpu_ns() - cpu);
        if !in_ring {
            self.guest.take_back();
        }
        done
    }

    /// The device's part of so many batches is counted.
    fn counted(&mut self) {
        let Self { guest, random, .. } = self;
        let mut place = |_| random.below(SMALL_DISK_BYTES / BLOCK_BYTES) * BLOCK_BYTES;
        for _ in 0..COUNTED_BATCHES {
            guest.batch_between(&mut place, callgrind::toggle);
        }
    }
}

fn cpu_ns() -> f64 {
    // rustix would look for the vDSO, where valgrind has none.
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it is there to be written to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|given| given == word);
    if has("--counted") {
        return be_counted();
    }
    if has("--count") {
        return count();
    }
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return println!("skipped: there is one CPU only");
    }
    // `cargo bench` adds --bench; `cargo test --benches` does not, and wants it short.
    let default = if has("--bench") { 31 } else { 1 };
    let rounds = words.iter().find_map(|word| word.parse().ok()).unwrap_or(default);
    println!("{:>14} {:>44} {:>44}", "", "two of one, by the clock", "by CPU time");
    println!("{:>14} {:>22}{:>22} {:>22}{:>22}", "", "rings", "bare loops", "rings", "bare loops");
    for (name, kind) in [("reads", Kind::Read), ("writes", Kind::Write)] {
        for (heat, is_hot) in [("hot", true), ("cold", false)] {
            compare(&format!("{name}, {heat}"), Lane::all(kind, is_hot, DISK_BYTES), rounds);
        }
    }
}

/// One and two, rings and loops, in turns.
fn compare(name: &str, mut lanes: Vec<Lane>, rounds: usize) {
    let (mut rings, mut loops) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        for in_ring in [round % 2 == 0, round % 2 == 1] {
            let one = run(&mut lanes[..1], in_ring);
            let two = run(&mut lanes, in_ring);
            // The first round only warms up.
            if round > 0 {
                if in_ring { rings.push((one, two)) } else { loops.push((one, two)) }
            }
        }
    }
    print!("{name:>14}");
    for what in [by_clock, by_cpu_time] {
        for found in [&rings, &loops] {
            let [low, median, high] = quartiles(found.iter().map(|(one, two)| what(*one, *two)));
            print!(" {:>21}", format!("{median:.2} ({low:.2} – {high:.2})"));
        }
        print!(" ");
    }
    println!();
}

fn by_clock(one: Done, two: Done) -> f64 {
    two.per_second / one.per_second
}

fn by_cpu_time(one: Done, two: Done) -> f64 {
    2.0 * one.cpu_ns / two.cpu_ns
}

fn run(lanes: &mut [Lane], in_ring: bool) -> Done {
    let start = Barrier::new(lanes.len());
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            lanes.iter_mut().map(|lane| scope.spawn(|| lane.run(in_ring, &start))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let requests: f64 = found.iter().map(|(requests, ..)| requests).sum();
    let per_second = found.iter().map(|(_, per_second, _)| per_second).sum();
    Done { per_second, cpu_ns: found.iter().map(|(.., cpu_ns)| cpu_ns).sum::<f64>() / requests }
}

/// Under callgrind: the device's part of batches of one thread, and of two at the same time.
fn be_counted() {
    let mut lanes = Lane::all(Kind::Read, false, SMALL_DISK_BYTES);
    lanes.iter_mut().for_each(|lane| (0..2).for_each(|_| lane.batch(true, SMALL_DISK_BYTES)));
    for (name, count) in [("one", 1), ("two", 2)] {
        std::thread::scope(|scope| {
            for lane in &mut lanes[..count] {
                scope.spawn(|| lane.counted());
            }
        });
        callgrind::dump(name);
    }
}

/// Runs this program under callgrind, and compares.
fn count() {
    let profiles = callgrind::run_this("--counted", 2);
    let each = [1, 2].map(|threads| {
        let (name, profile) = &profiles[threads - 1];
        let requests = threads * COUNTED_BATCHES * DEPTH;
        assert_eq!(profile.special.get(&Special::Locked), None, "locked instructions with {name}");
        let instructions = profile.total() as f64 / requests as f64;
        println!("instructions of a request with its copy, {name} at a time: {instructions:.1}");
        instructions
    });
    assert!(each[0] > 100.0, "nothing was counted");
    let ratio = 2.0 * each[0] / each[1];
    println!("two do {ratio:.3} of what one does, in instructions");
    assert!(ratio > 2.0 * (1.0 - TOLERANCE), "a request takes more instructions beside another thread");
}
