//! The README says what the program does: its tables are those of the program, its commands run, its links lead somewhere.

#![allow(missing_docs, unreachable_pub)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr
)]

#[path = "../common/mod.rs"]
mod common;

mod bounds;
mod commands;
mod links;
mod tables;

use std::path::Path;

/// The checkout.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// It is read from top to bottom.
#[test]
fn it_is_short() {
    let lines = readme().lines().count();
    assert!(lines <= 350, "README.md has {lines} lines; move what is long into src/cli/man/manual.md");
}
