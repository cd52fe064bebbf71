//! Two nodes that serve the same file in turn.

use std::path::Path;
use std::time::Instant;

use super::super::common::daemon::Daemon;
use super::super::common::driver::{Driver, Options, Request};
use super::super::soak::Order;
use super::super::soak::in_guest::{RECORD_BYTES, claim, record};
use super::super::soak::table::Row;

/// That are written in turn.
const BLOCKS: u64 = 256;

/// What one node wrote is what the other reads, also where it has read before. Both daemons wait for the lock.
pub fn take_turns(order: &Order<'_>, daemons: [Daemon; 2]) -> Vec<Row> {
    let start = Instant::now();
    let rounds = u64::from(order.rounds);
    for round in 0..rounds {
        take_a_turn(&daemons[usize::from(round % 2 == 1)].socket(0), round);
    }
    let mut setups = daemons.map(|daemon| Some(daemon.stop()));
    // Daemons that begin anew find what the one before them has left in the page cache of its node.
    for round in rounds..2 * rounds {
        let setup = &mut setups[usize::from(round % 2 == 1)];
        let daemon = setup.take().unwrap().start();
        take_a_turn(&daemon.socket(0), round);
        *setup = Some(daemon.stop());
    }
    let what = "written on one node in turn, read on the other".to_owned();
    let seconds = start.elapsed().as_secs_f32();
    vec![Row { what, rounds: 2 * order.rounds, seconds, pauses: Vec::new() }]
}

/// Reads what was written in the turn before, and writes something else.
fn take_a_turn(socket: &Path, round: u64) {
    let mut driver = Driver::connect(socket, Options::default());
    let read = |driver: &mut Driver, block, written_in| {
        let found = driver.queue().read(block * RECORD_BYTES as u64, RECORD_BYTES).unwrap();
        let right = found == record(written_in, block);
        assert!(right, "round {round}: block {block} is {:?}, not of {written_in}", claim(&found));
    };
    for block in 0..BLOCKS {
        // Twice: what has just been read may be read in another way.
        for _ in 0..2 * round.min(1) {
            read(&mut driver, block, round - 1);
        }
        driver.queue().write(block * RECORD_BYTES as u64, &record(round, block)).unwrap();
    }
    for block in 0..BLOCKS {
        read(&mut driver, block, round);
    }
    driver.queue().run(&Request::Flush).unwrap();
}
