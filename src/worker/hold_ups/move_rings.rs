//! How a disk's rings get other workers.

use std::fmt;
use std::sync::OnceLock;

/// Has all rings of the disk given to workers anew.
#[derive(Default)]
pub(super) struct MoveRings(pub(super) OnceLock<Box<dyn Fn() + Send + Sync>>);

impl fmt::Debug for MoveRings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MoveRings")
    }
}
