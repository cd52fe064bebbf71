//! What a front-end has said about its rings, and about what they share.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::error::SessionError;
use super::postcopy::Postcopy;
use super::vring::Vring;
use crate::disk::Disk;
use crate::virtio::blk::features;
use crate::virtio::memory::{DirtyLog, MemoryTable};
use crate::virtio::queue::{RingKind, RingLayout};
use crate::worker::Pool;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: once it is acknowledged, rings wait for `SET_VRING_ENABLE`.
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// `VHOST_F_LOG_ALL`: while it is acknowledged, what is written to guest memory is marked in the dirty log.
pub(super) const F_LOG_ALL: u64 = 1 << 26;

/// Feature bits for the front-end, which the guest never sees.
pub(super) const FRONT_END_FEATURES: u64 = F_PROTOCOL_FEATURES | F_LOG_ALL;

/// A ring that is to run, and of which pages may be missing.
pub(super) type MissingRing = (u16, RingLayout);

/// What a front-end has said about its rings, and about what they share. Workers never see it.
#[derive(Debug)]
pub(super) struct SessionState<D: Disk> {
    /// `SET_MEM_TABLE`, `ADD_MEM_REG`, `REM_MEM_REG`.
    pub(super) memory: Arc<MemoryTable>,
    /// `SET_LOG_BASE`: for as long as the front-end wants it.
    pub(super) log: Option<Arc<DirtyLog>>,
    pub(super) vrings: Vec<Vring>,
    /// `SET_FEATURES`: those of the driver, and [`FRONT_END_FEATURES`].
    pub(super) features: u64,
    /// A migration whose pages come while the guest runs, or may do so.
    pub(super) postcopy: Option<Postcopy<D>>,
    /// A ring has run in this connection.
    pub(super) has_run: bool,
    /// The thread that waits for the writer lock.
    pub(super) waiter: Option<JoinHandle<()>>,
}

impl<D: Disk> SessionState<D> {
    /// Before the first message.
    pub(super) fn new(queues: u16) -> Self {
        Self {
            memory: Arc::default(),
            log: None,
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            features: 0,
            postcopy: None,
            has_run: false,
            waiter: None,
        }
    }

    /// The ring that a message is about.
    ///
    /// # Errors
    /// There is no such ring.
    pub(super) fn vring(&mut self, index: u32) -> Result<&mut Vring, SessionError> {
        let position = usize::try_from(index).ok();
        let rings = u16::try_from(self.vrings.len()).unwrap_or(u16::MAX);
        let vring = position.and_then(|position| self.vrings.get_mut(position));
        vring.ok_or(SessionError::NoSuchRing(index, rings))
    }

    /// The format of all rings.
    pub(super) const fn ring_kind(&self) -> RingKind {
        match self.features & features::RING_PACKED {
            0 => RingKind::Split,
            _ => RingKind::Packed,
        }
    }

    /// Whether a guest could choose its cache mode, and cannot flush: then each completed write persists, and `writeback` in its
    /// configuration stays 0 (VIRTIO 1.2 §5.2.5.2, §5.2.6.2).
    pub(super) const fn stays_write_through(&self) -> bool {
        self.features & (features::CONFIG_WCE | features::FLUSH) == features::CONFIG_WCE
    }

    /// What a ring is started with, if it is to run and does not yet.
    pub(super) fn to_be_started(&self, index: u16) -> Option<RingLayout> {
        let features = self.features;
        let vring = self.vrings.get(usize::from(index))?;
        let (Some(_), Some(addresses), None) = (&vring.kick, vring.addresses, vring.worker) else {
            return None;
        };
        let needs_enable = features & F_PROTOCOL_FEATURES != 0;
        if self.memory.is_empty() || needs_enable && !vring.is_enabled {
            return None;
        }
        Some(RingLayout {
            kind: self.ring_kind(),
            size: vring.size,
            addresses,
            base: vring.base,
            event_idx: features & features::EVENT_IDX != 0,
            indirect: features & features::INDIRECT_DESC != 0,
        })
    }

    /// The rings that workers drive.
    pub(super) fn running(&self) -> Vec<u16> {
        let indices = (0_u16..).zip(&self.vrings);
        indices.filter(|(_, vring)| vring.worker.is_some()).map(|(index, _)| index).collect()
    }

    /// The dirty log, while what is written to guest memory is to be marked in it.
    pub(super) fn log_in_force(&self) -> Option<Arc<DirtyLog>> {
        self.log.clone().filter(|_| self.features & F_LOG_ALL != 0)
    }

    /// Who drives the rings: while pages are missing, workers that hold no other ring up.
    pub(super) fn pool<'a>(&'a self, usual: &'a Arc<Pool<D>>) -> &'a Arc<Pool<D>> {
        self.postcopy.as_ref().and_then(Postcopy::pool).unwrap_or(usual)
    }

    /// Whether pages may be missing.
    pub(super) fn is_listening(&self) -> bool {
        self.postcopy.as_ref().is_some_and(Postcopy::is_listening)
    }

    /// Whether pages that a ring consists of may be missing.
    pub(super) fn needs_prefault(&self, index: u16) -> bool {
        let is_prefaulted = self.vrings.get(usize::from(index)).is_some_and(|vring| vring.is_prefaulted);
        self.is_listening() && !is_prefaulted
    }

    /// Puts another table in force; no ring runs meanwhile.
    ///
    /// # Errors
    /// Its pages cannot be waited for.
    pub(super) fn set_memory(&mut self, memory: Arc<MemoryTable>) -> Result<(), SessionError> {
        if let Some(postcopy) = self.postcopy.as_ref().filter(|postcopy| postcopy.is_listening()) {
            postcopy.wait_for_pages(&memory)?;
        }
        self.vrings.iter_mut().for_each(|vring| vring.is_prefaulted = false);
        self.memory = memory;
        Ok(())
    }

    /// Rings that are to run, and of which pages may be missing.
    pub(super) fn to_be_prefaulted(&self) -> Vec<MissingRing> {
        let indices = (0_u16..).zip(&self.vrings).filter(|(_, vring)| !vring.is_prefaulted);
        indices.filter_map(|(index, _)| Some((index, self.to_be_started(index)?))).collect()
    }
}
