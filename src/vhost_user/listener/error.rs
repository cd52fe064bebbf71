//! Why nobody can connect.

use std::io;
use std::path::PathBuf;

/// Why a disk's socket cannot be listened on; the caller names the disk.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// Another process answers there.
    #[error("{}: another process is listening on this socket; stop it or choose another socket=", .0.display())]
    InUse(PathBuf),
    /// The kernel refused.
    #[error("{}: cannot {operation} the socket: {source}", path.display())]
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
