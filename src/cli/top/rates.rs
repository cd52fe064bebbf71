//! What happened between two samples, by the second. Nothing here asks anybody or knows what time it is.
//!
//! A counter that has become smaller has begun anew: its server has been restarted, or its disk removed and added again. What it
//! shows has then happened since. What is new has no rates yet.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::sample::{Disk, Histogram, Ring, Sample, State, Thread};
use crate::config::keys::Key;

/// Since when something is said to hang.
const HUNG_SECONDS: f64 = 2.0;
/// Of the clock in which Linux tells processor time (USER_HZ), on every CPU that is served.
const TICKS_PER_SECOND: f64 = 100.0;
/// How the threads that carry requests are called.
const WORKER: &str = "worker-";

/// What is to be seen of a server.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Picture {
    /// Between the samples; none of a first one.
    pub(super) seconds: Option<f64>,
    pub(super) disks: Vec<DiskRow>,
    pub(super) rings: Vec<RingRow>,
    pub(super) cpu: Option<Cpu>,
}

/// Processors that were used, in percent of one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cpu {
    /// Each worker, by its number.
    pub(super) workers: Vec<f64>,
    pub(super) all_threads: f64,
}

/// What a disk or a ring has done a second; none as long as it is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Done {
    pub(super) reads: Option<f64>,
    pub(super) writes: Option<f64>,
    pub(super) read_bytes: Option<f64>,
    pub(super) written_bytes: Option<f64>,
    pub(super) flushes: Option<f64>,
    pub(super) failures: Option<f64>,
}

/// A disk, as a line shows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct DiskRow {
    pub(super) name: String,
    pub(super) done: Done,
    /// In seconds, of requests of all kinds that ended in between.
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
    /// Requests that guests wait for.
    pub(super) depth: Option<u64>,
    /// Bytes that the media took for each byte that guests wrote or zeroed.
    pub(super) amplification: Option<f64>,
    pub(super) standing: Standing,
    /// What limits it, by the keys of `--disk`.
    pub(super) limits: Map<String, Value>,
    /// For how many seconds a second limits held its rings, of those that have gone on in between.
    pub(super) throttled: Option<f64>,
    pub(super) front_ends: u64,
    pub(super) capacity_bytes: u64,
}

/// A ring, as a line shows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct RingRow {
    pub(super) disk: String,
    pub(super) front_end: u64,
    pub(super) ring: u64,
    pub(super) format: String,
    pub(super) size: u16,
    pub(super) done: Done,
    pub(super) depth: u64,
    pub(super) standing: Standing,
    pub(super) seconds: f64,
}

/// What a ring does, or the ring of a disk that is worst off. The worst is the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub(super) enum Standing {
    /// The server does not tell.
    #[default]
    Unknown,
    /// No ring runs.
    Idle,
    Leaving,
    /// It waits for a kick.
    Armed,
    Polled,
    /// What a server of another version says.
    Other,
    /// It waits for a flush.
    Held,
    Throttled,
    Broken,
    /// Its media has not answered for so many seconds.
    Hung(f64),
}

impl Standing {
    fn of_word(word: &str) -> Self {
        match word {
            "armed" => Self::Armed,
            "polled" => Self::Polled,
            "held" => Self::Held,
            "throttled" => Self::Throttled,
            "broken" => Self::Broken,
            "leaving" => Self::Leaving,
            _ => Self::Other,
        }
    }

    fn or_worse(self, other: Self) -> Self {
        if other > self { other } else { self }
    }
}

