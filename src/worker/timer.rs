//! Which turns of rings in memory are timed: one of many, so that all others cost nothing. Each stands for those that are not.

use std::time::{Duration, Instant};

use super::any_ring::AnyRing;
use super::hold_ups::{What, is_looked_at};
use super::usage::Usage;
use crate::disk::Disk;
use crate::limits::bounds::{HOLD_UP_SHARE, HOLD_UPS_MEMORY, LONG_TURN, MAX_PAUSE};
use crate::virtio::blk::{Counters, Timed};

/// One of so many rounds is timed. It is a prime, so that no pattern of a guest keeps in step with it.
const ROUNDS: u32 = 61;

/// What a ring with much to do takes of a long round.
const USUAL_TURN: Duration = Duration::from_micros(100);

/// Counts a worker's rounds, of which each is a turn of every ring that has something to do, and times a turn now and then.
///
/// Once a round took long it times each turn for a while, and looks who made it long ([`HoldUps`](super::HoldUps)).
#[derive(Debug)]
pub(super) struct Timer {
    /// Rounds until one is due.
    left: u32,
    /// The ring that is timed next is the first one behind this one.
    last: usize,
    begun: Option<Begun>,
    /// Rings that are polled, and have no turn while another is timed.
    others: Vec<usize>,
    /// Every turn is timed until then.
    suspects_until: Option<Instant>,
    /// So is every turn of a worker that gives way to others: it pauses after a long one.
    gives_way: bool,
}

/// A turn that is being timed.
#[derive(Debug)]
struct Begun {
    ring: usize,
    /// What it had done before; none if its requests may take longer than the turn.
    before: Option<Counters>,
    /// How many turns it stands for.
    weight: u64,
    since: Instant,
    /// What the thread had used before, if it is looked whether it holds others up.
    usage: Option<Usage>,
}

impl Timer {
    pub(super) const fn new(gives_way: bool) -> Self {
        let left = if gives_way { 0 } else { ROUNDS };
        Self { left, last: 0, begun: None, others: Vec::new(), suspects_until: None, gives_way }
    }

    /// For so many rings.
    pub(super) fn make_room(&mut self, rings: usize) {
        self.others.reserve(rings.saturating_sub(self.others.len()));
    }

    /// A round is over. Returns whether one is due, or was timed.
    #[inline]
    pub(super) const fn counts(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    /// Whether one is due.
    pub(super) const fn is_due(&self) -> bool {
        self.left == 0
    }

    /// Whether one is being timed.
    pub(super) const fn is_timing(&self) -> bool {
        self.begun.is_some()
    }

    /// Nothing is timed any more: all rings are polled that were.
    pub(super) fn stop(&mut self, polled: &mut Vec<usize>) {
        polled.append(&mut self.others);
        self.begun = None;
        self.left = if self.gives_way || self.suspects_until.is_some() { 0 } else { ROUNDS };
    }

    /// A round of so many rings has taken so long, by the clock. If that was long, so long is looked who does it that it is no more
    /// than the share of the time that may be held up.
    #[inline]
    pub(super) fn took(&mut self, time: Duration, rings: usize) {
        if time >= LONG_TURN {
            self.suspect(time, rings);
        }
    }

    #[cold]
    fn suspect(&mut self, time: Duration, rings: usize) {
        let turns = u32::try_from(rings).unwrap_or(u32::MAX);
        if time < LONG_TURN.saturating_add(USUAL_TURN.saturating_mul(turns)) || !is_looked_at() {
            return;
        }
        let until = Instant::now() + time.saturating_mul(HOLD_UP_SHARE).min(HOLD_UPS_MEMORY);
        self.suspects_until = self.suspects_until.max(Some(until));
        self.left = 0;
    }

    /// Says how long the turn took that is timed, or has the next round be a turn of one ring alone, if one has something to do.
    pub(super) fn step<'a, D: Disk>(
        &mut self,
        polled: &mut Vec<usize>,
        ring: impl Fn(usize) -> Option<&'a AnyRing<D>>,
    ) {
        let now = Instant::now();
        self.suspects_until = self.suspects_until.filter(|until| now < *until);
        let looks = self.gives_way || self.suspects_until.is_some();
        if let Some(begun) = self.begun.take() {
            let took = now.saturating_duration_since(begun.since);
            if let Some(ring) = ring(begun.ring) {
                note(ring, &begun, took);
                self.judge(ring, &begun, took);
            }
            self.stop(polled);
            if !looks {
                return;
            }
        }
        let is_timed = |number: &usize| {
            ring(*number).is_some_and(|ring| if looks { ring.has_work() } else { ring.is_timed() })
        };
        let count = polled.iter().copied().filter(is_timed).count();
        let next = |from: usize| polled.iter().copied().filter(|it| *it >= from && is_timed(it)).min();
        let Some(chosen) = next(self.last.saturating_add(1)).or_else(|| next(0)) else { return };
        let Some(ring) = ring(chosen) else { return };
        let before = ring.is_timed().then(|| *ring.counters());
        self.last = chosen;
        // Their order is that of their turns.
        self.others.clear();
        self.others.extend(polled.iter().filter(|other| **other != chosen));
        polled.clear();
        polled.push(chosen);
        self.left = 1;
        let weight = if looks { 1 } else { u64::from(ROUNDS).saturating_mul(count as u64) };
        let usage = looks.then(Usage::now);
        self.begun = Some(Begun { ring: chosen, before, weight, since: Instant::now(), usage });
    }

    /// Whether a turn that took so long by the clock took long.
    fn judge<D: Disk>(&self, ring: &AnyRing<D>, begun: &Begun, took: Duration) {
        let Some(usage) = begun.usage.filter(|_| took >= LONG_TURN) else { return };
        let used = usage.until(&Usage::now());
        let took = used.time(took, ring.hold_ups().waits_count());
        if took >= LONG_TURN {
            ring.hold_ups().add(What::Turn, took);
            // What waits leaves the processor to others anyway.
            if self.gives_way && used.cpu_time >= LONG_TURN {
                std::thread::sleep(used.cpu_time.min(MAX_PAUSE));
            }
        }
    }
}

/// What the ring has done in this turn took as long as the turn.
fn note<D: Disk>(ring: &AnyRing<D>, begun: &Begun, took: Duration) {
    let Some(before) = &begun.before else { return };
    let now = ring.counters();
    let latency = ring.device().latency();
    for (what, count) in [
        (Timed::Read, now.reads.wrapping_sub(before.reads)),
        (Timed::Write, now.writes.wrapping_sub(before.writes)),
        (Timed::Flush, now.flushes.wrapping_sub(before.flushes)),
    ] {
        if count != 0 {
            latency.add(what, took, count.saturating_mul(begun.weight));
        }
    }
}
