//! Copies: each engine against `ptr::copy_nonoverlapping`, and durable writes against memcpy + clwb + sfence.
//!
//! `cargo bench --bench copy [-- rounds] [writes|reads|zeroes] [bytes]`. Candidates take turns in every round,
//! on the same blocks in the same order. The table has the median time of a copy, the spread of the middle
//! half of the rounds, and the median of each round's ratio to the line's base. *Cold*: random blocks of 1 GiB
//! of tmpfs, from or to buffers that are in the caches; *hot*: one block again and again. Neither is zeroes: some
//! CPUs copy these 1.6 times as fast.

#![allow(unsafe_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::cast_possible_truncation)]

mod common;

use std::hint::black_box;
use std::time::Instant;

use vhost_user_pmem::copy::{
    Engine, Load, Persist, PrefetchHint, Segment, Segments, Store, Stores, store_fence,
};

use common::{Random, map, memfd, noise, quartiles};

const MEDIA_BYTES: usize = 1 << 30;
/// A guest's bytes are in the caches: it has just made them, or uses them soon.
const GUEST_BYTES: usize = 4 << 20;
const SIZES: [usize; 6] = [512, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
/// Bytes that each candidate copies in a round, but not more than so many copies.
const ROUND_BYTES: usize = 64 << 20;
const MOST_COPIES: usize = 8192;

/// One copy: media, guest memory, length; the next copy's media.
type Copy<'a> = Box<dyn FnMut(*mut u8, *mut u8, usize, *mut u8) + 'a>;

struct Candidate<'a> {
    name: String,
    copy: Copy<'a>,
    nanoseconds: Vec<f64>,
}

impl<'a> Candidate<'a> {
    fn new(name: impl Into<String>, copy: impl FnMut(*mut u8, *mut u8, usize, *mut u8) + 'a) -> Self {
        Self { name: name.into(), copy: Box::new(copy), nanoseconds: Vec::new() }
    }
}

fn main() {
    // `cargo bench` adds --bench; `cargo test --benches` does not, and wants it short.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let words: Vec<String> = std::env::args().skip(1).collect();
    let asked = words.iter().filter_map(|word| word.parse().ok()).find(|rounds| *rounds < SIZES[0]);
    let rounds = asked.unwrap_or(if is_bench { 15 } else { 1 });
    // What is named, or all where nothing is.
    let is_asked = |what: &str, all: &[&str]| {
        words.iter().any(|word| word == what) || !words.iter().any(|word| all.contains(&word.as_str()))
    };
    let sizes = SIZES.map(|size| size.to_string());
    let (media, guest) = (bytes(MEDIA_BYTES, rounds > 1), bytes(GUEST_BYTES, rounds > 1));
    println!("this CPU: {}", Engine::best().describe());
    let all = [("writes", writes as fn() -> Vec<Candidate<'static>>), ("reads", reads), ("zeroes", zeroes)];
    for (what, candidates) in all {
        if !is_asked(what, &all.map(|(what, _)| what)) {
            continue;
        }
        for is_hot in [false, true] {
            println!("\n{what}, {}", if is_hot { "hot" } else { "cold" });
            header(&candidates());
            for (size, name) in SIZES.into_iter().zip(&sizes) {
                if is_asked(name, &sizes.each_ref().map(String::as_str)) {
                    let mut candidates = candidates();
                    measure(&mut candidates, media, guest, size, is_hot, rounds);
                    report(size, &candidates);
                }
            }
        }
    }
}

/// The first one is the base of the ratios.
fn writes() -> Vec<Candidate<'static>> {
    let best = Engine::best();
    let clwb = Engine::with(Stores::Portable, best.line_flush()).unwrap();
    let mut all = vec![
        engine_writes(format!("memcpy+{:?}", best.line_flush()), clwb),
        Candidate::new("memcpy, volatile", |media, guest, len, _| {
            // SAFETY: the measuring loop gives ranges inside of the two mappings.
            unsafe { media.copy_from_nonoverlapping(guest, len) };
        }),
    ];
    for engine in Engine::available() {
        if engine.line_flush() == best.line_flush() && engine.stores() != Stores::Portable {
            all.push(engine_writes(engine.stores().name().to_owned(), engine));
        }
    }
    all
}

fn engine_writes(name: String, engine: Engine) -> Candidate<'static> {
    Candidate::new(name, move |media, guest, len, _| {
        let segment = [Segment::new(guest, len)];
        // SAFETY: the measuring loop gives ranges inside of the two mappings.
        let segments = unsafe { Segments::new(&segment) };
        // SAFETY: the measuring loop gives ranges inside of the two mappings.
        let left = engine.store(unsafe { Store::new(media, segments) }, Persist::Lines, PrefetchHint::NONE);
        assert_eq!(left, 0);
        store_fence();
    })
}

