//! A flush that nobody's guest has asked for.

use super::manager::Manager;
use crate::disk::{Disk, DiskError};

/// Why a disk was not flushed.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// No disk has this name.
    #[error("disk {0:?}: no disk has this name")]
    NoSuchDisk(String),
    /// Its media refused.
    #[error("disk {disk:?}: the flush failed: {source}")]
    Failed {
        /// The disk's name.
        disk: String,
        /// Why.
        source: DiskError,
    },
}

impl<D: Disk> Manager<D> {
    /// Makes durable what was written to a disk, as far as its media can. It waits for media, and its rings go on meanwhile.
    ///
    /// # Errors
    /// [`FlushError`].
    pub fn flush(&self, disk: &str) -> Result<(), FlushError> {
        let served = self.named(disk).ok_or_else(|| FlushError::NoSuchDisk(disk.to_owned()))?;
        let flushed = served.context.device.disk().flush();
        flushed.map_err(|source| FlushError::Failed { disk: disk.to_owned(), source })
    }
}
