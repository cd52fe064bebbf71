//! One guest's requests, however long, and its neighbour on the same worker: who waits for whom, and for how long.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::daemon::{Daemon, Place, Setup};
use common::frontend::memory::Memory;
use common::frontend::request::{DISCARD, FLUSH, GET_ID, IN, OK, OUT, Request, WRITE_ZEROES, header, range};
use common::frontend::ring::{NO_STATUS, Part, Ring, Used, WRITE};
use common::frontend::{Options, SPANS, Session};
use common::wait::Ends;
use common::{MIB, metrics, wait_for};

/// Size of the disk of the guest that asks for much.
const DISK_BYTES: u64 = 504 * MIB;

/// Segments of one of its reads and writes, all of the same part of its memory.
const SEGMENTS: usize = 126;

/// Requests that it has under way.
const DEPTH: u16 = 32;

/// Longest wait for a read of 4 KiB, in the best of some rounds: each of them would show a worker that is held up. A machine
/// that is busy with other things may take a multiple of what it takes without that guest, and of the 10 ms that are meant.
const LIMIT: Duration = Duration::from_millis(4 * 10);
const TIMES_ALONE: u32 = 5;

const ROUNDS: usize = 4;

/// As many more as it takes for one without the rest of a busy machine.
const MOST_ROUNDS: usize = 16;

/// Whether another round may show what these have not: that nobody is held up.
fn is_undecided(waits: &[Duration]) -> bool {
    waits.len() < ROUNDS || waits.len() < MOST_ROUNDS && waits.iter().all(|wait| *wait >= LIMIT)
}

/// Two disks that one worker serves.
fn daemon() -> Daemon {
    let setup = Setup::new(Place::Tmpfs).disk(&format!("size={DISK_BYTES}")).disk("size=1M");
    setup.arg("--workers=1").start()
}

/// The guest that asks for much: a ring, and what its requests are made of.
struct Greedy {
    ring: Ring,
    session: Session,
    headers: u64,
    payloads: u64,
    statuses: u64,
    data: u64,
}

impl Greedy {
    fn connect(daemon: &Daemon, options: &Options) -> Self {
        let session = Session::connect_with(&daemon.socket(0), options);
        let mut ring = session.ring(0, 1024);
        // It runs when those of a front-end that has just left do no more.
        assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
        let memory = ring.memory.clone();
        let page = |bytes: u64| memory.allocate(bytes, 4096);
        let (headers, payloads, statuses) = (page(4096), page(64 << 10), page(4096));
        let data = memory.allocate(DISK_BYTES / SEGMENTS as u64, MIB);
        Self { ring, session, headers, payloads, statuses, data }
    }

    /// Offers requests of a type, with `readable` bytes of payload behind the header and these parts.
    fn offer(&mut self, count: u16, kind: u32, payload: &[u8], parts: &[Part]) {
        let memory = self.ring.memory.clone();
        for number in 0..count {
            let (header_at, status) =
                (self.headers + u64::from(number) * 16, self.statuses + u64::from(number));
            let table = memory.allocate((parts.len() as u64 + 3) * 16, 16);
            memory.write(header_at, &header(kind, 0));
            memory.write(status, &[NO_STATUS]);
            let mut all = vec![(header_at, 16, 0)];
            if !payload.is_empty() {
                memory.write(self.payloads, payload);
                all.push((self.payloads, payload.len() as u32, 0));
            }
            all.extend_from_slice(parts);
            all.push((status, 1, WRITE));
            self.ring.put_table(table, &all);
            self.ring.prepare(number, &[(table, all.len() as u32 * 16, 4)]);
        }
        self.ring.make_available();
        self.ring.kick.signal();
    }

    /// The whole disk, to or from the same few megabytes of memory over and over.
    fn transfers(&mut self, count: u16, kind: u32) {
        let flags = if kind == IN { WRITE } else { 0 };
        let part = (self.data, (DISK_BYTES / SEGMENTS as u64) as u32, flags);
        self.offer(count, kind, &[], &[part; SEGMENTS]);
    }

