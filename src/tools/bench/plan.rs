//! What is to be done.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::tools::bench::BenchError;
use crate::virtio::blk::SECTOR_BYTES;

/// Descriptors of a request: header, data, status.
const DESCRIPTORS: u32 = 3;

/// Most descriptors of a queue that back-ends are used to (QEMU's limit).
const MOST_DESCRIPTORS: u32 = 1024;

/// Fewest descriptors of a queue, as a guest under QEMU has by default.
const FEWEST_DESCRIPTORS: u32 = 128;

/// Most memory for buffers, in bytes.
const MOST_BUFFER_BYTES: u64 = 1 << 30;

/// A whole run of the tool.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The back-end, and the one that it is compared with, if any.
    pub peers: Vec<Peer>,
    /// The load.
    pub work: Work,
    /// How long a round takes.
    pub runtime: Duration,
    /// Rounds on each back-end and at each depth.
    pub rounds: NonZeroU16,
    /// Measure the depths 1, 2, 4 … up to that of `work` instead of that one only.
    pub sweep: bool,
    /// Say on standard error how far it is.
    pub progress: bool,
}

/// A back-end.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it listens.
    pub socket: PathBuf,
    /// The process whose CPU time is that of the back-end.
    pub pid: Option<u32>,
}

/// The load on a back-end.
#[derive(Debug, Clone)]
pub struct Work {
    /// Order and direction of the requests.
    pub rw: Rw,
    /// Reads in a hundred requests where both directions occur.
    pub read_percent: u8,
    /// A flush after so many writes of a queue, which is not counted.
    pub flush_every: Option<NonZeroU32>,
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Requests under way in each queue.
    pub depth: NonZeroU16,
    /// Queues, each driven by a thread.
    pub queues: NonZeroU16,
    /// How completions are waited for.
    pub waiting: Waiting,
    /// The queues are packed rings (VIRTIO 1.2 §2.8) instead of split ones.
    pub packed: bool,
    /// Use only so many bytes from the start of the disk.
    pub span_bytes: Option<u64>,
    /// Write what says where and when it was written, and check what is read.
    pub verify: bool,
}

/// How a queue's thread learns of completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// It looks at the used ring without a pause, with notifications switched off.
    Poll,
    /// It sleeps until the back-end's call.
    Event,
}

/// Order and direction, in fio's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rw {
    /// Reads in order.
    Read,
    /// Writes in order.
    Write,
    /// Reads at random places.
    RandRead,
    /// Writes at random places.
    RandWrite,
    /// Both, at random places.
    RandRw,
}

impl Rw {
    const ALL: [Self; 5] = [Self::RandRead, Self::RandWrite, Self::RandRw, Self::Read, Self::Write];

    /// Any of the requests is a write.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite | Self::RandRw)
    }

    /// The places are in no order.
    pub const fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }

    /// Its word on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::RandRw => "randrw",
        }
    }
}

impl fmt::Display for Rw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Rw {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|rw| rw.word() == text);
        found.ok_or_else(|| "write randread, randwrite, randrw, read or write".to_owned())
    }
}

impl Work {
    /// Refuses what no back-end could do.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        if self.block_bytes == 0 || !u64::from(self.block_bytes).is_multiple_of(SECTOR_BYTES) {
            return Err(BenchError::BlockSize { bytes: self.block_bytes });
        }
        if self.descriptors() > MOST_DESCRIPTORS {
            return Err(BenchError::Depth { depth: self.depth, most: MOST_DESCRIPTORS / DESCRIPTORS });
        }
        let bytes = self.slot_bytes() * u64::from(self.depth.get()) * u64::from(self.queues.get());
        if bytes > MOST_BUFFER_BYTES {
            return Err(BenchError::Buffers { bytes, most: MOST_BUFFER_BYTES });
        }
        Ok(())
    }

    /// Size of a queue, a power of two.
    pub(super) fn descriptors(&self) -> u32 {
        (u32::from(self.depth.get()) * DESCRIPTORS).next_power_of_two().max(FEWEST_DESCRIPTORS)
    }

    /// Bytes from one buffer to the next: whole pages.
    pub(super) fn slot_bytes(&self) -> u64 {
        u64::from(self.block_bytes).next_multiple_of(4096)
    }

    /// The same load at another depth.
    pub(super) fn at(&self, depth: NonZeroU16) -> Self {
        Self { depth, ..self.clone() }
    }
}

impl Plan {
    /// The depths to measure, the last of which is that of the load.
    pub(super) fn depths(&self) -> Vec<NonZeroU16> {
        let last = self.work.depth;
        let mut depths = Vec::new();
        let mut depth = NonZeroU16::MIN;
        while self.sweep && depth < last {
            depths.push(depth);
            depth = depth.saturating_mul(NonZeroU16::MIN.saturating_add(1));
        }
        depths.push(last);
        depths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(depth: u16, sweep: bool) -> Plan {
        let work = Work {
            rw: Rw::RandRead,
            read_percent: 50,
            flush_every: None,
            block_bytes: 4096,
            depth: NonZeroU16::new(depth).unwrap(),
            queues: NonZeroU16::MIN,
            waiting: Waiting::Poll,
            packed: false,
            span_bytes: None,
            verify: false,
        };
        Plan {
            peers: Vec::new(),
            work,
            runtime: Duration::ZERO,
            rounds: NonZeroU16::MIN,
            sweep,
            progress: false,
        }
    }

    fn depths(depth: u16, sweep: bool) -> Vec<u16> {
        plan(depth, sweep).depths().into_iter().map(NonZeroU16::get).collect()
    }

    #[test]
    fn a_sweep_doubles_up_to_the_depth() {
        assert_eq!(depths(32, false), [32]);
        assert_eq!(depths(1, true), [1]);
        assert_eq!(depths(8, true), [1, 2, 4, 8]);
        assert_eq!(depths(12, true), [1, 2, 4, 8, 12]);
    }

    #[test]
    fn a_queue_has_room_for_the_depth() {
        for (depth, descriptors) in [(1, 128), (42, 128), (43, 256), (341, 1024)] {
            let work = plan(depth, false).work;
            assert_eq!(work.descriptors(), descriptors, "{depth}");
            assert!(work.check().is_ok(), "{depth}");
        }
        assert!(matches!(plan(342, false).work.check(), Err(BenchError::Depth { most: 341, .. })));
    }

    #[test]
    fn impossible_blocks_and_buffers_are_refused() {
        for bytes in [0, 511, 513] {
            let work = Work { block_bytes: bytes, ..plan(1, false).work };
            assert!(matches!(work.check(), Err(BenchError::BlockSize { .. })), "{bytes}");
        }
        let work = Work { block_bytes: 128 << 20, ..plan(9, false).work };
        assert!(matches!(work.check(), Err(BenchError::Buffers { .. })));
    }

    #[test]
    fn words_are_those_of_fio() {
        for rw in Rw::ALL {
            assert_eq!(rw.to_string().parse(), Ok(rw));
        }
        assert!("trim".parse::<Rw>().is_err());
    }
}
