//! What to open, and how; and what it is then.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::policy::{DeepFlush, DiscardPolicy};
use crate::disk::space::growth::GrowthPolicy;
use crate::disk::{Backing, Durability, FileLock, LockMode, Media, Symlinks};

/// What to open, and how.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// How errors call the disk.
    pub name: String,
    /// Bytes to serve: a file that is missing or empty is made that long, a longer one is served in part, a
    /// shorter one is refused. Without it the whole file is served.
    pub size_bytes: Option<u64>,
    /// Logical block size in bytes: 512 or 4096. Without it, that of a device, and 512 of anything else.
    pub block_bytes: Option<u32>,
    /// Open for reading only; nothing is created, grown or allocated then.
    pub read_only: bool,
    /// Leave holes as they are. On tmpfs, hugetlbfs and DAX a write into a hole that cannot be filled any more
    /// is fatal.
    pub sparse: bool,
    /// When the file is locked.
    pub lock: LockMode,
    /// The least that a completed and flushed write must be worth.
    pub require_durable: Option<Durability>,
    /// What becomes of space that the guest does not need.
    pub discard: DiscardPolicy,
    /// When FLUSH empties the memory controller's queues.
    pub deep_flush: DeepFlush,
    /// Once it is set, what takes long is given up where a signal interrupts it.
    pub should_stop: Arc<AtomicBool>,
    /// Whether the path may lead through symbolic links.
    pub symlinks: Symlinks,
}

impl OpenOptions {
    /// Everything as it is by default: all whole blocks of it, read-write, locked.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            size_bytes: None,
            block_bytes: None,
            read_only: false,
            sparse: false,
            lock: LockMode::On,
            require_durable: None,
            discard: DiscardPolicy::Auto,
            deep_flush: DeepFlush::Auto,
            should_stop: Arc::default(),
            symlinks: Symlinks::Follow,
        }
    }

    /// Whether the disk grows with its backing, and how.
    pub(super) const fn growth(&self) -> GrowthPolicy {
        GrowthPolicy { follows: self.size_bytes.is_none(), sparse: self.sparse }
    }
}

/// Logical block size in bytes of what has none by itself.
pub(in crate::disk) const DEFAULT_BLOCK_BYTES: u32 = 512;

/// A path, opened.
#[derive(Debug)]
pub struct Opened {
    /// Its bytes.
    pub disk: Backing,
    /// Its lock, taken when the mode is [`LockMode::On`].
    pub lock: FileLock,
    /// What it is made of.
    pub media: Media,
    /// Whether it was not there before.
    pub created: bool,
}
