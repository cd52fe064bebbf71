//! What a service manager is told (`sd_notify(3)`): a datagram to the socket in `NOTIFY_SOCKET`.

use crate::limits::bounds::{MAX_KEPT_NAME_BYTES, NOTIFY_TIMEOUT};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// The service manager that has started this process.
#[derive(Debug)]
pub(super) struct ServiceManager {
    socket: UnixDatagram,
    stores_descriptors: bool,
}

impl ServiceManager {
    /// None where nobody wants to be told.
    pub(super) fn find() -> Option<Self> {
        let address = std::env::var_os("NOTIFY_SOCKET").filter(|it| !it.is_empty())?;
        Self::at(address.as_bytes())
            .inspect_err(|error| tracing::warn!(?address, %error, "NOTIFY_SOCKET cannot be reached"))
            .ok()
    }

    fn at(address: &[u8]) -> io::Result<Self> {
        let address = match address.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(address))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(NOTIFY_TIMEOUT))?;
        // How many, set since systemd 254 by FileDescriptorStoreMax=.
        let most = std::env::var("FDSTORE").ok().and_then(|it| it.parse::<u32>().ok());
        Ok(Self { socket, stores_descriptors: most.is_some_and(|most| most != 0) })
    }

    /// Whether descriptors can be given to it for the next run.
    pub(super) const fn stores_descriptors(&self) -> bool {
        self.stores_descriptors
    }

    /// Whether a descriptor can have this name there.
    pub(super) fn can_name(&self, name: &str) -> bool {
        name.len() <= MAX_KEPT_NAME_BYTES
            && name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b':')
    }

    /// The service is up.
    pub(super) fn ready(&self) -> io::Result<()> {
        self.send(b"READY=1\n", &[])
    }

    /// The descriptor is to be passed to the next run, under this name.
    pub(super) fn store(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.send(format!("FDSTORE=1\nFDNAME={name}\n").as_bytes(), &[fd])
    }

    fn send(&self, text: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        sendmsg(&self.socket, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}
