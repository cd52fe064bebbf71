//! Random messages from a seed: some good, some nearly good, some noise. Whatever they do to their own
//! connection, the daemon lives, another disk is served all the time, and a new front-end finds all in order.
//!
//! `SEED` repeats a run, `FUZZ_SECONDS` lengthens it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

mod common;

use std::time::{Duration, Instant};

use common::daemon::{Place, Setup};
use common::frontend::Session;
use common::frontend::load::Load;
use common::frontend::request::{OK, Request};
use common::frontend::wire::Wire;
use common::messages::Messages;
use common::process::Process;
use common::{Random, wait_for};

/// How long the test runs if nothing is said.
const SECONDS: u64 = 8;

#[test]
fn random_messages_harm_only_their_own_connection() {
    let variable = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = variable("SEED").unwrap_or(1);
    let limit = Duration::from_secs(variable("FUZZ_SECONDS").unwrap_or(SECONDS));
    let mut daemon = Setup::new(Place::Tmpfs).disk("size=64M").disk("size=64M").start();
    let bystander = Session::connect(&daemon.socket(1));
    let load = Load::start(bystander.ring(0, 128), 0);
    let process = Process(daemon.pid());
    drop(Session::connect(&daemon.socket(0)).ring(0, 64));
    // With the bystander, who is gone at the end.
    let fds_before = process.fds();

    let (start, mut connections, mut messages, mut ran) = (Instant::now(), 0, 0, 0);
    while start.elapsed() < limit {
        println!("SEED={seed}, connection {connections}");
        let mut front_end = Messages::new(Random::new(seed << 32 | connections));
        let wire = Wire::connect(&daemon.socket(0));
        messages += front_end.connection(&wire);
        wire.hang_up();
        ran += u64::from(front_end.ring.used_index() > 0);
        connections += 1;
        if connections % 20 == 0 {
            load.wait_for_progress();
            daemon.assert_alive();
            assert_serves(&daemon.socket(0));
        }
    }
    println!("{messages} messages on {connections} connections, {ran} of them with a ring that ran");
    assert!(ran > connections / 20, "connections end too soon to find anything");
    assert_serves(&daemon.socket(0));
    load.stop();
    drop(bystander);
    let threads = 8;
    wait_for("what the connections had is gone", || {
        (process.fds() < fds_before && process.threads() < threads).then_some(())
    });
    daemon.stop();
}

/// A new front-end gets an answer to everything.
fn assert_serves(socket: &std::path::Path) {
    let session = Session::connect(socket);
    let answer = session.ring(0, 64).run(&Request::read(0, 4096));
    assert_eq!((answer.status, answer.used_bytes), (OK, 4097));
}
