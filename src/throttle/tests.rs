//! The limits against an exact model, in a time of their own.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::bucket::Throttle;
use super::clock::{TICKS_PER_NANO, TICKS_PER_SECOND};
use super::limits::{Burst, LimitError, Limits, Measure, Rate};
use super::share::{Admission, Kind, Moment, Share};

fn rate(average: u64, burst: Option<(u64, u64)>) -> Rate {
    let number = |it| NonZeroU64::new(it).unwrap();
    let burst = burst.map(|(rate, seconds)| Burst { rate: number(rate), seconds: number(seconds) });
    Rate { average: number(average), burst }
}

fn limits(measure: Measure, average: u64, burst: Option<(u64, u64)>) -> Limits {
    Limits::default().with(measure, Some(rate(average, burst)))
}

/// QEMU's rules (util/throttle.c of 9.2), in exact numbers: a level in units × ticks × seconds.
struct Model {
    average: u128,
    burst: Option<(u128, u128)>,
    level: u128,
    burst_level: u128,
    last: u64,
}

impl Model {
    fn new(average: u64, burst: Option<(u64, u64)>) -> Self {
        let burst = burst.map(|(rate, seconds)| (rate.into(), seconds.into()));
        Self { average: average.into(), burst, level: 0, burst_level: 0, last: 0 }
    }

    /// Whether a request may be taken at this time, which is then counted.
    fn takes(&mut self, units: u64, now: u64) -> bool {
        const SECOND: u128 = TICKS_PER_SECOND as u128;
        let passed = u128::from(now - self.last);
        self.last = now;
        self.level = self.level.saturating_sub(self.average * passed);
        let holds = match self.burst {
            None => self.average * SECOND / 10,
            Some((rate, seconds)) => rate * seconds * SECOND,
        };
        if let Some((rate, _)) = self.burst {
            self.burst_level = self.burst_level.saturating_sub(rate * passed);
        }
        let is_slow =
            self.burst.is_some_and(|(rate, seconds)| seconds > 1 && self.burst_level > rate * SECOND / 10);
        if self.level > holds || is_slow {
            return false;
        }
        self.level += u128::from(units) * SECOND;
        self.burst_level += u128::from(units) * SECOND;
        true
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end.max(1)
    }
}

/// A ring that asks at random times, and as often as it may at each, has never been given more than by QEMU, or less, by more than
/// a quantum.
#[test]
fn operations_are_those_of_qemu() {
    for seed in 0..48 {
        let mut random = Random(seed);
        let average = 1 + random.below(10_u64.pow(1 + (seed % 4) as u32));
        let burst = (seed % 3 != 0).then(|| (average + random.below(average * 9), 1 + random.below(5)));
        let mut share = Share::new(Arc::new(Throttle::new(limits(Measure::Iops, average, burst))));
        let (mut model, mut greedy) = (Model::new(average, burst), Model::new(average, burst));
        let quantum = (burst.map_or(average, |it| it.0) / 500).max(1);
        let (mut now, mut given, mut of_model, mut of_greedy) = (1, 0_u64, 0_u64, 0_u64);
        let mut asked = 0;
        for _ in 0..200 {
            // Often enough that no bucket runs empty while there is something to do.
            now += random.below(TICKS_PER_SECOND / 25);
            asked += random.below(average / 20 + 2).min(2000) * random.below(20) / random.below(20).max(1);
            while given < asked && share.admit(Kind::Read, Moment(now)) == Admission::Taken {
                share.count(Kind::Read);
                given += 1;
            }
            if given < asked {
                share.resume();
            } else {
                share.rest(Moment(now));
            }
            while of_model < given && model.takes(1, now) {
                of_model += 1;
            }
            while of_greedy < asked && greedy.takes(1, now) {
                of_greedy += 1;
            }
            // A tick early is not more.
            assert!(given <= of_model + 1, "seed {seed}: {given} and not {of_model} at {now}");
            assert!(given + quantum + 1 >= of_greedy, "seed {seed}: {given} and not {of_greedy} at {now}");
        }
    }
}

