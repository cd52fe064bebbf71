//! What may be limited, and which limits make sense.

use std::fmt;
use std::num::NonZeroU64;

/// Highest rate that can be given, a second: as in QEMU.
pub const MAX_RATE: u64 = 1_000_000_000_000_000;

/// Longest burst: as many seconds at the highest rate have to be countable. QEMU allows as much.
pub const MAX_BURST_SECONDS: u64 = u32::MAX as u64;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Measure {
    /// Operations of any kind.
    Iops,
    /// Reads.
    IopsRead,
    /// Writes.
    IopsWrite,
    /// Bytes of reads and writes.
    Bps,
    /// Bytes of reads.
    BpsRead,
    /// Bytes of writes.
    BpsWrite,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Iops, Self::IopsRead, Self::IopsWrite, Self::Bps, Self::BpsRead, Self::BpsWrite];

    /// How options call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iops => "iops",
            Self::IopsRead => "iops-rd",
            Self::IopsWrite => "iops-wr",
            Self::Bps => "bps",
            Self::BpsRead => "bps-rd",
            Self::BpsWrite => "bps-wr",
        }
    }

    /// Whether it counts bytes.
    pub const fn is_bytes(self) -> bool {
        matches!(self, Self::Bps | Self::BpsRead | Self::BpsWrite)
    }

    /// The one that counts both directions, of one that counts one.
    const fn total(self) -> Option<Self> {
        match self {
            Self::IopsRead | Self::IopsWrite => Some(Self::Iops),
            Self::BpsRead | Self::BpsWrite => Some(Self::Bps),
            Self::Iops | Self::Bps => None,
        }
    }
}

/// How much a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    /// In the long run.
    pub average: NonZeroU64,
    /// For a while, after times in which less was done.
    pub burst: Option<Burst>,
}

/// A higher rate for some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Burst {
    /// A second.
    pub rate: NonZeroU64,
    /// How long it may last.
    pub seconds: NonZeroU64,
}

/// The limits of a disk, or of each disk of a group together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Limits([Option<Rate>; Measure::ALL.len()]);

/// Limits that make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Both directions together, and one of them.
    #[error("{} and {} both limit the same requests; leave one of them out", total.name(), one.name())]
    Both {
        /// Of both directions.
        total: Measure,
        /// Of one.
        one: Measure,
    },
    /// A burst that is none.
    #[error("{name}-max is lower than {name}; a burst is at least as fast as the average", name = .0.name())]
    SlowBurst(Measure),
    /// More than can be counted.
    #[error("{} is limited to more than can be counted: at most {MAX_RATE} a second, for {MAX_BURST_SECONDS} s", .0.name())]
    TooHigh(Measure),
}

impl LimitError {
    /// What is limited so.
    pub const fn measure(&self) -> Measure {
        match self {
            Self::Both { one: measure, .. } | Self::SlowBurst(measure) | Self::TooHigh(measure) => *measure,
        }
    }
}

impl Limits {
    /// Limits one more measure, or no longer.
    #[must_use]
    pub fn with(mut self, measure: Measure, rate: Option<Rate>) -> Self {
        for (of, place) in Measure::ALL.into_iter().zip(&mut self.0) {
            if of == measure {
                *place = rate;
            }
        }
        self
    }

    /// What a measure is limited to.
    pub fn rate(&self, measure: Measure) -> Option<Rate> {
        self.all().find(|(of, _)| *of == measure).map(|(_, rate)| rate)
    }

    /// What is limited.
    pub fn all(&self) -> impl Iterator<Item = (Measure, Rate)> {
        Measure::ALL.into_iter().zip(self.0).filter_map(|(measure, rate)| Some((measure, rate?)))
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Whether they make sense, as QEMU has it.
    ///
    /// # Errors
    /// [`LimitError`], the first.
    pub fn check(&self) -> Result<(), LimitError> {
        for (measure, rate) in self.all() {
            let burst = rate.burst.map_or(rate.average, |burst| burst.rate);
            let seconds = rate.burst.map_or(1, |burst| burst.seconds.get());
            if burst.get() > MAX_RATE || rate.average.get() > MAX_RATE || seconds > MAX_BURST_SECONDS {
                return Err(LimitError::TooHigh(measure));
            }
            if burst < rate.average {
                return Err(LimitError::SlowBurst(measure));
            }
            if let Some(total) = measure.total().filter(|total| self.rate(*total).is_some()) {
                return Err(LimitError::Both { total, one: measure });
            }
        }
        Ok(())
    }
}

/// As options write them: `iops=1000,iops-max=5000,iops-max-length=10`; `none` if nothing is limited.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (number, (measure, rate)) in self.all().enumerate() {
            let (comma, name) = (if number == 0 { "" } else { "," }, measure.name());
            write!(f, "{comma}{name}={}", rate.average)?;
            if let Some(Burst { rate, seconds }) = rate.burst {
                write!(f, ",{name}-max={rate},{name}-max-length={seconds}")?;
            }
        }
        Ok(())
    }
}
