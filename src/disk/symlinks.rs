//! Paths that are looked up with or without symbolic links.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;

/// What becomes of a path where a symbolic link is a part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Symlinks {
    /// It leads to where the link leads.
    #[default]
    Follow,
    /// It is refused, whichever part it is (`RESOLVE_NO_SYMLINKS`, Linux 5.6).
    Refuse,
}

impl Symlinks {
    /// Opens a path, closed on exec.
    ///
    /// # Errors
    /// Those of `open(2)`, and a link that is refused.
    pub fn open(self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        let opened = match self {
            Self::Follow => open(path, flags, mode),
            Self::Refuse => openat2(CWD, path, flags, mode, ResolveFlags::NO_SYMLINKS),
        };
        opened.map_err(|errno| match (self, errno) {
            (Self::Refuse, Errno::LOOP) => {
                io::Error::other("a part of its path is a symbolic link, and --no-symlinks refuses these")
            }
            _ => errno.into(),
        })
    }

    /// What is at a path, which is not opened for that.
    ///
    /// # Errors
    /// Those of `stat(2)`, and a link that is refused.
    pub(super) fn metadata(self, path: &Path) -> io::Result<Metadata> {
        match self {
            Self::Follow => std::fs::metadata(path),
            Self::Refuse => File::from(self.open(path, OFlags::PATH, Mode::empty())?).metadata(),
        }
    }
}
