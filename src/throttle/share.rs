//! What one ring has of the limits of its disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bucket::{Bucket, Throttle};
use super::clock::{self, TICKS_PER_NANO, Ticks};
use super::limits::Measure;

/// A moment by the clock of the limits: read once for several requests.
#[derive(Debug, Clone, Copy)]
pub struct Moment(pub(super) Ticks);

impl Moment {
    /// This one.
    pub fn now() -> Self {
        Self(clock::now())
    }
}

/// What kind of request is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes go to the guest.
    Read,
    /// Bytes of the disk change: also DISCARD and WRITE_ZEROES.
    Write,
    /// Anything else: FLUSH, GET_ID, and what is refused.
    Other,
}

impl Kind {
    /// Whether a measure counts it.
    const fn counts_for(self, measure: Measure) -> bool {
        match measure {
            Measure::Iops => true,
            Measure::IopsRead => !matches!(self, Self::Write),
            Measure::IopsWrite => !matches!(self, Self::Read),
            Measure::Bps => !matches!(self, Self::Other),
            Measure::BpsRead => matches!(self, Self::Read),
            Measure::BpsWrite => matches!(self, Self::Write),
        }
    }
}

/// What a ring has reserved, and has not used.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    /// Below zero: it is in debt.
    credit: i64,
    /// When it may be used.
    ready: Ticks,
    /// It could not be when it was reserved.
    is_awaited: bool,
}

/// What one ring has of the limits of its disk, and whether they hold it. What is left goes back when it is dropped.
#[derive(Debug)]
pub struct Share {
    throttle: Arc<Throttle>,
    accounts: [Account; Measure::ALL.len()],
    /// Since when, and until when.
    held: Option<(Ticks, Ticks)>,
}

impl Share {
    /// Of a ring that has just come.
    pub fn new(throttle: Arc<Throttle>) -> Self {
        Self { throttle, accounts: Default::default(), held: None }
    }

    /// The limits.
    pub const fn throttle(&self) -> &Arc<Throttle> {
        &self.throttle
    }

    /// Whether it matters which kind the next request is of.
    pub fn is_by_kind(&self) -> bool {
        let is_total = |measure| matches!(measure, Measure::Iops | Measure::Bps);
        self.throttle.limits().all().any(|(measure, _)| !is_total(measure))
    }

    /// Whether a request of this kind may be taken now. If not, the ring is held from now on.
    pub fn admit(&mut self, kind: Kind, Moment(now): Moment) -> Admission {
        let Self { throttle, accounts, held } = self;
        let mut until = now;
        for ((measure, bucket), account) in Measure::ALL.into_iter().zip(throttle.buckets()).zip(accounts) {
            if let Some(bucket) = bucket
                && kind.counts_for(measure)
            {
                until = until.max(account.pay(bucket, now));
            }
        }
        if until <= now {
            return Admission::Taken;
        }
        let is_new = held.is_none();
        let since = held.map_or(now, |(since, _)| since);
        *held = Some((since, until));
        if is_new { Admission::Held } else { Admission::StillHeld }
    }

    /// Counts a request that was taken.
    pub fn count(&mut self, kind: Kind) {
        self.charge(kind, 1, |measure| !measure.is_bytes());
    }

    /// Counts bytes that it moves.
    pub fn count_bytes(&mut self, kind: Kind, bytes: u64) {
        self.charge(kind, bytes, Measure::is_bytes);
    }

    fn charge(&mut self, kind: Kind, units: u64, is_counted: impl Fn(Measure) -> bool) {
        let units = i64::try_from(units).unwrap_or(i64::MAX);
        for (measure, account) in Measure::ALL.into_iter().zip(&mut self.accounts) {
            if kind.counts_for(measure) && is_counted(measure) {
                account.credit = account.credit.saturating_sub(units);
            }
        }
    }

    /// Whether the ring is held.
    pub const fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Until when it is.
    pub fn held_until(&self) -> Option<Instant> {
        self.held.map(|(_, until)| clock::instant(until))
    }

    /// It is held no longer. Returns for how long it was.
    pub fn resume(&mut self) -> Duration {
        let Some((since, _)) = self.held.take() else { return Duration::ZERO };
        Duration::from_nanos(clock::now().saturating_sub(since) / TICKS_PER_NANO)
    }

    /// Its ring has nothing to do: what it has reserved goes back, and what it owes is paid in the end.
    pub fn rest(&mut self, Moment(now): Moment) {
        let Self { throttle, accounts, .. } = self;
        for (bucket, account) in throttle.buckets().iter().zip(accounts) {
            let Account { credit, .. } = std::mem::take(account);
            match bucket {
                Some(bucket) if credit > 0 => bucket.give_back(credit.unsigned_abs()),
                Some(bucket) if credit < 0 => _ = bucket.reserve(credit.unsigned_abs(), now),
                _ => {}
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.rest(Moment::now());
    }
}

/// Whether a request may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Taken,
    /// Its ring is held, from now on.
    Held,
    /// It was held already.
    StillHeld,
}

impl Account {
    /// Pays a quantum after another, as far as they are due, until nothing is owed. Returns when the next request may be taken.
    fn pay(&mut self, bucket: &Bucket, now: Ticks) -> Ticks {
        let mut units = bucket.quantum;
        while self.ready <= now {
            if std::mem::take(&mut self.is_awaited) {
                bucket.keep(self.credit.max(0).unsigned_abs(), now);
            }
            if self.credit > 0 {
                break;
            }
            self.ready = bucket.reserve(units, now);
            self.credit = self.credit.saturating_add_unsigned(units);
            self.is_awaited = self.ready > now;
            // Few steps, however much is owed.
            units = units.saturating_mul(2).min(self.credit.min(0).unsigned_abs().max(bucket.quantum));
        }
        self.ready
    }
}
