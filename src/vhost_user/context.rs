//! What all front-ends of one disk have in common.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::checker::DescriptorChecker;
use super::config_record::ConfigRecord;
use super::front_ends::FrontEnds;
use super::writer_lock::WriterLock;
use crate::disk::Disk;
use crate::limits::budget::DiskBudget;
use crate::log::LogLimit;
use crate::virtio::blk::{Device, RingCounters};
use crate::worker::{Cpus, HoldUps, Pool};

/// What the sessions of one disk share.
#[derive(Debug)]
pub struct SessionContext<D: Disk> {
    /// The device they serve.
    pub device: Arc<Device<D>>,
    /// Who drives the rings.
    pub pool: Arc<Pool<D>>,
    /// Where; none for anywhere.
    pub cpus: Option<Arc<Cpus>>,
    /// Whose rings may run.
    pub writer_lock: WriterLock,
    /// What rings that have stopped did.
    pub totals: Mutex<RingCounters>,
    /// Whether postcopy migration is offered.
    pub offers_postcopy: bool,
    /// Set while one of them is in a postcopy migration.
    pub is_in_postcopy: Arc<AtomicBool>,
    /// What the front-end knows whose rings ran last; none for a disk that serves several at once.
    pub config_record: Option<Arc<ConfigRecord>>,
    /// What receives descriptors.
    pub checker: Arc<DescriptorChecker>,
    /// What they hold up.
    pub hold_ups: Arc<HoldUps>,
    /// What they may take of the process.
    pub budget: DiskBudget,
    /// Who is connected.
    pub front_ends: FrontEnds<D>,
    /// For lines that a front-end or its guest can cause.
    pub log_limit: Arc<LogLimit>,
}
