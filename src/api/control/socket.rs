//! The socket, and its thread.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{self, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::client::{self, Progress, Shared};
use super::operator::Operator;
use crate::disk::Symlinks;
use crate::limits::bounds::{LAST_EVENTS_TIMEOUT, MAX_CONTROL_CONNECTIONS};
use crate::limits::thread;
use crate::log::{Cause, EventLog, LogLimit};
use crate::sandbox::ThreadKind;
use crate::vhost_user::{Listener, ListenerError, SocketAccess, socket_remedy};

/// How often it is looked whether followers have gone, at the end.
const POLL: Duration = Duration::from_millis(5);

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
    reloads: Reloads,
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
}

impl Controlling {
    /// Has `operator` do what is asked for at the socket, if there is one, and by [`Reloads`].
    ///
    /// # Errors
    /// [`ControlError::Thread`].
    pub(crate) fn start(
        socket: Option<ControlSocket>,
        operator: Arc<Operator>,
        events: Arc<EventLog>,
    ) -> Result<Self, ControlError> {
        let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.map_err(ControlError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let (sender, asked) = mpsc::channel(1);
        let until = Until { stopped, asked };
        let run = move || answer(&runtime, socket.as_ref(), &Arc::new(Shared::new(operator, events)), until);
        let thread = thread::spawn(ThreadKind::Control, "control", run).map_err(ControlError::Thread)?;
        Ok(Self { stop: Some(stop), reloads: Reloads(sender), thread: Some(thread) })
    }

    /// What asks for the configuration to be read again.
    pub(crate) fn reloads(&self) -> Reloads {
        self.reloads.clone()
    }
}

/// Asks for the configuration to be read again, from any thread and without waiting; the log says what comes of it.
#[derive(Debug, Clone)]
pub(crate) struct Reloads(mpsc::Sender<()>);

impl Reloads {
    pub(crate) fn ask(&self) {
        // One that is asked for already, and has not begun, is this one as well.
        let _ = self.0.try_send(());
    }
}

/// What the thread hears of besides connections.
struct Until {
    stopped: oneshot::Receiver<()>,
    asked: mpsc::Receiver<()>,
}

/// What has happened.
enum Event {
    Stopped,
    Reload,
    Connection(io::Result<(UnixStream, SocketAddr)>),
}

impl Until {
    async fn next(&mut self, socket: Option<&UnixListener>) -> Event {
        poll_fn(|context| {
            if Pin::new(&mut self.stopped).poll(context).is_ready() {
                return Poll::Ready(Event::Stopped);
            }
            if self.asked.poll_recv(context).is_ready() {
                return Poll::Ready(Event::Reload);
            }
            socket.map_or(Poll::Pending, |socket| socket.poll_accept(context).map(Event::Connection))
        })
        .await
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

fn answer(runtime: &Runtime, socket: Option<&ControlSocket>, shared: &Arc<Shared>, until: Until) {
    let served = runtime.block_on(async {
        let listener = socket.map(|ControlSocket(socket)| {
            let socket = socket.as_fd().try_clone_to_owned()?;
            UnixListener::from_std(socket.into())
        });
        accept(listener.transpose()?.as_ref(), shared, until).await;
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
async fn accept(socket: Option<&UnixListener>, shared: &Arc<Shared>, mut until: Until) {
    let log_limit = LogLimit::default();
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let accepted = match until.next(socket).await {
            Event::Stopped => return let_go(shared, &connections).await,
            Event::Reload => {
                shared.reload();
                continue;
            }
            Event::Connection(accepted) => accepted,
        };
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

/// Followers of events are given the last ones.
async fn let_go(shared: &Shared, connections: &[Connection]) {
    shared.events.end();
    let deadline = Instant::now() + LAST_EVENTS_TIMEOUT;
    let is_there = |it: &Connection| it.progress.follows() && !it.task.is_finished();
    while connections.iter().any(is_there) && Instant::now() < deadline {
        tokio::time::sleep(POLL).await;
    }
}

/// The oldest one goes for which nothing is under way. There is one: fewer operations are under way than there are places.
fn make_room(connections: &mut Vec<Connection>) {
    let others = connections.iter().filter(|connection| !connection.progress.follows()).count();
    if others >= MAX_CONTROL_CONNECTIONS
        && let Some(place) = connections.iter().position(|connection| connection.progress.is_idle())
    {
        connections.remove(place).task.abort();
    }
}
