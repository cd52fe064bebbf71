//! Whether anything waits unread in a socket: descriptors among it would be closed with the socket, by whoever closes it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, Shutdown, sockopt};

/// Whether nothing waits to be read, in band or out of band.
pub(super) fn is_empty(socket: BorrowedFd<'_>) -> bool {
    let peek = RecvFlags::OOB | RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::io::ioctl_fionread(socket) == Ok(0)
        && rustix::net::recv(socket, &mut [0_u8; 1][..], peek).is_err()
}

/// Shuts a socket down for reading, and says whether it is empty then: it may be closed by any process. Used for the back-end
/// channel, on which a front-end has nothing to send: no request of ours asks for a reply.
pub(super) fn is_silenced(socket: &OwnedFd) -> bool {
    let is_stream = sockopt::socket_type(socket) == Ok(rustix::net::SocketType::STREAM);
    is_stream && rustix::net::shutdown(socket, Shutdown::Read).is_ok() && is_empty(socket.as_fd())
}
