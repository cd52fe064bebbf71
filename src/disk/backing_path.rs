//! What errors are about.

use std::fmt;
use std::path::{Path, PathBuf};

/// What an error is about: a path, and the disk that is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingPath {
    disk: Option<String>,
    path: PathBuf,
}

impl BackingPath {
    /// The backing `path` of the disk called `name`.
    pub fn of_disk(name: &str, path: &Path) -> Self {
        Self { disk: Some(name.to_owned()), path: path.to_owned() }
    }

    /// A path that no disk is made of.
    pub fn of_path(path: &Path) -> Self {
        Self { disk: None, path: path.to_owned() }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for BackingPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(disk) = &self.disk {
            write!(f, "disk \"{disk}\": ")?;
        }
        write!(f, "{}", self.path.display())
    }
}
