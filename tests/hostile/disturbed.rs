//! How long the neighbour's requests take while its disk's daemon is attacked, and while it is not.
//!
//! Intervals of three kinds take turns, so that whatever else the machine does hits all of them alike: nothing is attacked; another
//! daemon is, which takes as much of the processors; and this one is.

use std::time::{Duration, Instant};

use crate::leaks::quick;
use crate::table::Row;
use crate::target::{Target, alone};

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

/// What was found in the intervals of one kind: of each the p99 of its requests, that of its time, and how many there were.
type Found = Vec<(Duration, Duration, usize)>;

/// How long 99 of 100 requests took at most.
fn p99(sorted: &[Duration]) -> Duration {
    sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)]
}

/// How long the requests took at most in which 99 of 100 moments lie: few long ones count as much as they would for somebody
/// who comes at any moment, while in the p99 they are lost among the many short ones.
fn p99_of_time(sorted: &[Duration]) -> Duration {
    let limit = sorted.iter().sum::<Duration>() * 99 / 100;
    let mut passed = Duration::ZERO;
    let reaches = |time: &&Duration| {
        passed += **time;
        passed >= limit
    };
    sorted.iter().find(reaches).copied().unwrap_or_default()
}

/// The middle one, the least and the most.
fn spread(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort_unstable();
    [times[times.len() / 2], times[0], times[times.len() - 1]]
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
    let _alone = alone();
    let said = std::env::var("DISTURBED_MS").ok().map(|number| number.parse().unwrap());
    let milliseconds = said.unwrap_or(INTERVAL_MS);
    let length = Duration::from_millis(milliseconds);
    let rows = quick(crate::rows());
    let (mut target, mut other) = (Target::start(), Target::start());
    let neighbour = target.neighbour();
    let mut order = (0..rows.len()).cycle();
    let mut found: [Found; 3] = ALL.map(|_| Vec::new());
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
            times.sort_unstable();
            found.push((p99(&times), p99_of_time(&times), times.len()));
        }
    }
    let medians = ALL.iter().zip(found).map(|(kind, found)| {
        let requests: usize = found.iter().map(|(.., count)| count).sum();
        let of_requests = spread(found.iter().map(|it| it.0).collect());
        let of_time = spread(found.iter().map(|it| it.1).collect());
        println!("{kind:?} is attacked: p99 {of_requests:?}, of time {of_time:?} (median, least, most), {requests} requests");
        [of_requests[0], of_time[0]]
    });
    let medians: Vec<[Duration; 2]> = medians.collect();
    println!("{attacks} attacks");
    let is_coarse = milliseconds < EXACT_MS;
    for (at, what, most) in [(0, "of the requests", 2.0), (1, "of the time", 4.0)] {
        let (undisturbed, disturbed) = (medians[0][at].max(medians[1][at]), medians[2][at]);
        let ratio = disturbed.as_secs_f64() / undisturbed.as_secs_f64();
        println!("the p99 {what} is {ratio:.2} times that without: {disturbed:?}, {undisturbed:?}");
        let most = if is_coarse { 4.0 * most } else { most };
        assert!(
            ratio <= most || is_coarse && disturbed < HELD_UP,
            "{what}: {disturbed:?} instead of {undisturbed:?}"
        );
    }
    neighbour.stop();
    other.daemon.stop();
    target.daemon.stop();
}
