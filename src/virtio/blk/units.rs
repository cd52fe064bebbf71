//! Sectors, blocks and the limits a guest is told.

use crate::disk::{Disk, Geometry};
pub use crate::limits::bounds::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS};

/// A sector in bytes: the unit of every address in a request, whatever the block size (VIRTIO 1.2 §5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Most data segments in a request. QEMU asks for it before it knows the queue size, and it must not exceed
/// that by more than −2 without indirect descriptors; its default is a queue of 128.
pub const SEG_MAX: u16 = 126;

/// What a request is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of the disk, which in bytes is a `u64`.
    pub capacity_sectors: u64,
    /// A block in sectors, a power of two: 1 or 8. Guests are told of it; it is a hint (VIRTIO 1.2 §5.2.5).
    pub block_sectors: u64,
    /// What requests must be made of, in sectors, a power of two and at most a block.
    pub unit_sectors: u64,
    /// Writes are refused, discards are not known.
    pub read_only: bool,
}

impl Limits {
    /// The limits of a disk.
    pub fn of(disk: &impl Disk) -> Self {
        let Geometry { capacity_bytes, block_bytes, read_only } = disk.geometry();
        let sectors = |bytes: u32| (u64::from(bytes) / SECTOR_BYTES).max(1);
        Self {
            capacity_sectors: capacity_bytes / SECTOR_BYTES,
            block_sectors: sectors(block_bytes),
            unit_sectors: sectors(disk.unit_bytes()),
            read_only,
        }
    }

    /// Offset in bytes of a run of sectors, if it is made of whole units and inside the disk. The comparison
    /// is in sectors, so nothing can overflow.
    #[inline]
    pub fn offset_bytes(&self, sector: u64, count: u64) -> Option<u64> {
        let left = self.capacity_sectors.checked_sub(sector)?;
        let is_whole = (sector | count) & self.unit_sectors.wrapping_sub(1) == 0;
        // It does not wrap: it is not more than the size.
        (count <= left && is_whole).then(|| sector.wrapping_mul(SECTOR_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The naive twin computes with 128 bits, where nothing overflows.
        #[test]
        fn a_run_is_inside_exactly_when_its_bytes_are(
            sector in prop_oneof![any::<u64>(), 0..5000_u64, (u64::MAX - 20)..=u64::MAX],
            count in prop_oneof![any::<u64>(), 0..5000_u64],
            capacity_sectors in prop_oneof![0..=u64::MAX / 512, 0..5000_u64],
            unit_sectors in prop_oneof![Just(1_u64), Just(8)],
        ) {
            let limits = Limits { capacity_sectors, block_sectors: 8, unit_sectors, read_only: false };
            let (first, end) = (u128::from(sector) * 512, (u128::from(sector) + u128::from(count)) * 512);
            let unit_bytes = u128::from(unit_sectors) * 512;
            let fits = end <= u128::from(capacity_sectors) * 512
                && first % unit_bytes == 0
                && (end - first) % unit_bytes == 0
                && first <= u128::from(u64::MAX);
            let offset = limits.offset_bytes(sector, count);
            prop_assert_eq!(offset.map(u128::from), fits.then_some(first));
        }
    }
}
