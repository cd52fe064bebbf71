//! Time as buckets count it: in ticks since the first one asked.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A sixteenth of a nanosecond: what a request costs is rounded to that. They last for 36 years.
pub(super) type Ticks = u64;

pub(super) const TICKS_PER_NANO: u64 = 16;

pub(super) const TICKS_PER_SECOND: u64 = 1_000_000_000 * TICKS_PER_NANO;

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

pub(super) fn now() -> Ticks {
    let epoch = epoch();
    ticks(Instant::now().saturating_duration_since(epoch))
}

pub(super) fn ticks(duration: Duration) -> Ticks {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).saturating_mul(TICKS_PER_NANO)
}

/// The moment, not before it.
pub(super) fn instant(ticks: Ticks) -> Instant {
    let epoch = epoch();
    let nanos = Duration::from_nanos(ticks.div_ceil(TICKS_PER_NANO));
    // A year is as good as never.
    epoch.checked_add(nanos).unwrap_or(epoch + Duration::from_secs(365 * 86400))
}
