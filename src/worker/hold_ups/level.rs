//! How much a disk's front-ends hold up.

use std::time::{Duration, Instant};

use crate::limits::bounds::{HOLD_UP_SHARE, HOLD_UPS};

/// How much was held up lately: it sinks by a [share](HOLD_UP_SHARE) of the time that passes, which so is what a disk may hold up
/// for ever. It is too much from some time on, but after [`HOLD_UPS`] looks only: a hypervisor that runs others meanwhile makes
/// one look wrong.
#[derive(Debug)]
pub(super) struct Level {
    most: Duration,
    held_up: Duration,
    looks: u32,
    at: Instant,
}

impl Level {
    /// Of which this is too much.
    pub(super) const fn new(most: Duration, at: Instant) -> Self {
        Self { most, held_up: Duration::ZERO, looks: 0, at }
    }

    /// Adds what was held up until now. Returns whether that is too much.
    pub(super) fn add(&mut self, now: Instant, took: Duration) -> bool {
        let sinks = now.saturating_duration_since(self.at) / HOLD_UP_SHARE;
        if sinks >= self.held_up {
            *self = Self::new(self.most, now);
        }
        self.held_up = self.held_up.saturating_sub(sinks).saturating_add(took);
        self.looks = self.looks.saturating_add(1);
        self.at = now;
        self.looks >= HOLD_UPS && self.held_up >= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::bounds::{HOLD_UP, HOLD_UP_TURNS, LONG_TURN};

    const TOOK: Duration = Duration::from_millis(100);

    #[test]
    fn too_much_is_a_share_of_the_time_and_more_than_one_look() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut level = Level::new(HOLD_UP, start);
        assert_eq!([0, 0, 0].map(|now| level.add(at(now), TOOK)), [false, false, true], "three looks");
        let mut level = Level::new(HOLD_UP, start);
        let gap = 100 * u64::from(HOLD_UP_SHARE);
        assert!((0..9).all(|turn| !level.add(at(turn * gap), TOOK)), "a share of the time");
        let mut level = Level::new(HOLD_UP, start);
        let short = Duration::from_micros(200);
        let first = (0..100).find(|turn| level.add(at(*turn), short)).unwrap();
        assert!((15..=20).contains(&first), "short ones are added up: {first}");
        let mut level = Level::new(HOLD_UP_TURNS, start);
        let first = (0..100).find(|turn| level.add(at(*turn), LONG_TURN)).unwrap();
        assert!((10..=15).contains(&first), "turns may take longer: {first}");
    }
}
