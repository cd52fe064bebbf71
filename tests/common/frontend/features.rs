//! Feature bits of a block device (VIRTIO 1.2 §5.2.3, §6), written down apart from those that the daemon is built with.

/// Feature bit: the configuration says how many segments a request has at most.
pub const SEG_MAX: u64 = 1 << 2;
/// Feature bit: writes are refused.
pub const RO: u64 = 1 << 5;
/// Feature bit: the configuration has a block size.
pub const BLK_SIZE: u64 = 1 << 6;
/// Feature bit: there is a request to flush.
pub const FLUSH: u64 = 1 << 9;
/// Feature bit: the configuration has the layout of blocks.
pub const TOPOLOGY: u64 = 1 << 10;
/// Feature bit: the driver may switch the cache mode.
pub const CONFIG_WCE: u64 = 1 << 11;
/// Feature bit: there are several queues.
pub const MQ: u64 = 1 << 12;
/// Feature bit: sectors can be discarded.
pub const DISCARD: u64 = 1 << 13;
/// Feature bit: sectors can be made zero.
pub const WRITE_ZEROES: u64 = 1 << 14;
/// Feature bit: requests are used in the order in which they were made available.
pub const IN_ORDER: u64 = 1 << 35;
