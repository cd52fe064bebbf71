//! What keeps others apart from what this process holds.

pub(crate) mod process;
