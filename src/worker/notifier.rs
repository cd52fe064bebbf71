//! What wakes the other side: a ring's call or error descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, sockopt};

use super::aio;

/// A descriptor that wakes the other side. Signalling it never blocks, and leaves the flags of the open file alone: they are
/// also those of whoever sent it.
#[derive(Debug)]
pub enum Notifier {
    /// An eventfd.
    Event(File),
    /// One end of a pair of Unix sockets (User-Mode Linux).
    Socket(File),
}

impl Notifier {
    /// Takes over a descriptor of the front-end.
    ///
    /// # Errors
    /// It is neither an eventfd nor a Unix socket.
    pub fn new(file: File) -> io::Result<Self> {
        if is_eventfd(file.as_fd()) {
            return Ok(Self::Event(file));
        }
        match sockopt::socket_domain(&file) {
            Ok(AddressFamily::UNIX) => Ok(Self::Socket(file)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither an eventfd nor a Unix socket")),
        }
    }

    /// Wakes the other side. A full counter or socket means that it has been woken already, and a closed socket that
    /// nobody is there: neither is our concern.
    #[inline(never)] // a system call that few turns make: inlined, all turns would save its registers
    pub fn signal(&self) {
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

/// Whether this is an eventfd, by the kernel's own table of open files.
pub(crate) fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    link(fd).is_ok_and(|link| link == b"anon_inode:[eventfd]")
}

/// What the kernel calls an open file: reading the link asks neither a server nor a device.
pub(crate) fn link(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::readlink(path, Vec::new())?.into_bytes())
}
