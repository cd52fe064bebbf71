//! Sockets whose last copy is closed by the checker, not by the daemon.
//!
//! Descriptors that were sent through a socket and never received are closed with the socket's last copy. If one of them is
//! the last reference to a TCP socket with `SO_LINGER`, close(2) blocks for as long as the sender has chosen. In a checker,
//! which ends then, it blocks nobody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};

use super::client::{DescriptorChecker, IsAwaited};
use super::unread::is_empty;
use crate::limits::bounds::CHECKER_TIMEOUT;

/// A socket that is to be dropped after all of its copies in this process.
#[derive(Debug)]
pub struct ClosedByChecker<T: AsFd> {
    socket: Option<T>,
    /// No other process has it: it may be shut down, and nothing is sent to it then.
    is_ours: bool,
    checker: Arc<DescriptorChecker>,
}

impl ClosedByChecker<UnixStream> {
    /// A connection that nothing was read from.
    ///
    /// # Errors
    /// setsockopt(2) fails.
    pub fn connection(socket: UnixStream, checker: Arc<DescriptorChecker>) -> io::Result<Self> {
        // MSG_OOB: otherwise a byte out of band is skipped, and descriptors that come with it are closed here unseen.
        let inline = sockopt::set_socket_oobinline(&socket, true);
        let guarded = Self { socket: Some(socket), is_ours: true, checker };
        inline?;
        Ok(guarded)
    }

    /// A copy, to be dropped before this.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> io::Result<UnixStream> {
        self.socket()?.try_clone()
    }

    /// The connection, to be waited for.
    ///
    /// # Errors
    /// None as long as this is not dropped.
    pub fn socket(&self) -> io::Result<&UnixStream> {
        // It is taken by `drop` only.
        Ok(self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?)
    }

    /// Hangs up.
    pub fn shut_down(&self) {
        if let Some(socket) = &self.socket {
            // It may be closed already.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl ClosedByChecker<OwnedFd> {
    /// A copy of a listening socket: what was sent through connections that nobody has accepted is closed with it. A service
    /// manager may have the socket, too, and goes on listening.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn listener(socket: BorrowedFd<'_>, checker: Arc<DescriptorChecker>) -> io::Result<Self> {
        Ok(Self { socket: Some(socket.try_clone_to_owned()?), is_ours: false, checker })
    }

    /// Closes listeners whose other copies in this process are closed, and waits until nobody can connect through them any
    /// more: at most [`CHECKER_TIMEOUT`] for all. Before Linux 5.3 there are no pidfds to wait with: it does not wait.
    pub fn close_all(listeners: Vec<Self>) {
        let close = |mut it: Self| it.checker.close(it.socket.take()?, IsAwaited::Yes);
        let closers: Vec<OwnedFd> = listeners.into_iter().filter_map(close).collect();
        let deadline = Instant::now() + CHECKER_TIMEOUT;
        for closer in closers {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            while poll(&mut [PollFd::new(&closer, PollFlags::IN)], Some(&left)) == Err(Errno::INTR) {}
        }
    }
}

impl<T: AsFd> Drop for ClosedByChecker<T> {
    fn drop(&mut self) {
        let Some(socket) = self.socket.take() else { return };
        // Once it is shut down nothing more is sent to it: an empty one may be closed here.
        let is_shut = self.is_ours && rustix::net::shutdown(&socket, Shutdown::Both).is_ok();
        if !(is_shut && is_empty(socket.as_fd())) {
            self.checker.close(socket, IsAwaited::No);
        }
    }
}
