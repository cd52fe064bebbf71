//! Taking over the socket that a parent process left open: `--fd=FDNUM`.
//!
//! What its `unsafe` relies on:
//!
//! - **I1**: an open descriptor that is not closed on exec is nobody's in this process: its parent has left it open, nothing here opens
//!   one so, and one that was taken is closed on exec from then on. [`take`] sees to that, by itself.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, SocketType, sockopt};

/// A descriptor number that no front-end can be served on.
#[derive(Debug, thiserror::Error)]
pub(super) enum InheritedError {
    #[error("--fd={0}: it is standard input, output or error; pass the socket as 3 or higher")]
    Standard(RawFd),
    #[error("--fd={0}: no such descriptor is open; the parent process must pass it without close-on-exec")]
    NotOpen(RawFd),
    #[error("--fd={0}: not a Unix stream socket; pass one that listens or is connected to the front-end")]
    NotASocket(RawFd),
    #[error("--fd={fd}: cannot take it over ({source}); use --socket-path instead")]
    Flags { fd: RawFd, source: io::Error },
}

/// Takes the inherited descriptor `fd` over, if it is a Unix stream socket. Nothing else may keep the socket open: it
/// is released when its owner drops it.
pub(super) fn take(fd: RawFd) -> Result<OwnedFd, InheritedError> {
    if (0..=2).contains(&fd) {
        return Err(InheritedError::Standard(fd));
    }
    // SAFETY: I1: the call has no memory operands; for a number that is not open it fails.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    // What this process has opened itself is closed on exec; what was inherited is not, or it would not be here.
    if flags == -1 || flags & libc::FD_CLOEXEC != 0 {
        return Err(InheritedError::NotOpen(fd));
    }
    // SAFETY: I1: it is open and not closed on exec, as was seen just now; the next line takes it out of that state.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
        .map_err(|errno| InheritedError::Flags { fd, source: errno.into() })?;
    let is_unix_stream = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
    if is_unix_stream { Ok(socket) } else { Err(InheritedError::NotASocket(fd)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    /// As it comes from a parent: not closed on exec, and nobody's.
    fn passed(fd: impl Into<OwnedFd>) -> RawFd {
        rustix::io::dup(fd.into()).unwrap().into_raw_fd()
    }

    #[test]
    fn only_an_open_unix_stream_socket_is_taken() {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let own = socket.as_raw_fd();
        assert!(matches!(take(own), Err(InheritedError::NotOpen(_))), "it is not inherited");
        let fd = passed(socket);
        let taken = UnixStream::from(take(fd).unwrap());
        assert_eq!(taken.as_raw_fd(), fd);
        assert!(matches!(take(fd), Err(InheritedError::NotOpen(_))), "it was taken already");
        io::Write::write_all(&mut peer, b"x").unwrap();
        let mut byte = [0];
        io::Read::read_exact(&mut &taken, &mut byte).unwrap();
        assert_eq!(byte, *b"x");
        // Nothing else keeps it open.
        drop(taken);
        assert_eq!(io::Read::read(&mut peer, &mut byte).unwrap(), 0);

        let (datagram, _peer) = UnixDatagram::pair().unwrap();
        assert!(matches!(take(passed(datagram)), Err(InheritedError::NotASocket(_))));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(take(passed(file)), Err(InheritedError::NotASocket(_))));
        assert!(matches!(take(1_000_000), Err(InheritedError::NotOpen(1_000_000))));
        assert!(matches!(take(-1), Err(InheritedError::NotOpen(-1))));
        for standard in 0..3 {
            assert!(matches!(take(standard), Err(InheritedError::Standard(_))));
        }
    }
}