    /// Ranges over the whole disk, and over again.
    fn ranges(&mut self, count: u16, kind: u32, each: u64, ranges: u64) {
        let sectors = each / 512;
        let in_turn = |number| range(number % (DISK_BYTES / each) * sectors, sectors as u32, 0);
        let payload: Vec<u8> = (0..ranges).flat_map(in_turn).collect();
        self.offer(count, kind, &payload, &[]);
    }

    fn status(&self, number: u16) -> u8 {
        self.ring.memory.read(self.statuses + u64::from(number), 1)[0]
    }

    /// Waits for all that were offered; returns the status of each.
    fn finish(&mut self, count: u16) -> Vec<u8> {
        for number in 0..count {
            assert_eq!(self.ring.wait().head, number, "requests complete in order");
        }
        (0..count).map(|number| self.status(number)).collect()
    }
}

/// Reads of 4 KiB, one after the other, until it is told to end: how long the longest took, and how many there were.
fn read_on(victim: &mut Ring, is_over: &AtomicBool) -> (Duration, u32) {
    let (mut worst, mut count) = (Duration::ZERO, 0);
    while !is_over.load(Ordering::Relaxed) {
        let start = Instant::now();
        let answer = victim.run(&Request::read(u64::from(count % 32) * 8, 4096));
        assert_eq!((answer.status, answer.used_bytes), (OK, 4097));
        worst = worst.max(start.elapsed());
        count += 1;
    }
    (worst, count)
}

/// The victim's longest read beside what `other` does.
fn worst_beside(victim: &mut Ring, other: impl FnOnce()) -> Duration {
    let is_over = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let ends = Ends(&is_over);
        let flag = is_over.clone();
        let reader = scope.spawn(move || read_on(victim, &flag));
        std::thread::sleep(Duration::from_millis(5));
        other();
        drop(ends);
        reader.join().unwrap().0
    })
}

/// Measures some rounds of what `ask` does.
fn assert_prompt(what: &str, victim: &mut Ring, mut ask: impl FnMut()) {
    let best = |times: &[Duration]| *times.iter().min().unwrap();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    while is_undecided(&beside) {
        alone.push(worst_beside(victim, || std::thread::sleep(Duration::from_millis(100))));
        beside.push(worst_beside(victim, &mut ask));
    }
    println!("{what}: longest read in each round {beside:?}, alone {alone:?}");
    let (alone, beside) = (best(&alone), best(&beside));
    let limit = LIMIT.max(alone * TIMES_ALONE);
    assert!(beside <= limit, "{what}: a read of 4 KiB took {beside:?}, alone {alone:?}");
}

/// One test at a time: what is measured should not be the others.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Some rounds of what a greedy guest asks for, each with the same outcome.
fn assert_fair(what: &str, mut ask: impl FnMut(&mut Greedy)) {
    let _turn = turn();
    for options in Options::both_kinds() {
        let mut daemon = daemon();
        let mut greedy = Greedy::connect(&daemon, &options);
        let honest = Session::connect(&daemon.socket(1));
        let mut victim = honest.ring(0, 64);
        assert_prompt(&format!("{what}, packed {}", options.packed), &mut victim, || ask(&mut greedy));
        daemon.assert_alive();
    }
}

#[test]
fn long_reads_hold_nobody_up() {
    assert_fair("reads of 504 MiB", |greedy| {
        greedy.transfers(2, IN);
        assert_eq!(greedy.finish(2), [OK; 2]);
    });
}

#[test]
fn long_writes_hold_nobody_up() {
    assert_fair("writes of 504 MiB", |greedy| {
        greedy.transfers(2, OUT);
        assert_eq!(greedy.finish(2), [OK; 2]);
    });
}

