//! Why nobody can connect.

use std::io;
use std::path::PathBuf;

/// Why a disk's socket cannot be listened on; the caller names the disk.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// Another process answers there.
    #[error("{}: another process is listening on this socket; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    /// The kernel refused.
    #[error("{}: cannot {operation} the socket ({source}); {}", path.display(), remedy(.source))]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// The step that failed.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An inherited descriptor is not what it should be.
    #[error("descriptor: {0}; pass a Unix stream socket that listens or is connected")]
    Inherited(io::Error),
}

/// What to do about an error of a socket's path.
pub(crate) fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run as a user who may write to its folder, or choose another path"
        }
        io::ErrorKind::NotFound => "create its folder, or choose another path",
        io::ErrorKind::InvalidInput => "a socket's path has at most 107 bytes, choose a shorter one",
        io::ErrorKind::AlreadyExists => "remove what is there, or choose another path",
        _ => "choose another path",
    }
}
