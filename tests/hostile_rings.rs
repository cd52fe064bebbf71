//! Descriptors, headers and indexes of live rings that a thread rewrites as fast as it can: no request touches a byte beyond the
//! disk or guest memory. The server is in this process, so that guards can lie around what it has mapped.
//!
//! `RACE_SECONDS` lengthens each test (ci/soak), `SEED` repeats its choices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

mod common;
#[allow(dead_code, unreachable_pub)]
#[path = "fuzz/targets/server.rs"]
mod server;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::frontend::memory::{Memory, Span};
use common::frontend::request::header;
use common::frontend::ring::{INDIRECT, NO_STATUS, Part, Ring, WRITE};
use common::frontend::{Options, Session};
use common::guarded::guard_mappings;
use common::{Random, wait_for};
use server::{DISK_BYTES, World};

const SPANS: [Span; 2] =
    [Span { guest_start: 0x10_0000, bytes: 1 << 20 }, Span { guest_start: 0x1_0000_0000, bytes: 64 << 10 }];

const QUEUE_SIZE: u16 = 64;

/// Requests in the ring.
const CHAINS: u16 = 16;

/// How long a ring is raced with before it is started anew, once something has happened.
const ROUND: Duration = Duration::from_millis(3);

/// A part of memory that is rewritten, and what is there at first.
struct Area {
    start: u64,
    good: Vec<u8>,
}

/// Lays out requests that make sense, and makes them available; returns what is to be rewritten.
fn lay_out(ring: &mut Ring, indirect: bool) -> Vec<Area> {
    let mut areas = Vec::new();
    for chain in 0..CHAINS {
        let frame = ring.buffers(usize::from(chain) % ring.slots());
        let is_read = chain % 2 == 0;
        ring.memory.write(frame.header, &header(u32::from(!is_read), u64::from(chain) * 8));
        ring.memory.fill(frame.status, 1, NO_STATUS);
        let data: Part = (frame.data, 4096, if is_read { WRITE } else { 0 });
        let parts = [(frame.header, 16, 0), data, (frame.status, 1, WRITE)];
        areas.push((frame.header, 16));
        if indirect {
            // Between header and status.
            let table = frame.header + 1024;
            ring.put_table(table, &parts);
            ring.prepare(chain * 3, &[(table, 48, INDIRECT)]);
            areas.push((table, 48));
        } else {
            ring.prepare(chain * 3, &parts);
        }
    }
    ring.make_available();
    let [available, used] = if ring.is_packed() { [4, 4] } else { [6 + 2 * 64, 6 + 8 * 64] };
    areas.extend([(ring.descriptors, 16 * 64), (ring.available, available), (ring.used, used)]);
    let area = |(start, bytes)| Area { start, good: ring.memory.read(start, bytes) };
    areas.into_iter().map(area).collect()
}

/// Whether a request has been answered.
fn has_run(ring: &Ring) -> bool {
    (0..ring.slots()).any(|slot| ring.memory.read(ring.buffers(slot).status, 1) != [NO_STATUS])
}

/// One store: something hostile, something random, or what was there.
fn rewrite(memory: &Memory, areas: &[Area], random: &mut Random) {
    let area = &areas[random.below(areas.len() as u64) as usize];
    let bytes = random.pick(&[1, 2, 2, 4, 8, 8]).min(area.good.len());
    let at = random.below((area.good.len() - bytes + 1) as u64) as usize / bytes * bytes;
    let end = SPANS[random.below(2) as usize].guest_start + SPANS[random.below(2) as usize].bytes;
    let value = match random.below(8) {
        0 => random.next(),
        1 => end.wrapping_sub(random.below(5000)),
        2 => random.pick(&[0, 1, 16, 511, 512, 513, 4097, 65_535, 1 << 20, u64::from(u32::MAX), u64::MAX]),
        3 => (DISK_BYTES / 512).wrapping_sub(random.below(12)),
        _ => return memory.write(area.start + at as u64, &area.good[at..at + bytes]),
    };
    memory.write(area.start + at as u64, &value.to_le_bytes()[..bytes]);
}

/// Races with rings of one kind until the time is over.
fn race(packed: bool, indirect: bool) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    let (seed, seconds) = (number("SEED").unwrap_or(1), number("RACE_SECONDS").unwrap_or(1));
    let mut world = World::start();
    let mut session = Session::open(world.socket(), &SPANS);
    session.memory = Memory::between_canaries(&SPANS);
    session.negotiate(&Options { packed, ..Options::default() });
    session.share_memory();
    let (memory, own) = (session.memory.clone(), session.memory.own_mappings());
    assert_eq!(guard_mappings(memory.fd(), &own), SPANS.len(), "no guards around guest memory");
    let mut ring = session.new_ring(0, QUEUE_SIZE);

    let (areas, is_over, stores) = (Mutex::new(Vec::new()), AtomicBool::new(false), AtomicU64::new(0));
    let (mut rounds, mut ran, mut broken) = (0_u64, 0_u64, 0_u64);
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(seed);
            while !is_over.load(Ordering::Relaxed) {
                let areas = areas.lock().unwrap();
                for _ in 0..if areas.is_empty() { 0 } else { 500 } {
                    rewrite(&memory, &areas, &mut random);
                }
                stores.fetch_add(500, Ordering::Relaxed);
            }
        });
        while Instant::now() < end || rounds < 20 {
            {
                let mut areas = areas.lock().unwrap();
                areas.clear();
                if rounds > 0 {
                    session.stop(&ring);
                    ran += u64::from(has_run(&ring));
                    broken += u64::from(ring.err.is_signalled());
                }
                ring.reset();
                *areas = lay_out(&mut ring, indirect);
                session.start(&ring, 0).unwrap();
            }
            wait_for("a request is answered, or the ring broken", || {
                ring.kick.signal();
                (has_run(&ring) || ring.err.is_signalled()).then_some(())
            });
            let round = Instant::now();
            while round.elapsed() < ROUND {
                ring.kick.signal();
                std::thread::yield_now();
            }
            rounds += 1;
        }
        is_over.store(true, Ordering::Relaxed);
    });
    session.stop(&ring);
    memory.assert_canaries();
    drop((ring, session));
    world.assert_serves();
    let stores = stores.into_inner();
    println!(
        "packed {packed}, indirect {indirect}: {rounds} rings, {ran} ran, {broken} broken, {stores} stores"
    );
    assert!(ran > 0, "nothing was done");
    assert!(broken > 0 && stores > 10_000, "nothing was wrong");
}

/// One after the other: nobody else maps memory where guards are meant to lie.
#[test]
fn rings_that_are_rewritten_while_they_are_read_reach_nothing_beyond() {
    for (packed, indirect) in [(false, false), (false, true), (true, false), (true, true)] {
        race(packed, indirect);
    }
}