/// What is to be seen, given what was seen before.
pub(super) fn picture(before: Option<&Sample>, now: &Sample) -> Picture {
    let elapsed = before.map(|before| now.at.saturating_duration_since(before.at));
    // Samples at one moment say nothing of a rate.
    let elapsed = elapsed.filter(|elapsed| !elapsed.is_zero());
    let earlier = before.filter(|_| elapsed.is_some());
    let elapsed = elapsed.unwrap_or_default();
    let states: HashMap<&str, &State> = earlier.iter().flat_map(|it| &it.disks).filter_map(named).collect();
    let rings: HashMap<_, &Ring> = earlier.iter().flat_map(|it| &it.rings).flatten().map(keyed).collect();
    let mut worst: HashMap<&str, (Standing, u64)> = HashMap::new();
    for ring in now.rings.iter().flatten() {
        let (standing, depth) = worst.entry(&ring.disk).or_default();
        *standing = standing.or_worse(Standing::of_word(&ring.state));
        *depth = depth.saturating_add(ring.depth());
    }
    let disk = |disk: &Disk| {
        let of_rings = now.rings.as_ref().map(|_| worst.get(&*disk.name).copied().unwrap_or_default());
        disk_row(disk, states.get(&*disk.name).copied(), elapsed, of_rings)
    };
    Picture {
        seconds: earlier.map(|_| elapsed.as_secs_f64()),
        disks: now.disks.iter().map(disk).collect(),
        rings: now.rings.iter().flatten().map(|it| ring_row(it, rings.get(&it.key()), elapsed)).collect(),
        cpu: cpu(earlier, now, elapsed),
    }
}

fn named(disk: &Disk) -> Option<(&str, &State)> {
    Some((disk.name.as_str(), disk.state.as_ref()?))
}

fn keyed(ring: &Ring) -> ((&str, u64, u64), &Ring) {
    (ring.key(), ring)
}

fn disk_row(
    disk: &Disk,
    before: Option<&State>,
    elapsed: Duration,
    rings: Option<(Standing, u64)>,
) -> DiskRow {
    let nothing = State::default();
    let state = disk.state.as_ref().unwrap_or(&nothing);
    let rate = |get: fn(&State) -> u64| before.map(|before| per_second(get(before), get(state), elapsed));
    let mut standing = rings.map(|(standing, _)| Standing::Idle.or_worse(standing)).unwrap_or_default();
    if state.oldest_request_seconds >= HUNG_SECONDS {
        standing = Standing::Hung(state.oldest_request_seconds);
    }
    let latency = before.and_then(|before| all_operations(before, state));
    DiskRow {
        name: disk.name.clone(),
        done: Done {
            reads: rate(|it| it.reads),
            writes: rate(|it| it.writes),
            read_bytes: rate(|it| it.read_bytes),
            written_bytes: rate(|it| it.written_bytes),
            flushes: rate(|it| it.flushes),
            failures: rate(|it| it.failures),
        },
        p50: latency.as_ref().and_then(|it| quantile(it, 0.5)),
        p99: latency.as_ref().and_then(|it| quantile(it, 0.99)),
        depth: rings.map(|(_, depth)| depth),
        amplification: before.and_then(|before| amplification(before, state)),
        standing,
        limits: limits(&disk.options),
        throttled: before.map(|before| {
            let (before, now) = (before.throttled_seconds, state.throttled_seconds);
            let seconds = if now >= before { now - before } else { now };
            seconds / elapsed.as_secs_f64()
        }),
        front_ends: state.front_ends,
        capacity_bytes: state.capacity_bytes,
    }
}

fn ring_row(ring: &Ring, before: Option<&&Ring>, elapsed: Duration) -> RingRow {
    let rate = |get: fn(&Ring) -> u64| before.map(|before| per_second(get(before), get(ring), elapsed));
    RingRow {
        disk: ring.disk.clone(),
        front_end: ring.front_end,
        ring: ring.ring,
        format: ring.format.clone(),
        size: ring.size,
        done: Done {
            reads: rate(|it| it.reads),
            writes: rate(|it| it.writes),
            read_bytes: rate(|it| it.read_bytes),
            written_bytes: rate(|it| it.written_bytes),
            flushes: rate(|it| it.flushes),
            failures: rate(|it| it.failures),
        },
        depth: ring.depth(),
        standing: Standing::of_word(&ring.state),
        seconds: ring.seconds,
    }
}

