//! Which turns of rings in memory are timed: one of many, so that all others cost nothing. Each stands for those that are not.

use std::time::Instant;

use super::any_ring::AnyRing;
use crate::disk::Disk;
use crate::virtio::blk::{Counters, Timed};

/// One of so many rounds is timed. It is a prime, so that no pattern of a guest keeps in step with it.
const ROUNDS: u32 = 61;

/// Counts a worker's rounds, of which each is a turn of every ring that has something to do, and times a turn now and then.
#[derive(Debug)]
pub(super) struct Timer {
    /// Rounds until one is due.
    left: u32,
    /// The ring that is timed next is the first one behind this one.
    last: usize,
    begun: Option<Begun>,
    /// Rings that are polled, and have no turn while another is timed.
    others: Vec<usize>,
}

/// A turn that is being timed.
#[derive(Debug)]
struct Begun {
    ring: usize,
    before: Counters,
    /// How many turns it stands for.
    weight: u64,
    since: Instant,
}

impl Timer {
    pub(super) const fn new() -> Self {
        Self { left: ROUNDS, last: 0, begun: None, others: Vec::new() }
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
        self.left = ROUNDS;
    }

    /// Says how long the turn took that is timed, or has the next round be a turn of one ring alone, if one has something to do.
    pub(super) fn step<'a, D: Disk>(
        &mut self,
        polled: &mut Vec<usize>,
        ring: impl Fn(usize) -> Option<&'a AnyRing<D>>,
    ) {
        if let Some(begun) = self.begun.take() {
            let took = begun.since.elapsed();
            if let Some(ring) = ring(begun.ring) {
                note(ring, &begun, took);
            }
            return self.stop(polled);
        }
        let is_timed = |number: &usize| ring(*number).is_some_and(AnyRing::is_timed);
        let count = polled.iter().copied().filter(is_timed).count();
        let next = |from: usize| polled.iter().copied().filter(|it| *it >= from && is_timed(it)).min();
        let Some(chosen) = next(self.last.saturating_add(1)).or_else(|| next(0)) else { return };
        let Some(before) = ring(chosen).map(|ring| *ring.counters()) else { return };
        self.last = chosen;
        // Their order is that of their turns.
        self.others.clear();
        self.others.extend(polled.iter().filter(|other| **other != chosen));
        polled.clear();
        polled.push(chosen);
        self.left = 1;
        let weight = u64::from(ROUNDS).saturating_mul(count as u64);
        self.begun = Some(Begun { ring: chosen, before, weight, since: Instant::now() });
    }
}

/// What the ring has done in this turn took as long as the turn.
fn note<D: Disk>(ring: &AnyRing<D>, begun: &Begun, took: std::time::Duration) {
    let (now, before) = (ring.counters(), &begun.before);
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
