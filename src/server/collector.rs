//! What the disks have done, collected while they are served.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use crate::disk::{Backing, BackingKind, Disk as _, Durability, Region};
use crate::limits::bounds::COLLECT_TIMEOUT;
use crate::vhost_user::SessionContext;
use crate::virtio::blk::Counters;
use crate::worker::Pool;

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
    /// Bytes of the disk that cannot be read any more.
    pub bad_blocks: Vec<Range<u64>>,
    /// Bytes that are mapped in huge pages; none where that was not counted.
    pub huge_bytes: Option<u64>,
    /// Bytes of persistent memory that Linux has zeroed to populate the mapping.
    pub populated_zero_bytes: u64,
    /// Bytes of guest memory that are mapped for its front-ends.
    pub guest_memory_bytes: u64,
    /// How often a front-end of it did not get what it asked for, since its disk's front-ends had all they may have.
    pub budget_refusals: u64,
    /// What all its rings have done since the server started.
    pub counters: Counters,
}

/// Collects what the metrics say of a server's disks (Prometheus calls it a collector). The disks stay open for as long as
/// it is kept.
///
/// Each time costs the workers a mail each, and holds nothing else up: no session is waited for.
#[derive(Debug)]
pub struct Collector {
    disks: Vec<CollectedDisk>,
    pool: Arc<Pool<Backing>>,
}

#[derive(Debug)]
struct CollectedDisk {
    context: Arc<SessionContext<Backing>>,
    kind: BackingKind,
    regions: Vec<Region>,
    /// The highest that was seen.
    counters: Counters,
}

impl Collector {
    pub(super) fn new(
        disks: impl Iterator<Item = (Arc<SessionContext<Backing>>, (BackingKind, Vec<Region>))>,
        pool: Arc<Pool<Backing>>,
    ) -> Self {
        let disks = disks.map(|(context, (kind, regions))| {
            let counters = Counters::default();
            CollectedDisk { context, kind, regions, counters }
        });
        Self { disks: disks.collect(), pool }
    }

    /// The disks, in the order of the configuration. Counters never go backwards from one time to the next.
    pub fn collect(&mut self) -> Vec<DiskStats> {
        // In this order: a ring that is taken back in between is missed, not counted twice, and what was seen of
        // it before stands.
        let of_stopped: Vec<_> = self.disks.iter().map(|disk| disk.of_stopped_rings()).collect();
        let mut of_running: HashMap<String, Counters> = HashMap::new();
        for (device, counters) in self.pool.count(COLLECT_TIMEOUT) {
            of_running.entry(device.identity().name.clone()).or_default().add(&counters);
        }
        for (disk, mut sum) in self.disks.iter_mut().zip(of_stopped) {
            if let Some(counters) = of_running.get(&disk.context.device.identity().name) {
                sum.add(counters);
            }
            disk.counters.raise_to(&sum);
        }
        self.disks.iter().map(CollectedDisk::stats).collect()
    }
}

impl CollectedDisk {
    fn of_stopped_rings(&self) -> Counters {
        *self.context.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> DiskStats {
        let disk = self.context.device.disk();
        let geometry = disk.geometry();
        DiskStats {
            name: self.context.device.identity().name.clone(),
            kind: self.kind,
            regions: self.regions.clone(),
            durability: disk.durability(),
            capacity_bytes: geometry.capacity_bytes,
            read_only: geometry.read_only,
            front_ends: self.context.front_ends.count(),
            refused_connections: self.context.front_ends.refused(),
            bad_blocks: disk.bad_blocks(),
            huge_bytes: disk.huge_bytes(),
            populated_zero_bytes: disk.populated_zero_bytes(),
            guest_memory_bytes: self.context.budget.used().memory_bytes(),
            budget_refusals: self.context.budget.refusals(),
            counters: self.counters,
        }
    }
}