/// The last segment of each read is in memory that its front-end has taken away, which ends its session: others begin, over and over.
#[test]
fn long_reads_that_fail_hold_nobody_up() {
    let _turn = turn();
    let mut daemon = daemon();
    let honest = Session::connect(&daemon.socket(1));
    let mut victim = honest.ring(0, 64);
    let [_, second] = SPANS;
    assert_prompt("reads to lost memory", &mut victim, || {
        let mut greedy = Greedy::connect(&daemon, &Options::default());
        cut_off(&greedy.session.memory, 1 << 20);
        let part = (greedy.data, (DISK_BYTES / SEGMENTS as u64) as u32, WRITE);
        let mut parts = vec![part; SEGMENTS - 1];
        parts.push((second.guest_start + second.bytes - 4096, 4096, WRITE));
        greedy.offer(4, IN, &[], &parts);
        wait_for("the session ends", || greedy.session.wire.receive().is_none().then_some(()));
    });
    daemon.assert_alive();
}

/// The last bytes of the memfd are no more.
fn cut_off(memory: &Memory, bytes: u64) {
    let len: u64 = memory.spans().iter().map(|span| span.bytes).sum();
    rustix::fs::ftruncate(memory.fd(), len - bytes).unwrap();
}

#[test]
fn zeroes_hold_nobody_up() {
    assert_fair("32 requests of 32 times 8 MiB of zeroes", |greedy| {
        greedy.ranges(DEPTH, WRITE_ZEROES, 8 * MIB, 32);
        assert_eq!(greedy.finish(DEPTH), [OK; DEPTH as usize]);
    });
}

/// The space is there at first, so that there is something to be given back.
#[test]
fn discards_hold_nobody_up() {
    assert_fair("discards of 504 MiB", |greedy| {
        for _ in 0..2 {
            greedy.transfers(1, OUT);
            assert_eq!(greedy.finish(1), [OK]);
            greedy.ranges(1, DISCARD, DISK_BYTES, 1);
            assert_eq!(greedy.finish(1), [OK]);
        }
    });
}

/// Requests that move no data are counted as well.
#[test]
fn floods_of_small_requests_hold_nobody_up() {
    for kind in [FLUSH, GET_ID, 77] {
        assert_fair(&format!("requests of type {kind}"), |greedy| {
            for _ in 0..20 {
                let part = if kind == GET_ID { vec![(greedy.data, 20, WRITE)] } else { Vec::new() };
                greedy.offer(128, kind, &[], &part);
                greedy.finish(128);
            }
        });
    }
}

/// Messages about the ring itself, and about others, do not wait for the request to end.
#[test]
fn control_messages_are_answered_during_a_long_request() {
    let _turn = turn();
    let mut daemon = daemon();
    for options in Options::both_kinds() {
        let mut greedy = Greedy::connect(&daemon, &options);
        let honest = Session::connect(&daemon.socket(1));
        let victim = honest.ring(0, 64);
        let mut waits = Vec::new();
        while is_undecided(&waits) {
            greedy.transfers(16, OUT);
            let start = Instant::now();
            honest.enable(&victim, false).unwrap();
            honest.enable(&victim, true).unwrap();
            let base = greedy.session.stop(&greedy.ring);
            waits.push(start.elapsed());
            // What was not answered is the driver's still, and done when the ring goes on.
            assert_eq!(base, greedy.ring.used_base());
            let done = 16 - greedy.ring.available_index().wrapping_sub(greedy.ring.used_index());
            for number in 0..16 {
                let expected = if number < done { OK } else { NO_STATUS };
                assert_eq!(greedy.status(number), expected, "request {number}, {done} done");
            }
            greedy.session.start(&greedy.ring, base).unwrap();
            assert_eq!(greedy.finish(16), [OK; 16]);
        }
        println!("three messages: {waits:?}");
        let wait = *waits.iter().min().unwrap();
        assert!(wait < LIMIT, "three messages took {wait:?}");
    }
    daemon.assert_alive();
}

