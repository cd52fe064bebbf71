//! When the requests of a ring were taken, each of which is timed, and what they wait for: so those are known that are slow.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::disk::executor::TaskName;
use crate::limits::bounds::MAX_TURN_REQUESTS;
use crate::log::{Cause, kinds};
use crate::virtio::blk::{Asked, Device, Slow, Timed, UnderHand};
use crate::virtio::queue::Header;

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// Those before it in its ring.
    Order,
    /// Its media; or memory, to and from which its bytes are copied.
    Media,
    /// A flush.
    Flush,
    /// A limit of its disk, before it is taken.
    Limit,
}

impl WaitsFor {
    const fn word(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Media => "media",
            Self::Flush => "flush",
            Self::Limit => "limit",
        }
    }
}

/// A request that was taken and is not completed.
#[derive(Debug)]
struct Taken {
    asked: Asked,
    since: Instant,
    /// How long a limit had held it then.
    limited: Duration,
    /// What it waits for, and since when.
    waits_for: (WaitsFor, Instant),
    /// What it has waited for longest of all before.
    longest: (WaitsFor, Duration),
    /// It was said that it is slow.
    is_told: bool,
}

impl Taken {
    fn wait_for(&mut self, next: WaitsFor, now: Instant) {
        if self.waits_for.0 != next {
            self.longest = self.longest(now);
            self.waits_for = (next, now);
        }
    }

    fn longest(&self, now: Instant) -> (WaitsFor, Duration) {
        let (waits_for, since) = self.waits_for;
        let waited = now.saturating_duration_since(since);
        if waited > self.longest.1 { (waits_for, waited) } else { self.longest }
    }

    fn took(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since).saturating_add(self.limited)
    }
}

/// A request that a limit holds before it is taken.
#[derive(Debug)]
struct Limited {
    asked: Asked,
    since: Instant,
    is_told: bool,
}

/// The requests of a ring that were taken and are not completed, in the ring's order; and what was completed in this turn.
#[derive(Debug)]
pub(super) struct Times {
    /// The ring's index.
    ring: u16,
    /// What its worker is doing of it, where it matters.
    hand: Arc<UnderHand>,
    begun: Asked,
    /// It was said that this one is slow.
    is_told: bool,
    turn: Instant,
    /// How long a request may take that is not slow.
    threshold: Option<Duration>,
    taken: VecDeque<Taken>,
    /// Reads that were done at once in this turn, and whether it was said that they are slow.
    at_once: Vec<(Asked, bool)>,
    completed: usize,
    limited: Option<Limited>,
}

impl Times {
    /// With room for so many, of the ring with this index.
    pub(super) fn new(room: usize, ring: u16, slow: &Slow) -> Self {
        Self {
            ring,
            hand: slow.hand(ring),
            begun: Asked::UNKNOWN,
            is_told: false,
            turn: Instant::now(),
            threshold: None,
            taken: VecDeque::with_capacity(room),
            at_once: Vec::with_capacity(MAX_TURN_REQUESTS.into()),
            completed: 0,
            limited: None,
        }
    }

    pub(super) fn begin_turn(&mut self, slow: &Slow) {
        self.turn = Instant::now();
        self.threshold = slow.threshold();
    }

    /// Whether it matters what they wait for.
    pub(super) const fn is_watched(&self) -> bool {
        self.threshold.is_some()
    }

    /// A limit holds the next one, of which the header is as much as is known.
    pub(super) fn held_by_limit(&mut self, header: Option<&Header>) {
        if self.limited.is_none() {
            let asked = header.map_or(Asked::UNKNOWN, |header| Asked::of(header, 0));
            self.limited = Some(Limited { asked, since: self.turn, is_told: false });
        }
    }

    /// The next one is about to be done, or begun, by this thread, which may be held up meanwhile.
    #[inline(never)] // most rings have none
    pub(super) fn begin(&mut self, header: &Header, len_bytes: u64) -> Asked {
        let asked = Asked::of(header, len_bytes);
        self.begun = asked;
        // It may be begun twice: tried, and then handed to a thread.
        self.is_told |= self.hand.end();
        if self.is_watched() {
            self.hand.begin(&asked, self.turn);
        }
        asked
    }

    /// It is over. Returns whether it was said that it is slow.
    fn end(&mut self) -> bool {
        self.hand.end() | std::mem::take(&mut self.is_told)
    }

    /// That one is taken: it is done, or `slices` say what is done of it slice by slice.
    pub(super) fn took_begun(&mut self, slices: Option<TaskName>, waits_for: WaitsFor) {
        let asked = slices.map_or(self.begun, |name| self.begun.of_slices(name));
        self.took(asked, waits_for);
    }

    /// The same of a slice of the first one.
    pub(super) fn begin_slice(&self) {
        if let (true, Some(first)) = (self.is_watched(), self.taken.front())
            && !first.is_told
        {
            self.hand.begin(&first.asked, first.since);
        }
    }

    /// That is over.
    pub(super) fn end_slice(&mut self) {
        let is_told = self.hand.end();
        self.taken.front_mut().into_iter().for_each(|first| first.is_told |= is_told);
    }

