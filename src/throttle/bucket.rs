//! Leaky buckets, each a number: when it will be empty.

use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::{TICKS_PER_SECOND, Ticks};
use super::limits::{Burst, Limits, Measure, Rate};

/// A ring reserves at once what takes two milliseconds at the fastest rate, a fraction of a second: longer than a worker sleeps
/// at the least.
const QUANTUM: u64 = 500;

/// As many bytes at the least: else a ring in debt would be woken for each of them.
const LEAST_QUANTUM_BYTES: u64 = 4096;

/// The limits in force of a disk or a group: what all their rings share.
#[derive(Debug)]
pub struct Throttle {
    limits: Limits,
    buckets: [Option<Bucket>; Measure::ALL.len()],
}

impl Throttle {
    /// With empty buckets. Limits are [checked](Limits::check) before.
    pub fn new(limits: Limits) -> Self {
        let bucket = |measure| limits.rate(measure).map(|rate| Bucket::new(rate, measure));
        Self { limits, buckets: Measure::ALL.map(bucket) }
    }

    /// What they are.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) const fn buckets(&self) -> &[Option<Bucket>; Measure::ALL.len()] {
        &self.buckets
    }
}

/// What one measure is limited by.
#[derive(Debug)]
pub(super) struct Bucket {
    average: Leak,
    /// Where a burst lasts longer than the second that the first one has room for.
    burst: Option<Leak>,
    /// Units that a ring reserves at once.
    pub(super) quantum: u64,
    /// Whether a request is one unit.
    counts_requests: bool,
}

impl Bucket {
    fn new(Rate { average, burst }: Rate, measure: Measure) -> Self {
        let (average, fastest) = (average.get(), burst.map_or(average, |burst| burst.rate).get());
        let holds = match burst {
            None => TICKS_PER_SECOND / 10,
            Some(Burst { rate, seconds }) => cost(rate.get().saturating_mul(seconds.get()), average),
        };
        let long = burst.filter(|burst| burst.seconds.get() > 1);
        let quantum = (fastest / QUANTUM).max(1);
        let counts_requests = !measure.is_bytes();
        let quantum = if counts_requests { quantum } else { quantum.max(LEAST_QUANTUM_BYTES) };
        Self {
            average: Leak::new(average, holds),
            burst: long.map(|burst| Leak::new(burst.rate.get(), TICKS_PER_SECOND / 10)),
            quantum,
            counts_requests,
        }
    }

    /// Reserves units, after all that were reserved before. Returns when they may be used: as a request may be taken while there
    /// is no more in the bucket than it holds, that is when the last request, or the first byte, may be.
    pub(super) fn reserve(&self, units: u64, now: Ticks) -> Ticks {
        let before = if self.counts_requests { units.saturating_sub(1) } else { 0 };
        let ready = |leak: &Leak| leak.reserve(units, before, now);
        let average = ready(&self.average);
        self.burst.as_ref().map_or(average, |burst| average.max(ready(burst)))
    }

    /// What was reserved is used late: it has not leaked meanwhile.
    pub(super) fn keep(&self, units: u64, now: Ticks) {
        let keep = |leak: &Leak| {
            _ = leak.empty_at.fetch_max(now.saturating_add(cost(units, leak.per_second)), Ordering::Relaxed)
        };
        keep(&self.average);
        self.burst.iter().for_each(keep);
    }

    /// Gives back what was reserved and not used.
    pub(super) fn give_back(&self, units: u64) {
        self.average.give_back(units);
        self.burst.iter().for_each(|burst| burst.give_back(units));
    }
}

/// A bucket that leaks at one rate.
#[derive(Debug)]
struct Leak {
    per_second: u64,
    /// How long it takes to leak all that it holds.
    holds: Ticks,
    /// When it will be empty, if nothing more comes: what is in it is what leaks until then.
    empty_at: AtomicU64,
}

impl Leak {
    const fn new(per_second: u64, holds: Ticks) -> Self {
        Self { per_second, holds, empty_at: AtomicU64::new(0) }
    }

    /// Returns when there is no more in it than it holds once so many of these units are `before`.
    fn reserve(&self, units: u64, before: u64, now: Ticks) -> Ticks {
        let (cost, before) = (cost(units, self.per_second), cost(before, self.per_second));
        let from = |empty_at: Ticks| empty_at.max(now);
        let moved = |empty_at| Some(from(empty_at).saturating_add(cost));
        // Nothing else is ordered by it.
        let empty_at = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
        from(empty_at.unwrap_or_else(|it| it)).saturating_add(before).saturating_sub(self.holds)
    }

    fn give_back(&self, units: u64) {
        let cost = cost(units, self.per_second);
        let back = |before: Ticks| Some(before.saturating_sub(cost));
        let _ = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
    }
}

/// How long it takes to leak so many units.
fn cost(units: u64, per_second: u64) -> Ticks {
    let ticks = u128::from(units).saturating_mul(TICKS_PER_SECOND.into());
    ticks.checked_div(per_second.into()).and_then(|it| u64::try_from(it).ok()).unwrap_or(u64::MAX)
}
