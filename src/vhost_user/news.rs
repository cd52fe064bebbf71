//! That the configuration is another than the front-end has read.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::channel::Channel;

/// What one front-end knows of the configuration. It has a lock of its own, since the session's is held while a worker
/// is waited for, which may wait for the media or for a page of its guest: whoever has news for all front-ends waits
/// for none.
#[derive(Debug, Default)]
pub(super) struct News(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    channel: Option<Channel>,
    /// The front-end has read the configuration in this connection, and it has not changed since.
    has_read: bool,
    /// Rings that run.
    rings: usize,
}

impl News {
    /// By which the front-end is told from now on.
    pub(super) fn set_channel(&self, channel: Channel) {
        self.lock().channel = Some(channel);
    }

    /// The front-end has read the configuration.
    pub(super) fn read(&self) {
        self.lock().has_read = true;
    }

    /// A front-end that has come back does not read the configuration again (QEMU 10), though the disk may have another
    /// size by now, and one whose rings are stopped takes no notice of a change: it is told to.
    pub(super) fn ring_runs(&self) -> std::io::Result<()> {
        let mut known = self.lock();
        known.rings = known.rings.saturating_add(1);
        if known.has_read {
            return Ok(());
        }
        // Once is enough.
        known.has_read = true;
        known.announce()
    }

    /// A ring has stopped.
    pub(super) fn ring_stopped(&self) {
        let mut known = self.lock();
        known.rings = known.rings.saturating_sub(1);
    }

    /// The configuration is another than it was: the front-end is told now, and again with its next ring if none runs.
    pub(super) fn changed(&self) -> std::io::Result<()> {
        let mut known = self.lock();
        known.has_read = known.rings != 0;
        known.announce()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn announce(&self) -> std::io::Result<()> {
        self.channel.as_ref().map_or(Ok(()), Channel::config_changed)
    }
}
