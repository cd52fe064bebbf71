//! Why a server could not start.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::copy::EngineError;
use crate::disk::OpenError;
use crate::vhost_user::{ListenerError, socket_remedy};
use crate::worker::Cpus;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Disks that cannot be served together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The backing of a disk.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A living daemon listens on the path.
    #[error("disk {disk:?}: {}: another process listens on this socket; stop it or choose another path", path.display())]
    SocketInUse {
        /// The disk's name.
        disk: String,
        /// The socket.
        path: PathBuf,
    },
    /// Any other trouble with the path.
    #[error("disk {disk:?}: {}: cannot {operation} the socket ({source}); {}", path.display(), socket_remedy(.source))]
    Socket {
        /// The disk's name.
        disk: String,
        /// The socket.
        path: PathBuf,
        /// The step that failed.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An inherited descriptor.
    #[error(
        "disk {disk:?}: cannot use the inherited descriptor ({source}); pass a Unix stream socket that listens or is connected"
    )]
    Fd {
        /// The disk's name.
        disk: String,
        /// Why.
        source: io::Error,
    },
    /// The override of the copy engine.
    #[error(transparent)]
    Copy(#[from] EngineError),
    /// The signal handlers that contain faults of memory.
    #[error("cannot handle SIGBUS and SIGSEGV ({0}); allow sigaction(2) in the sandbox of this process")]
    Faults(io::Error),
    /// [`ServerConfig::should_stop`](crate::config::ServerConfig::should_stop) was set.
    #[error("asked to stop while it started; nothing is served")]
    Stopped,
    /// The end did not wait any longer.
    #[error("not all had ended when --stop-timeout was over, and what was not acknowledged is given up: {0}")]
    GivenUp(GivenUp),
    /// The CPUs chosen for a disk.
    #[error(
        "disk {disk:?}: cpus={cpus}: this process may use none of these CPUs; choose from `taskset -cp $$`"
    )]
    NoCpu {
        /// The disk's name.
        disk: String,
        /// What was chosen.
        cpus: Cpus,
    },
    /// The threads of the server itself.
    #[error(
        "cannot run the server's threads ({0}); check the limits on processes and open files (ulimit -u, -n)"
    )]
    Threads(io::Error),
}

impl ServerError {
    pub(super) fn listener(disk: String, error: ListenerError) -> Self {
        match error {
            ListenerError::InUse(path) => Self::SocketInUse { disk, path },
            ListenerError::Io { path, operation, source } => Self::Socket { disk, path, operation, source },
            ListenerError::Inherited(source) => Self::Fd { disk, source },
        }
    }
}

/// What was not done at the end, and whom that waited for: one disk after the other.
#[derive(Debug)]
pub struct GivenUp(pub(super) Vec<String>);

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}
