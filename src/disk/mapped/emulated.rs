//! A disk in memory that takes itself for one on DAX media: for the enumeration of crash states.

use std::fs::File;

use super::{BackingKind, Durability, MappedDisk, Persistence, persist_of};
use crate::disk::{FileSystem, Geometry};

/// What a disk is made to believe.
#[derive(Debug)]
pub(crate) struct EmulatedMedia {
    pub(crate) durability: Durability,
    /// The attributes that FLUSH writes to.
    pub(crate) deep_flush: Vec<File>,
    /// Whether discards give space back.
    pub(crate) unmaps: bool,
    /// What holes consist of, and what is synced by itself: small, so that small disks have many.
    pub(crate) unit_bytes: u64,
    /// A page that cannot be read before it is written anew.
    pub(crate) bad_at: Option<u64>,
}

impl MappedDisk {
    /// Serves all of `file`, a memfd, of which nothing is unwritten.
    pub(crate) fn emulated(file: File, how: EmulatedMedia) -> Self {
        let EmulatedMedia { durability, deep_flush, unmaps, unit_bytes, bad_at } = how;
        let file_system = FileSystem::of(&rustix::fs::fstatfs(&file).unwrap());
        let capacity_bytes = file.metadata().unwrap().len();
        let geometry = Geometry { capacity_bytes, block_bytes: 512, read_only: false };
        let disk = Self::new(file, geometry).unwrap();
        bad_at.into_iter().for_each(|at| disk.add_bad_page(at));
        Self {
            mapping: disk.mapping.persisting(persist_of(durability)),
            kind: BackingKind::DaxFile { file_system },
            durability,
            persistence: Persistence::of(durability, deep_flush, unit_bytes, false),
            unmaps,
            punch_bytes: unit_bytes,
            ..disk
        }
    }
}
