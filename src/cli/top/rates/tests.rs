use std::time::Instant;

use super::*;

fn state(reads: u64) -> State {
    State { reads, read_bytes: reads.wrapping_mul(4096), ..State::default() }
}

fn disk(name: &str, state: State) -> Disk {
    Disk { name: name.to_owned(), state: Some(state), ..Disk::default() }
}

/// Two samples, so many seconds apart.
fn between(seconds: f64, before: Vec<Disk>, now: Vec<Disk>) -> Picture {
    let at = Instant::now();
    let sample = |at, disks| Sample { at, disks, rings: Some(Vec::new()), threads: None };
    picture(Some(&sample(at, before)), &sample(at + Duration::from_secs_f64(seconds), now))
}

fn one(seconds: f64, before: State, now: State) -> DiskRow {
    between(seconds, vec![disk("a", before)], vec![disk("a", now)]).disks.remove(0)
}

#[test]
fn rates_are_by_the_second_that_passed() {
    let row = one(2.5, state(100), state(600));
    assert_eq!((row.done.reads, row.done.read_bytes), (Some(200.0), Some(200.0 * 4096.0)));
    assert_eq!(row.done.writes, Some(0.0));
    assert_eq!(between(2.5, vec![], vec![]).seconds, Some(2.5));
    let row = one(0.0, state(100), state(600));
    assert_eq!(row.done.reads, None, "no time has passed");
}

#[test]
fn a_counter_that_begins_anew_has_counted_since() {
    assert_eq!(one(1.0, state(1_000_000), state(30)).done.reads, Some(30.0));
    assert_eq!(one(1.0, state(u64::MAX), state(0)).done.reads, Some(0.0));
}

#[test]
fn disks_come_and_go() {
    let picture = between(
        1.0,
        vec![disk("gone", state(5)), disk("stays", state(5))],
        vec![
            disk("stays", state(6)),
            disk("new", state(7)),
            Disk { name: "opens".to_owned(), ..Disk::default() },
        ],
    );
    let reads: Vec<_> = picture.disks.iter().map(|row| (row.name.as_str(), row.done.reads)).collect();
    assert_eq!(reads, [("stays", Some(1.0)), ("new", None), ("opens", None)]);
    let first = Sample { at: Instant::now(), disks: vec![disk("a", state(1))], rings: None, threads: None };
    let picture = super::picture(None, &first);
    assert_eq!((picture.seconds, picture.disks[0].done.reads, picture.disks[0].depth), (None, None, None));
}

#[test]
fn amplification_is_that_of_the_time_between() {
    let written = |written_bytes, media| State {
        written_bytes,
        zeroed_bytes: written_bytes,
        media_written_bytes: Some(media),
        ..State::default()
    };
    assert_eq!(one(1.0, written(1000, 9000), written(3000, 13_000)).amplification, Some(1.0));
    assert_eq!(one(1.0, written(1000, 9000), written(1000, 9000)).amplification, None, "nothing was written");
    assert_eq!(one(1.0, written(0, 0), state(0)).amplification, None, "it is not told");
}

fn latency(counts: [u64; 3]) -> State {
    let histogram = Histogram { le: vec![0.001, 0.002], count: counts.to_vec() };
    State { latency: [("read".to_owned(), histogram)].into(), ..State::default() }
}

#[test]
fn quantiles_are_those_of_the_time_between() {
    // A hundred before that were slow do not count.
    let row = one(1.0, latency([0, 0, 100]), latency([100, 100, 200]));
    assert_eq!((row.p50, row.p99), (Some(0.0005), Some(0.000_99)));
    let row = one(1.0, latency([0; 3]), latency([50, 100, 100]));
    assert_eq!((row.p50, row.p99), (Some(0.001), Some(0.001_98)));
    let row = one(1.0, latency([0; 3]), latency([10, 10, 100]));
    assert_eq!(row.p99, Some(0.002), "at least: it is beyond the last bound");
    assert_eq!(one(1.0, latency([7; 3]), latency([7; 3])).p50, None, "nothing ended");
    assert_eq!(one(1.0, state(0), latency([0, 8, 8])).p50, Some(0.001_5), "the first of its kind");
    assert_eq!(one(1.0, latency([9; 3]), latency([0, 8, 8])).p50, Some(0.001_5), "it has begun anew");
}

