//! Why a message is refused.

use super::device_state::StateError;
use super::device_state::transfer::TransferError;
use super::postcopy::PostcopyError;
use crate::disk::DiskError;
use crate::limits::budget::Exceeded;
use crate::virtio::memory::{LogError, MemoryError};
use crate::virtio::queue::RingError;
use crate::worker::PoolError;

/// Why a message is refused. The front-end gets a NACK where it asked for an answer, and the log the reason.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("ring {0} does not exist: the disk has {1}")]
    NoSuchRing(u32, u16),
    #[error("ring {0}: {1}")]
    Ring(u16, RingError),
    #[error("ring {0}: {1}")]
    Worker(u16, PoolError),
    #[error("ring {0}: rings of another front-end run")]
    OtherWriter(u16),
    #[error("ring {0}: {1} descriptor: {2}")]
    Descriptor(u32, &'static str, std::io::Error),
    #[error("ring {0}: kicks without a descriptor are not supported")]
    Polling(u32),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("{0} memory regions came with {1} descriptors")]
    RegionFiles(usize, usize),
    #[error("flush: {0}")]
    Flush(DiskError),
    #[error(
        "{1} bytes at {0} of the configuration: only the writeback byte, at 32, can be written, to 0 or 1"
    )]
    ConfigReadOnly(u32, usize),
    #[error("the guest cannot flush (it has not acknowledged FLUSH): its disk stays in write-through mode")]
    WriteThrough,
    #[error("the device's state can only be saved or loaded while no ring runs: stop them first")]
    StateOfRunning,
    #[error("the device's state: none was saved or loaded")]
    NoTransfer,
    #[error("the device's state: {0}")]
    Transfer(#[from] TransferError),
    #[error("the device's state is refused: {0}")]
    State(#[from] StateError),
    #[error(transparent)]
    Budget(#[from] Exceeded),
    #[error("postcopy: {0}")]
    Postcopy(#[from] PostcopyError),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}
