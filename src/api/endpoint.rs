//! The sockets that metrics are read from, each with a thread of its own.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::readers;
use crate::disk::Symlinks;
use crate::limits::thread;
use crate::sandbox::ThreadKind;
use crate::server::Collector;
use crate::vhost_user::{Listener, ListenerError, SocketAccess, socket_remedy};

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Another process answers there.
    #[error("--metrics {}: another process listens on this socket; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    /// The kernel refused the socket.
    #[error(
        "--metrics {}: cannot {operation} the socket ({source}); {}", path.display(), socket_remedy(.source)
    )]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The step that failed.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Another process has the port.
    #[error("--metrics-listen {0}: another process listens on this port; stop it or choose another port")]
    PortInUse(SocketAddr),
    /// The kernel refused the port.
    #[error("--metrics-listen {address}: cannot listen on it ({source}); {}", port_remedy(.source))]
    Port {
        /// The address and port.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No thread or no descriptor.
    #[error("--metrics: no thread to serve them ({0}); check the limits (ulimit -u, -n)")]
    Thread(io::Error),
}

impl From<ListenerError> for EndpointError {
    fn from(error: ListenerError) -> Self {
        match error {
            ListenerError::InUse(path) => Self::InUse(path),
            ListenerError::Io { path, operation, source } => Self::Socket { path, operation, source },
            ListenerError::Inherited(source) => Self::Thread(source),
        }
    }
}

fn port_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "choose a port of 1024 or higher",
        io::ErrorKind::AddrNotAvailable => "choose an address of this machine",
        _ => "choose another address",
    }
}

/// A socket that listens, and is not answered yet.
#[derive(Debug)]
pub struct Endpoint(Socket);

#[derive(Debug)]
enum Socket {
    Path(Listener),
    Port(TcpListener),
}

/// A thread that answers. Dropping it ends it and removes the socket.
#[derive(Debug)]
pub struct Serving {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Listens on a path, for the user and the group of this process. A stale socket of this user is replaced.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn bind(path: &Path, symlinks: Symlinks) -> Result<Self, EndpointError> {
        let access = SocketAccess { symlinks, ..SocketAccess::default() };
        Ok(Self(Socket::Path(Listener::bind(path, &access)?)))
    }

    /// Whether [`bind`](Self::bind) would find what it needs; nothing is changed.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn preview(path: &Path, symlinks: Symlinks) -> Result<(), EndpointError> {
        let access = SocketAccess { symlinks, ..SocketAccess::default() };
        Ok(Listener::preview(path, &access)?)
    }

    /// Listens on a TCP port, for everybody who reaches the address: nobody is asked who he is. Port 0 is one that is free.
    ///
    /// # Errors
    /// [`EndpointError`]. Nothing is left behind that a later call would meet.
    pub fn bind_port(address: SocketAddr) -> Result<Self, EndpointError> {
        let socket = TcpListener::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(Self(Socket::Port(socket)))
        });
        socket.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => EndpointError::PortInUse(address),
            _ => EndpointError::Port { address, source },
        })
    }

    /// The address and port that it listens on, if it is one.
    pub fn port(&self) -> Option<SocketAddr> {
        match &self.0 {
            Socket::Path(_) => None,
            Socket::Port(socket) => socket.local_addr().ok(),
        }
    }

    /// Answers with what `collector` collects, on a thread of its own.
    ///
    /// # Errors
    /// [`EndpointError::Thread`].
    pub fn serve(self, collector: Collector) -> Result<Serving, EndpointError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|errno| EndpointError::Thread(errno.into()))?);
        let stopped = stop.clone();
        let run = move || readers::answer(&self, collector, &stopped);
        let thread = thread::spawn(ThreadKind::Metrics, "metrics", run);
        Ok(Serving { stop, thread: Some(thread.map_err(EndpointError::Thread)?) })
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Socket::Path(socket) => socket.as_fd(),
            Socket::Port(socket) => socket.as_fd(),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Only a full counter can fail, and that stops it as well.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // An error is a panic there, which the panic hook has logged.
            let _ = thread.join();
        }
    }
}
