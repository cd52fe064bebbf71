//! How long the neighbour's requests take while its disk's daemon is attacked, and while it is not.
//!
//! Intervals of three kinds take turns, so that whatever else the machine does hits all of them alike: nothing is attacked; another
//! daemon is, which takes as much of the processors; and this one is.

use std::time::{Duration, Instant};

use crate::leaks::quick;
use crate::table::Row;
use crate::target::Target;

/// Intervals of each kind.
const ROUNDS: usize = 15;

/// How long one lasts, in milliseconds, if nothing is said (`DISTURBED_MS=`).
const INTERVAL_MS: u64 = 200;

/// From this length on, twice as long is too long; on shorter ones a busy machine has more to say than the daemon.
const EXACT_MS: u64 = 1000;

/// Nobody waits for less by a coarse measure: a machine that is busy takes as long.
const HELD_UP: Duration = Duration::from_millis(20);

/// What is attacked meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attacked {
    Nothing,
    AnotherDaemon,
    ItsDaemon,
}

const ALL: [Attacked; 3] = [Attacked::Nothing, Attacked::AnotherDaemon, Attacked::ItsDaemon];

/// The part of requests, of a hundred, that took no longer.
fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// Attacks a daemon for so long, with the rows in turn.
fn attack(target: &mut Target, rows: &mut impl Iterator<Item = usize>, all: &[Row], length: Duration) -> u64 {
    let (start, mut attacks) = (Instant::now(), 0);
    while start.elapsed() < length {
        target.attack_next(&all[rows.next().unwrap()]);
        attacks += 1;
    }
    attacks
}

#[test]
fn a_neighbours_requests_take_about_as_long_while_its_daemon_is_attacked() {
    let said = std::env::var("DISTURBED_MS").ok().map(|number| number.parse().unwrap());
    let milliseconds = said.unwrap_or(INTERVAL_MS);
    let length = Duration::from_millis(milliseconds);
    let rows = quick(crate::rows());
    let (mut target, mut other) = (Target::start(), Target::start());
    let neighbour = target.neighbour();
    let mut order = (0..rows.len()).cycle();
    let mut found = ALL.map(|_| Vec::new());
    let mut attacks = 0;
    for _ in 0..ROUNDS {
        for (kind, found) in ALL.iter().zip(&mut found) {
            neighbour.wait_for_progress();
            neighbour.take_times();
            match kind {
                Attacked::Nothing => std::thread::sleep(length),
                Attacked::AnotherDaemon => _ = attack(&mut other, &mut order, &rows, length),
                Attacked::ItsDaemon => attacks += attack(&mut target, &mut order, &rows, length),
            }
            let mut times = neighbour.take_times();
            assert!(!times.is_empty(), "{kind:?}: the neighbour has stood still");
            found.push((percentile(&mut times, 99), percentile(&mut times, 50), times.len()));
        }
    }
    let medians: Vec<Duration> = ALL
        .iter()
        .zip(&mut found)
        .map(|(kind, found)| {
            found.sort_unstable();
            let p99 = |at: usize| found[at].0;
            let (least, median, most) = (p99(0), p99(found.len() / 2), p99(found.len() - 1));
            let requests: usize = found.iter().map(|(.., count)| count).sum();
            let half = found[found.len() / 2].1;
            println!("{kind:?} is attacked: p99 {median:?} ({least:?} to {most:?}), p50 {half:?}, {requests} requests");
            median
        })
        .collect();
    let (undisturbed, disturbed) = (medians[0].max(medians[1]), medians[2]);
    let ratio = disturbed.as_secs_f64() / undisturbed.as_secs_f64();
    println!("{attacks} attacks; the p99 is {ratio:.2} times that without");
    let is_coarse = milliseconds < EXACT_MS;
    let most = if is_coarse { 8.0 } else { 2.0 };
    assert!(ratio <= most || is_coarse && disturbed < HELD_UP, "{disturbed:?} instead of {undisturbed:?}");
    neighbour.stop();
    other.daemon.stop();
    target.daemon.stop();
}
