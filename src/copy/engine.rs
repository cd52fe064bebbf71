//! Which routines this CPU gets: chosen once, then called by pointer.

use std::ffi::OsString;
use std::fmt;
use std::sync::OnceLock;

use super::line::{Kernel, LINE_BYTES, LineKernel};
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::x86_64::{cpu::Cpu, kernels};

/// The environment variable that overrides the choice, with one of the names of [`Stores`].
pub const OVERRIDE: &str = "VHOST_USER_PMEM_COPY";

/// How bytes are stored into the media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stores {
    /// Non-temporal stores of 64 bytes (AVX-512F).
    Nt64,
    /// Non-temporal stores of 32 bytes (AVX).
    Nt32,
    /// Non-temporal stores of 16 bytes (SSE2).
    Nt16,
    /// Ordinary stores, whose lines are flushed afterwards; faults in them are not contained.
    Portable,
}

impl Stores {
    /// The best first: stores of 32 bytes were 2 to 7 % faster than those of 64 up to 4 KiB, and never slower
    /// (`cargo bench --bench copy -- writes`, November 2026, AMD EPYC, Zen 4, the only CPU tried).
    pub const ALL: [Self; 4] = [Self::Nt32, Self::Nt64, Self::Nt16, Self::Portable];

    /// As the override spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nt64 => "nt64",
            Self::Nt32 => "nt32",
            Self::Nt16 => "nt16",
            Self::Portable => "portable",
        }
    }
}

/// How cache lines are written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFlush {
    /// Written back, and kept if the CPU likes.
    Clwb,
    /// Written back and dropped.
    Clflushopt,
    /// Written back and dropped, one after the other.
    Clflush,
    /// Not at all: no backing may be called durable by its cache lines here.
    None,
}

impl LineFlush {
    /// The best first.
    pub const ALL: [Self; 4] = [Self::Clwb, Self::Clflushopt, Self::Clflush, Self::None];

    const fn name(self) -> &'static str {
        match self {
            Self::Clwb => "clwb",
            Self::Clflushopt => "clflushopt",
            Self::Clflush => "clflush",
            Self::None => "nothing",
        }
    }
}

/// Why the override is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{OVERRIDE}={value}: {cause}; use one of {available}, or unset it")]
pub struct EngineError {
    value: String,
    cause: &'static str,
    available: String,
}

/// A set of routines that this CPU can run.
#[derive(Clone, Copy)]
pub struct Engine {
    stores: Stores,
    line_flush: LineFlush,
    /// Copies multiples of 64 bytes by ordinary moves.
    pub(super) copy: LineKernel,
    /// What destination and length of a copy into the media have no bits of if `stream` alone can do it.
    pub(super) odd_mask: usize,
    /// Copies whole lines into the media.
    pub(super) stream: LineKernel,
    /// Zeroes whole lines of the media.
    pub(super) zero: LineKernel,
    /// Writes whole lines back.
    pub(super) flush: Kernel,
}

static CHOSEN: OnceLock<Engine> = OnceLock::new();

