//! The configuration as one front-end knows it: its guest's cache mode, and whether it has been told of a change.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::backend_channel::BackendChannel;
use super::config_notifier::ConfigNotifier;
use super::config_record::{ConfigRecord, KnownConfig};
use super::writer_lock::SessionId;
use crate::disk::Disk;
use crate::log::{Cause, LogLimit};
use crate::virtio::blk::{CacheMode, Device, features};

/// What one front-end knows of the configuration. It waits for no ring and no session: whoever has to notify all
/// front-ends of a disk waits for none of them.
#[derive(Debug)]
pub(super) struct FrontEndConfig<D: Disk> {
    session: SessionId,
    device: Arc<Device<D>>,
    cache: Arc<CacheMode>,
    /// The cache mode came with the device's state.
    is_mode_loaded: AtomicBool,
    notifier: ConfigNotifier,
    record: Option<Arc<ConfigRecord>>,
    log_limit: Arc<LogLimit>,
}

impl<D: Disk> FrontEndConfig<D> {
    /// That of a front-end which has read nothing yet.
    pub(super) fn new(
        session: SessionId,
        device: Arc<Device<D>>,
        record: Option<Arc<ConfigRecord>>,
        log_limit: Arc<LogLimit>,
    ) -> Self {
        let cache = Arc::new(CacheMode::unknown(device.disk().initial_writeback()));
        let (is_mode_loaded, notifier) = (AtomicBool::new(false), ConfigNotifier::default());
        Self { session, device, cache, is_mode_loaded, notifier, record, log_limit }
    }

    /// By which the front-end is notified from now on.
    pub(super) fn set_channel(&self, channel: BackendChannel) {
        self.notifier.set_channel(channel);
    }

    /// The front-end reads the configuration.
    pub(super) fn mark_read(&self) {
        self.notifier.config_read();
    }

    /// Bytes of the configuration space as this front-end sees it; a guest that has not run yet may choose its cache mode.
    pub(super) fn bytes(&self, offset: u32, len: usize, is_before_first_ring: bool) -> Vec<u8> {
        let writeback = self.cache.show_writeback(is_before_first_ring);
        self.device.config_space(writeback).read(offset, len)
    }

    /// What a ring of a driver that has acknowledged these features follows. One that cannot flush gets every write
    /// persisted (VIRTIO 1.2 §5.2.6.2).
    pub(super) fn cache_mode(&self, driver_features: u64) -> Arc<CacheMode> {
        match driver_features & features::FLUSH {
            0 => Arc::new(CacheMode::write_through()),
            _ => self.cache.clone(),
        }
    }

    /// The mode that the guest has chosen, if it has: true for write-back.
    pub(super) fn chosen_mode(&self) -> Option<bool> {
        self.cache.chosen()
    }

    /// The guest chooses a mode: true for write-back.
    pub(super) fn choose_mode(&self, writeback: bool) {
        self.cache.set_writeback(writeback);
    }

    /// The mode that came with the device's state: true for write-back.
    pub(super) fn load_mode(&self, writeback: bool) {
        self.cache.set_writeback(writeback);
        self.is_mode_loaded.store(true, Ordering::Release);
    }

    /// The driver cannot flush: if `writeback` was 1 in its configuration before, it is told to read that again.
    pub(super) fn show_write_through(&self) {
        if self.cache.show_writeback(false) {
            self.cache.set_writeback(false);
            self.config_changed();
        }
    }

    /// Before the first ring of a front-end: a mode that the guest has chosen before is in force again. Not for a new guest,
    /// which has read the configuration and whose rings are all at their start. One that comes back, or has come from
    /// another front-end (a migration), is not new.
    pub(super) fn restore_cache_mode(&self, are_rings_at_start: bool) {
        let has_read = self.notifier.has_read();
        if self.is_mode_loaded.load(Ordering::Acquire) || has_read && are_rings_at_start {
            return;
        }
        let known = self.record.as_ref().and_then(|record| record.reload());
        if known.and_then(|known| known.writeback) == Some(false) {
            if has_read && self.cache.show_writeback(false) {
                self.notifier.mark_stale();
            }
            self.cache.set_writeback(false);
        }
    }

    /// A ring runs: its front-end is told to read the configuration, if that is not what it knows.
    pub(super) fn ring_started(&self) {
        let known = || self.record.as_ref().and_then(|record| record.known());
        let is_known = || known().is_some_and(|known| known.capacity_sectors == self.capacity_sectors());
        let told = self.notifier.ring_started(is_known);
        self.record(self.log_failure(told));
    }

    /// A ring has stopped.
    pub(super) fn ring_stopped(&self) {
        self.notifier.ring_stopped();
    }

    /// The configuration is another than it was.
    pub(super) fn config_changed(&self) {
        if self.log_failure(self.notifier.config_changed()) {
            self.record(true);
        }
    }

    /// What a front-end whose rings run knows from now on: its guest's choice, and the size if it has been told.
    pub(super) fn record(&self, is_told: bool) {
        let Some(record) = &self.record else { return };
        let (capacity_sectors, chosen) = (self.capacity_sectors(), self.cache.chosen());
        record.update(|before| {
            let before = before.unwrap_or(KnownConfig { capacity_sectors: 0, writeback: None });
            let capacity_sectors = if is_told { capacity_sectors } else { before.capacity_sectors };
            Some(KnownConfig { capacity_sectors, writeback: chosen.or(before.writeback) })
        });
    }

    /// The guest has changed what is on the media: what is known may be kept there.
    pub(super) fn media_is_written(&self) {
        if let Some(record) = &self.record {
            record.media_is_written();
        }
    }

    fn capacity_sectors(&self) -> u64 {
        self.device.config_space(true).limits.capacity_sectors
    }

    /// Whether the front-end knows; an error is logged.
    fn log_failure(&self, told: io::Result<bool>) -> bool {
        if let Err(error) = &told
            && let Some(suppressed) = self.log_limit.admit(Cause::Channel)
        {
            let (disk, session) = (&self.device.identity().name, self.session);
            tracing::warn!(disk, session, %error, suppressed, "cannot announce the configuration");
        }
        told.unwrap_or(false)
    }
}
