//! What a front-end has said about one ring.

use std::fs::File;
use std::sync::Arc;

use crate::limits::budget::Charge;
use crate::virtio::queue::RingAddresses;
use crate::worker::{Notifier, WorkerId};

/// A ring as configured; it runs while it has a [`WorkerId`].
#[derive(Debug, Default)]
pub(super) struct Vring {
    /// `SET_VRING_NUM`, checked.
    pub(super) size: u32,
    /// `SET_VRING_ADDR`.
    pub(super) addresses: Option<RingAddresses>,
    /// Guest-physical address of the used ring, if what is written there is to be logged.
    pub(super) log_address: Option<u64>,
    /// What `GET_VRING_BASE` answers: where the ring stopped last, or what the front-end set. 16 bits of it in a
    /// split ring.
    pub(super) base: u32,
    /// `SET_VRING_KICK`: from then on the ring is started, until `GET_VRING_BASE`.
    pub(super) kick: Option<Arc<File>>,
    /// `SET_VRING_CALL`.
    pub(super) call: Option<Arc<Notifier>>,
    /// `SET_VRING_ERR`.
    pub(super) err: Option<Arc<Notifier>>,
    /// `SET_VRING_ENABLE`.
    pub(super) is_enabled: bool,
    /// In a postcopy migration: all pages that it consists of were there when they were touched last.
    pub(super) is_prefaulted: bool,
    /// What its descriptors take of the disk's budget.
    pub(super) charge: Option<Charge>,
    /// The worker that owns it.
    pub(super) worker: Option<WorkerId>,
}

impl Vring {
    /// Whether it is not known to have been used, as that of a new guest: no index but 0, and in a packed ring the wrap
    /// bits that it begins with, if any.
    pub(super) const fn is_at_start(&self) -> bool {
        self.base & !0x8000_8000 == 0
    }
}
