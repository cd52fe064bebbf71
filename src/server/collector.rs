//! What the disks have done, collected while they are served.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disks::{Disks, Served};
use super::open::DiskSummary;
use crate::config::Throttling;
use crate::disk::{Backing, BackingKind, Disk as _, Durability, Region};
use crate::limits::bounds::COLLECT_TIMEOUT;
use crate::vhost_user::SessionContext;
use crate::virtio::blk::{Counters, LatencyCounts, RingCounters, Timed};
use crate::worker::{Pool, RingReport};

/// What a disk is, has and has done, at one moment.
#[derive(Debug, Clone)]
pub struct DiskStats {
    /// Its name.
    pub name: String,
    /// What it lies on.
    pub kind: BackingKind,
    /// The regions of persistent memory below.
    pub regions: Vec<Region>,
    /// What a completed and flushed write is worth.
    pub durability: Durability,
    /// Size in bytes.
    pub capacity_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Front-ends that are connected.
    pub front_ends: usize,
    /// Connections of users that may not connect.
    pub refused_connections: u64,
    /// Descriptors of front-ends that were refused for what they are.
    pub refused_descriptors: u64,
    /// Messages of front-ends that were refused.
    pub refused_messages: u64,
    /// Connections that were closed, or not let in.
    pub closed_connections: u64,
    /// What its front-ends have held up others with.
    pub hold_ups: u64,
    /// Bytes of the disk that cannot be read any more.
    pub bad_blocks: Vec<Range<u64>>,
    /// Bytes that are mapped in huge pages; none where that was not counted.
    pub huge_bytes: Option<u64>,
    /// Bytes of persistent memory that Linux has zeroed to populate the mapping.
    pub populated_zero_bytes: u64,
    /// Of a private disk: bytes of memory that hold what was written, and the most that may.
    pub overlay_bytes: Option<(u64, u64)>,
    /// Bytes of guest memory that are mapped for its front-ends.
    pub guest_memory_bytes: u64,
    /// How often a front-end of it did not get what it asked for, since its disk's front-ends had all they may have.
    pub budget_refusals: u64,
    /// Requests that are begun and not done, where media may make one wait.
    pub requests_in_flight: u64,
    /// How long the oldest of them has been waiting, or what else its media is asked for: its size, or the configuration record.
    pub oldest_request: Duration,
    /// Requests that were slow.
    pub slow_requests: u64,
    /// What limits it.
    pub throttling: Throttling,
    /// What all its rings have done since the server started.
    pub counters: Counters,
    /// The same of each of them.
    pub rings: RingCounters,
    /// How long requests took, of each operation that there were some of.
    pub latency: Vec<(Timed, LatencyCounts)>,
}

/// Collects what the metrics say of a server's disks (Prometheus calls it a collector). The disks of now stay open for as long
/// as it is kept.
///
/// Each time costs the workers a mail each, and holds nothing else up: no session is waited for.
#[derive(Debug)]
pub struct Collector {
    disks: Arc<Disks<Backing>>,
    pool: Arc<Pool<Backing>>,
}

impl Collector {
    pub(super) const fn new(disks: Arc<Disks<Backing>>, pool: Arc<Pool<Backing>>) -> Self {
        Self { disks, pool }
    }

    /// The disks that this crate has opened, in the order in which they came. Counters never go backwards from one time to the
    /// next.
    pub fn collect(&self) -> Vec<DiskStats> {
        let disks = self.disks.all();
        // In this order: a ring that is taken back in between is missed, not counted twice, and what was seen of
        // it before stands.
        let of_stopped: Vec<_> = disks.iter().map(|disk| lock(&disk.context.totals).clone()).collect();
        let mut of_running: HashMap<String, RingCounters> = HashMap::new();
        for (device, ring, counters) in self.pool.count(COLLECT_TIMEOUT) {
            of_running.entry(device.identity().name.clone()).or_default().add(ring.index, &counters);
        }
        let seen = disks.iter().zip(of_stopped).filter_map(|(disk, mut all)| {
            if let Some(running) = of_running.get(disk.name()) {
                all.add_all(running);
            }
            let mut seen = lock(&disk.seen);
            seen.raise_to(&all);
            Some(DiskStats::of(disk, disk.summary.as_ref()?, seen.clone()))
        });
        seen.collect()
    }

