//! The socket that front-ends connect to: bound to a path, or inherited as a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{AddressFamily, sockopt};
use rustix::process::{Resource, getrlimit};

use crate::disk::Inode;

mod bind;
mod error;
mod peers;

pub use bind::SocketAccess;
pub use error::ListenerError;
pub(crate) use error::remedy as socket_remedy;
pub use peers::{AllowedUsers, Stranger};

/// The least number of a listener's descriptor, where the limit on open files allows it.
const LEAST_NUMBER: u64 = 1 << 15;

/// A listening socket. A path that was bound is removed when the listener is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    bound: Option<Bound>,
    allowed: AllowedUsers,
}

/// A path that is ours as long as it is the same inode.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    inode: Inode,
}

/// The socket that a disk's front-ends use: bound, or inherited.
#[derive(Debug)]
pub enum DiskSocket {
    /// A listening socket.
    Listening(Listener),
    /// A front-end that is there already.
    Connected(UnixStream),
}

impl Listener {
    /// Pause after a connection could not be accepted or served for want of descriptors or threads.
    pub(crate) const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

    /// Listens on a path. A stale socket is replaced if it belongs to this user, or to whom it is to belong.
    ///
    /// # Errors
    /// [`ListenerError`].
    pub fn bind(path: &Path, access: &SocketAccess) -> Result<Self, ListenerError> {
        let (socket, inode) = bind::listening(path, access)?;
        let bound = Some(Bound { path: path.to_owned(), inode });
        Ok(Self { socket: released_first(socket), bound, allowed: AllowedUsers::default() })
    }

    /// Whether [`bind`](Self::bind) would find what it needs; nothing is bound or removed. Whoever listens there already sees a
    /// connection that ends at once.
    ///
    /// # Errors
    /// [`ListenerError`].
    pub fn preview(path: &Path, access: &SocketAccess) -> Result<(), ListenerError> {
        bind::preview(path, access)
    }

    /// Only these users' processes are let in.
    #[must_use]
    pub fn allowing(mut self, allowed: AllowedUsers) -> Self {
        self.allowed = allowed;
        self
    }

    /// Whether a connection that was accepted may go on.
    ///
    /// # Errors
    /// Who it is that may not.
    pub fn check(&self, connection: impl AsFd) -> Result<(), Stranger> {
        self.allowed.check(connection)
    }

    /// Takes over a descriptor that listens, or is connected.
    ///
    /// # Errors
    /// [`ListenerError::Inherited`] when it is no Unix stream socket.
    pub fn inherit(socket: OwnedFd) -> Result<DiskSocket, ListenerError> {
        let refused = |error: Errno| ListenerError::Inherited(error.into());
        let listens = sockopt::socket_acceptconn(&socket).map_err(refused)?;
        if sockopt::socket_domain(&socket).map_err(refused)? != AddressFamily::UNIX {
            return Err(ListenerError::Inherited(io::Error::other("not a Unix socket")));
        }
        if !listens {
            let stream = UnixStream::from(socket);
            stream.set_nonblocking(false).map_err(ListenerError::Inherited)?;
            stream.peer_addr().map_err(ListenerError::Inherited)?;
            return Ok(DiskSocket::Connected(stream));
        }
        let socket = released_first(socket.into());
        socket.set_nonblocking(true).map_err(ListenerError::Inherited)?;
        Ok(DiskSocket::Listening(Self { socket, bound: None, allowed: AllowedUsers::default() }))
    }

    /// The socket alone: its path stays when it is closed.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn keep(mut self) -> io::Result<OwnedFd> {
        let socket = self.socket.try_clone()?;
        self.bound = None;
        Ok(socket.into())
    }

    /// The next front-end, if one waits.
    ///
    /// # Errors
    /// `WouldBlock` when none waits; others when there are no descriptors left.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(Bound { path, inode: ours }) = &self.bound else { return };
        // Another daemon may have taken the path over meanwhile.
        // Ignored: nobody is left to tell, and the next daemon replaces a stale socket.
        let _ = ours.remove_from(path);
    }
}

/// Gives a listener a high descriptor.
///
/// When a process is killed, Linux (4.3 to 6.18) releases what its descriptors lead to from the highest number to the
/// lowest: the last that was closed is released first (`task_work_run`). With a low number a listener would outlive the
/// sessions, and let in a front-end that connects again the moment its session has ended. Half of all numbers, or
/// [`LEAST_NUMBER`], are left to the sessions. With a low number it listens as well.
fn released_first(socket: UnixListener) -> UnixListener {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let least = i32::try_from(LEAST_NUMBER.min(most / 2)).unwrap_or(0);
    fcntl_dupfd_cloexec(&socket, least).map(UnixListener::from).unwrap_or(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves the path behind: stale");
        let living = Listener::bind(&path, &SocketAccess::default()).unwrap();
        assert!(matches!(Listener::bind(&path, &SocketAccess::default()), Err(ListenerError::InUse(_))));
        drop(living);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_where_all_places_are_taken_is_a_living_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let living = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&living, 0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(matches!(Listener::bind(&path, &SocketAccess::default()), Err(ListenerError::InUse(_))));
        assert!(path.exists());
    }

    #[test]
    fn what_is_not_ours_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::bind(&path, &SocketAccess::default()),
            Err(ListenerError::Io { operation: "bind", .. })
        ));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
        let ours = Listener::bind(&path, &SocketAccess::default()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
    }

    #[test]
    fn its_descriptor_is_higher_than_those_of_sessions() {
        let folder = tempfile::tempdir().unwrap();
        let bound = Listener::bind(&folder.path().join("s"), &SocketAccess::default()).unwrap();
        let other = UnixListener::bind(folder.path().join("t")).unwrap();
        let least = LEAST_NUMBER.min(getrlimit(Resource::Nofile).current.unwrap() / 2);
        let Ok(DiskSocket::Listening(inherited)) = Listener::inherit(other.into()) else {
            panic!("it listens")
        };
        for listener in [bound, inherited] {
            assert!(u64::try_from(listener.as_fd().as_raw_fd()).unwrap() >= least, "{listener:?}");
        }
    }

    #[test]
    fn an_inherited_descriptor_is_told_apart() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(matches!(Listener::inherit(ours.into()), Ok(DiskSocket::Connected(_))));
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(folder.path().join("s")).unwrap();
        assert!(matches!(Listener::inherit(socket.into()), Ok(DiskSocket::Listening(_))));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Listener::inherit(file.into()), Err(ListenerError::Inherited(_))));
    }
}
