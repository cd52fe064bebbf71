//! A limit on log lines that a peer can cause: a guest, a front-end, whoever may write to a disk's file.

use crate::limits::bounds::MAX_LOG_LINES_PER_SECOND;
use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines left out since the process started.
static ALL_SUPPRESSED: AtomicU64 = AtomicU64::new(0);

#[cfg(feature = "daemon")]
/// Lines of the log that were left out since the process started, as there were many of their cause: of all disks.
pub(crate) fn suppressed_lines() -> u64 {
    ALL_SUPPRESSED.load(Ordering::Relaxed)
}

/// Requests of vhost-user are fewer; unknown ones share the last place.
const REQUESTS: usize = 64;

/// What a line is about. Each has a limit of its own for each disk, so that a noisy one hides no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// A front-end has come.
    Connected,
    /// A front-end has left.
    Left,
    /// A connection was given up by us.
    HungUp,
    /// A front-end was not let in, as its user may not connect.
    Refused,
    /// A front-end was not let in for want of a place.
    NoRoom,
    /// A connection that has said nothing was closed for another.
    MadeRoom,
    /// A connection could not be taken for want of descriptors or threads.
    Exhausted,
    /// What its disk has done so far, when a front-end is gone.
    Served,
    /// A message failed that is answered with a value.
    Message,
    /// A front-end waits for another.
    Waits,
    /// A front-end that has waited goes on.
    Runs,
    /// A ring could not go on.
    RingStopped,
    /// A ring that is too small for the requests that drivers are told of.
    RingSmall,
    /// A driver's mistake.
    RingBroken,
    /// A front-end cannot be told of a change.
    Channel,
    /// A migration's guest comes before its pages.
    PostcopyBegins,
    /// All pages of a migration have come.
    PostcopyEnds,
    /// A read failed.
    Read,
    /// A write failed.
    Write,
    /// A flush failed.
    Flush,
    /// A discard, or another request that is no transfer, failed.
    OtherRequest,
    /// A request takes long.
    Slow,
    /// Media that is bad.
    Media,
    /// Bad media that was repaired.
    Repaired,
    /// The disk cannot have the size of its file.
    Size,
    /// The file has grown.
    Grown,
    /// The lock of the file.
    Lock,
    /// There is no thread for a request that may wait for media.
    NoThread,
    /// The media of a disk does not answer.
    Stalled,
    /// Memory that is entered into the page tables.
    Populate,
    /// How much of a mapping is in huge pages.
    HugePages,
    /// Front-ends that hold up their workers.
    HoldUps,
    /// A driver whose writes are lost.
    Lost,
}

/// One for each [`Cause`].
const CAUSES: usize = Cause::Lost as usize + 1;

/// Lines of a cause that were left out since the last one that was written. `None` stands for zero: the log does not
/// mention it.
pub(crate) type Suppressed = Option<NonZeroU64>;

/// The limits of one disk. Each admits a few lines a second and counts the rest. Cheap enough for a failing request,
/// never on the path of a good one.
#[derive(Debug)]
pub struct LogLimit {
    start: Instant,
    /// Allocated with the first line, as most of many disks never log one; `requests` likewise.
    causes: OnceLock<Box<[Limit]>>,
    /// Refused messages, by their request's number.
    requests: OnceLock<Box<[Limit]>>,
}

/// The limit of one cause.
#[derive(Debug, Default)]
struct Limit {
    /// The running second, and lines seen in it, in the low 24 bits.
    window: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self { start: Instant::now(), causes: OnceLock::new(), requests: OnceLock::new() }
    }
}

impl LogLimit {
    /// `Some` when a line may be written, with the number of lines of that cause left out since the last one.
    pub fn admit(&self, cause: Cause) -> Option<Suppressed> {
        limits(&self.causes, CAUSES).get(cause as usize)?.admit_at(self.second())
    }

    /// As [`admit`](Self::admit), for a message that is refused: each kind of message has a limit of its own.
    pub fn admit_refusal(&self, request: u32) -> Option<Suppressed> {
        let place = usize::try_from(request).unwrap_or(usize::MAX).min(REQUESTS - 1);
        limits(&self.requests, REQUESTS).get(place)?.admit_at(self.second())
    }

    fn second(&self) -> u64 {
        self.start.elapsed().as_secs()
    }
}

/// The limits, allocated when the first is asked for.
fn limits(made: &OnceLock<Box<[Limit]>>, count: usize) -> &[Limit] {
    made.get_or_init(|| (0..count).map(|_| Limit::default()).collect())
}

impl Limit {
    /// A thread that was interrupted after it had read the clock may come with a second that is over for others: its
    /// line counts in the window that runs.
    fn admit_at(&self, second: u64) -> Option<Suppressed> {
        const LINES: u64 = (1 << 24) - 1;
        let step = |window: u64| {
            let (running, lines) = (window >> 24, window & LINES);
            let lines = if second <= running { (lines + 1).min(LINES) } else { 1 };
            Some(second.max(running) << 24 | lines)
        };
        let before = self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).unwrap_or(0);
        if second <= before >> 24 && before & LINES >= MAX_LOG_LINES_PER_SECOND {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            ALL_SUPPRESSED.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(NonZeroU64::new(self.suppressed.swap(0, Ordering::Relaxed)))
    }
}

impl Cause {
    /// Of the failure of a request that is called so.
    pub fn of_request(operation: &str) -> Self {
        match operation {
            "read" => Self::Read,
            "write" => Self::Write,
            "flush" => Self::Flush,
            _ => Self::OtherRequest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_few_lines_and_counted() {
        let limit = Limit::default();
        let admitted = |second| (0..100).filter_map(|_| limit.admit_at(second)).collect::<Vec<_>>();
        assert_eq!(admitted(7), [None; MAX_LOG_LINES_PER_SECOND as usize]);
        assert_eq!(admitted(8), [NonZeroU64::new(100 - MAX_LOG_LINES_PER_SECOND), None, None, None, None]);
    }

    #[test]
    fn a_thread_that_comes_late_opens_no_second_anew() {
        let limit = Limit::default();
        let admitted = (0..100).filter_map(|line| limit.admit_at(8 - line % 2)).count();
        assert_eq!(admitted, MAX_LOG_LINES_PER_SECOND as usize);
    }

    #[test]
    fn a_noisy_cause_hides_no_other() {
        let limit = LogLimit::default();
        for _ in 0..100 {
            limit.admit(Cause::Connected);
            limit.admit_refusal(1);
            limit.admit_refusal(u32::MAX);
        }
        assert_eq!(limit.admit(Cause::Left), Some(None));
        assert_eq!(limit.admit(Cause::HugePages), Some(None), "the last one has a place, too");
        assert_eq!(limit.admit_refusal(5), Some(None));
    }
}
