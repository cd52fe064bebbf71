//! The request that a thread is doing at this moment: for who looks while the thread is held up in the kernel, and cannot say.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::asked::Asked;
use super::latency::Timed;

/// In place of an operation that is not timed.
const NO_OPERATION: u64 = u64::MAX;

/// What one thread does of a ring, one request after the other; others may look at any time.
///
/// The state has a number of its own for each request. So whoever changes it from what it was when the rest was read, has read what
/// belongs to that request: the thread changes the rest only while there is none, and its next one has another number.
#[derive(Debug)]
pub struct UnderHand {
    /// The ring's index.
    ring: u16,
    /// What times are counted from.
    origin: Instant,
    /// 0: nothing. Else twice the number of the request, and one more once it was said that it is slow.
    state: AtomicU64,
    /// The last number. Only the thread that does the requests changes it.
    number: AtomicU64,
    since_ns: AtomicU64,
    what: AtomicU64,
    offset: AtomicU64,
    len_bytes: AtomicU64,
}

impl UnderHand {
    /// Nothing, of the ring with this index.
    pub fn new(ring: u16) -> Self {
        let [state, number, since_ns, what, offset, len_bytes] = [const { AtomicU64::new(0) }; 6];
        Self { ring, origin: Instant::now(), state, number, since_ns, what, offset, len_bytes }
    }

    /// The ring's index.
    pub const fn ring(&self) -> u16 {
        self.ring
    }

    /// The thread begins with a request that was taken then. What it had begun before is over.
    pub fn begin(&self, asked: &Asked, since: Instant) {
        self.end();
        let since = since.saturating_duration_since(self.origin);
        let what = asked.what.map_or(NO_OPERATION, |what| what as u64);
        self.since_ns.store(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
        self.what.store(what, Ordering::Release);
        self.offset.store(asked.offset, Ordering::Release);
        self.len_bytes.store(asked.len_bytes, Ordering::Release);
        let number = self.number.load(Ordering::Relaxed).wrapping_add(2);
        self.number.store(number, Ordering::Relaxed);
        self.state.store(number, Ordering::Release);
    }

    /// It has ended, or has failed. Returns whether it was said that it is slow.
    pub fn end(&self) -> bool {
        self.state.load(Ordering::Relaxed) != 0 && self.state.swap(0, Ordering::AcqRel) % 2 == 1
    }

    /// The request, if it takes longer than that by now: once, and it is on the caller to say so.
    pub fn take_slow(&self, threshold: Duration) -> Option<(Asked, Duration)> {
        let state = self.state.load(Ordering::Acquire);
        if state == 0 || state % 2 == 1 {
            return None;
        }
        let since = Duration::from_nanos(self.since_ns.load(Ordering::Acquire));
        let place = usize::try_from(self.what.load(Ordering::Acquire)).unwrap_or(usize::MAX);
        let asked = Asked {
            what: Timed::ALL.get(place).copied(),
            offset: self.offset.load(Ordering::Acquire),
            len_bytes: self.len_bytes.load(Ordering::Acquire),
        };
        let took = self.origin.elapsed().saturating_sub(since);
        if took <= threshold || asked.what.is_none() {
            return None;
        }
        let is_this = self.state.compare_exchange(state, state | 1, Ordering::AcqRel, Ordering::Relaxed);
        is_this.is_ok().then_some((asked, took))
    }
}

#[cfg(test)]
mod tests;