fn reads() -> Vec<Candidate<'static>> {
    let mut all = vec![Candidate::new("memcpy", |media, guest, len, _| {
        // SAFETY: the measuring loop gives ranges inside of the two mappings.
        unsafe { guest.copy_from_nonoverlapping(media, len) };
    })];
    #[cfg(target_arch = "x86_64")]
    all.push(Candidate::new("rep movsb", |media, guest, len, _| {
        // SAFETY: the measuring loop gives ranges inside of the two mappings.
        unsafe {
            std::arch::asm!("rep movsb", inout("rcx") len => _, inout("rdi") guest => _, inout("rsi") media => _);
        }
    }));
    for engine in Engine::available() {
        if engine.line_flush() == Engine::best().line_flush() && engine.stores() != Stores::Portable {
            all.push(engine_reads(engine.stores().name().to_owned(), engine, false));
        }
    }
    all.push(engine_reads("best, told what is next".to_owned(), Engine::best(), true));
    all
}

fn engine_reads(name: String, engine: Engine, is_told: bool) -> Candidate<'static> {
    Candidate::new(name, move |media, guest, len, next| {
        let next = if is_told { PrefetchHint::new(next) } else { PrefetchHint::NONE };
        let segment = [Segment::new(guest, len)];
        // SAFETY: the measuring loop gives ranges inside of the two mappings.
        let segments = unsafe { Segments::new(&segment) };
        // SAFETY: the measuring loop gives ranges inside of the two mappings.
        assert_eq!(engine.load(unsafe { Load::new(media, segments) }, next), 0);
    })
}

fn zeroes() -> Vec<Candidate<'static>> {
    let best = Engine::best();
    let with = |stores| Engine::with(stores, best.line_flush());
    let all = [Stores::Portable, Stores::Nt64, Stores::Nt32, Stores::Nt16];
    all.into_iter().filter_map(with).map(engine_zeroes).collect()
}

fn engine_zeroes(engine: Engine) -> Candidate<'static> {
    let name = match engine.stores() {
        Stores::Portable => "memset+flush".to_owned(),
        stores => stores.name().to_owned(),
    };
    Candidate::new(name, move |media, _, len, _| {
        // SAFETY: the measuring loop gives ranges inside of the two mappings.
        assert_eq!(unsafe { engine.zero(media, len, Persist::Lines) }, 0);
        store_fence();
    })
}

fn measure(
    candidates: &mut [Candidate<'_>],
    media: *mut u8,
    guest: *mut u8,
    size: usize,
    is_hot: bool,
    rounds: usize,
) {
    let copies = (ROUND_BYTES / size).min(MOST_COPIES);
    let mut shuffle = Random(size as u64);
    for round in 0..=rounds {
        // Nobody always runs behind the same one, who may leave lines for others to write back.
        let mut order: Vec<_> = (0..candidates.len()).collect();
        (1..order.len()).rev().for_each(|last| order.swap(last, shuffle.below(last + 1)));
        for turn in order {
            let candidate = &mut candidates[turn];
            let mut random = Random(round as u64 * 1000 + 7);
            let mut place = || if is_hot { 0 } else { random.below(MEDIA_BYTES / size) * size };
            let mut next = place();
            let start = Instant::now();
            for copy in 0..copies {
                let here = std::mem::replace(&mut next, place());
                let from = if is_hot { 0 } else { copy % (GUEST_BYTES / size) * size };
                (candidate.copy)(
                    black_box(media.wrapping_add(here)),
                    black_box(guest.wrapping_add(from)),
                    size,
                    media.wrapping_add(next),
                );
            }
            // The first round only warms up.
            if round > 0 || rounds == 1 {
                candidate.nanoseconds.push(start.elapsed().as_secs_f64() * 1e9 / copies as f64);
            }
        }
    }
}

fn header(candidates: &[Candidate<'_>]) {
    print!("{:>8}", "bytes");
    for candidate in candidates {
        print!("  {:>24}", candidate.name);
    }
    println!("\n{:>8}{}", "", format!("  {:>24}", "ns  spread  ratio").repeat(candidates.len()));
}

fn report(size: usize, candidates: &[Candidate<'_>]) {
    print!("{size:>8}");
    let mut base = None;
    for candidate in candidates {
        let times = &candidate.nanoseconds;
        let base = base.get_or_insert_with(|| times.clone());
        let ratios = quartiles(base.iter().zip(times).map(|(base, time)| base / time));
        let [low, median, high] = quartiles(times.iter().copied());
        print!("  {median:>10.0} {:>6.0}% {:>5.2}x", (high - low) / median * 100.0, ratios[1]);
    }
    println!();
}

/// A disk's or a guest's; holes where nothing is measured.
fn bytes(bytes: usize, is_measured: bool) -> *mut u8 {
    let file = memfd(bytes);
    if is_measured { noise(&file, bytes) } else { map(&file, bytes, false) }
}
