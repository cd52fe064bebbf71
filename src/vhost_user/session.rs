//! One front-end's session: the parts that its messages change.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::{VhostTransferStateDirection, VhostUserProtocolFeatures};

use super::context::SessionContext;
use super::device_state::transfer::Transfer;
use super::front_end_config::FrontEndConfig;
use super::rings::Rings;
use super::writer_lock::SessionId;
use crate::disk::Disk;
use crate::limits::budget::Charge;

/// One front-end's session, from its first message until it leaves. Its parts know nothing of it, nor of messages.
#[derive(Debug)]
pub struct Session<D: Disk> {
    id: SessionId,
    /// What it shares with the disk's other sessions.
    pub(super) context: Arc<SessionContext<D>>,
    /// The configuration as its front-end knows it.
    pub(super) config: Arc<FrontEndConfig<D>>,
    /// Its rings, and what they share: features, guest memory, the dirty log.
    pub(super) rings: Arc<Rings<D>>,
    /// `SET_PROTOCOL_FEATURES`.
    protocol_features: AtomicU64,
    /// The device's state on its way in or out, from `SET_DEVICE_STATE_FD` to `CHECK_DEVICE_STATE`.
    transfer: Mutex<Option<(VhostTransferStateDirection, Transfer)>>,
    /// What its front-end is connected by: nothing is waited for when that ends.
    pub(super) connection: Option<Arc<UnixStream>>,
}

impl<D: Disk> Session<D> {
    /// A session that has received nothing yet.
    /// What it takes of the disk's budget is given back when it has ended.
    pub fn new(
        id: SessionId,
        context: Arc<SessionContext<D>>,
        connection: Option<UnixStream>,
        charge: Charge,
    ) -> Arc<Self> {
        let connection = connection.map(Arc::new);
        let SessionContext { device, config_record, log_limit, .. } = &*context;
        let config = FrontEndConfig::new(id, device.clone(), config_record.clone(), log_limit.clone());
        let config = Arc::new(config);
        let rings = Rings::new(id, context.clone(), config.clone(), connection.clone(), charge);
        context.front_ends.add(&config, rings.for_moves());
        let (protocol_features, transfer) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Self { id, context, config, rings, protocol_features, transfer, connection })
    }

    /// Its number, for logs.
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// The disk's name.
    pub fn disk(&self) -> &str {
        &self.context.device.identity().name
    }

    /// The front-end is gone: drains and drops its rings, and releases the writer lock.
    pub fn close(&self) {
        self.rings.close();
        self.set_transfer(None);
    }

    /// Whether a protocol feature is in force.
    pub(super) fn has_protocol(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol_features.load(Ordering::Relaxed) & feature.bits() != 0
    }

    /// Those that are in force from now on.
    pub(super) fn set_protocol(&self, features: u64) {
        self.protocol_features.store(features, Ordering::Relaxed);
    }

    /// A transfer of the device's state begins; one that is under way is given up.
    pub(super) fn set_transfer(&self, transfer: Option<(VhostTransferStateDirection, Transfer)>) {
        *self.transfer.lock().unwrap_or_else(PoisonError::into_inner) = transfer;
    }

    /// The transfer that is under way, to be finished.
    pub(super) fn take_transfer(&self) -> Option<(VhostTransferStateDirection, Transfer)> {
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
