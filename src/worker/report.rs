//! A ring as it is at one moment, for whoever looks at it.

use std::sync::Arc;
use std::time::Instant;

use super::any_ring::AnyRing;
use super::ring::RingKey;
use crate::disk::Disk;
use crate::virtio::blk::{Counters, Device};
use crate::virtio::queue::{Indices, RingKind};

/// A ring that runs, or that its driver has broken.
#[derive(Debug)]
pub struct RingReport<D: Disk> {
    /// Which one.
    pub key: RingKey,
    /// The device behind it.
    pub device: Arc<Device<D>>,
    /// Its format.
    pub kind: RingKind,
    /// What its worker does with it: armed, polled, held, broken, leaving.
    pub state: &'static str,
    /// Where it stands.
    pub indices: Indices,
    /// Requests that are taken, and wait for media or a flush.
    pub under_way: usize,
    /// What its driver did wrong.
    pub broken: Option<String>,
    /// What it has done since it was started.
    pub counters: Counters,
    /// When that was.
    pub since: Instant,
}

impl<D: Disk> RingReport<D> {
    pub(super) fn of(ring: &AnyRing<D>, state: &'static str, since: Instant) -> Self {
        let (indices, under_way, broken) = ring.standing();
        Self {
            key: ring.key(),
            device: ring.device().clone(),
            kind: ring.kind(),
            state,
            indices,
            under_way,
            broken: broken.map(ToString::to_string),
            counters: *ring.counters(),
            since,
        }
    }
}
