//! What makes writes persist: when a flush needs a system call, which pages it is for, and who waits for it.

pub(in crate::disk) mod dirty_extents;
pub(in crate::disk) mod flush;
pub(in crate::disk) mod syncs;
