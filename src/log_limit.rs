//! A limit on log lines that a guest or a front-end can cause.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines admitted in each second.
const LINES_PER_SECOND: u64 = 5;

/// Admits a few lines a second and counts the rest. Cheap enough for a failing request, never on the path of
/// a good one.
#[derive(Debug)]
pub struct LogLimit {
    start: Instant,
    /// The running second, and lines seen in it, in the low 24 bits.
    window: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self { start: Instant::now(), window: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }
}

impl LogLimit {
    /// `Some` when a line may be written, with the number of lines left out since the last one.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(self.start.elapsed().as_secs())
    }

    fn admit_at(&self, second: u64) -> Option<u64> {
        const LINES: u64 = (1 << 24) - 1;
        let step = |window: u64| {
            let (running, lines) = (window >> 24, window & LINES);
            let lines = if running == second { (lines + 1).min(LINES) } else { 1 };
            Some(second << 24 | lines)
        };
        let before = self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).unwrap_or(0);
        if before >> 24 == second && before & LINES >= LINES_PER_SECOND {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_few_lines_and_counted() {
        let limit = LogLimit::default();
        let admitted = |second| (0..100).filter_map(|_| limit.admit_at(second)).collect::<Vec<_>>();
        assert_eq!(admitted(7), [0; LINES_PER_SECOND as usize]);
        assert_eq!(admitted(8), [100 - LINES_PER_SECOND, 0, 0, 0, 0]);
    }
}
