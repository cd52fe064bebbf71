//! The virtio specification: guest memory, rings, and the block device on them. Nothing of vhost-user.

pub mod blk;
pub mod memory;
pub mod queue;
