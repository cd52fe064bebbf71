//! Workers: how they wait for requests, what a driver sees of it, where they run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

mod common;

use common::daemon::{Daemon, Place, Setup};
use common::frontend::load::{LOAD_SECTORS, Load};
use common::frontend::request::{OK, Request};
use common::frontend::ring::Ring;
use common::frontend::{EVENT_IDX, Options, Session, settle};
use common::process::Process;
use common::{pattern, wait_for};

/// One worker, so that whatever it does it does not do something else meanwhile.
fn daemon(poll_max_us: &str, disks: usize) -> Daemon {
    let setup = (0..disks).fold(Setup::new(Place::Tmpfs), |setup, _| setup.disk("size=64M"));
    setup.arg("--workers=1").arg(&format!("--poll-max-us={poll_max_us}")).start()
}

/// With event indices, and without.
fn sessions(daemon: &Daemon) -> impl Iterator<Item = Session> {
    [u64::MAX, !EVENT_IDX]
        .into_iter()
        .map(|features| Session::connect_with(&daemon.socket(0), &Options { features, ..Options::default() }))
}

fn assert_works(ring: &mut Ring) {
    let bytes = pattern(3, 4096);
    assert_eq!(ring.run(&Request::write(0, &bytes)).status, OK);
    assert_eq!(ring.run(&Request::read(0, 4096)).data, bytes);
}

/// Makes a request available and tells nobody.
fn assert_found(ring: &mut Ring) {
    let request = Request::read(0, 512);
    let head = ring.submit(&request);
    let used = ring.wait();
    assert_eq!((used.head, ring.answer(&request, used).status), (head, OK));
}

#[test]
fn a_busy_worker_needs_no_kick() {
    let daemon = daemon("busy", 1);
    for session in sessions(&daemon) {
        let mut rings = [session.ring(0, 64), session.ring(1, 64)];
        for _ in 0..100 {
            rings.iter_mut().for_each(assert_found);
        }
        settle();
        rings.iter_mut().for_each(assert_found);
    }
}

#[test]
fn without_polling_every_request_needs_its_kick() {
    let daemon = daemon("0", 1);
    for session in sessions(&daemon) {
        let mut ring = session.ring(0, 64);
        for _ in 0..10 {
            assert_works(&mut ring);
            // The worker has gone to sleep, and the driver knows.
            settle();
            ring.submit(&Request::read(0, 512));
            let before = ring.used_index();
            settle();
            assert_eq!(ring.used_index(), before, "nobody has told the worker");
            ring.notify();
            ring.wait();
        }
    }
}

/// The control plane is answered, and rings start and stop beside one that is polled all the time.
#[test]
fn nobody_waits_for_a_busy_worker() {
    let daemon = daemon("busy", 2);
    let first = Session::connect(&daemon.socket(0));
    let load = Load::start(first.ring(0, 128), 0);
    for _ in 0..50 {
        let second = Session::connect(&daemon.socket(1));
        let mut ring = second.ring(0, 64);
        assert_found(&mut ring);
        assert_works(&mut ring);
        second.stop(&ring);
        assert_eq!(first.config(0, 60).unwrap().len(), 60);
    }
    load.wait_for_progress();
    load.stop();
}

/// A ring that was left to its kick is found while another one keeps the worker awake.
#[test]
fn kicks_of_other_rings_are_seen_under_load() {
    for poll_max_us in ["0", "50", "10000", "busy"] {
        let daemon = daemon(poll_max_us, 1);
        for session in sessions(&daemon) {
            let load = Load::start(session.ring(0, 128), 0);
            let mut rings: Vec<Ring> = (1..20).map(|index| session.ring(index, 64)).collect();
            for round in 0..5 {
                for ring in &mut rings {
                    let request = Request::read(LOAD_SECTORS, 512);
                    ring.submit(&request);
                    ring.notify();
                    let used = ring.wait();
                    assert_eq!(ring.answer(&request, used).status, OK, "round {round}");
                }
                load.wait_for_progress();
            }
            load.stop();
        }
    }
}

/// The window is never more than what is allowed, and requests far apart close it.
#[test]
fn a_worker_sleeps_when_requests_end() {
    let daemon = daemon("200000", 1);
    let process = Process(daemon.pid());
    for session in sessions(&daemon) {
        let mut ring = session.ring(0, 64);
        let load = Load::start(session.ring(1, 64), 0);
        load.wait_for_progress();
        load.stop();
        assert_works(&mut ring);
        wait_for("the worker sleeps", || {
            let before = (process.ticks(), process.sleeps());
            std::thread::sleep(std::time::Duration::from_secs(1));
            (before == (process.ticks(), process.sleeps())).then_some(())
        });
        assert_works(&mut ring);
    }
}

/// Broken, paused and stopped rings are not polled: a worker that polls for ever may sleep then.
#[test]
fn a_busy_worker_sleeps_without_a_ring() {
    let daemon = daemon("busy", 1);
    let process = Process(daemon.pid());
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    assert_works(&mut ring);
    let mut broken = session.ring(1, 64);
    broken.break_it();
    broken.err.wait("the ring breaks");
    assert_found(&mut ring);
    session.enable(&ring, false).unwrap();
    wait_for("the worker sleeps", || {
        let before = process.ticks();
        std::thread::sleep(std::time::Duration::from_secs(1));
        (before == process.ticks()).then_some(())
    });
    session.enable(&ring, true).unwrap();
    assert_found(&mut ring);
}

/// The CPUs that each worker of a daemon may run on, in the order of their numbers.
fn cpus_of_workers(daemon: &Daemon) -> Vec<String> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        if field("Name:").starts_with("worker") {
            found.push((field("Name:"), field("Cpus_allowed_list:")));
        }
    }
    found.sort();
    found.into_iter().map(|(_, cpus)| cpus).collect()
}

#[test]
fn workers_run_where_they_are_told() {
    let all = std::fs::read_to_string("/proc/self/status").unwrap();
    let all = all.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let first = all.split(['-', ',']).next().unwrap();
    let setup = ["size=1M", &format!("size=1M,cpus={first}"), "size=1M,numa=auto"]
        .iter()
        .fold(Setup::new(Place::Tmpfs), |setup, options| setup.disk(options));
    let daemon = setup.start();
    let sessions: Vec<_> = (0..3).map(|disk| Session::connect(&daemon.socket(disk))).collect();
    let mut rings: Vec<Ring> = Vec::new();
    for session in &sessions {
        rings.extend((0..2).map(|index| session.ring(index, 64)));
    }
    rings.iter_mut().for_each(assert_works);
    let cpus = cpus_of_workers(&daemon);
    assert_eq!(cpus.iter().filter(|cpus| *cpus == first).count(), 1, "one worker on one CPU: {cpus:?}");
    assert!(cpus.iter().any(|cpus| cpus == all), "{cpus:?}");
    daemon.wait_for_log("no CPUs are known to be near the backing");

    let daemon = Setup::new(Place::Tmpfs).disk("size=1M").arg(&format!("--cpus={first}")).start();
    let session = Session::connect(&daemon.socket(0));
    (0..3).for_each(|index| assert_works(&mut session.ring(index, 64)));
    assert_eq!(cpus_of_workers(&daemon), [first]);
}

#[test]
fn cpus_that_are_not_there_are_refused() {
    let output = Setup::new(Place::Tmpfs).disk("size=1M,cpus=1023").run();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("disk \"disk0\": cpus=1023: this process may use none of these CPUs"), "{said}");
}