impl Engine {
    /// What the process uses: the override if it is good, else the best there is.
    #[inline]
    pub fn get() -> &'static Self {
        #[cfg(test)]
        if let Some(recording) = super::recording::engine() {
            return recording;
        }
        CHOSEN.get_or_init(|| Self::overridden().ok().flatten().unwrap_or_else(Self::best))
    }

    /// As [`get`](Self::get), at the start of a program, which should not go on with a bad override.
    ///
    /// # Errors
    /// [`EngineError`]: the override names nothing, or nothing that this CPU has.
    pub fn choose() -> Result<&'static Self, EngineError> {
        Self::overridden()?;
        Ok(Self::get())
    }

    /// The best there is.
    pub fn best() -> Self {
        let combinations =
            Stores::ALL.into_iter().flat_map(|stores| LineFlush::ALL.map(|line| (stores, line)));
        // The portable one is always there.
        combinations.into_iter().find_map(|(stores, line)| Self::with(stores, line)).unwrap_or(PORTABLE)
    }

    /// These routines, if this CPU can run them.
    #[cfg(target_arch = "x86_64")]
    pub fn with(stores: Stores, line_flush: LineFlush) -> Option<Self> {
        static CPU: OnceLock<Cpu> = OnceLock::new();
        let cpu = CPU.get_or_init(Cpu::detect);
        let (is_there, stream, zero): (_, LineKernel, LineKernel) = match stores {
            Stores::Nt64 => (cpu.avx512f, kernels::stream64, kernels::zero64),
            Stores::Nt32 => (cpu.avx, kernels::stream32, kernels::zero32),
            Stores::Nt16 => (true, kernels::stream16, kernels::zero16),
            Stores::Portable => (true, portable::copy, portable::zero),
        };
        let copy: LineKernel = match stores {
            Stores::Portable => portable::copy,
            Stores::Nt64 => kernels::copy64,
            Stores::Nt32 => kernels::copy32,
            Stores::Nt16 => kernels::copy16,
        };
        let (can_flush, flush): (_, Kernel) = match line_flush {
            LineFlush::Clwb => (cpu.clwb, kernels::clwb),
            LineFlush::Clflushopt => (cpu.clflushopt, kernels::clflushopt),
            LineFlush::Clflush => (cpu.clflush, kernels::clflush),
            // Never chosen: every x86_64 has clflush.
            LineFlush::None => return None,
        };
        let odd_mask = if stores == Stores::Portable { usize::MAX } else { LINE_BYTES - 1 };
        let engine = Self { stores, line_flush, copy, odd_mask, stream, zero, flush };
        (is_there && can_flush).then_some(engine)
    }

    /// These routines, if this CPU can run them.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn with(stores: Stores, line_flush: LineFlush) -> Option<Self> {
        (stores == PORTABLE.stores && line_flush == PORTABLE.line_flush).then_some(PORTABLE)
    }

    /// Every set that this CPU can run, the best first.
    pub fn available() -> Vec<Self> {
        let with_each = |stores| LineFlush::ALL.into_iter().filter_map(move |line| Self::with(stores, line));
        Stores::ALL.into_iter().flat_map(with_each).collect()
    }

    /// How it stores.
    #[inline]
    pub const fn stores(&self) -> Stores {
        self.stores
    }

    /// How it writes cache lines back.
    pub const fn line_flush(&self) -> LineFlush {
        self.line_flush
    }

    /// Whether a write with [`Persist::Lines`](super::Persist::Lines) is durable after a fence. If not, no
    /// backing is better than page-durable here.
    pub fn flushes_lines(&self) -> bool {
        self.line_flush != LineFlush::None
    }

    /// In words, for the log.
    pub fn describe(&self) -> String {
        let (stores, loads) = match self.stores {
            Stores::Nt64 => ("non-temporal stores of 64 bytes (AVX-512)", "moves of 64"),
            Stores::Nt32 => ("non-temporal stores of 32 bytes (AVX)", "moves of 32"),
            Stores::Nt16 => ("non-temporal stores of 16 bytes (SSE2)", "moves of 16"),
            Stores::Portable => ("ordinary stores, faults are not contained", "ordinary moves"),
        };
        let flush = self.line_flush.name();
        format!("writes by {stores}, reads by {loads}, partial lines flushed by {flush}")
    }

    /// What the environment asks for.
    fn overridden() -> Result<Option<Self>, EngineError> {
        std::env::var_os(OVERRIDE).map(Self::named).transpose()
    }

    fn named(value: OsString) -> Result<Self, EngineError> {
        let available: Vec<_> = Self::available();
        let names: Vec<_> = Stores::ALL
            .into_iter()
            .filter(|stores| available.iter().any(|engine| engine.stores == *stores))
            .map(Stores::name)
            .collect();
        let known = Stores::ALL.into_iter().find(|stores| value == stores.name());
        let cause = if known.is_some() { "this CPU does not have it" } else { "there is no such engine" };
        let engine = available.iter().find(|engine| Some(engine.stores) == known);
        engine.copied().ok_or_else(|| EngineError {
            value: value.to_string_lossy().into_owned(),
            cause,
            available: names.join(", "),
        })
    }
}

/// What every CPU has.
const PORTABLE: Engine = Engine {
    stores: Stores::Portable,
    line_flush: LineFlush::None,
    copy: portable::copy,
    odd_mask: usize::MAX,
    stream: portable::copy,
    zero: portable::zero,
    flush: portable::flush,
};

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({}, {})", self.stores.name(), self.line_flush.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_of_this_cpu_can_be_asked_for_by_name() {
        let available = Engine::available();
        assert_eq!(format!("{:?}", Engine::best()), format!("{:?}", available[0]));
        for engine in &available {
            let named = Engine::named(engine.stores.name().into()).unwrap();
            assert_eq!(named.stores, engine.stores);
            assert!(engine.describe().contains(engine.line_flush.name()));
        }
        assert!(available.iter().any(|engine| engine.stores == Stores::Portable));
    }

    #[test]
    fn what_is_not_there_is_refused_with_what_is() {
        let error = Engine::named("NT64".into()).unwrap_err().to_string();
        assert!(
            error.starts_with("VHOST_USER_PMEM_COPY=NT64: there is no such engine; use one of "),
            "{error}"
        );
        assert!(error.ends_with("portable, or unset it"), "{error}");
        for stores in Stores::ALL {
            let is_there = Engine::available().iter().any(|engine| engine.stores == stores);
            assert_eq!(Engine::named(stores.name().into()).is_ok(), is_there);
            assert_eq!(error.contains(stores.name()), is_there);
        }
    }
}
