//! Messages from us to the front-end (`SET_BACKEND_REQ_FD`).
//!
//! `vhost` 0.18 has no call for the only one we need and hides the descriptor, so the channel is ours: one
//! header, sent without waiting. The front-end's main loop may be waiting for an answer of ours, so nothing
//! here asks for a reply.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, SocketType, sockopt};

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`.
const CONFIG_CHANGE: u32 = 2;

/// Protocol version, in the flags of each message.
const VERSION: u32 = 1;

/// The channel to one front-end; closed on drop.
#[derive(Debug)]
pub struct BackendChannel(OwnedFd);

impl BackendChannel {
    /// Takes over the descriptor that the front-end sent.
    ///
    /// # Errors
    /// It is not a Unix stream socket.
    pub fn new(socket: OwnedFd) -> std::io::Result<Self> {
        let is_stream = sockopt::socket_domain(&socket)? == AddressFamily::UNIX
            && sockopt::socket_type(&socket)? == SocketType::STREAM;
        if is_stream {
            Ok(Self(socket))
        } else {
            Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a Unix stream socket"))
        }
    }

    /// Tells the front-end to read the configuration again.
    ///
    /// # Errors
    /// The front-end does not read its channel, or has closed it.
    pub fn config_changed(&self) -> std::io::Result<()> {
        let mut message = [0; 12];
        let (request, flags) = message.split_at_mut(4);
        request.copy_from_slice(&CONFIG_CHANGE.to_ne_bytes());
        flags.get_mut(..4).unwrap_or_default().copy_from_slice(&VERSION.to_ne_bytes());
        let sent = rustix::net::send(&self.0, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        // Twelve bytes fit into a socket's buffer, or none do.
        if sent == message.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
    }
}
