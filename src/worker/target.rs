//! What a call goes to.

use std::fs::File;
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;

use super::aio;

/// What is signalled.
#[derive(Debug)]
pub(super) enum Target {
    /// An eventfd.
    Event(File),
    /// One end of a pair of Unix sockets (User-Mode Linux).
    Socket(File),
}

impl Target {
    #[inline]
    pub(super) fn wake(&self) {
        match self {
            Self::Event(event) => {
                if aio::signal(event.as_fd()).is_err() {
                    write_if_there_is_room(event);
                }
            }
            Self::Socket(socket) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                // Ignored, see above: the socket is full, or nobody is there.
                let _ = rustix::net::send(socket, &1_u64.to_ne_bytes(), flags);
            }
        }
    }
}

/// Where the kernel has no AIO for us. A peer that fills the counter between the two calls makes us wait.
#[cold]
fn write_if_there_is_room(event: &File) {
    let mut room = [PollFd::new(event, PollFlags::OUT)];
    if poll(&mut room, Some(&Timespec::default())) == Ok(1) && room[0].revents() == PollFlags::OUT {
        // Ignored: there was room; if somebody has filled the counter since, the driver has a signal to see.
        let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
    }
}
