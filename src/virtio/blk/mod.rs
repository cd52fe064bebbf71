//! The block device (VIRTIO 1.2 §5.2): what a request asks, and what is answered.

mod asked;
mod begin;
mod cache;
mod config_space;
mod counters;
mod device;
mod execute;
pub mod features;
mod latency;
mod pending;
mod request;
mod sliced;
mod slow;
#[cfg(test)]
mod tests;
mod transfer;
mod under_hand;
mod units;

pub use asked::Asked;
pub use begin::Predecessors;
pub use cache::CacheMode;
pub use config_space::{CONFIG_BYTES, ConfigSpace, WRITEBACK_OFFSET};
pub use counters::{Counters, Effect, RingCounters};
pub use device::{Device, Identity};
pub use execute::{HeldRequest, Progress};
pub use latency::{Latency, LatencyCounts, Timed};
pub use pending::{Completions, PendingRequest, RequestTask, Span};
pub use request::{ErrorStatus, Operation, Range, Ranges, kind_for_limits, parse, parse_ranges};
pub use sliced::SlicedRequest;
pub use slow::Slow;
pub use transfer::{Rules, Transfer};
pub use under_hand::UnderHand;
pub use units::{Limits, MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS, SECTOR_BYTES, SEG_MAX};
