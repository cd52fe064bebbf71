//! Which file it is, whatever its path leads to by now.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::Stat;

/// A file system's number and, there, the file's: as long as the file is open or has a name no other has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    /// What is at a path; a link is not followed.
    ///
    /// # Errors
    /// Those of `lstat`.
    pub fn at(path: &Path) -> io::Result<Self> {
        std::fs::symlink_metadata(path).map(|there| Self::from(&there))
    }

    /// Removes it from a path, and nothing else that is there by now.
    ///
    /// # Errors
    /// Those of `unlink`.
    pub fn remove_from(self, path: &Path) -> io::Result<()> {
        match Self::at(path) {
            Ok(there) if there == self => std::fs::remove_file(path),
            _ => Ok(()),
        }
    }
}

impl From<&Metadata> for Inode {
    fn from(of: &Metadata) -> Self {
        Self { device: of.dev(), number: of.ino() }
    }
}

impl From<&Stat> for Inode {
    fn from(of: &Stat) -> Self {
        Self { device: of.st_dev, number: of.st_ino }
    }
}
