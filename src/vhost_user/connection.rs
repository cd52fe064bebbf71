//! The messages of one front-end, one after the other, until it leaves.
//!
//! `vhost` reads, dispatches and answers them. Three things are done here, before it sees a message: the
//! request code is looked at, so that a refused message does not have to end the connection; the channel's
//! descriptor is taken (see [`Channel`]); and messages that it would choke on are skipped.

use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::channel::Channel;
use super::session::Session;
use crate::disk::Disk;

/// Length of a message's header: request, flags, length of the body.
const HEADER_BYTES: usize = 12;

/// Longest body that `vhost` takes.
const MAX_BODY_BYTES: u32 = 0x1000;

/// Header flags: protocol version, a reply, a reply is asked for.
const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// A header that has been looked at, but not taken.
#[derive(Debug, Clone, Copy)]
struct Header {
    code: u32,
    flags: u32,
    body_bytes: u32,
    has_files: bool,
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Hangup {
    /// The front-end closed it.
    #[error("the front-end left")]
    Left,
    /// It can no longer be used.
    #[error("{0}")]
    Broken(Error),
    /// What came is not vhost-user, or there is no way to answer it.
    #[error("{request}: {reason}")]
    Refused {
        /// The message.
        request: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// One front-end's connection.
#[derive(Debug)]
pub struct Connection<D: Disk> {
    stream: UnixStream,
    session: Arc<Session<D>>,
    has_spoken: bool,
}

impl<D: Disk> Connection<D> {
    /// A connection that nothing has been read from.
    pub const fn new(stream: UnixStream, session: Arc<Session<D>>) -> Self {
        Self { stream, session, has_spoken: false }
    }

    /// Whether a message has come at all: a probe of the socket is no front-end.
    pub const fn has_spoken(&self) -> bool {
        self.has_spoken
    }

    /// Serves until the front-end leaves, or the stream is shut down to stop it.
    pub fn serve(&mut self) -> Hangup {
        let clone = match self.stream.try_clone() {
            Ok(clone) => clone,
            Err(error) => return Hangup::Broken(Error::SocketError(error)),
        };
        let mut handler = BackendReqHandler::from_stream(clone, self.session.clone());
        loop {
            if let Err(hangup) = self.message(&mut handler) {
                return hangup;
            }
        }
    }

    /// Drains and drops the rings, and passes the disk on.
    pub fn close(&self) {
        self.session.close();
    }

    /// One message.
    fn message(&mut self, handler: &mut BackendReqHandler<Session<D>>) -> Result<(), Hangup> {
        let header = self.peek().map_err(|error| Hangup::Broken(Error::SocketError(error)))?;
        let header = header.ok_or(Hangup::Left)?;
        self.has_spoken = true;
        if header.flags & (VERSION_MASK | REPLY) != VERSION || header.body_bytes > MAX_BODY_BYTES {
            return Err(header.refused("not a vhost-user request"));
        }
        let outcome = match FrontendReq::try_from(header.code) {
            Ok(FrontendReq::SET_BACKEND_REQ_FD) => return self.take_channel(&header),
            Ok(request) if header.has_files && !takes_files(request) => Err("comes with descriptors"),
            Ok(request) => Ok(request),
            Err(_) => Err("is not a known request"),
        };
        let request = match outcome {
            Ok(request) => request,
            Err(reason) => {
                self.refusal(&header, &reason);
                self.skip(&header)?;
                return self.answer(&header, false);
            }
        };
        let Err(error) = handler.handle_request() else { return Ok(()) };
        if is_transport(&error) {
            return Err(if matches!(error, Error::Disconnected) {
                Hangup::Left
            } else {
                Hangup::Broken(error)
            });
        }
        if awaits_payload(request) {
            return Err(header.refused(&error.to_string()));
        }
        self.refusal(&header, &error);
        if is_answered(request, &error) { Ok(()) } else { self.answer(&header, false) }
    }

    /// The next header, and whether descriptors came with it. `None` at the end of the stream.
    fn peek(&self) -> io::Result<Option<Header>> {
        let mut bytes = [0; HEADER_BYTES];
        let (count, files) = receive(&self.stream, &mut bytes, RecvFlags::PEEK | RecvFlags::WAITALL)?;
        if count < HEADER_BYTES {
            return Ok(None);
        }
        let [c0, c1, c2, c3, f0, f1, f2, f3, b0, b1, b2, b3] = bytes;
        Ok(Some(Header {
            code: u32::from_ne_bytes([c0, c1, c2, c3]),
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
            body_bytes: u32::from_ne_bytes([b0, b1, b2, b3]),
            has_files: !files.is_empty(),
        }))
    }

    /// `SET_BACKEND_REQ_FD`: takes the descriptor of the channel.
    fn take_channel(&self, header: &Header) -> Result<(), Hangup> {
        let mut bytes = [0; HEADER_BYTES];
        let received = receive(&self.stream, &mut bytes, RecvFlags::WAITALL);
        let (_, files) = received.map_err(|error| Hangup::Broken(Error::SocketError(error)))?;
        self.read_body(header)?;
        let channel = match <[OwnedFd; 1]>::try_from(files) {
            Ok([socket]) => Channel::new(socket).map_err(|error| error.to_string()),
            Err(files) => Err(format!("comes with {} descriptors, not with one", files.len())),
        };
        match channel {
            Ok(channel) => {
                self.session.state().channel = Some(channel);
                self.answer(header, true)
            }
            Err(reason) => {
                self.refusal(header, &reason);
                self.answer(header, false)
            }
        }
    }

    /// Reads a message away; the kernel closes its descriptors.
    fn skip(&self, header: &Header) -> Result<(), Hangup> {
        let mut bytes = [0; HEADER_BYTES];
        let taken = (&self.stream).read_exact(&mut bytes);
        taken.map_err(|error| Hangup::Broken(Error::SocketError(error)))?;
        self.read_body(header)
    }

    fn read_body(&self, header: &Header) -> Result<(), Hangup> {
        let mut body = (&self.stream).take(u64::from(header.body_bytes));
        let read = io::copy(&mut body, &mut io::sink());
        match read.map_err(|error| Hangup::Broken(Error::SocketError(error)))? {
            bytes if bytes == u64::from(header.body_bytes) => Ok(()),
            _ => Err(Hangup::Left),
        }
    }

    /// Acknowledges a message, or refuses it, if the front-end asked to be told.
    fn answer(&self, header: &Header, is_done: bool) -> Result<(), Hangup> {
        if header.flags & NEED_REPLY == 0 || !self.session.has_reply_ack() {
            return Ok(());
        }
        let mut reply = [0; HEADER_BYTES + 8];
        let fields = [header.code, VERSION | REPLY, 8, u32::from(!is_done)];
        for (place, field) in reply.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        (&self.stream).write_all(&reply).map_err(|error| Hangup::Broken(Error::SocketError(error)))
    }

    fn refusal(&self, header: &Header, reason: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.session.context.log_limit.admit() {
            let (disk, session, request) = (self.session.disk(), self.session.id(), header.name());
            tracing::warn!(disk, session, request, %reason, suppressed, "message refused");
        }
    }
}

impl Header {
    fn name(&self) -> String {
        FrontendReq::try_from(self.code)
            .map_or_else(|_| format!("request {}", self.code), |request| format!("{request:?}"))
    }

    fn refused(&self, reason: &str) -> Hangup {
        Hangup::Refused { request: self.name(), reason: reason.to_owned() }
    }
}

/// Receives up to `bytes.len()` bytes and the descriptors that came with them; with `PEEK` the descriptors
/// are duplicates.
fn receive(stream: &UnixStream, bytes: &mut [u8], flags: RecvFlags) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let message = loop {
        match recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    let mut files = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            files.extend(rights);
        }
    }
    Ok((message.bytes, files))
}

/// Whether descriptors may come with a request; `vhost` loses its place in the stream if others bring some.
const fn takes_files(request: FrontendReq) -> bool {
    use FrontendReq as R;
    matches!(
        request,
        R::SET_MEM_TABLE
            | R::SET_VRING_CALL
            | R::SET_VRING_KICK
            | R::SET_VRING_ERR
            | R::SET_LOG_BASE
            | R::SET_LOG_FD
            | R::SET_INFLIGHT_FD
            | R::ADD_MEM_REG
            | R::REM_MEM_REG
            | R::SET_DEVICE_STATE_FD
            | R::GPU_SET_SOCKET
    )
}

/// Whether the front-end waits for a payload: there is no way to say no then, but to hang up.
const fn awaits_payload(request: FrontendReq) -> bool {
    use FrontendReq as R;
    matches!(
        request,
        R::GET_FEATURES
            | R::GET_PROTOCOL_FEATURES
            | R::GET_QUEUE_NUM
            | R::GET_VRING_BASE
            | R::GET_CONFIG
            | R::GET_INFLIGHT_FD
            | R::GET_MAX_MEM_SLOTS
            | R::GET_SHARED_OBJECT
            | R::GET_SHMEM_CONFIG
            | R::POSTCOPY_ADVISE
            | R::SET_LOG_BASE
            | R::SET_DEVICE_STATE_FD
            | R::CHECK_DEVICE_STATE
    )
}

/// Whether `vhost` has sent the NACK already: it does when the handler refused, and for these requests also
/// when it found the fault itself.
const fn is_answered(request: FrontendReq, error: &Error) -> bool {
    let checks_late =
        matches!(request, FrontendReq::SET_MEM_TABLE | FrontendReq::SET_CONFIG | FrontendReq::GPU_SET_SOCKET);
    match error {
        Error::ReqHandlerError(_) => true,
        Error::InactiveOperation(_) | Error::InactiveFeature(_) => false,
        _ => checks_late,
    }
}

/// Whether the stream itself has failed.
const fn is_transport(error: &Error) -> bool {
    matches!(
        error,
        Error::Disconnected
            | Error::PartialMessage
            | Error::OversizedMsg
            | Error::SocketError(_)
            | Error::SocketBroken(_)
            | Error::SocketRetry(_)
            | Error::SocketConnect(_)
    )
}
