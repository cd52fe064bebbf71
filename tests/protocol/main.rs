//! The vhost-user protocol from the front-end's side (QEMU's `docs/interop/vhost-user.rst`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

mod budget;
mod channel;
#[path = "../common/mod.rs"]
mod common;
mod config;
mod connections;
mod debug_log;
mod descriptors;
mod features;
mod floods;
mod front_ends;
mod growth;
mod handover;
mod huge_pages;
mod killed;
mod lifecycle;
mod lists;
mod memory;
mod messages;
mod notifications;
mod recovery;
mod resize;
mod returns;
mod rings;
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