#[test]
fn odd_histograms_are_no_trouble() {
    let odd = |le: &[f64], count: &[u64]| {
        let histogram = Histogram { le: le.to_vec(), count: count.to_vec() };
        State { latency: [("read".to_owned(), histogram)].into(), ..State::default() }
    };
    for (le, count) in [
        (&[][..], &[][..]),
        (&[], &[5]),
        (&[0.1], &[]),
        (&[f64::NAN, 0.1], &[3, 2, 1]),
        (&[0.2, 0.1], &[u64::MAX, 0, u64::MAX]),
    ] {
        let _ = one(1.0, latency([1, 2, 3]), odd(le, count));
    }
    let mut two = latency([0, 0, 4]);
    two.latency.insert("write".to_owned(), Histogram { le: vec![0.5], count: vec![4, 4] });
    assert_eq!(one(1.0, State::default(), two).p50, None, "other bounds cannot be added");
}

#[test]
fn a_disk_is_as_its_worst_ring() {
    let ring = |disk: &str, state: &str| Ring {
        disk: disk.to_owned(),
        state: state.to_owned(),
        available: Some(5),
        shown: 2,
        size: 64,
        ..Ring::default()
    };
    let now = Sample {
        at: Instant::now(),
        disks: ["a", "b", "c", "d"].map(|name| disk(name, state(0))).to_vec(),
        rings: Some(vec![
            ring("a", "armed"),
            ring("a", "broken"),
            ring("a", "polled"),
            ring("b", "throttled"),
            ring("c", "new word"),
        ]),
        threads: None,
    };
    let rows = picture(None, &now).disks;
    assert_eq!((rows[0].standing, rows[0].depth), (Standing::Broken, Some(9)));
    assert_eq!((rows[1].standing, rows[2].standing), (Standing::Throttled, Standing::Other));
    assert_eq!((rows[3].standing, rows[3].depth), (Standing::Idle, Some(0)));
    let hung = State { oldest_request_seconds: 12.0, ..State::default() };
    assert_eq!(one(1.0, state(0), hung).standing, Standing::Hung(12.0));
}

#[test]
fn rings_have_rates_of_their_own() {
    let ring = |front_end, reads| Ring { disk: "a".to_owned(), front_end, reads, ..Ring::default() };
    let at = Instant::now();
    let sample = |at, rings| Sample { at, disks: Vec::new(), rings: Some(rings), threads: None };
    let before = sample(at, vec![ring(1, 10), ring(2, 10)]);
    let now = sample(at + Duration::from_secs(2), vec![ring(2, 30), ring(3, 5)]);
    let rows = picture(Some(&before), &now).rings;
    assert_eq!((rows[0].done.reads, rows[1].done.reads), (Some(10.0), None));
}

#[test]
fn processors_are_counted_by_thread() {
    let at = Instant::now();
    let thread = |number, name: &str, ticks| Thread { number, name: name.to_owned(), ticks };
    let sample = |at, threads| Sample { at, disks: Vec::new(), rings: None, threads: Some(threads) };
    let before = sample(at, vec![thread(1, "main", 50), thread(2, "worker-1", 100), thread(3, "gone", 7)]);
    let now = sample(
        at + Duration::from_secs(2),
        vec![
            thread(1, "main", 60),
            thread(2, "worker-1", 300),
            thread(9, "worker-0", 20),
            thread(10, "worker-x", 0),
        ],
    );
    let cpu = picture(Some(&before), &now).cpu.unwrap();
    assert_eq!(cpu, Cpu { workers: vec![10.0, 100.0], all_threads: 115.0 });
    assert_eq!(picture(None, &now).cpu, None);
}
