//! What a daemon costs: no processor time while its guests are idle, little memory, few threads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

mod common;

use std::time::Duration;

use common::MIB;
use common::daemon::{Daemon, Place, Setup};
use common::frontend::request::{OK, Request};
use common::frontend::ring::Ring;
use common::frontend::wire::Wire;
use common::frontend::{EVENT_IDX, Options, Session};
use common::process::Process;
use common::{pattern, wait_for};

/// Most memory besides the disk's and the guest's own, and the program.
const LIMIT_BYTES: u64 = 8 * MIB;

/// How long nothing may happen.
const A_WHILE: Duration = Duration::from_secs(3);

/// A daemon that has started in full: the thread that enters its disk into the page tables has ended.
fn daemon(options: &str) -> Daemon {
    let daemon = Setup::new(Place::Tmpfs).disk(&format!("size=64M{options}")).start();
    daemon.wait_for_log(" populated ");
    daemon
}

/// Resident memory without the disk's file, the guest's memory, and the program, of which a build for tests is several times as
/// long as the one that is served with.
fn own_bytes(daemon: &Daemon) -> u64 {
    let (image, program) = (daemon.image(0), env!("CARGO_BIN_EXE_vhost-user-pmem"));
    Process(daemon.pid()).resident_bytes_except(&[image.to_str().unwrap(), "memfd:guest", program])
}

/// Insists that no thread of the daemon wakes up for a while, or computes anything. What was going on before may end first, late on
/// a machine that is busy: what goes on and on is there each time.
fn assert_idle(daemon: &Daemon, what: &str) {
    let process = Process(daemon.pid());
    let used_in_a_while = || {
        let (ticks, sleeps) = (process.ticks(), process.sleeps());
        std::thread::sleep(A_WHILE);
        (process.ticks() - ticks, process.sleeps().wrapping_sub(sleeps))
    };
    let used: Vec<_> =
        std::iter::repeat_with(used_in_a_while).take(5).take_while(|used| *used != (0, 0)).collect();
    assert!(used.len() < 5, "{what}: clock ticks of processor time, and threads that woke up: {used:?}");
}

fn use_ring(ring: &mut Ring) {
    let bytes = pattern(7, 4096);
    assert_eq!(ring.run(&Request::write(0, &bytes)).status, OK);
    assert_eq!(ring.run(&Request::read(0, 4096)).data, bytes);
    assert_eq!(ring.run(&Request::flush()).status, OK);
}

/// Fills a ring with requests and waits for them.
fn fill_ring(ring: &mut Ring, rounds: usize) {
    let request = Request::read(0, 4096);
    for _ in 0..rounds {
        let count = ring.slots();
        (0..count).for_each(|_| _ = ring.submit(&request));
        ring.kick.signal();
        for _ in 0..count {
            let used = ring.wait();
            assert_eq!(ring.answer(&request, used).status, OK);
        }
    }
}

#[test]
fn nothing_happens_while_nobody_is_connected() {
    let daemon = daemon("");
    assert_idle(&daemon, "before the first front-end");
    use_ring(&mut Session::connect(&daemon.socket(0)).ring(0, 64));
    assert_idle(&daemon, "after the last front-end");
}

#[test]
fn nothing_happens_while_the_guest_is_idle() {
    let daemon = daemon("");
    for features in [u64::MAX, !EVENT_IDX] {
        let session = Session::connect_with(&daemon.socket(0), &Options { features, ..Options::default() });
        let mut rings: Vec<Ring> = (0..8).map(|index| session.ring(index, 128)).collect();
        rings.iter_mut().for_each(use_ring);
        assert_idle(&daemon, "running rings");
        rings.iter_mut().for_each(use_ring);
    }
}

/// None of these may be waited for by polling.
#[test]
fn nothing_happens_while_somebody_waits() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    use_ring(&mut ring);
    // A ring that is broken, one that is paused, one that has work but is stopped.
    let mut broken = session.ring(1, 64);
    broken.break_it();
    broken.err.wait("the ring breaks");
    broken.kick.signal();
    let mut paused = session.ring(2, 64);
    session.enable(&paused, false).unwrap();
    let mut stopped = session.ring(3, 64);
    session.stop(&stopped);
    for ring in [&mut paused, &mut stopped] {
        ring.submit(&Request::read(0, 512));
        ring.kick.signal();
    }
    // A second front-end that waits for the disk, one that has said half a message, one that is silent.
    let second = Session::connect(&daemon.socket(0));
    let mut waiting = second.ring(0, 64);
    waiting.submit(&Request::read(0, 512));
    waiting.kick.signal();
    let half = Wire::connect(&daemon.socket(0));
    half.send_bytes(&[1, 0, 0, 0, 1, 0], &[]);
    let _silent = Wire::connect(&daemon.socket(0));
    assert_idle(&daemon, "front-ends that wait");
    use_ring(&mut ring);
    assert_eq!(waiting.used_index(), 0);
}

#[test]
fn a_disk_with_64_queues_takes_little_memory() {
    let daemon = daemon("");
    let at_start = own_bytes(&daemon);
    let session = Session::connect(&daemon.socket(0));
    let mut rings: Vec<Ring> = (0..64).map(|index| session.ring(index, 1024)).collect();
    let running = own_bytes(&daemon);
    rings.iter_mut().for_each(|ring| fill_ring(ring, 2));
    let used = own_bytes(&daemon);
    println!("{at_start} bytes at the start, {running} with 64 rings, {used} when they have been used");
    assert!(at_start < LIMIT_BYTES, "{at_start} bytes at the start");
    assert!(used < LIMIT_BYTES, "{used} bytes with 64 rings of 1024 descriptors");
}

#[test]
fn memory_does_not_grow_with_requests() {
    const MARGIN_BYTES: u64 = 64 << 10;
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let mut rings: Vec<Ring> = (0..4).map(|index| session.ring(index, 256)).collect();
    let mut work = |rounds| rings.iter_mut().for_each(|ring| fill_ring(ring, rounds));
    work(20);
    let before = own_bytes(&daemon);
    work(400);
    let grown = own_bytes(&daemon).saturating_sub(before);
    println!("{before} bytes, {grown} more after {} requests", 400 * 64 * 4);
    assert!(grown <= MARGIN_BYTES, "{grown} bytes more");
}

#[test]
fn threads_are_as_many_as_processors_and_no_more_than_rings() {
    /// The main thread, one each for the log, signals, new front-ends and files that grow, and one for each front-end.
    const OTHERS: usize = 6;
    let processors = std::thread::available_parallelism().unwrap().get();
    let daemon = daemon("");
    let process = Process(daemon.pid());
    let session = Session::connect(&daemon.socket(0));
    let mut rings = vec![session.ring(0, 64)];
    use_ring(&mut rings[0]);
    // One that populates a disk ends after it has said so.
    let has = |process: &Process, most: usize| (process.threads() <= most).then_some(());
    wait_for("a thread for one ring", || has(&process, 1 + OTHERS));
    rings.extend((1..64).map(|index| session.ring(index, 64)));
    rings.iter_mut().for_each(use_ring);
    wait_for("as many threads as processors for 64 rings", || has(&process, processors + OTHERS));

    let with_three = Setup::new(Place::Tmpfs).disk("size=64M").arg("--workers").arg("3").start();
    with_three.wait_for_log(" populated ");
    let session = Session::connect(&with_three.socket(0));
    let mut rings: Vec<Ring> = (0..16).map(|index| session.ring(index, 64)).collect();
    rings.iter_mut().for_each(use_ring);
    wait_for("three workers", || has(&Process(with_three.pid()), 3 + OTHERS));
}
