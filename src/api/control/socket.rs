//! The socket, and its thread.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;

use tokio::net::UnixListener;
use tokio::runtime::{self, Runtime};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::client::{self, Progress, Shared};
use super::operator::Operator;
use crate::disk::Symlinks;
use crate::limits::bounds::MAX_CONTROL_CONNECTIONS;
use crate::limits::thread;
use crate::log::{Cause, LogLimit};
use crate::sandbox::ThreadKind;
use crate::vhost_user::{Listener, ListenerError, SocketAccess, socket_remedy};

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("--control {}: another process listens on this socket; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    #[error("--control {}: cannot {operation} the socket ({source}); {}", path.display(), socket_remedy(.source))]
    Socket { path: PathBuf, operation: &'static str, source: io::Error },
    #[error("--control: no thread to serve it ({0}); check the limits (ulimit -u, -n)")]
    Thread(io::Error),
}

impl From<ListenerError> for ControlError {
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
pub(crate) struct ControlSocket(Listener);

/// A thread that answers. Dropping it ends it and removes the socket; an operation that is under way goes on.
#[derive(Debug)]
pub(crate) struct Controlling {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlSocket {
    /// Listens on a path, for the user and the group of this process.
    ///
    /// # Errors
    /// [`ControlError`].
    pub(crate) fn bind(path: &Path, symlinks: Symlinks) -> Result<Self, ControlError> {
        Ok(Self(Listener::bind(path, &SocketAccess { symlinks, ..SocketAccess::default() })?))
    }

    /// Whether [`bind`](Self::bind) would find what it needs; nothing is changed.
    ///
    /// # Errors
    /// [`ControlError`].
    pub(crate) fn preview(path: &Path, symlinks: Symlinks) -> Result<(), ControlError> {
        Ok(Listener::preview(path, &SocketAccess { symlinks, ..SocketAccess::default() })?)
    }

    /// Has `operator` do what is asked for there.
    ///
    /// # Errors
    /// [`ControlError::Thread`].
    pub(crate) fn serve(self, operator: Arc<Operator>) -> Result<Controlling, ControlError> {
        let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.map_err(ControlError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let run = move || answer(&runtime, &self.0, &Arc::new(Shared::new(operator)), stopped);
        let thread = thread::spawn(ThreadKind::Control, "control", run).map_err(ControlError::Thread)?;
        Ok(Controlling { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Controlling {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // An error is a panic there, which the panic hook has logged.
            let _ = thread.join();
        }
    }
}

fn answer(runtime: &Runtime, listener: &Listener, shared: &Arc<Shared>, stopped: oneshot::Receiver<()>) {
    let served = runtime.block_on(async {
        let socket = listener.as_fd().try_clone_to_owned()?;
        accept(&UnixListener::from_std(socket.into())?, shared, stopped).await;
        io::Result::Ok(())
    });
    if let Err(error) = served {
        tracing::error!(%error, "the control socket is not answered");
    }
}

/// A connection that is answered.
struct Connection {
    task: AbortHandle,
    progress: Arc<Progress>,
}

/// Lets in who connects, until it is stopped.
async fn accept(socket: &UnixListener, shared: &Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let log_limit = LogLimit::default();
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let next = poll_fn(|context| match Pin::new(&mut stopped).poll(context) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => socket.poll_accept(context).map(Some),
        });
        let Some(accepted) = next.await else { return };
        match accepted {
            Ok((stream, _)) => {
                connections.retain(|connection| !connection.task.is_finished());
                make_room(&mut connections);
                let progress = Arc::new(Progress::new());
                let task = tokio::spawn(client::serve(stream, shared.clone(), progress.clone()));
                connections.push(Connection { task: task.abort_handle(), progress });
            }
            Err(error) => {
                if let Some(suppressed) = log_limit.admit(Cause::Exhausted) {
                    let what =
                        "cannot accept a connection to the control socket; check the limits (ulimit -n)";
                    tracing::error!(%error, suppressed, "{what}");
                }
                tokio::time::sleep(Listener::EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// The oldest one goes for which nothing is under way. There is one: fewer operations are under way than there are places.
fn make_room(connections: &mut Vec<Connection>) {
    if connections.len() >= MAX_CONTROL_CONNECTIONS
        && let Some(place) = connections.iter().position(|connection| connection.progress.is_idle())
    {
        connections.remove(place).task.abort();
    }
}
