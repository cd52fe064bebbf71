//! Rings in this process: requests through `Ring::serve` against a bare loop over the same copies.
//!
//! `cargo bench --bench ring [-- rounds] [random|growth] [reads|writes|none] [hot|cold] [deep|shallow] [bytes]`.
//! Ring and loop take turns, on the same blocks and buffers in the same order. A line has the median time of
//! a request, in the ring and in the loop; the spread of the middle half of the ring's rounds; the median of
//! each round's ratio of the loop to the ring, with its quartiles; and the median of what the ring takes more.
//! *Cold*: random blocks of 1 GiB of tmpfs; *hot*: one block again and again. *Deep*: 32 requests at once.

#![allow(unsafe_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::cast_possible_truncation)]

mod common;

use std::fs::File;
use std::time::Instant;

use vhost_user_pmem::copy::Engine;

use common::guest::{Guest, Kind, Shape};
use common::{Random, memfd, noise, quartiles};

const DISK_BYTES: usize = 1 << 30;
/// Of each device, where there are many.
const SMALL_DISK_BYTES: usize = 2 << 20;
const SIZES: [usize; 4] = [512, 4 << 10, 64 << 10, 1 << 20];
/// Bytes copied in a round, but not more than so many requests.
const ROUND_BYTES: usize = 64 << 20;
const MOST_REQUESTS: usize = 8192;

/// A disk's file, and a mapping of it.
struct Media {
    file: File,
    bytes: usize,
    base: *mut u8,
}

impl Media {
    fn new(bytes: usize) -> Self {
        let file = memfd(bytes);
        let base = noise(&file, bytes);
        Self { file, bytes, base }
    }
}

/// What is asked for on the command line.
struct Choice {
    words: Vec<String>,
    rounds: usize,
}

impl Choice {
    fn new() -> Self {
        // `cargo bench` adds --bench; `cargo test --benches` does not, and wants it short.
        let is_bench = std::env::args().any(|arg| arg == "--bench");
        let words: Vec<String> = std::env::args().skip(1).collect();
        let asked = words.iter().filter_map(|word| word.parse().ok()).find(|rounds| *rounds < SIZES[0]);
        Self { words, rounds: asked.unwrap_or(if is_bench { 15 } else { 1 }) }
    }

    /// What is named, or all where nothing of its kind is.
    fn has(&self, what: &str, all: &[&str]) -> bool {
        let names = |name: &str| self.words.iter().any(|word| word == name);
        names(what) || !all.iter().any(|name| names(name))
    }
}

fn main() {
    let choice = Choice::new();
    println!("this CPU: {}", Engine::get().describe());
    if choice.has("random", &["random", "growth"]) {
        random(&choice);
    }
    if choice.has("growth", &["random", "growth"]) {
        growth(&choice);
    }
}

/// The common request, of every size.
fn random(choice: &Choice) {
    let media = Media::new(DISK_BYTES);
    for (what, kind) in [("reads", Kind::Read), ("writes", Kind::Write)] {
        for (temperature, is_hot) in [("cold", false), ("hot", true)] {
            for (name, depth) in [("shallow", 1), ("deep", 32)] {
                let is_asked = choice.has(what, &["reads", "writes", "none"])
                    && choice.has(temperature, &["cold", "hot"])
                    && choice.has(name, &["shallow", "deep"]);
                if !is_asked {
                    continue;
                }
                header(&format!("{what}, {temperature}, depth {depth}"));
                for size in SIZES {
                    if choice
                        .has(&size.to_string(), &SIZES.map(|size| size.to_string()).each_ref().map(|s| &**s))
                    {
                        line(&size.to_string(), Shape::new(kind, size, depth), &media, is_hot, choice.rounds);
                    }
                }
            }
        }
    }
    if choice.has("none", &["reads", "writes", "none"]) {
        header("no data, depth 32");
        for (name, kind) in [
            ("flush", Kind::Flush),
            ("get id", Kind::GetId),
            ("discard of no sectors", Kind::Discard),
            ("unknown type", Kind::Unknown),
        ] {
            line(name, Shape::new(kind, 0, 32), &media, true, choice.rounds);
        }
    }
}

