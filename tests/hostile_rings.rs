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
use common::frontend::request::{OK, header};
use common::frontend::ring::{INDIRECT, NO_STATUS, Part, Ring, WRITE};
use common::frontend::{Options, Session};
use common::guarded::guard_mappings;
use common::wait::Ends;
use common::{Random, wait_for};
use server::{DISK_BYTES, World};

const SPANS: [Span; 2] =
    [Span { guest_start: 0x10_0000, bytes: 1 << 20 }, Span { guest_start: 0x1_0000_0000, bytes: 64 << 10 }];

const QUEUE_SIZE: u16 = 64;

/// Requests in the ring.
const CHAINS: u16 = 16;

/// How long a ring is raced with before it is started anew, once something has happened.
const ROUND: Duration = Duration::from_millis(3);

/// What is rewritten.
#[derive(Default)]
struct Target {
    /// Parts of memory, and what is there at first.
    areas: Vec<(u64, Vec<u8>)>,
    /// Where the addresses of data are, and what they are at first.
    addresses: Vec<(u64, u64)>,
    /// The same of sectors.
    sectors: Vec<(u64, u64)>,
}

/// Lays out requests that make sense, which are not available yet; returns what is to be rewritten.
fn lay_out(ring: &mut Ring, indirect: bool) -> Target {
    let (mut areas, mut addresses, mut sectors) = (Vec::new(), Vec::new(), Vec::new());
    for chain in 0..CHAINS {
        let frame = ring.buffers(usize::from(chain) % ring.slots());
        let is_read = chain % 2 == 0;
        ring.memory.write(frame.header, &header(u32::from(!is_read), u64::from(chain) * 8));
        ring.memory.fill(frame.status, 1, NO_STATUS);
        let data: Part = (frame.data, 4096, if is_read { WRITE } else { 0 });
        let parts = [(frame.header, 16, 0), data, (frame.status, 1, WRITE)];
        areas.push((frame.header, 16));
        sectors.push((frame.header + 8, u64::from(chain) * 8));
        if indirect {
            // Between header and status.
            let table = frame.header + 1024;
            ring.put_table(table, &parts);
            ring.prepare(chain * 3, &[(table, 48, INDIRECT)]);
            areas.push((table, 48));
            addresses.push((table + 16, frame.data));
        } else {
            ring.prepare(chain * 3, &parts);
            addresses.push((ring.descriptors + u64::from(chain * 3 + 1) * 16, frame.data));
        }
    }
    let [available, used] = if ring.is_packed() { [4, 4] } else { [6 + 2 * 64, 6 + 8 * 64] };
    areas.extend([(ring.descriptors, 16 * 64), (ring.available, available), (ring.used, used)]);
    let area = |(start, bytes)| (start, ring.memory.read(start, bytes));
    Target { areas: areas.into_iter().map(area).collect(), addresses, sectors }
}

/// The statuses of the requests that have been answered.
fn statuses(ring: &Ring) -> Vec<u8> {
    let all = (0..ring.slots()).map(|slot| ring.memory.read(ring.buffers(slot).status, 1)[0]);
    all.filter(|status| *status != NO_STATUS).collect()
}

/// One store: something hostile, something random, or what was there.
fn rewrite(memory: &Memory, target: &Target, random: &mut Random) {
    let Target { areas, addresses, sectors } = target;
    let span = SPANS[random.below(2) as usize];
    let end = span.guest_start + span.bytes;
    let is_bad = random.one_in(2);
    match random.below(4) {
        // Just over the end, and not quite.
        0 => {
            let (at, good) = random.pick(addresses);
            let bad = end - random.pick(&[1, 16, 4032, 4064, 4080, 4095, 4096, 4097]);
            memory.write(at, &if is_bad { bad } else { good }.to_le_bytes());
        }
        1 => {
            let (at, good) = random.pick(sectors);
            let bad = (DISK_BYTES / 512) - random.below(12);
            memory.write(at, &if is_bad { bad } else { good }.to_le_bytes());
        }
        _ => {
            let (start, good) = &areas[random.below(areas.len() as u64) as usize];
            let bytes = random.pick(&[1, 2, 2, 4, 8, 8]).min(good.len());
            let at = random.below((good.len() - bytes + 1) as u64) as usize / bytes * bytes;
            let bad = match random.below(3) {
                0 => random.next(),
                1 => end.wrapping_sub(random.below(5000)),
                _ => random.pick(&[0, 1, 16, 511, 513, 65_535, 1 << 20, u64::from(u32::MAX), u64::MAX]),
            };
            let good = &good[at..at + bytes];
            // What is good is there mostly: a ring that breaks does no more.
            let is_bad = is_bad && random.one_in(8);
            let bad = bad.to_le_bytes();
            memory.write(start + at as u64, if is_bad { &bad[..bytes] } else { good });
        }
    }
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

    let (target, is_over, stores) =
        (Mutex::new(Target::default()), AtomicBool::new(false), AtomicU64::new(0));
    let (mut rounds, mut done, mut failed, mut broken) = (0_u64, 0, 0, 0_u64);
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        let ends = Ends(&is_over);
        scope.spawn(|| {
            let mut random = Random::new(seed);
            while !is_over.load(Ordering::Relaxed) {
                let target = target.lock().unwrap();
                for _ in 0..if target.areas.is_empty() { 0 } else { 500 } {
                    rewrite(&memory, &target, &mut random);
                }
                stores.fetch_add(500, Ordering::Relaxed);
            }
        });
        while Instant::now() < end || rounds < 20 {
            {
                let mut target = target.lock().unwrap();
                if rounds > 0 {
                    session.stop(&ring);
                    let statuses = statuses(&ring);
                    failed += statuses.iter().filter(|status| **status != OK).count();
                    done += statuses.len();
                    broken += u64::from(ring.err.is_signalled());
                }
                ring.reset();
                *target = lay_out(&mut ring, indirect);
                session.start(&ring, 0).unwrap();
            }
            // By now much of it is not what it was.
            let before = stores.load(Ordering::Relaxed);
            wait_for("memory is rewritten", || {
                (stores.load(Ordering::Relaxed) > before + 1000).then_some(())
            });
            ring.make_available();
            wait_for("a request is answered, or the ring broken", || {
                ring.kick.signal();
                (!statuses(&ring).is_empty() || ring.err.is_signalled()).then_some(())
            });
            let round = Instant::now();
            while round.elapsed() < ROUND {
                ring.kick.signal();
                std::thread::yield_now();
            }
            rounds += 1;
        }
        drop(ends);
    });
    session.stop(&ring);
    memory.assert_canaries();
    drop((ring, session));
    world.assert_serves();
    let stores = stores.into_inner();
    println!(
        "packed {packed}, indirect {indirect}: {rounds} rings, {broken} broken; of {done} requests {failed} failed; \
         {stores} stores"
    );
    assert!(done > 0, "nothing was done");
    assert!(failed > 0, "nothing was wrong");
}

/// One after the other: nobody else maps memory where guards are meant to lie.
#[test]
fn rings_that_are_rewritten_while_they_are_read_reach_nothing_beyond() {
    for (packed, indirect) in [(false, false), (false, true), (true, false), (true, true)] {
        race(packed, indirect);
    }
}