/// Always backlogged rings of any rate, sizes and number, which are woken late: the sum is the average, with one bucket at the start;
/// and each has as much as the others.
#[test]
fn rings_share_fairly_and_exactly() {
    let cases: [(Measure, u64, u64, &[u64]); 7] = [
        (Measure::Iops, 1000, 20, &[1, 1]),
        (Measure::Iops, 10_000, 5, &[1; 10]),
        (Measure::Iops, 1_000_000, 1, &[1, 1, 1]),
        (Measure::Iops, 7, 40, &[1, 1]),
        (Measure::Bps, 100_000_000, 5, &[4096, 4096]),
        (Measure::Bps, 20_000_000, 10, &[4096, 1 << 20]),
        (Measure::Bps, 1_000_000, 40, &[512, 4096, 65536]),
    ];
    for (case, (measure, average, seconds, sizes)) in cases.into_iter().enumerate() {
        let throttle = Arc::new(Throttle::new(limits(measure, average, None)));
        let mut rings: Vec<_> =
            sizes.iter().map(|size| (Share::new(throttle.clone()), *size, 0_u64)).collect();
        let mut random = Random(case as u64);
        let mut now = 1;
        while now < seconds * TICKS_PER_SECOND {
            // A worker sleeps for a millisecond at the least, and in turns of up to 32 requests each ring does what it may.
            now += TICKS_PER_NANO * (1_000_000 + random.below(1_500_000));
            // And is not always the first.
            rings.rotate_left(1);
            let mut has_any = true;
            while has_any {
                has_any = false;
                for (share, size, done) in &mut rings {
                    for _ in 0..32 {
                        if share.admit(Kind::Write, Moment(now)) != Admission::Taken {
                            break;
                        }
                        has_any = true;
                        share.count(Kind::Write);
                        share.count_bytes(Kind::Write, *size);
                        *done += *size;
                    }
                }
            }
        }
        let sum: u64 = rings.iter().map(|ring| ring.2).sum();
        let wanted = average * seconds + average / 10;
        let largest = sizes.iter().max().unwrap();
        let slack = (wanted / 200).max(2 * sizes.len() as u64 * largest);
        assert!(sum.abs_diff(wanted) <= slack, "{measure:?} {average}: {sum} and not {wanted}");
        for (_, _, done) in &rings {
            let fair = sum / rings.len() as u64;
            assert!(
                done.abs_diff(fair) <= (fair / 20).max(2 * largest),
                "{measure:?} {average}: {done} and not {fair}"
            );
        }
    }
}

/// A burst lasts as long as it is to, at its rate; then the average holds.
#[test]
fn a_burst_ends() {
    let mut share = Share::new(Arc::new(Throttle::new(limits(Measure::Iops, 100, Some((1000, 5))))));
    let mut done_by = |seconds: u64, from: u64| {
        let mut done = 0;
        for millis in from * 1000..(from + seconds) * 1000 {
            let now = Moment(1 + millis * 1_000_000 * TICKS_PER_NANO);
            while share.admit(Kind::Read, now) == Admission::Taken {
                share.count(Kind::Read);
                done += 1;
            }
            share.resume();
        }
        done
    };
    // 5000 fit in it while 100 leak each second: 1000 a second for 5.6 s.
    assert!((5050..=5150).contains(&done_by(5, 0)));
    let rest = done_by(5, 5);
    assert!((850..=1050).contains(&rest), "{rest}");
    let average = done_by(10, 10);
    assert!((995..=1005).contains(&average), "{average}");
}