/// What must not make a request dearer.
fn growth(choice: &Choice) {
    let media = Media::new(SMALL_DISK_BYTES);
    for (what, kind) in [("reads", Kind::Read), ("writes", Kind::Write)] {
        if !choice.has(what, &["reads", "writes", "none"]) {
            continue;
        }
        header(&format!("growth: {what} of 4 KiB, hot, depth 16"));
        let base = Shape::new(kind, 4096, 16);
        let shapes = [
            ("3 descriptors", base),
            ("in an indirect table", Shape { indirect: true, ..base }),
            ("event index", Shape { event_idx: true, ..base }),
            ("8 regions", Shape { regions: 8, ..base }),
            ("64 regions", Shape { regions: 64, ..base }),
            ("10 descriptors", Shape { pieces: 8, ..base }),
            ("10, indirect", Shape { pieces: 8, indirect: true, ..base }),
            ("60, of 512 bytes", Shape { payload_bytes: 58 * 512, pieces: 58, ..base }),
            ("60, indirect", Shape { payload_bytes: 58 * 512, pieces: 58, indirect: true, ..base }),
            ("64 rings, 1 device", Shape { rings: 64, ..base }),
            ("64 rings, 64 devices", Shape { rings: 64, devices: 64, ..base }),
        ];
        for (name, shape) in shapes {
            line(name, shape, &media, true, choice.rounds);
        }
    }
}

fn header(title: &str) {
    println!("\n{title}");
    println!(
        "{:>24} {:>10} {:>10} {:>7} {:>7}  {:<14} {:>9}",
        "", "ring ns", "loop ns", "spread", "ratio", "quartiles", "more ns"
    );
}

/// Measures a shape and prints its line.
fn line(name: &str, shape: Shape, media: &Media, is_hot: bool, rounds: usize) {
    let mut guest = Guest::new(shape, &media.file, media.bytes, media.base);
    let requests = (ROUND_BYTES / shape.payload_bytes.max(1)).min(MOST_REQUESTS);
    let batches = requests.div_ceil(shape.depth);
    let blocks = media.bytes / shape.payload_bytes.next_power_of_two();
    let (mut in_ring, mut in_loop) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        for turn in [round, round + 1] {
            let is_ring = turn % 2 == 0;
            let mut random = Random(round as u64 * 1000 + 7);
            let size = shape.payload_bytes;
            let mut place = |_| if is_hot { 0 } else { random.below(blocks) * size };
            let start = Instant::now();
            for _ in 0..batches {
                match is_ring {
                    true => guest.batch(&mut place),
                    false => guest.copy_batch(&mut place),
                }
            }
            let time = start.elapsed().as_secs_f64() * 1e9 / (batches * shape.depth) as f64;
            match is_ring {
                true => assert_eq!(guest.status() == 0, shape.kind != Kind::Unknown),
                false => guest.take_back(),
            }
            // The first round only warms up.
            if round > 0 || rounds == 1 {
                if is_ring { in_ring.push(time) } else { in_loop.push(time) }
            }
        }
    }
    report(name, &in_ring, &in_loop);
}

fn report(name: &str, in_ring: &[f64], in_loop: &[f64]) {
    let pairs = || in_ring.iter().zip(in_loop);
    let [low, ring, high] = quartiles(in_ring.iter().copied());
    let [_, bare, _] = quartiles(in_loop.iter().copied());
    let [worst, ratio, best] = quartiles(pairs().map(|(ring, bare)| bare / ring));
    let [_, more, _] = quartiles(pairs().map(|(ring, bare)| ring - bare));
    let spread = (high - low) / ring * 100.0;
    let between = format!("{worst:.3}..{best:.3}");
    println!("{name:>24} {ring:>10.1} {bare:>10.1} {spread:>6.1}% {ratio:>7.3}  {between:<14} {more:>9.1}");
}
