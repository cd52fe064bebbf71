//! Which requests of a disk are slow: those that take longer than `slow-ms=` says.

use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::under_hand::UnderHand;

/// What counts as slow, which may change at any time, and how many were.
#[derive(Debug, Default)]
pub struct Slow {
    /// In milliseconds; none are where it is 0.
    threshold_ms: AtomicU16,
    requests: AtomicU64,
    /// Some request may become slow that has not ended: a ring is to be asked, soon.
    may_wait: AtomicBool,
    /// What is under hand of its rings.
    hands: Mutex<Vec<Weak<UnderHand>>>,
}

impl Slow {
    /// From now on; `None`: no request is slow. Rings in memory heed it from when their workers are told
    /// ([`Pool::renew_limits`](crate::worker::Pool::renew_limits)).
    pub fn set_threshold_ms(&self, threshold_ms: Option<NonZeroU16>) {
        self.threshold_ms.store(threshold_ms.map_or(0, NonZeroU16::get), Ordering::Relaxed);
    }

    /// How long a request may take that is not slow; `None`: any time.
    #[inline]
    pub fn threshold(&self) -> Option<Duration> {
        let threshold_ms = self.threshold_ms.load(Ordering::Relaxed);
        (threshold_ms != 0).then(|| Duration::from_millis(threshold_ms.into()))
    }

    /// One was slow.
    pub fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// One waits, and was not slow when that was looked at.
    pub fn one_waits(&self) {
        self.may_wait.store(true, Ordering::Relaxed);
    }

    /// Whether one may, since this was asked last.
    pub fn take_may_wait(&self) -> bool {
        self.may_wait.swap(false, Ordering::Relaxed)
    }

    /// For the ring with this index: who does its requests says so there, and [others](Self::hands) look, until it is dropped.
    pub fn hand(&self, ring: u16) -> Arc<UnderHand> {
        let hand = Arc::new(UnderHand::new(ring));
        let mut hands = self.hands.lock().unwrap_or_else(PoisonError::into_inner);
        hands.retain(|hand| hand.strong_count() != 0);
        hands.push(Arc::downgrade(&hand));
        hand
    }

    /// What is under hand of the rings whose requests may be slow.
    pub fn hands(&self) -> Vec<Arc<UnderHand>> {
        let hands = self.hands.lock().unwrap_or_else(PoisonError::into_inner);
        hands.iter().filter_map(Weak::upgrade).collect()
    }
}