#[test]
fn each_kind_has_its_limits() {
    let both = limits(Measure::IopsRead, 10, None).with(Measure::IopsWrite, Some(rate(10, None)));
    let take = |share: &mut Share, kind| {
        let mut taken = 0;
        while share.admit(kind, Moment(1)) == Admission::Taken {
            share.count(kind);
            taken += 1;
        }
        share.resume();
        taken
    };
    let mut share = Share::new(Arc::new(Throttle::new(both)));
    assert!(share.is_by_kind());
    assert_eq!((take(&mut share, Kind::Read), take(&mut share, Kind::Read)), (2, 0));
    assert_eq!((take(&mut share, Kind::Other), take(&mut share, Kind::Write)), (0, 2));
    // What is neither counts for both.
    let mut share = Share::new(Arc::new(Throttle::new(both)));
    assert_eq!((take(&mut share, Kind::Other), take(&mut share, Kind::Write)), (2, 0));
    assert_eq!(take(&mut share, Kind::Read), 0);
    // And no bytes.
    let mut share = Share::new(Arc::new(Throttle::new(limits(Measure::BpsRead, 10_000, None))));
    share.count_bytes(Kind::Read, 1 << 20);
    assert_eq!(share.admit(Kind::Read, Moment(1)), Admission::Held);
    assert_eq!(share.admit(Kind::Read, Moment(1)), Admission::StillHeld);
    assert_eq!(share.admit(Kind::Other, Moment(1)), Admission::Taken);
    assert_eq!(share.admit(Kind::Write, Moment(1)), Admission::Taken);
}

/// A ring that comes anew, or others of the disk, get nothing by that.
#[test]
fn what_is_owed_stays_with_the_disk() {
    let throttle = Arc::new(Throttle::new(limits(Measure::Bps, 1000, None)));
    let mut first = Share::new(throttle.clone());
    assert_eq!(first.admit(Kind::Write, Moment(1)), Admission::Taken);
    first.count_bytes(Kind::Write, 10_000);
    first.rest(Moment(1));
    let mut second = Share::new(throttle.clone());
    let at = |seconds: u64| Moment(1 + seconds * TICKS_PER_SECOND);
    assert_eq!(second.admit(Kind::Write, at(9)), Admission::Held);
    assert_eq!(second.admit(Kind::Write, at(10)), Admission::Taken);
    // And what is left goes back.
    second.rest(at(10));
    let mut third = Share::new(throttle);
    assert_eq!(third.admit(Kind::Write, at(10)), Admission::Taken);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let with = |limits: Limits, measure, average, burst| limits.with(measure, Some(rate(average, burst)));
    let iops = limits(Measure::Iops, 100, None);
    assert_eq!(iops.check(), Ok(()));
    assert_eq!(
        with(iops, Measure::IopsRead, 1, None).check(),
        Err(LimitError::Both { total: Measure::Iops, one: Measure::IopsRead })
    );
    assert_eq!(with(iops, Measure::BpsWrite, 1, Some((1, 1))).check(), Ok(()));
    assert_eq!(limits(Measure::Bps, 2, Some((1, 1))).check(), Err(LimitError::SlowBurst(Measure::Bps)));
    assert_eq!(limits(Measure::Bps, u64::MAX, None).check(), Err(LimitError::TooHigh(Measure::Bps)));
    assert_eq!(limits(Measure::Bps, 1, Some((1, u64::MAX))).check(), Err(LimitError::TooHigh(Measure::Bps)));
    assert_eq!(
        limits(Measure::Iops, 100, Some((200, 3))).to_string(),
        "iops=100,iops-max=200,iops-max-length=3"
    );
    assert_eq!(Limits::default().to_string(), "none");
}

/// The highest and the lowest numbers do not overflow.
#[test]
fn extremes_are_counted() {
    for (average, burst) in
        [(1, None), (u64::MAX, None), (1, Some((super::MAX_RATE, super::MAX_BURST_SECONDS)))]
    {
        let mut share = Share::new(Arc::new(Throttle::new(limits(Measure::Bps, average, burst))));
        for _ in 0..3 {
            let _ = share.admit(Kind::Write, Moment(1));
            share.count_bytes(Kind::Write, u64::MAX);
        }
        let _ = share.admit(Kind::Write, Moment(u64::MAX / 2));
        share.rest(Moment(u64::MAX));
    }
}