    /// The same of one disk, and no worker is asked: what its rings that run have done is not in it.
    pub fn collect_quietly(&self, disk: &str) -> Option<DiskStats> {
        let served = self.disks.named(disk)?;
        let mut rings = lock(&served.context.totals).clone();
        let seen = lock(&served.seen);
        rings.raise_to(&seen);
        Some(DiskStats::of(&served, served.summary.as_ref()?, rings))
    }
}

/// A ring of a disk at one moment.
pub type RingStats = RingReport<Backing>;

impl Collector {
    /// The rings of a disk that run, or were broken by their driver, in their order; none if no disk has this name. Those of
    /// workers that are busy with slow media are left out.
    pub fn rings(&self, disk: &str) -> Option<Vec<RingStats>> {
        let served = self.disks.named(disk)?;
        let mut rings = self.all_rings();
        rings.retain(|ring| ring.device.identity().name == served.name());
        Some(rings)
    }

    /// The same of all disks. The device of each says which disk it is of.
    pub fn all_rings(&self) -> Vec<RingStats> {
        let mut rings = self.pool.report(COLLECT_TIMEOUT);
        rings.sort_by_key(|ring| ring.key);
        rings
    }
}

fn lock(counters: &Mutex<RingCounters>) -> MutexGuard<'_, RingCounters> {
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of a template: of all private disks together, and what each of them may have.
fn overlay_bytes(context: &SessionContext<Backing>) -> Option<(u64, u64)> {
    let (own, max_bytes) = context.device.disk().overlay_bytes()?;
    let private = context.private().into_iter().filter_map(|it| it.device.disk().overlay_bytes());
    Some((private.map(|(bytes, _)| bytes).fold(own, u64::saturating_add), max_bytes))
}

impl DiskStats {
    fn of(served: &Served<Backing>, summary: &DiskSummary, rings: RingCounters) -> Self {
        let context = &served.context;
        let disk = context.device.disk();
        let geometry = disk.geometry();
        let (in_flight, oldest) = context.unfinished();
        let oldest = oldest.map(|oldest| oldest.since).into_iter();
        let oldest = oldest.chain(served.waits_for().map(|(_, since)| since)).min();
        let latencies = Timed::ALL.into_iter().map(|what| (what, context.device.latency().counts(what)));
        Self {
            name: summary.name.clone(),
            kind: summary.kind,
            regions: summary.regions.clone(),
            durability: disk.durability(),
            capacity_bytes: geometry.capacity_bytes,
            read_only: geometry.read_only,
            front_ends: context.count_front_ends(),
            refused_connections: context.front_ends.refused(),
            refused_descriptors: context.front_ends.refused_descriptors(),
            refused_messages: context.front_ends.refused_messages(),
            closed_connections: context.front_ends.closed(),
            hold_ups: context.hold_ups.count(),
            bad_blocks: disk.bad_blocks(),
            huge_bytes: disk.huge_bytes(),
            populated_zero_bytes: disk.populated_zero_bytes(),
            overlay_bytes: overlay_bytes(context),
            guest_memory_bytes: context.budget.used().memory_bytes(),
            budget_refusals: context.budget.refusals().saturating_add(context.checker.refusals()),
            requests_in_flight: u64::try_from(in_flight).unwrap_or(u64::MAX),
            oldest_request: oldest.map_or(Duration::ZERO, |since| since.elapsed()),
            slow_requests: context.device.slow().requests(),
            throttling: served.throttling(),
            counters: rings.sum(),
            rings,
            latency: latencies.filter(|(_, counts)| counts.count() != 0).collect(),
        }
    }
}
