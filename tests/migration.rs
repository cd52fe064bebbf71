//! Live migration as the front-ends of both sides see it: the dirty log, and who may run when.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

mod common;
#[path = "migration/device_state.rs"]
mod device_state;
#[path = "migration/dirty_log.rs"]
mod dirty_log;
#[path = "migration/log.rs"]
mod log;
#[path = "migration/moved.rs"]
mod moved;
#[path = "migration/one_writer.rs"]
mod one_writer;
#[path = "migration/plugged.rs"]
mod plugged;
#[path = "migration/postcopy.rs"]
mod postcopy;
#[path = "migration/postcopy_order.rs"]
mod postcopy_order;
#[path = "migration/postcopy_unprivileged.rs"]
mod postcopy_unprivileged;
