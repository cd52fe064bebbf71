//! What makes writes last: when a flush needs a system call, which pages it is for, and who waits for it.

pub(in crate::disk) mod extents;
pub(in crate::disk) mod flush;
pub(in crate::disk) mod syncs;
