//! Which system calls requests take: a worker of the real daemon under `strace`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;

use common::daemon::{Place, Setup};
use common::driver::{Driver, Options, Queue, Request};
use common::strace::Trace;

const BATCHES: usize = 400;
const BATCH_REQUESTS: usize = 16;

/// Reads, writes and flushes, a batch at a time.
fn use_queue(queue: &mut Queue, batches: usize) {
    for batch in 0..batches {
        for request in 0..BATCH_REQUESTS {
            let place = request * 4096..(request + 1) * 4096;
            let offset = ((batch * BATCH_REQUESTS + request) % 1024 * 4096) as u64;
            let request = match request % 4 {
                0 | 1 => Request::Read { offset, into: vec![place] },
                2 => Request::Write { offset, from: vec![place] },
                _ => Request::Flush,
            };
            assert!(queue.submit(&request, 0));
        }
        queue.kick();
        let mut done = 0;
        while done < BATCH_REQUESTS {
            let completions = queue.wait();
            assert!(completions.iter().all(|(_, outcome)| outcome.is_ok()));
            done += completions.len();
        }
    }
}

/// The system calls of so many requests.
fn traced(args: &[&str], polled: bool) -> BTreeMap<String, usize> {
    // Who traces a worker holds it up.
    let setup = Setup::new(Place::Tmpfs)
        .disk("size=64M")
        .env("VHOST_USER_PMEM_HOLD_UPS", "0")
        .arg("--workers")
        .arg("1");
    let daemon = args.iter().fold(setup, |setup, arg| setup.arg(arg)).start();
    let mut driver = Driver::connect(&daemon.socket(0), Options { polled, ..Options::default() });
    use_queue(driver.queue(), 2);
    let trace = Trace::start(&daemon);
    use_queue(driver.queue(), BATCHES);
    let calls = trace.end();
    drop(driver);
    daemon.stop();
    calls
}

#[test]
fn requests_take_no_system_call_but_those_of_kick_and_call() {
    for polled in [false, true] {
        let calls = traced(&[], polled);
        let mut others = calls.clone();
        others.retain(|call, _| {
            !["epoll_wait", "epoll_pwait", "epoll_pwait2", "io_submit"].contains(&call.as_str())
        });
        // Attaching interrupts a call that sleeps.
        others.remove("restart_syscall");
        assert_eq!(others, BTreeMap::new(), "{BATCHES} batches: {calls:?}");
        let signals = calls.get("io_submit").copied().unwrap_or(0);
        assert!(
            signals <= if polled { 0 } else { BATCHES * BATCH_REQUESTS },
            "calls of the driver: {calls:?}"
        );
        assert!(!calls.is_empty(), "nothing was traced");
    }
}

/// It checks now and then for a command, or for a kick of an armed ring; but not more often for more requests.
#[test]
fn a_polling_worker_makes_no_system_calls() {
    let calls = traced(&["--poll-max-us", "busy"], true);
    let total: usize = calls.values().sum();
    let requests = BATCHES * BATCH_REQUESTS;
    assert!(total < requests / 100, "{total} system calls for {requests} requests: {calls:?}");
}
