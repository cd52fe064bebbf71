//! Whether anything waits unread in a socket: descriptors among it would be closed with the socket, by whoever closes it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, Shutdown, sockopt};

/// Whether there is nothing to be read, out of band neither.
pub(super) fn is_empty(socket: BorrowedFd<'_>) -> bool {
    let peek = RecvFlags::OOB | RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::io::ioctl_fionread(socket) == Ok(0)
        && rustix::net::recv(socket, &mut [0_u8; 1][..], peek).is_err()
}

/// Has it that nothing can be sent to us through a socket, and says whether nothing was: then it can be closed anywhere. No
/// front-end has anything to say there, since nothing is asked that has an answer.
pub(super) fn is_silenced(socket: &OwnedFd) -> bool {
    let is_stream = sockopt::socket_type(socket) == Ok(rustix::net::SocketType::STREAM);
    is_stream && rustix::net::shutdown(socket, Shutdown::Read).is_ok() && is_empty(socket.as_fd())
}
