//! What a path is and how it would be served, found out by looking only.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::Access;

use super::backing::{check_regular, check_size};
use super::{BackingKind, Durability, FileKind, OpenError, Place, lock};

/// What a path is and how it would be served.
#[derive(Debug)]
pub struct Description {
    /// What is there.
    pub file_kind: FileKind,
    /// Length in bytes, as the file system tells; 0 for devices.
    pub length_bytes: u64,
    /// Bytes that have space allocated.
    pub allocated_bytes: u64,
    /// What its bytes lie on; only regular files have that yet.
    pub kind: Option<BackingKind>,
    /// Whether this user may write it.
    pub writable: bool,
    /// The process that has it locked now, where that can be learnt.
    pub holder: Option<u32>,
    /// Why it cannot be served as it is, with the default options.
    pub refusal: Option<OpenError>,
}

impl Description {
    /// How requests would reach the bytes, in words.
    pub fn data_path(&self) -> Option<&'static str> {
        self.kind.map(BackingKind::data_path)
    }

    /// What a completed and flushed write would be worth.
    pub fn durability(&self) -> Option<Durability> {
        self.kind.map(BackingKind::durability)
    }
}

/// Describes what is at `path`. It is not opened: nothing is created, locked or changed, and no device is
/// woken.
///
/// # Errors
/// [`OpenError`] when there is nothing at the path or it may not be looked at.
pub fn describe(path: &Path) -> Result<Description, OpenError> {
    let place = Place::of_path(path);
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::Missing {
            place: place.clone(),
            operation: "look at",
            cause: "there is no such file",
            remedy: "correct the path, or let `serve` create it with size=",
        },
        _ => OpenError::system(&place, "look at", "correct the path", source),
    })?;
    let file_kind = FileKind::from(metadata.file_type());
    let kind = match file_kind {
        FileKind::Regular => {
            let statfs = rustix::fs::statfs(path).map_err(|errno| {
                OpenError::system(&place, "tell the file system of", "check the file system", errno.into())
            })?;
            Some(BackingKind::of(&statfs))
        }
        _ => None,
    };
    let refusal = check_regular(&place, &metadata)
        .and_then(|()| check_size(&place, "the file", metadata.len(), 512))
        .and_then(|()| {
            rustix::fs::access(path, Access::READ_OK)
                .map_err(|errno| OpenError::system(&place, "read", "allow reading it", errno.into()))
        })
        .err();
    Ok(Description {
        file_kind,
        length_bytes: metadata.len(),
        allocated_bytes: metadata.blocks().saturating_mul(512),
        kind,
        writable: rustix::fs::access(path, Access::WRITE_OK).is_ok(),
        holder: lock::holder(&metadata),
        refusal,
    })
}
