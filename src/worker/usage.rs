//! What a thread has used of its processor, and what it has waited for.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_gettime};

/// The processor's time that this thread has used so far.
pub(super) fn cpu_time() -> Duration {
    // Not rustix's: it looks for the vDSO, which is not there under Valgrind, and a worker's instructions are counted there.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What this thread has used so far, how often it has waited for something else than the processor, and how often the kernel has
/// brought it a page.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    cpu_time: Duration,
    waits: i64,
    page_faults: i64,
}

impl Usage {
    pub(super) fn now() -> Self {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return Self::default() };
        Self {
            cpu_time: duration(usage.user_time()).saturating_add(duration(usage.system_time())),
            waits: usage.voluntary_context_switches(),
            page_faults: usage.minor_page_faults().saturating_add(usage.major_page_faults()),
        }
    }

    /// What was used from then until now.
    pub(super) const fn until(&self, now: &Self) -> Elapsed {
        Elapsed {
            cpu_time: now.cpu_time.saturating_sub(self.cpu_time),
            has_waited_for_pages: now.waits != self.waits && now.page_faults != self.page_faults,
        }
    }
}

/// What something has used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elapsed {
    pub(super) cpu_time: Duration,
    has_waited_for_pages: bool,
}

impl Elapsed {
    /// How long it held others up, if it `took` so long by the clock.
    ///
    /// That is the processor's time. A wait counts as well if a page was brought meanwhile, and `waits_count`: then it was probably
    /// waited for that page. How long a thread is ready to run and others are run, which on a busy machine is most of what it
    /// takes by the clock, the kernel tells (`/proc/thread-self/schedstat`) to nobody who may open no file.
    pub(super) const fn time(&self, took: Duration, waits_count: bool) -> Duration {
        if self.has_waited_for_pages && waits_count { took } else { self.cpu_time }
    }
}

fn duration(time: TimeVal) -> Duration {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_secs(3600);
    const USED: Duration = Duration::from_millis(2);

    /// How long it counts if so many waits and page faults were meanwhile.
    fn counted(waits: i64, page_faults: i64, waits_count: bool) -> Duration {
        let before = Usage { cpu_time: Duration::from_secs(1), waits: 7, page_faults: 40 };
        let cpu_time = before.cpu_time + USED;
        let after = Usage { cpu_time, waits: 7 + waits, page_faults: 40 + page_faults };
        before.until(&after).time(TOOK, waits_count)
    }

    #[test]
    fn what_others_use_the_processor_for_does_not_count_but_waiting_for_pages_does() {
        assert_eq!(counted(0, 0, true), USED, "others were run");
        assert_eq!(counted(0, 500, true), USED, "others were run while pages were brought");
        assert_eq!(counted(3, 0, true), USED, "it has waited for a lock of the allocator's, say");
        assert_eq!(counted(1, 1, true), TOOK, "it has waited for the page");
        assert_eq!(counted(1, 1, false), USED, "whoever populates the disk brings it pages, too");
    }

    #[test]
    fn a_page_that_is_touched_first_is_a_page_fault() {
        let before = Usage::now();
        // No allocator keeps as much as this.
        let mut pages = vec![0_u8; 64 << 20];
        std::hint::black_box(&mut pages)[0] = 1;
        assert!(Usage::now().page_faults > before.page_faults);
    }
}
