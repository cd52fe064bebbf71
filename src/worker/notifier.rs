//! What wakes the other side: a ring's call or error descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, sockopt};

use super::hold_ups::HoldUps;
use super::target::Target;

/// A descriptor that wakes the other side. Signalling it never blocks, and leaves the flags of the open file alone: they are
/// also those of whoever sent it.
#[derive(Debug)]
pub struct Notifier {
    target: Target,
    /// Those of its disk.
    hold_ups: Arc<HoldUps>,
}

impl Notifier {
    /// Takes over a descriptor of the front-end.
    ///
    /// # Errors
    /// It is neither an eventfd nor a Unix socket.
    pub fn new(file: File, hold_ups: Arc<HoldUps>) -> io::Result<Self> {
        let target = if is_eventfd(file.as_fd()) {
            Target::Event(file)
        } else if sockopt::socket_domain(&file) == Ok(AddressFamily::UNIX) {
            Target::Socket(file)
        } else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither an eventfd nor a Unix socket"));
        };
        Ok(Self { target, hold_ups })
    }

    /// Wakes the other side. A full counter or socket means that it has been woken already, and a closed socket that
    /// nobody is there: neither is our concern.
    #[inline(never)] // a system call that few turns make: inlined, all turns would save its registers
    pub fn signal(&self) {
        self.hold_ups.call(&self.target);
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
