//! What a thread has used of its processor.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_gettime};

/// The processor's time that this thread has used so far.
pub(super) fn cpu_time() -> Duration {
    // Not rustix's: it looks for the vDSO, which is not there under Valgrind, and a worker's instructions are counted there.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What this thread has used so far, and how often it has waited for something else than the processor.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    cpu_time: Duration,
    waits: i64,
}

impl Usage {
    pub(super) fn now() -> Self {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return Self::default() };
        let cpu_time = duration(usage.user_time()).saturating_add(duration(usage.system_time()));
        Self { cpu_time, waits: usage.voluntary_context_switches() }
    }

    /// What was used since.
    pub(super) fn elapsed(&self) -> Elapsed {
        let now = Self::now();
        let cpu_time = now.cpu_time.saturating_sub(self.cpu_time);
        Elapsed { cpu_time, has_waited: now.waits != self.waits }
    }
}

/// What something has used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elapsed {
    pub(super) cpu_time: Duration,
    has_waited: bool,
}

impl Elapsed {
    /// How long it took without what others used the processor for meanwhile; by the clock it `took` so long.
    pub(super) const fn time(&self, took: Duration) -> Duration {
        if self.has_waited { took } else { self.cpu_time }
    }
}

fn duration(time: TimeVal) -> Duration {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_use_the_processor_for_does_not_count_but_waiting_does() {
        let took = Duration::from_secs(3600);
        let before = Usage::now();
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(before.elapsed().time(took), took);
        // By itself it may wait for a lock of the allocator's, say, but not each time.
        let used = |_| {
            let before = Usage::now();
            let start = cpu_time();
            while cpu_time() < start + Duration::from_millis(2) {}
            before.elapsed().time(took)
        };
        let used = (0..100).map(used).find(|used| *used < took).unwrap();
        assert!(used >= Duration::from_millis(2), "{used:?}");
    }
}
