//! The socket that metrics are read from: one client after the other, each for a short time.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::http::{self, Status};
use super::metrics;
use crate::disk::Symlinks;
use crate::limits::bounds::{MAX_HTTP_HEAD_BYTES, METRICS_TIMEOUT};
use crate::limits::thread;
use crate::log::{Cause, LogLimit};
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

/// A socket that listens, and is not answered yet.
#[derive(Debug)]
pub struct Endpoint(Listener);

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
        Listener::bind(path, &access).map(Self).map_err(EndpointError::from)
    }

    /// Whether [`bind`](Self::bind) would find what it needs; nothing is changed.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn preview(path: &Path, symlinks: Symlinks) -> Result<(), EndpointError> {
        let access = SocketAccess { symlinks, ..SocketAccess::default() };
        Ok(Listener::preview(path, &access)?)
    }

    /// Answers with what `collector` collects, on a thread of its own.
    ///
    /// # Errors
    /// [`EndpointError::Thread`].
    pub fn serve(self, collector: Collector) -> Result<Serving, EndpointError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|errno| EndpointError::Thread(errno.into()))?);
        let stopped = stop.clone();
        let run = move || answer_clients(&self.0, collector, &stopped);
        let thread = thread::spawn(ThreadKind::Metrics, "metrics", run);
        Ok(Serving { stop, thread: Some(thread.map_err(EndpointError::Thread)?) })
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

fn answer_clients(listener: &Listener, mut collector: Collector, stop: &OwnedFd) {
    let log_limit = LogLimit::default();
    while wait(listener, PollFlags::IN, stop, None).is_ok() {
        let client = match listener.accept() {
            Ok(stream) => Client { stream, stop, deadline: Instant::now() + METRICS_TIMEOUT },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                if let Some(suppressed) = log_limit.admit(Cause::Exhausted) {
                    let what = "cannot accept a reader of metrics; check the limits (ulimit -n)";
                    tracing::error!(%error, suppressed, "{what}");
                }
                std::thread::sleep(Listener::EXHAUSTED_PAUSE);
                continue;
            }
        };
        if let Err(error) = client.answer(|| metrics::text(&collector.collect()))
            && let Some(suppressed) = log_limit.admit(Cause::HungUp)
        {
            tracing::debug!(%error, suppressed, "a reader of metrics got no answer");
        }
    }
}

/// A client, and until when it must have its answer.
struct Client<'a> {
    stream: UnixStream,
    stop: &'a OwnedFd,
    deadline: Instant,
}

impl Client<'_> {
    fn answer(mut self, metrics: impl FnOnce() -> String) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let status = self.status()?;
        let body = match status {
            Status::Ok => metrics(),
            _ => "the metrics are at /metrics, for GET\n".to_owned(),
        };
        self.send(&http::answer(status, &body))
    }

    fn status(&mut self) -> io::Result<Status> {
        let mut received = Vec::with_capacity(MAX_HTTP_HEAD_BYTES);
        loop {
            if let Some(status) = http::status_of(&received) {
                return Ok(status);
            }
            self.wait(PollFlags::IN)?;
            let room = MAX_HTTP_HEAD_BYTES.saturating_sub(received.len()) as u64;
            match (&self.stream).take(room).read_to_end(&mut received) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.wait(PollFlags::OUT)?;
            match self.stream.write(bytes) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        wait(&self.stream, flags, self.stop, Some(self.deadline))
    }
}

/// Waits until there is something to do. Fails when it is time to stop, or too late.
fn wait(
    descriptor: impl AsFd,
    flags: PollFlags,
    stop: &OwnedFd,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    let mut polled = [PollFd::new(stop, PollFlags::IN), PollFd::new(&descriptor, flags)];
    match poll(&mut polled, left.as_ref()) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) if polled.first().is_some_and(|stop| !stop.revents().is_empty()) => {
            Err(io::ErrorKind::Interrupted.into())
        }
        Err(error) if error != Errno::INTR => Err(error.into()),
        _ => Ok(()),
    }
}
