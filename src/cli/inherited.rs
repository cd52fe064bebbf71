//! Taking over the socket that a parent process left open: `--fd=FDNUM`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// A descriptor number that no front-end can be served on.
#[derive(Debug, thiserror::Error)]
pub(super) enum InheritedError {
    #[error("--fd={0}: it is standard input, output or error; pass the socket as 3 or higher")]
    Standard(RawFd),
    #[error("--fd={0}: no such descriptor is open; the parent process must pass it without close-on-exec")]
    NotOpen(RawFd),
    #[error("--fd={0}: not a Unix stream socket; pass one that listens or is connected to the front-end")]
    NotASocket(RawFd),
    #[error("--fd={fd}: cannot duplicate it with pidfd_getfd ({source}); use --socket-path instead")]
    Duplicate { fd: RawFd, source: io::Error },
}

/// Duplicates the inherited descriptor `fd`, once it is known to be a Unix stream socket.
///
/// A bare number cannot become an [`OwnedFd`] in safe code. The kernel, asked for descriptor `fd` of the
/// process that we are ourselves, answers with a new one that is ours beyond doubt. The inherited one
/// stays open until the process ends, which happens as soon as its front-end has left or SIGTERM came.
pub(super) fn take(fd: RawFd) -> Result<OwnedFd, InheritedError> {
    if (0..=2).contains(&fd) {
        return Err(InheritedError::Standard(fd));
    }
    let failed = |errno| match errno {
        Errno::BADF => InheritedError::NotOpen(fd),
        other => InheritedError::Duplicate { fd, source: other.into() },
    };
    let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(failed)?;
    if fd < 0 || fd == own.as_raw_fd() {
        return Err(InheritedError::NotOpen(fd));
    }
    let duplicate = pidfd_getfd(own, fd, PidfdGetfdFlags::empty()).map_err(failed)?;
    let is_unix_stream = sockopt::socket_domain(&duplicate) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&duplicate) == Ok(SocketType::STREAM);
    if is_unix_stream { Ok(duplicate) } else { Err(InheritedError::NotASocket(fd)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn only_an_open_unix_stream_socket_is_taken() {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let taken = UnixStream::from(take(socket.as_raw_fd()).unwrap());
        assert_ne!(taken.as_raw_fd(), socket.as_raw_fd());
        io::Write::write_all(&mut peer, b"x").unwrap();
        let mut byte = [0];
        io::Read::read_exact(&mut &taken, &mut byte).unwrap();
        assert_eq!(byte, *b"x");

        let (datagram, _peer) = UnixDatagram::pair().unwrap();
        assert!(matches!(take(datagram.as_raw_fd()), Err(InheritedError::NotASocket(_))));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(take(file.as_raw_fd()), Err(InheritedError::NotASocket(_))));
        assert!(matches!(take(1_000_000), Err(InheritedError::NotOpen(1_000_000))));
        assert!(matches!(take(-1), Err(InheritedError::NotOpen(-1))));
        for standard in 0..3 {
            assert!(matches!(take(standard), Err(InheritedError::Standard(_))));
        }
    }
}
