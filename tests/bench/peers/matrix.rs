//! What is measured, and how it is shown.

use std::num::NonZeroU16;
use std::time::Duration;

use vhost_user_pmem::bench::{Peer, Plan, RoundReport, Rw, Waiting, Work};

/// A load; each of `shows` makes a line of the table.
pub struct Row {
    pub name: &'static str,
    pub rw: Rw,
    pub block_bytes: u32,
    pub depth: u16,
    waiting: Waiting,
    pub shows: &'static [Show],
}

pub const MATRIX: [Row; 8] = [
    polling("4 KiB random read, depth 1, polling client", Rw::RandRead, 4096, 1, &[Show::P50]),
    polling("4 KiB random read, depth 32", Rw::RandRead, 4096, 32, &[Show::Rate]),
    polling("4 KiB random write, depth 32", Rw::RandWrite, 4096, 32, &[Show::Rate]),
    polling("512 B random read, depth 32", Rw::RandRead, 512, 32, &[Show::Rate]),
    polling("1 MiB read, depth 8", Rw::Read, 1 << 20, 8, &[Show::Bandwidth]),
    polling("1 MiB write, depth 8", Rw::Write, 1 << 20, 8, &[Show::Bandwidth]),
    event("event-driven client, 4 KiB depth 1", 1, &[Show::P50, Show::ServerCpu, Show::ClientCpu]),
    event("event-driven client, 4 KiB depth 32", 32, &[Show::Rate, Show::ServerCpu, Show::ClientCpu]),
];

/// The row that plots are drawn of.
pub const PLOTTED: &Row = &MATRIX[1];

const fn polling(name: &'static str, rw: Rw, block_bytes: u32, depth: u16, shows: &'static [Show]) -> Row {
    Row { name, rw, block_bytes, depth, waiting: Waiting::Poll, shows }
}

const fn event(name: &'static str, depth: u16, shows: &'static [Show]) -> Row {
    Row { name, rw: Rw::RandRead, block_bytes: 4096, depth, waiting: Waiting::Event, shows }
}

impl Row {
    /// One back-end's turn: so many short rounds.
    pub fn plan(&self, peers: Vec<Peer>, slices: u16, slice: Duration) -> Plan {
        let work = Work {
            rw: self.rw,
            read_percent: 50,
            flush_every: None,
            block_bytes: self.block_bytes,
            depth: NonZeroU16::new(self.depth).unwrap(),
            queues: NonZeroU16::MIN,
            waiting: self.waiting,
            packed: false,
            span_bytes: None,
            verify: false,
        };
        let rounds = NonZeroU16::new(slices).unwrap();
        Plan { peers, work, runtime: slice, rounds, sweep: false, progress: false }
    }

    pub fn is_event_driven(&self) -> bool {
        self.waiting == Waiting::Event
    }
}

/// One number of a load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Show {
    P50,
    /// Thousand requests a second.
    Rate,
    /// 10⁹ bytes a second.
    Bandwidth,
    ServerCpu,
    ClientCpu,
}

impl Show {
    /// What follows the load's name.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::P50 => ", p50 µs",
            Self::Rate => "",
            Self::Bandwidth => ", GB/s",
            Self::ServerCpu => ", CPU µs of the back-end a request",
            Self::ClientCpu => ", CPU µs of the client a request",
        }
    }

    pub const fn more_is_better(self) -> bool {
        matches!(self, Self::Rate | Self::Bandwidth)
    }

    /// Requests a second, in the unit.
    pub fn of_rate(self, rate: f64, block_bytes: u32) -> f64 {
        match self {
            Self::Bandwidth => rate * f64::from(block_bytes) / 1e9,
            _ => rate / 1e3,
        }
    }

    pub fn of_round(self, round: &RoundReport, block_bytes: u32) -> Option<f64> {
        match self {
            Self::P50 => Some(round.latency_p50_ns as f64 / 1e3),
            Self::Rate | Self::Bandwidth => Some(self.of_rate(round.iops, block_bytes)),
            Self::ServerCpu => round.server_cpu_ns_per_request.map(|ns| ns / 1e3),
            Self::ClientCpu => Some(round.client_cpu_ns_per_request / 1e3),
        }
    }
}