    /// One is taken.
    pub(super) fn took(&mut self, asked: Asked, waits_for: WaitsFor) {
        let limited = self.limited.take();
        let is_told = self.end() || limited.as_ref().is_some_and(|it| it.is_told);
        let limited = limited.map_or(Duration::ZERO, |it| self.turn.saturating_duration_since(it.since));
        self.taken.push_back(Taken {
            asked,
            since: self.turn,
            limited,
            waits_for: (waits_for, self.turn),
            longest: (WaitsFor::Limit, limited),
            is_told,
        });
    }

    /// A read was taken and completed.
    pub(super) fn done_at_once(&mut self, asked: Asked) {
        let is_told = self.end();
        self.at_once.push((asked, is_told));
    }

    /// What each of them waits for by now, in the ring's order.
    pub(super) fn wait_for(&mut self, all: impl Iterator<Item = WaitsFor>) {
        self.taken.iter_mut().zip(all).for_each(|(taken, next)| taken.wait_for(next, self.turn));
    }

    /// The first one is completed.
    pub(super) const fn completed(&mut self) {
        self.completed = self.completed.saturating_add(1);
    }

    /// All are completed but so many.
    pub(super) fn completed_but(&mut self, left: usize) {
        self.completed = self.taken.len().saturating_sub(left);
    }

    /// What is completed is about to be shown, or was in this moment.
    pub(super) fn end_turn<D: Disk>(&mut self, device: &Device<D>) {
        // Of one that has broken the ring.
        self.end();
        let completed = std::mem::take(&mut self.completed).min(self.taken.len());
        if completed == 0 && self.at_once.is_empty() && self.threshold.is_none() {
            return;
        }
        let now = Instant::now();
        if !self.at_once.is_empty() {
            let took = now.saturating_duration_since(self.turn);
            device.latency().add(Timed::Read, took, self.at_once.len() as u64);
            if self.is_slow(took) {
                for (asked, is_told) in &self.at_once {
                    let end = if *is_told { End::DoneAtLast } else { End::Done };
                    tell(device, self.ring, asked, took, WaitsFor::Media, end);
                }
            }
            self.at_once.clear();
        }
        for taken in self.taken.drain(..completed) {
            if let Some(what) = taken.asked.what {
                device.latency().add(what, now.saturating_duration_since(taken.since), 1);
            }
            let took = taken.took(now);
            if self.threshold.is_some_and(|threshold| took > threshold) {
                let end = if taken.is_told { End::DoneAtLast } else { End::Done };
                tell(device, self.ring, &taken.asked, took, taken.longest(now).0, end);
            }
        }
        self.look_at_waiting(device, now);
    }

    /// Says which are slow that have not ended.
    pub(super) fn look<D: Disk>(&mut self, device: &Device<D>) {
        self.threshold = device.slow().threshold();
        self.look_at_waiting(device, Instant::now());
    }

    fn look_at_waiting<D: Disk>(&mut self, device: &Device<D>, now: Instant) {
        let Self { ring, threshold: Some(threshold), taken, limited, .. } = self else { return };
        let mut is_one_left = false;
        let mut look = |asked: &Asked, took: Duration, waits_for, is_told: &mut bool| {
            if *is_told {
            } else if took > *threshold {
                tell(device, *ring, asked, took, waits_for, End::Waits);
                *is_told = true;
            } else {
                is_one_left = true;
            }
        };
        for taken in taken {
            let took = taken.took(now);
            look(&taken.asked, took, taken.waits_for.0, &mut taken.is_told);
        }
        if let Some(Limited { asked, since, is_told }) = limited {
            look(asked, now.saturating_duration_since(*since), WaitsFor::Limit, is_told);
        }
        if is_one_left {
            device.slow().one_waits();
        }
    }

    fn is_slow(&self, took: Duration) -> bool {
        self.threshold.is_some_and(|threshold| took > threshold)
    }
}

/// Says which requests are slow of those that hold up their workers' threads in the kernel, which cannot say it: memory that they
/// copy from or to does not come.
pub fn tell_held_up<D: Disk>(device: &Device<D>) {
    let Some(threshold) = device.slow().threshold() else { return };
    for hand in device.slow().hands() {
        if let Some((asked, took)) = hand.take_slow(threshold) {
            tell(device, hand.ring(), &asked, took, WaitsFor::Media, End::Waits);
        }
    }
}

/// Whether a request has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Waits,
    Done,
    /// After it was said that it waits.
    DoneAtLast,
}

/// Says that a request is slow. One for which nothing is timed is none of a driver's usual ones.
#[cold]
#[inline(never)]
fn tell<D: Disk>(
    device: &Device<D>,
    ring: u16,
    asked: &Asked,
    took: Duration,
    waits_for: WaitsFor,
    end: End,
) {
    let Some(what) = asked.what else { return };
    if end != End::DoneAtLast {
        device.slow().count();
    }
    if let Some(suppressed) = device.log_limit().admit(Cause::Slow) {
        tracing::warn!(
            name: kinds::REQUEST_SLOW,
            disk = device.identity().name,
            ring,
            operation = what.name(),
            offset = asked.offset,
            bytes = asked.len_bytes,
            seconds = took.as_secs_f64(),
            waited_for = waits_for.word(),
            done = end != End::Waits,
            suppressed,
            "a request is slow"
        );
    }
}
