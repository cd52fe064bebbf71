//! Notifies a front-end that the configuration has changed since it has read it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::backend_channel::BackendChannel;

/// What one front-end has read of the configuration. It has a lock of its own: that of the session's rings is held while a
/// worker is waited for, which may wait for the media or for a page of its guest. So to notify all front-ends of a disk is to
/// wait for none.
#[derive(Debug, Default)]
pub(super) struct ConfigNotifier(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    channel: Option<BackendChannel>,
    /// The front-end has read the configuration in this connection.
    has_read: bool,
    /// It has changed since it was read, and the front-end has to be told once a ring runs: one without takes no notice.
    is_stale: bool,
    /// How many of its rings run.
    rings: usize,
}

impl ConfigNotifier {
    /// Sets the channel that the front-end is notified through from now on.
    pub(super) fn set_channel(&self, channel: BackendChannel) {
        self.lock().channel = Some(channel);
    }

    /// The front-end has read the configuration.
    pub(super) fn config_read(&self) {
        let mut seen = self.lock();
        seen.has_read = true;
        seen.is_stale = false;
    }

    /// Whether the front-end has read the configuration in this connection.
    pub(super) fn has_read(&self) -> bool {
        self.lock().has_read
    }

    /// A front-end that has come back does not read the configuration again (QEMU 10), though the disk may have another
    /// size by now, and one whose rings are stopped takes no notice of a change: it is told to, unless `is_known` says
    /// that nothing has changed. Returns whether the front-end knows the configuration by now.
    pub(super) fn ring_started(&self, is_known: impl FnOnce() -> bool) -> std::io::Result<bool> {
        let mut seen = self.lock();
        seen.rings = seen.rings.saturating_add(1);
        if !seen.is_stale && (seen.has_read || is_known()) {
            seen.has_read = true;
            return Ok(true);
        }
        // It is told once, not with each ring.
        seen.has_read = true;
        seen.is_stale = false;
        seen.notify()
    }

    /// What the front-end has read is not what holds: it is told with its next ring.
    pub(super) fn mark_stale(&self) {
        self.lock().is_stale = true;
    }

    /// A ring has stopped.
    pub(super) fn ring_stopped(&self) {
        let mut seen = self.lock();
        seen.rings = seen.rings.saturating_sub(1);
    }

    /// The configuration is another than it was: the front-end is told now, and again with its next ring if none runs.
    /// Returns whether it takes notice.
    pub(super) fn config_changed(&self) -> std::io::Result<bool> {
        let mut seen = self.lock();
        seen.is_stale = seen.rings == 0;
        let is_told = seen.notify()?;
        Ok(is_told && !seen.is_stale)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// False for a front-end that cannot be told.
    fn notify(&self) -> std::io::Result<bool> {
        self.channel.as_ref().map_or(Ok(false), |channel| channel.config_changed().map(|()| true))
    }
}