/// Those of its options that limit it.
fn limits(options: &Map<String, Value>) -> Map<String, Value> {
    Key::limits().filter_map(|key| Some((key.name().to_owned(), options.get(key.name())?.clone()))).collect()
}

/// What a counter has gone up by. One that is smaller than before has begun anew.
const fn growth(before: u64, now: u64) -> u64 {
    if now >= before { now - before } else { now }
}

fn per_second(before: u64, now: u64, elapsed: Duration) -> f64 {
    growth(before, now) as f64 / elapsed.as_secs_f64()
}

/// Nothing, where nothing was written in between.
fn amplification(before: &State, now: &State) -> Option<f64> {
    let media = growth(before.media_written_bytes?, now.media_written_bytes?);
    let guests = growth(before.written_bytes, now.written_bytes)
        .saturating_add(growth(before.zeroed_bytes, now.zeroed_bytes));
    (guests != 0).then(|| media as f64 / guests as f64)
}

/// Requests of all operations that ended between two states.
fn all_operations(before: &State, now: &State) -> Option<Histogram> {
    let nothing = Histogram::default();
    let mut sum: Option<Histogram> = None;
    for (operation, histogram) in &now.latency {
        let ended = ended(before.latency.get(operation).unwrap_or(&nothing), histogram);
        match &mut sum {
            None => sum = Some(ended),
            Some(sum) if sum.le == ended.le => {
                sum.count
                    .iter_mut()
                    .zip(&ended.count)
                    .for_each(|(sum, more)| *sum = sum.saturating_add(*more));
            }
            // Of other bounds: they cannot be added.
            Some(_) => return None,
        }
    }
    sum
}

/// What one histogram has more than another. Where anything is less, or the bounds are others, it has begun anew.
fn ended(before: &Histogram, now: &Histogram) -> Histogram {
    let pairs = || before.count.iter().zip(&now.count);
    let goes_on = before.le == now.le
        && before.count.len() == now.count.len()
        && pairs().all(|(before, now)| now >= before);
    match goes_on {
        true => Histogram {
            le: now.le.clone(),
            count: pairs().map(|(before, now)| now.saturating_sub(*before)).collect(),
        },
        false => now.clone(),
    }
}

/// The time within which this part of all requests ended, taken as even between two bounds; none where there were none. What is
/// beyond the last bound is said to be that.
fn quantile(histogram: &Histogram, part: f64) -> Option<f64> {
    let all = *histogram.count.last()?;
    let rank = all as f64 * part;
    let mut below = (0.0, 0.0);
    for (bound, count) in histogram.le.iter().zip(&histogram.count) {
        let count = *count as f64;
        if count >= rank && count > below.1 {
            let (from, before) = below;
            return Some(from + (bound - from) * (rank - before) / (count - before));
        }
        below = (*bound, count);
    }
    (all != 0).then(|| histogram.le.last().copied()).flatten()
}

/// Threads that came in between have used what they show since.
fn cpu(before: Option<&Sample>, now: &Sample, elapsed: Duration) -> Option<Cpu> {
    let (before, now) = (before?.threads.as_ref()?, now.threads.as_ref()?);
    let before: HashMap<u64, u64> = before.iter().map(|thread| (thread.number, thread.ticks)).collect();
    let percent = |thread: &Thread| {
        let ticks = growth(before.get(&thread.number).copied().unwrap_or(0), thread.ticks);
        ticks as f64 / TICKS_PER_SECOND / elapsed.as_secs_f64() * 100.0
    };
    let number = |thread: &&Thread| thread.name.strip_prefix(WORKER).and_then(|it| it.parse::<u64>().ok());
    let mut workers: Vec<_> = now.iter().filter(|it| number(it).is_some()).collect();
    workers.sort_by_key(number);
    Some(Cpu {
        workers: workers.into_iter().map(percent).collect(),
        all_threads: now.iter().map(percent).sum(),
    })
}

#[cfg(test)]
mod tests;
