//! Live migration as the front-ends of both sides see it: the dirty log, and who may run when.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod device_state;
mod dirty_log;
mod log;
mod moved;
mod one_writer;
mod plugged;
mod postcopy;
mod postcopy_order;
mod postcopy_unprivileged;
