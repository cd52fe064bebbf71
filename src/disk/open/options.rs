//! The options of opening a disk, and what the result is.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::policy::{DeepFlush, DiscardPolicy};
use crate::disk::space::growth::GrowthPolicy;
use crate::disk::{Backing, Durability, FileLock, LockMode, Media, Symlinks};

/// How a path is opened as a disk.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The disk's name in errors.
    pub name: String,
    /// Bytes to serve: a file that is missing or empty is made that long, a longer one is served in part, a
    /// shorter one is refused. Without it the whole file is served.
    pub size_bytes: Option<u64>,
    /// Logical block size in bytes: 512 or 4096. Without it, that of a device, and 512 of anything else.
    pub block_bytes: Option<u32>,
    /// Open for reading only; nothing is created, grown or allocated then.
    pub read_only: bool,
    /// Lay a private disk over it, and open it for reading only.
    pub overlay: Option<OverlayOptions>,
    /// Leave holes as they are. On tmpfs, hugetlbfs and DAX a write into a hole fails when there is no space for it.
    pub sparse: bool,
    /// When the file is locked, if at all.
    pub lock: LockMode,
    /// The least durability that a completed and flushed write must have.
    pub require_durable: Option<Durability>,
    /// What becomes of space that the guest does not need.
    pub discard: DiscardPolicy,
    /// When FLUSH empties the memory controller's queues.
    pub deep_flush: DeepFlush,
    /// Once it is set, steps that take long are given up; a signal interrupts the system call that one may be in.
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
            overlay: None,
            sparse: false,
            lock: LockMode::On,
            require_durable: None,
            discard: DiscardPolicy::Auto,
            deep_flush: DeepFlush::Auto,
            should_stop: Arc::default(),
            symlinks: Symlinks::Follow,
        }
    }

    /// How the path is opened: what lies below a private disk is only read.
    pub(super) fn of_path(&self) -> Self {
        Self { read_only: self.read_only || self.overlay.is_some(), ..self.clone() }
    }

    /// Whether the disk grows with its backing, and how.
    pub(super) const fn growth(&self) -> GrowthPolicy {
        GrowthPolicy::new(self.size_bytes, self.sparse)
    }
}

/// A private disk over what the path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayOptions {
    /// The file that keeps what is written, which is made if there is none; without one it is in memory.
    pub file: Option<PathBuf>,
    /// The most memory, or space of the file, in bytes; none for as much as it takes.
    pub max_bytes: Option<u64>,
}

/// Logical block size in bytes of a disk that is no block device.
pub(in crate::disk) const DEFAULT_BLOCK_BYTES: u32 = 512;

/// A path that was opened as a disk.
#[derive(Debug)]
pub struct Opened {
    /// The disk.
    pub disk: Backing,
    /// Its lock, taken when the mode is [`LockMode::On`].
    pub lock: FileLock,
    /// The media that it lies on.
    pub media: Media,
    /// Whether the file did not exist before.
    pub created: bool,
}