/// Longer than is announced, as libblkio sends them.
#[test]
fn zeroes_and_discards_of_any_length_are_done() {
    for place in Place::ALL {
        let daemon = Setup::new(place).disk("size=2G,sparse=on").start();
        for options in Options::both_kinds() {
            let session = Session::connect_with(&daemon.socket(0), &options);
            let mut ring = session.ring(0, 64);
            let bytes = common::pattern(7, 4096);
            let places = [0, 12 * MIB, 17 * MIB, 2048 * MIB - 4096];
            let all = (2048 * MIB / 512) as u32;
            let (until, from) = (8, all - 16);
            for (kind, flags) in [(WRITE_ZEROES, 1), (DISCARD, 0), (WRITE_ZEROES, 0)] {
                for place in places {
                    assert_eq!(ring.run(&Request::write(place / 512, &bytes)).status, OK);
                }
                // All but the first page and the last ones.
                let sectors = if flags == 0 && kind == WRITE_ZEROES { 40 << 11 } else { from - until };
                let payload = range(until.into(), sectors, flags);
                let request = Request { kind, ..Request::write(0, &payload) };
                let answer = ring.run(&request);
                assert_eq!((answer.status, answer.used_bytes), (OK, 1), "{place:?}, type {kind}");
                let zeroes = vec![0; 4096];
                for (at, expected) in places.into_iter().zip([&bytes, &zeroes, &zeroes, &bytes]) {
                    let answer = ring.run(&Request::read(at / 512, 4096));
                    assert!(answer.data == *expected, "{place:?}, type {kind} at {at}");
                }
            }
        }
        daemon.stop();
    }
}

/// A request that is done in slices is answered as any other one.
#[test]
fn long_requests_are_answered_as_whole_ones() {
    const BYTES: usize = (5 << 20) + 1536;
    const FIRST: u64 = 3;
    for (place, features) in Place::ALL.into_iter().flat_map(|place| [(place, u64::MAX), (place, !(1 << 9))])
    {
        let daemon = Setup::new(place).disk("size=16M").with_metrics().start();
        for options in Options::both_kinds() {
            let session = Session::connect_with(&daemon.socket(0), &Options { features, ..options });
            let mut ring = session.ring(0, 128);
            let before = metrics::read(&daemon.metrics_socket());
            let memory = ring.memory.clone();
            let bytes = common::pattern(u64::from(ring.is_packed()), BYTES);
            let (source, target) = (memory.allocate(8 << 20, 4096), memory.allocate(8 << 20, 4096));
            memory.write(source, &bytes);
            // Buffers that end anywhere, in the one, and at places of their own in the other.
            let cut = |at: u64, lens: &[usize], flags| {
                let rest = BYTES - lens.iter().sum::<usize>();
                let mut at = at;
                let part = |len: &usize| {
                    at += *len as u64;
                    (at - *len as u64, *len as u32, flags)
                };
                lens.iter().chain([&rest]).map(part).collect::<Vec<Part>>()
            };
            let odd = [1, 511, 1 << 20, 77, (1 << 20) - 77, 3 << 19];
            for (kind, parts, used) in [
                (OUT, cut(source, &odd, 0), 1),
                (IN, cut(target, &[4096, 2 << 20, 3], WRITE), BYTES as u32 + 1),
            ] {
                let frame = ring.buffers(0);
                memory.write(frame.header, &header(kind, FIRST));
                let all = [&[(frame.header, 16, 0)], parts.as_slice(), &[(frame.status, 1, WRITE)]].concat();
                memory.write(frame.status, &[NO_STATUS]);
                ring.prepare(0, &all);
                // A small one behind it waits for its turn.
                let small = ring.buffers(3);
                memory.write(small.header, &header(IN, 0));
                let status = (small.status, 1, WRITE);
                ring.prepare(12, &[(small.header, 16, 0), (small.data, 512, WRITE), status]);
                ring.make_available();
                ring.kick.signal();
                assert_eq!(ring.wait(), Used { head: 0, bytes: used });
                assert_eq!(memory.read(frame.status, 1), [OK]);
                assert_eq!(ring.wait(), Used { head: 12, bytes: 513 });
            }
            assert!(memory.read(target, BYTES) == bytes);
            let after = metrics::read(&daemon.metrics_socket());
            let counted = |name: &str| {
                let name = format!("{name}{{disk=\"disk0\"}}");
                (after[&name] - before[&name]) as u64
            };
            assert_eq!((counted("written_bytes_total"), counted("writes_total")), (BYTES as u64, 1));
            assert_eq!((counted("read_bytes_total"), counted("reads_total")), (BYTES as u64 + 1024, 3));
        }
    }
}
