//! How long requests take, from when they are taken from their ring until they are shown as used: a histogram for each operation
//! of a disk.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtio_bindings::bindings::virtio_blk as spec;

use super::request::kind;
use crate::virtio::queue::Header;

/// What is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Timed {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
    /// A discard.
    Discard,
    /// Zeroes.
    WriteZeroes,
}

impl Timed {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::WriteZeroes];

    /// As metrics call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write_zeroes",
        }
    }

    /// What a request asks for; none where that is not timed.
    pub const fn of(header: &Header) -> Option<Self> {
        match kind(header) {
            spec::VIRTIO_BLK_T_IN => Some(Self::Read),
            spec::VIRTIO_BLK_T_OUT => Some(Self::Write),
            spec::VIRTIO_BLK_T_FLUSH => Some(Self::Flush),
            spec::VIRTIO_BLK_T_DISCARD => Some(Self::Discard),
            spec::VIRTIO_BLK_T_WRITE_ZEROES => Some(Self::WriteZeroes),
            _ => None,
        }
    }
}

/// Borders are powers of two, in nanoseconds: from 256 ns.
const FIRST_BORDER: u32 = 8;

/// How many borders there are: up to 8.6 s.
const BORDERS: usize = 26;

/// What there is of one operation.
#[derive(Debug, Default)]
struct Histogram {
    /// Up to each border and above the one before it; the last has what is above all.
    counts: [AtomicU64; BORDERS + 1],
    sum_ns: AtomicU64,
}

/// The histograms of a disk: made when its first ring starts, and added to by the workers of all of them.
#[derive(Debug, Default)]
pub struct Latency(OnceLock<Box<[Histogram; Timed::ALL.len()]>>);

/// A histogram at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LatencyCounts {
    /// As [`Histogram::counts`].
    counts: [u64; BORDERS + 1],
    sum_ns: u64,
}

impl Latency {
    /// Makes room (D7).
    pub fn prepare(&self) {
        self.0.get_or_init(Box::default);
    }

    /// So many requests took that long.
    pub fn add(&self, what: Timed, took: Duration, requests: u64) {
        let Some(histogram) = self.0.get().and_then(|all| all.get(what as usize)) else { return };
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = histogram.counts.get(bucket(ns)) {
            count.fetch_add(requests, Ordering::Relaxed);
        }
        histogram.sum_ns.fetch_add(ns.saturating_mul(requests), Ordering::Relaxed);
    }

    /// What there is of an operation.
    pub fn counts(&self, what: Timed) -> LatencyCounts {
        let Some(histogram) = self.0.get().and_then(|all| all.get(what as usize)) else {
            return LatencyCounts::default();
        };
        LatencyCounts {
            counts: std::array::from_fn(|place| {
                histogram.counts.get(place).map_or(0, |count| count.load(Ordering::Relaxed))
            }),
            sum_ns: histogram.sum_ns.load(Ordering::Relaxed),
        }
    }
}

/// The place of the first border that is not lower.
fn bucket(ns: u64) -> usize {
    let power = u64::BITS.saturating_sub(ns.saturating_sub(1).leading_zeros());
    usize::try_from(power.saturating_sub(FIRST_BORDER)).unwrap_or(BORDERS).min(BORDERS)
}

impl LatencyCounts {
    /// How many requests.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// How long all of them took.
    pub const fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// Each border in seconds, and how many requests took no longer.
    pub fn borders(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut sum = 0_u64;
        self.counts.iter().take(BORDERS).enumerate().map(move |(place, count)| {
            sum = sum.saturating_add(*count);
            (border(place), sum)
        })
    }

    /// The border that this share of the requests did not exceed; none without requests, or where it is above all.
    pub fn quantile_seconds(&self, share: f64) -> Option<f64> {
        let wanted = self.count() as f64 * share;
        let count = self.count();
        self.borders().find(|(_, sum)| count > 0 && *sum as f64 >= wanted).map(|(border, _)| border)
    }
}

fn border(place: usize) -> f64 {
    (1_u64 << (FIRST_BORDER as usize).saturating_add(place).min(63)) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_bucket_whose_border_it_does_not_exceed() {
        for (ns, border_ns) in
            [(0, 256_u64), (1, 256), (256, 256), (257, 512), (1_000_000, 1 << 20), (1 << 33, 1 << 33)]
        {
            assert_eq!(border(bucket(ns)), border_ns as f64 / 1e9, "{ns}");
        }
        assert_eq!((bucket((1 << 33) + 1), bucket(u64::MAX)), (BORDERS, BORDERS));
    }

    #[test]
    fn what_is_added_is_told() {
        let latency = Latency::default();
        latency.add(Timed::Read, Duration::from_secs(1), 1);
        assert_eq!(latency.counts(Timed::Read).count(), 0, "there is no room yet");
        latency.prepare();
        latency.add(Timed::Read, Duration::from_micros(1), 98);
        latency.add(Timed::Read, Duration::from_millis(1), 1);
        latency.add(Timed::Read, Duration::from_secs(100), 1);
        let counts = latency.counts(Timed::Read);
        assert_eq!((counts.count(), counts.sum_seconds()), (100, 100.001_098));
        assert_eq!(counts.quantile_seconds(0.5), Some(1024e-9));
        assert_eq!(counts.quantile_seconds(0.99), Some(f64::from(1 << 20) / 1e9));
        assert_eq!(counts.quantile_seconds(1.0), None, "it is above all borders");
        assert_eq!(counts.borders().last(), Some((8.589_934_592, 99)));
        assert_eq!(latency.counts(Timed::Write), LatencyCounts::default());
        assert_eq!(LatencyCounts::default().quantile_seconds(0.5), None);
    }
}
