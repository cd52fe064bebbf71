//! What a driver may expect of the disk after a crash: from the requests alone, and from when they were
//! offered and acknowledged.

use std::ops::Range;

use super::driver::{RINGS, indices_of};
use super::media::Unit;
use super::runner::Trace;
use super::workload::Request;
use crate::copy::recording::{Event, LINE_BYTES, Logged, UNIT_BYTES};

/// What a bad place makes unreadable.
const BAD_BYTES: usize = 4096;

/// From when on a write must survive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// Once it is acknowledged: what `writeback` = 0 means (VIRTIO 1.2 §5.2.6.2), and what we say of media
    /// whose durability is that of the cache line, in either cache mode.
    AtCompletion,
    /// Once a flush is acknowledged that was offered after the write was: what `writeback` = 1 means.
    AtFlush,
}

/// When things happened to a request: after so many events of the log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    offered: Option<usize>,
    acknowledged: Option<usize>,
    /// From here on it is promised to survive.
    durable: Option<usize>,
}

/// Times of all requests of a workload.
pub(super) fn times(trace: &Trace, log: &[Logged], promise: Promise) -> Vec<Times> {
    let mut times = vec![Times::default(); trace.requests.len()];
    for (after, logged) in (1..).zip(log) {
        let Event::Seen(seen) = logged.event else { continue };
        let mut numbers = [0; RINGS];
        for ((ring, _), times) in trace.requests.iter().zip(&mut times) {
            let (used, available) = indices_of(seen, *ring);
            let number = numbers[*ring];
            numbers[*ring] += 1;
            if number < available {
                times.offered.get_or_insert(after);
            }
            if number < used {
                times.acknowledged.get_or_insert(after);
            }
        }
    }
    let flushes: Vec<Times> = trace
        .requests
        .iter()
        .zip(&times)
        .filter_map(|((_, request), times)| request.is_flush().then_some(*times))
        .collect();
    for write in &mut times {
        let covers = |flush: &&Times| write.acknowledged.is_some_and(|at| flush.offered > Some(at));
        write.durable = match promise {
            Promise::AtCompletion => write.acknowledged,
            Promise::AtFlush => flushes.iter().filter(covers).filter_map(|flush| flush.acknowledged).min(),
        };
    }
    times
}

/// What a unit may be because of one request.
#[derive(Debug, Clone, Copy)]
struct Version {
    /// The request; none for what was there at first.
    request: Option<usize>,
    before: Unit,
    value: Unit,
    /// It may never be there, or no more: a discard, or the zeroes that a bad page is mended with.
    is_optional: bool,
    /// The one before is optional: it may have been that or the one before it.
    is_after_optional: bool,
    /// Some bytes may be new and others old, since the guest's buffers meet nearby at an odd place.
    may_tear: bool,
}

impl Version {
    const fn first(value: Unit) -> Self {
        let (is_optional, is_after_optional) = (false, false);
        Self { request: None, before: value, value, is_optional, is_after_optional, may_tear: false }
    }
}

/// Every version of every unit.
#[derive(Debug)]
pub(super) struct Oracle<'a> {
    pub(super) trace: &'a Trace,
    units: Vec<Vec<Version>>,
}

/// What the units may be at one crash point.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    oracle: &'a Oracle<'a>,
    times: &'a [Times],
    after: usize,
}

impl<'p> Oracle<'p> {
    pub(super) fn new(trace: &'p Trace) -> Self {
        let units = trace.before.as_chunks::<UNIT_BYTES>().0.iter();
        let mut oracle = Self { trace, units: units.map(|value| vec![Version::first(*value)]).collect() };
        let mut bad = trace.bad_at.map(|at| at..trace.before.len().min(at + BAD_BYTES));
        for &number in &trace.order {
            let (_, request) = &trace.requests[number];
            let range = request.range();
            let is_discard = matches!(request, Request::Discard { .. });
            if !is_discard
                && let Some(page) = bad.take_if(|bad| range.start <= bad.start && bad.end <= range.end)
            {
                oracle.versions(number, page, true, |_| (Unit::default(), false));
            }
            let value = |at| (std::array::from_fn(|index| request.byte(at + index)), tears(request, at));
            oracle.versions(number, range, is_discard, value);
        }
        oracle
    }

    /// What a request may make of each unit of a range.
    fn versions(
        &mut self,
        request: usize,
        range: Range<usize>,
        is_optional: bool,
        value: impl Fn(usize) -> (Unit, bool),
    ) {
        let covered = range.start / UNIT_BYTES..range.end / UNIT_BYTES;
        for (unit, versions) in covered.clone().zip(&mut self.units[covered]) {
            let (value, may_tear) = value(unit * UNIT_BYTES);
            let is_after_optional = versions.last().is_some_and(|last| last.is_optional);
            let before = versions.iter().rfind(|version| !version.is_optional).map_or(value, |it| it.value);
            let request = Some(request);
            versions.push(Version { request, before, value, is_optional, is_after_optional, may_tear });
        }
    }

    /// What may be there when the crash comes after so many events.
    pub(super) const fn after<'a>(&'a self, after: usize, times: &'a [Times]) -> Expected<'a> {
        Expected { oracle: self, times, after }
    }
}

/// Whether the guest's buffers meet inside of a unit of the line of this one.
fn tears(request: &Request, at: usize) -> bool {
    let line = at - at % LINE_BYTES;
    request.splits_unit_in_line(line..line + LINE_BYTES)
}

impl Expected<'_> {
    /// Whether a unit may have this value: that of the last write that is durable, or of one after it that was
    /// offered.
    pub(super) fn allows(&self, unit: usize, value: Unit) -> bool {
        for version in self.oracle.units[unit].iter().rev() {
            let times = version.request.map(|number| self.times[number]);
            let has_come = |time: Option<usize>| time.is_some_and(|time| time <= self.after);
            if times.is_some_and(|times| !has_come(times.offered)) {
                continue;
            }
            if value == version.value {
                return true;
            }
            if version.is_optional {
                continue;
            }
            if times.is_none_or(|times| has_come(times.durable)) {
                return false;
            }
            let is_torn = |before| is_mixture(value, before, version.value);
            if version.may_tear
                && (is_torn(version.before) || version.is_after_optional && is_torn(Unit::default()))
            {
                return true;
            }
        }
        false
    }
}

fn is_mixture(value: Unit, one: Unit, other: Unit) -> bool {
    value.iter().zip(one.iter().zip(&other)).all(|(byte, (one, other))| byte == one || byte == other)
}
