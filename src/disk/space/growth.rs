//! A backing that has become longer while it is served.
//!
//! Nothing stops for it: a disk serves more of its backing from one moment on, and never less. What was
//! mapped stays where it is, or is mapped once more.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::error::cannot;
use crate::disk::space;
use crate::disk::{Geometry, GrowError};

/// Whether a disk grows with its backing, and how.
#[derive(Debug)]
pub(in crate::disk) struct GrowthPolicy {
    /// No more bytes than this are served; [`u64::MAX`] if its size is that of the backing, not a chosen one.
    limit_bytes: AtomicU64,
    /// Holes are left as they are.
    sparse: bool,
}

impl GrowthPolicy {
    /// Of a disk with a chosen size, or without.
    pub(in crate::disk) const fn new(size_bytes: Option<u64>, sparse: bool) -> Self {
        let limit_bytes = match size_bytes {
            Some(bytes) => bytes,
            None => u64::MAX,
        };
        Self { limit_bytes: AtomicU64::new(limit_bytes), sparse }
    }

    /// Up to so many bytes may be served from now on. Returns how many it were before.
    pub(in crate::disk) fn set_limit(&self, bytes: u64) -> u64 {
        self.limit_bytes.swap(bytes, Ordering::AcqRel)
    }

    /// Whether the size is a chosen one.
    pub(in crate::disk) fn has_limit(&self) -> bool {
        self.limit_bytes.load(Ordering::Acquire) != u64::MAX
    }

    /// How many bytes are to be served of a backing of this length, if more than now: whole blocks.
    pub(in crate::disk) fn target(
        &self,
        backing_bytes: u64,
        served: &Geometry,
    ) -> Result<Option<u64>, GrowError> {
        let served_bytes = served.capacity_bytes;
        if backing_bytes < served_bytes {
            return Err(GrowError::Shrunk { backing_bytes, served_bytes });
        }
        let most_bytes = backing_bytes.min(self.limit_bytes.load(Ordering::Acquire));
        let whole_bytes = most_bytes - most_bytes % u64::from(served.block_bytes.max(1));
        Ok(Some(whole_bytes).filter(|whole| *whole > served_bytes))
    }

    /// Gives the bytes from what is served up to `target` their space, unless they are to stay holes. Returns
    /// whether the file was touched, so that it must be synced.
    pub(in crate::disk) fn allocate(
        &self,
        file: &File,
        served: &Geometry,
        target: u64,
    ) -> Result<bool, GrowError> {
        if self.sparse || served.read_only {
            return Ok(false);
        }
        let missing_bytes = target.saturating_sub(served.capacity_bytes);
        if !has_space(file, served.capacity_bytes..target) {
            return Err(GrowError::NoSpace { missing_bytes, source: io::ErrorKind::StorageFull.into() });
        }
        if let Some(limit) = space::memory_limit(file, space::hole_bytes(file, served.capacity_bytes..target))
        {
            return Err(GrowError::NoMemory { missing_bytes, limit: limit.to_string() });
        }
        match space::allocate(file, served.capacity_bytes..target) {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                "the file system cannot preallocate: the new part of the disk is sparse, and a write that \
                 finds no space fails"
            ),
            // ENOMEM is what hugetlbfs says when its pool is empty.
            Err(source) => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM) => {
                    return Err(GrowError::NoSpace { missing_bytes, source });
                }
                _ => return Err(cannot("allocate the new part")(source)),
            },
        }
        Ok(true)
    }
}

/// Whether an allocation of this part is worth trying. One that fails would take what there is, and neither the disk's
/// own holes nor anybody else on the file system could be written to any more.
fn has_space(file: &File, part: Range<u64>) -> bool {
    let is_allocated = || allocated_bytes(file) >= part.end;
    let free_bytes = space::free_bytes(file).unwrap_or(u64::MAX);
    space::hole_bytes(file, part.clone()) <= free_bytes || is_allocated()
}

/// Bytes of all its blocks, wherever in the file.
fn allocated_bytes(file: &File) -> u64 {
    file.metadata().map_or(0, |it| space::allocated_bytes(&it))
}

impl Default for GrowthPolicy {
    /// As disks are opened by default.
    fn default() -> Self {
        Self::new(None, false)
    }
}

/// How long a regular file is.
pub(in crate::disk) fn file_bytes(file: &File) -> Result<u64, GrowError> {
    Ok(file.metadata().map_err(cannot("tell the size of the file"))?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody may have truncated it since its length was read.
    #[test]
    fn allocating_never_makes_a_file_longer() {
        for folder in ["/dev/shm", env!("CARGO_MANIFEST_DIR")] {
            let file = tempfile::tempfile_in(folder).unwrap();
            file.set_len(5 << 20).unwrap();
            let served = Geometry { capacity_bytes: 4 << 20, block_bytes: 512, read_only: false };
            assert!(GrowthPolicy::default().allocate(&file, &served, 8 << 20).unwrap());
            assert_eq!(file.metadata().unwrap().len(), 5 << 20, "{folder}");
            assert!(allocated_bytes(&file) >= 1 << 20, "{folder}");
        }
    }

    #[test]
    fn holes_are_counted() {
        use std::os::unix::fs::FileExt as _;
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(8 << 20).unwrap();
        assert_eq!(space::hole_bytes(&file, 0..8 << 20), 8 << 20);
        file.write_all_at(&[1; 8192], 1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 3 << 20).unwrap();
        assert_eq!(space::hole_bytes(&file, 0..8 << 20), (8 << 20) - 12_288);
        assert_eq!(space::hole_bytes(&file, 1 << 20..(1 << 20) + 8192), 0);
        assert_eq!(space::hole_bytes(&file, (1 << 20) + 4096..4 << 20), (3 << 20) - 12_288);
        assert_eq!(space::hole_bytes(&file, 7 << 20..9 << 20), 2 << 20, "behind the end is nothing");
    }

    #[test]
    fn only_whole_blocks_more_than_before_are_growth() {
        let served = Geometry { capacity_bytes: 8192, block_bytes: 4096, read_only: false };
        let policy = GrowthPolicy::default();
        for (backing, expected) in
            [(8192, None), (8193, None), (12_287, None), (12_288, Some(12_288)), (16_385, Some(16_384))]
        {
            assert_eq!(policy.target(backing, &served).unwrap(), expected, "{backing}");
            let pinned = GrowthPolicy::new(Some(8192), false);
            assert_eq!(pinned.target(backing, &served).unwrap(), None, "a chosen size stays");
            assert_eq!(pinned.set_limit(12_289), 8192);
            let expected = expected.map(|_| 12_288);
            assert_eq!(pinned.target(backing, &served).unwrap(), expected, "until another is chosen");
        }
        let shrunk = policy.target(8191, &served).unwrap_err().to_string();
        assert!(shrunk.contains("only 8191 bytes, but 8192 are served"), "{shrunk}");
    }
}
