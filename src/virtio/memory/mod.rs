//! Guest memory: which guest address is where in this process.
//!
//! A [`MemoryTable`] is an immutable snapshot. The control plane builds a new one for each change and hands
//! it to the rings; a region is unmapped when the last table that names it is gone, so a worker can never
//! touch memory that a front-end has taken back and been told is free.

mod dirty_log;
mod extents;
mod shared;
pub(in crate::virtio) mod speculation;
mod table;
#[cfg(test)]
pub(crate) mod testing;

pub use dirty_log::{DirtyLog, LOG_PAGE_BYTES, LogError};
pub use extents::BufferKind;
pub use shared::SharedError;
pub use table::{MemoryError, MemoryTable, RegionSpec, Translator};

pub use crate::limits::bounds::MAX_REGIONS;
