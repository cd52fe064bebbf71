//! How long a worker polls its empty rings before it sleeps.

use std::time::Duration;

/// Whether a worker whose rings are empty polls them.
///
/// Polling costs CPU time, sleeping costs the driver a kick and the worker a wake-up: some 5 to 30 µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// It sleeps at once.
    Never,
    /// It polls for as long as that pays, but for no longer than this. What pays follows from the pauses between requests so
    /// far: where they are longer it soon does not poll at all.
    UpTo(Duration),
    /// It polls for ever, as long as it has a ring.
    Always,
}

impl Polling {
    /// What is good for most: longer than the pause of a driver that sends one request at a time, and too
    /// short to be noticed when the requests end.
    pub const DEFAULT: Self = Self::UpTo(Duration::from_micros(50));
}

impl Default for Polling {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Length of the window after it was zero.
const FIRST: Duration = Duration::from_micros(4);

/// How long it pays to poll, adapted to how long the rings were empty (as Linux's `halt_poll_ns` for KVM).
#[derive(Debug, Clone, Copy)]
pub(super) struct PollWindow {
    polling: Polling,
    length: Duration,
}

impl PollWindow {
    pub(super) const fn new(polling: Polling) -> Self {
        let length = match polling {
            Polling::Never | Polling::UpTo(_) => Duration::ZERO,
            Polling::Always => Duration::MAX,
        };
        Self { polling, length }
    }

    /// How long to poll. Zero: not at all.
    pub(super) const fn length(&self) -> Duration {
        self.length
    }

    /// Whether to poll is its own choice.
    pub(super) const fn may_sleep(&self) -> bool {
        !matches!(self.polling, Polling::Always)
    }

    /// The rings were empty for `pause`, of which the worker has polled for as long as the window is.
    ///
    /// A pause that a longer window would have covered doubles the window; one that is longer than any allowed window
    /// halves it, down to nothing.
    pub(super) fn adapt(&mut self, pause: Duration) {
        let Polling::UpTo(most) = self.polling else { return };
        if pause <= self.length {
            return;
        }
        self.length = if pause > most {
            let shorter = self.length / 2;
            if shorter < FIRST { Duration::ZERO } else { shorter }
        } else {
            self.length.saturating_mul(2).max(FIRST).min(most)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn a_window_grows_until_it_meets_the_pauses() {
        let mut window = PollWindow::new(Polling::UpTo(MOST));
        let lengths: Vec<_> = (0..6)
            .map(|_| {
                window.adapt(micros(20));
                window.length()
            })
            .collect();
        assert_eq!(lengths, [4, 8, 16, 32, 32, 32].map(micros));
        window.adapt(micros(45));
        assert_eq!(window.length(), MOST, "and not beyond what is allowed");
    }

    #[test]
    fn long_pauses_close_it() {
        let mut window = PollWindow::new(Polling::UpTo(MOST));
        (0..6).for_each(|_| window.adapt(micros(40)));
        assert_eq!(window.length(), MOST);
        let mut looked = Duration::ZERO;
        while !window.length().is_zero() {
            looked += window.length();
            window.adapt(micros(51));
        }
        assert!(looked < 2 * MOST);
        window.adapt(Duration::MAX);
        assert_eq!(window.length(), Duration::ZERO);
    }

    #[test]
    fn never_and_always_learn_nothing() {
        for (polling, length) in [(Polling::Never, Duration::ZERO), (Polling::Always, Duration::MAX)] {
            let mut window = PollWindow::new(polling);
            [1, 30, 1000].into_iter().for_each(|pause| window.adapt(micros(pause)));
            assert_eq!(window.length(), length);
        }
        let mut off = PollWindow::new(Polling::UpTo(Duration::ZERO));
        off.adapt(micros(1));
        assert_eq!(off.length(), Duration::ZERO, "nothing is allowed");
    }
}
