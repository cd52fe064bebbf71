//! What waits unread in a socket: descriptors among it would be closed with the socket, by whoever closes it, and what they lead to
//! stays open until then.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, Shutdown, SocketFlags, accept_with, sockopt};

use super::packet::{MOST_BYTES, receive};

/// Most packets that are taken out of a socket: more than fit into one.
const MOST_PACKETS: usize = 4096;

/// Whether nothing waits to be read, in band or out of band.
///
/// Nothing is received, not even for a look: who receives from a socket meanwhile may hold its lock for as long as it likes, by
/// memory whose pages do not come.
pub(super) fn is_empty(socket: BorrowedFd<'_>) -> bool {
    let mut urgent = [PollFd::new(&socket, PollFlags::PRI)];
    let is_read =
        rustix::io::ioctl_fionread(socket) == Ok(0) && poll(&mut urgent, Some(&Timespec::default())).is_ok();
    let [urgent] = urgent;
    is_read && !urgent.revents().contains(PollFlags::PRI)
}

/// Shuts a socket down for reading, and says whether it is empty then: it may be closed by any process. Used where a front-end
/// has nothing to send: no request of ours on the back-end channel asks for a reply.
pub(super) fn is_silenced(socket: &OwnedFd) -> bool {
    let is_stream = sockopt::socket_type(socket) == Ok(rustix::net::SocketType::STREAM);
    is_stream && rustix::net::shutdown(socket, Shutdown::Read).is_ok() && is_empty(socket.as_fd())
}

/// Ends all connections that descriptors lead to which may not be closed for long: one may be the front-end's end of its own
/// connection, or of another's, which would outlive it.
pub(super) fn hang_up(sockets: &[ManuallyDrop<OwnedFd>]) {
    for socket in sockets.iter().filter(|fd| is_unix(fd)) {
        // Fails only where there is no connection.
        let _ = rustix::net::shutdown(&**socket, Shutdown::Both);
    }
}

/// The same for all that waits in such sockets, and in what waits in those. It may block: for a process that does nothing else
/// any more.
pub(super) fn hang_up_on_nested(mut found: Vec<ManuallyDrop<OwnedFd>>) {
    hang_up(&found);
    while let Some(socket) = found.pop() {
        if !is_unix(&socket) {
            continue;
        }
        let mut nested = Vec::new();
        while let Ok(connection) = accept_with(&*socket, SocketFlags::CLOEXEC) {
            nested.push(ManuallyDrop::new(connection));
        }
        // Otherwise descriptors that come with a byte out of band are closed unseen.
        let _ = sockopt::set_socket_oobinline(&*socket, true);
        for _ in 0..MOST_PACKETS {
            let Ok((bytes, files)) = receive(socket.as_fd(), MOST_BYTES, RecvFlags::DONTWAIT) else { break };
            let is_over = bytes.is_empty() && files.is_empty();
            nested.extend(files.into_iter().map(ManuallyDrop::new));
            if is_over && sockopt::socket_type(&*socket) == Ok(rustix::net::SocketType::STREAM) {
                break;
            }
        }
        hang_up(&nested);
        found.append(&mut nested);
    }
}

fn is_unix(fd: &OwnedFd) -> bool {
    sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
}
