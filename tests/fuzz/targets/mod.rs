//! Each target is a function of bytes, for libFuzzer and for a test that replays a corpus. Where it finds something it panics, or
//! ends the process.

#![allow(dead_code, unreachable_pub, reason = "libFuzzer's programs and a test use a part each")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod command_line;
mod config;
mod config_file;
mod control;
mod dirty_log;
mod image;
mod messages;
mod metrics;
mod postcopy;
mod race;
mod ring;
mod server;
mod sockets;
mod state;
mod view;

use std::cell::RefCell;

use server::World;

/// Takes whatever bytes a fuzzer makes up.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its corpus's folder.
pub const ALL: [(&str, Target); 12] = [
    ("command_line", command_line::run),
    ("config", config::run),
    ("config_file", config_file::run),
    ("control", control::run),
    ("dirty_log", dirty_log::run),
    ("messages", messages::run),
    ("metrics", metrics::run),
    ("packed", ring::packed),
    ("postcopy", postcopy::run),
    ("sockets", sockets::run),
    ("split", ring::split),
    ("state", state::run),
];

/// The target of this name.
///
/// # Panics
/// There is none.
pub fn named(name: &str) -> Target {
    ALL.into_iter().find(|(it, _)| *it == name).expect("a target of this name").1
}

/// Runs something with this thread's server, which is started if need be.
fn with_world(run: impl FnOnce(&mut World)) {
    thread_local! { static WORLD: RefCell<Option<World>> = const { RefCell::new(None) }; }
    WORLD.with_borrow_mut(|world| run(world.get_or_insert_with(World::start)));
}

/// The same with a server of one disk, which offers postcopy migration.
fn with_postcopy_world(run: impl FnOnce(&mut World)) {
    thread_local! { static WORLD: RefCell<Option<World>> = const { RefCell::new(None) }; }
    WORLD.with_borrow_mut(|world| run(world.get_or_insert_with(World::with_postcopy)));
}
