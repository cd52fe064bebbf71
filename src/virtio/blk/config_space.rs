//! The configuration space (VIRTIO 1.2 §5.2.4).

use super::units::{Limits, MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS, SECTOR_BYTES};

/// Length of the fields that have a meaning; whatever is read behind them is zero.
pub const CONFIG_BYTES: usize = 60;

/// Offset of the only byte a driver may write: the cache mode.
pub const WRITEBACK_OFFSET: u32 = 32;

/// Media and page tables work in pages: smaller writes cost a read.
const PHYSICAL_BLOCK_BYTES: u64 = 4096;

/// What the device says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigSpace {
    /// Capacity, block size, access.
    pub limits: Limits,
    /// Queues offered.
    pub queues: u16,
    /// Most data segments of a request.
    pub seg_max: u16,
    /// What a discard should be aligned to, in sectors.
    pub discard_alignment_sectors: u32,
    /// 1: the driver must flush; 0: each completed write persists.
    pub writeback: bool,
}

impl ConfigSpace {
    /// The fields as a driver reads them.
    pub fn to_bytes(&self) -> [u8; CONFIG_BYTES] {
        let mut bytes = [0; CONFIG_BYTES];
        let mut put = |offset: usize, field: &[u8]| {
            let end = offset.saturating_add(field.len());
            if let Some(place) = bytes.get_mut(offset..end) {
                place.copy_from_slice(field);
            }
        };
        let Limits { capacity_sectors, block_sectors, read_only, .. } = self.limits;
        let block_bytes = u32::try_from(block_sectors * SECTOR_BYTES).unwrap_or(0);
        let blocks_per_page = PHYSICAL_BLOCK_BYTES / u64::from(block_bytes.max(1));
        put(0, &capacity_sectors.to_le_bytes());
        put(12, &u32::from(self.seg_max).to_le_bytes());
        put(20, &block_bytes.to_le_bytes());
        // Topology: physical blocks as a power of two, and the smallest good request in blocks.
        put(24, &[u8::try_from(blocks_per_page.max(1).ilog2()).unwrap_or(0)]);
        put(26, &u16::try_from(blocks_per_page).unwrap_or(1).to_le_bytes());
        put(32, &[u8::from(self.writeback)]);
        put(34, &self.queues.to_le_bytes());
        if !read_only {
            put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
            put(40, &u32::from(MAX_RANGES).to_le_bytes());
            put(44, &self.discard_alignment_sectors.to_le_bytes());
            put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
            put(52, &u32::from(MAX_RANGES).to_le_bytes());
            put(56, &[1]);
        }
        bytes
    }

    /// `len` bytes from `offset`, padded with zeroes: exactly as many as are asked for, since QEMU refuses
    /// any other answer. Offset 0x100 is the start too: Cloud Hypervisor before v0.9 counted from there.
    pub fn read(&self, offset: u32, len: usize) -> Vec<u8> {
        let start = usize::try_from(offset.checked_sub(0x100).unwrap_or(offset)).unwrap_or(usize::MAX);
        self.to_bytes().into_iter().skip(start).chain(std::iter::repeat(0)).take(len).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::bindings::virtio_blk::virtio_blk_config;

    const LIMITS: Limits =
        Limits { capacity_sectors: 0x1234_5678, block_sectors: 1, unit_sectors: 1, read_only: false };
    const SPACE: ConfigSpace = ConfigSpace {
        limits: LIMITS,
        queues: 64,
        seg_max: 126,
        discard_alignment_sectors: 8,
        writeback: true,
    };

    #[test]
    fn fields_lie_where_the_kernels_header_has_them() {
        use std::mem::offset_of as at;
        let bytes = SPACE.to_bytes();
        let u32_at = |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        assert_eq!(bytes[..8], 0x1234_5678_u64.to_le_bytes());
        assert_eq!(u32_at(at!(virtio_blk_config, size_max)), 0);
        assert_eq!(u32_at(at!(virtio_blk_config, seg_max)), 126);
        assert_eq!(u32_at(at!(virtio_blk_config, blk_size)), 512);
        assert_eq!(bytes[at!(virtio_blk_config, physical_block_exp)], 3);
        assert_eq!(bytes[at!(virtio_blk_config, min_io_size)], 8);
        assert_eq!(at!(virtio_blk_config, wce), WRITEBACK_OFFSET as usize);
        assert_eq!(bytes[at!(virtio_blk_config, wce)], 1);
        assert_eq!(bytes[at!(virtio_blk_config, num_queues)], 64);
        assert_eq!(u32_at(at!(virtio_blk_config, max_discard_sectors)), MAX_DISCARD_SECTORS);
        assert_eq!(u32_at(at!(virtio_blk_config, max_discard_seg)), 32);
        assert_eq!(u32_at(at!(virtio_blk_config, discard_sector_alignment)), 8);
        assert_eq!(u32_at(at!(virtio_blk_config, max_write_zeroes_sectors)), MAX_WRITE_ZEROES_SECTORS);
        assert_eq!(u32_at(at!(virtio_blk_config, max_write_zeroes_seg)), 32);
        assert_eq!(bytes[at!(virtio_blk_config, write_zeroes_may_unmap)], 1);
    }

    #[test]
    fn any_length_is_answered_in_full() {
        let all = SPACE.to_bytes();
        for len in [1, 36, 57, 60, 96, 256] {
            for offset in [0, 0x100] {
                let answer = SPACE.read(offset, len);
                assert_eq!(answer.len(), len);
                let known = len.min(CONFIG_BYTES);
                assert_eq!(answer[..known], all[..known]);
                assert!(answer[known..].iter().all(|byte| *byte == 0));
            }
        }
        assert_eq!(SPACE.read(20, 4), 512_u32.to_le_bytes());
        assert_eq!(SPACE.read(u32::MAX, 3), [0; 3]);
    }

    #[test]
    fn a_read_only_disk_names_no_discard_limits() {
        let limits = Limits { read_only: true, block_sectors: 8, ..LIMITS };
        let bytes = ConfigSpace { limits, ..SPACE }.to_bytes();
        assert!(bytes[36..].iter().all(|byte| *byte == 0));
        assert_eq!(bytes[20..24], 4096_u32.to_le_bytes());
        assert_eq!(bytes[24], 0);
    }
}
