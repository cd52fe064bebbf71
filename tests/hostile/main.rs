//! What hostile peers try: guests' drivers, front-ends, and other users of the machine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod driver;
