//! The vhost-user protocol from the front-end's side (QEMU's `docs/interop/vhost-user.rst`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

#[path = "protocol/budget.rs"]
mod budget;
#[path = "protocol/channel.rs"]
mod channel;
mod common;
#[path = "protocol/config.rs"]
mod config;
#[path = "protocol/connections.rs"]
mod connections;
#[path = "protocol/debug_log.rs"]
mod debug_log;
#[path = "protocol/descriptors.rs"]
mod descriptors;
#[path = "protocol/features.rs"]
mod features;
#[path = "protocol/floods.rs"]
mod floods;
#[path = "protocol/front_ends.rs"]
mod front_ends;
#[path = "protocol/growth.rs"]
mod growth;
#[path = "protocol/handover.rs"]
mod handover;
#[path = "protocol/huge_pages.rs"]
mod huge_pages;
#[path = "protocol/killed.rs"]
mod killed;
#[path = "protocol/lifecycle.rs"]
mod lifecycle;
#[path = "protocol/lists.rs"]
mod lists;
#[path = "protocol/memory.rs"]
mod memory;
#[path = "protocol/messages.rs"]
mod messages;
#[path = "protocol/notifications.rs"]
mod notifications;
#[path = "protocol/recovery.rs"]
mod recovery;
#[path = "protocol/resize.rs"]
mod resize;
#[path = "protocol/returns.rs"]
mod returns;
#[path = "protocol/rings.rs"]
mod rings;
#[path = "protocol/silent.rs"]
mod silent;

use common::daemon::{Daemon, Place, Setup};
use common::frontend::request::{OK, Request};
use common::frontend::ring::Ring;
use common::pattern;

const DISK_BYTES: u64 = 64 << 20;

/// A daemon with one disk of [`DISK_BYTES`].
fn daemon(options: &str) -> Daemon {
    with_disks(&[options]).start()
}

/// Disks of [`DISK_BYTES`] with these options. Their files are there already: a read-only one is not created.
fn with_disks(options: &[&str]) -> Setup {
    let mut setup = Setup::new(Place::Tmpfs);
    for (index, options) in options.iter().enumerate() {
        setup = setup.disk(options);
        std::fs::File::create(setup.image(index)).unwrap().set_len(DISK_BYTES).unwrap();
    }
    setup
}

/// Writes and reads back a few sectors: the ring works.
fn assert_works(ring: &mut Ring, sector: u64) {
    let bytes = pattern(sector, 4096);
    assert_eq!(ring.run(&Request::write(sector, &bytes)).status, OK);
    let read = ring.run(&Request::read(sector, 4096));
    assert_eq!(read.status, OK);
    assert!(read.data == bytes, "ring {} read something else than it wrote", ring.index);
}
