//! Feature bits offered to a driver.

use virtio_bindings::bindings::virtio_blk as blk;
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Bits that have a meaning for the data path.
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// See [`EVENT_IDX`].
pub const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// See [`EVENT_IDX`].
pub const RING_PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
/// The driver sends FLUSH; without it every write must persist at once (VIRTIO 1.2 §5.2.6.2).
pub const FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;
/// The driver may choose the cache mode.
pub const CONFIG_WCE: u64 = 1 << blk::VIRTIO_BLK_F_CONFIG_WCE;

/// What a bit is called, of those that a block device, its rings or vhost-user give a meaning.
pub const fn name(bit: u32) -> Option<&'static str> {
    Some(match bit {
        1 => "SIZE_MAX",
        2 => "SEG_MAX",
        4 => "GEOMETRY",
        5 => "RO",
        6 => "BLK_SIZE",
        9 => "FLUSH",
        10 => "TOPOLOGY",
        11 => "CONFIG_WCE",
        12 => "MQ",
        13 => "DISCARD",
        14 => "WRITE_ZEROES",
        16 => "SECURE_ERASE",
        26 => "LOG_ALL",
        27 => "ANY_LAYOUT",
        28 => "INDIRECT_DESC",
        29 => "EVENT_IDX",
        30 => "PROTOCOL_FEATURES",
        32 => "VERSION_1",
        33 => "ACCESS_PLATFORM",
        34 => "RING_PACKED",
        35 => "IN_ORDER",
        36 => "ORDER_PLATFORM",
        37 => "SR_IOV",
        38 => "NOTIFICATION_DATA",
        40 => "RING_RESET",
        _ => return None,
    })
}

/// What a disk offers. Sessions without `VERSION_1` work as well: on little-endian hosts the legacy layout
/// is the same.
pub const fn offered(read_only: bool, queues: u16) -> u64 {
    let mut bits = EVENT_IDX
        | INDIRECT_DESC
        | RING_PACKED
        | FLUSH
        | 1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_F_IN_ORDER
        | 1 << blk::VIRTIO_BLK_F_SEG_MAX
        | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
        | 1 << blk::VIRTIO_BLK_F_TOPOLOGY
        | CONFIG_WCE;
    if queues > 1 {
        bits |= 1 << blk::VIRTIO_BLK_F_MQ;
    }
    if read_only {
        bits |= 1 << blk::VIRTIO_BLK_F_RO;
    } else {
        bits |= 1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;
    }
    bits
}
