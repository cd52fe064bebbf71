//! The fuzz targets: each a function of bytes, which ends the process where it finds something.

#[path = "targets/mod.rs"]
pub mod targets;

/// What the targets share with the tests.
#[path = "../common"]
pub mod common {
    pub mod frontend;
    pub mod guarded;
    pub mod messages;
    pub mod random;
    pub mod wait;

    pub use random::{Random, pattern};
    pub use wait::{PATIENCE, is_readable, wait_for, wait_readable};

    pub const SECTOR_BYTES: usize = 512;
}
