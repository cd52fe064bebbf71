//! The messages of one front-end, one after the other, until it leaves.
//!
//! `vhost` checks, dispatches and answers them, but it loses its place in the stream when a message is not
//! what it expects, and leaves some without the answer that was asked for. So each message is first received
//! whole, then handed to it through a socket pair, and its answer, if there is one, passed back. A refused
//! message costs nothing else.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::backend_channel::BackendChannel;
use super::debug_log::{Line, ProtocolFeatures};
use super::descriptor::{Kind, refusal};
use super::handler::MessageHandler;
use super::message::{HEADER_BYTES, Message, ReceiveError};
use super::payload;
use super::postcopy_messages;
use super::reply::{Hangup, Replier, Reply};
use super::session::Session;
use crate::disk::Disk;
use crate::limits::bounds::{MAX_REFUSED_MESSAGES, MESSAGE_TIMEOUT};

/// One front-end's connection.
#[derive(Debug)]
pub struct Connection<D: Disk> {
    stream: UnixStream,
    session: Arc<Session<D>>,
    stage: Arc<Stage>,
    /// Messages of it with descriptors that were refused for what they are.
    refused: u64,
}

/// How far a connection is; also for whoever ends it.
#[derive(Debug, Default)]
pub struct Stage {
    /// A whole message has come.
    has_sent_message: AtomicBool,
    /// It is over: what has been sent and not read is not for us any more.
    is_over: AtomicBool,
}

impl Stage {
    /// Whether a whole message has come: a connection that only probes the socket is no front-end.
    pub fn has_sent_message(&self) -> bool {
        self.has_sent_message.load(Ordering::Acquire)
    }

    /// No further message is begun.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }
}

/// `vhost`'s end of the socket pair, and ours.
struct Dispatcher<D: Disk> {
    handler: BackendReqHandler<MessageHandler<D>>,
    inside: UnixStream,
    outside: UnixStream,
}

impl<D: Disk> Connection<D> {
    /// A connection that nothing has been read from.
    pub const fn new(stream: UnixStream, session: Arc<Session<D>>, stage: Arc<Stage>) -> Self {
        Self { stream, session, stage, refused: 0 }
    }

    /// Drains and drops the rings, and releases the disk for other front-ends.
    pub fn close(&self) {
        self.session.close();
    }

    /// Serves until the front-end leaves, or the stream is shut down to stop it.
    pub fn serve(&mut self) -> Hangup {
        let prepared = self.stream.set_write_timeout(Some(MESSAGE_TIMEOUT));
        let mut dispatcher = match prepared.and_then(|()| Dispatcher::new(self.session.clone())) {
            Ok(dispatcher) => dispatcher,
            Err(error) => return Hangup::Broken(error),
        };
        loop {
            if let Err(hangup) = self.message(&mut dispatcher) {
                return hangup;
            }
        }
    }

    /// One message.
    fn message(&mut self, dispatcher: &mut Dispatcher<D>) -> Result<(), Hangup> {
        if self.stage.is_over.load(Ordering::Acquire) {
            return Err(Hangup::Left);
        }
        let message =
            Message::receive(&self.stream, &self.session.context.checker).map_err(|error| match error {
                ReceiveError::End => Hangup::Left,
                ReceiveError::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => Hangup::Left,
                ReceiveError::Io(error) => Hangup::Broken(error),
                error @ (ReceiveError::NotARequest(..) | ReceiveError::Unfinished) => {
                    Hangup::Garbage(error.to_string())
                }
            })?;
        self.stage.has_sent_message.store(true, Ordering::Release);
        let line = Line::of(&message);
        let refused = u64::try_from(message.refused.len()).unwrap_or(u64::MAX);
        let has_descriptors = !message.files.is_empty() || !message.refused.is_empty();
        let reply = self.handle(message, dispatcher);
        if let Some(line) = line {
            let (disk, session) = (self.session.disk(), self.session.id());
            match &reply {
                Ok(reply) => line.show(disk, session, reply),
                Err(hangup) => line.show(disk, session, &format!("hangs up: {hangup}")),
            }
        }
        reply?;
        self.refused = self.refused.saturating_add(u64::from(refused != 0));
        self.session.context.front_ends.count_refused_descriptors(refused);
        if self.refused > MAX_REFUSED_MESSAGES {
            return Err(Hangup::Useless(self.refused));
        }
        if has_descriptors { self.check_ear() } else { Ok(()) }
    }

    /// Whether the front-end can hear an answer. It cannot when one of its descriptors is its own end of this connection, which
    /// is shut down for reading then: kept by us, or by another session, it would keep the connection when the front-end is gone.
    /// Where several keep each other, the last one to be handed over tells.
    fn check_ear(&self) -> Result<(), Hangup> {
        match rustix::net::send(&self.stream, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Err(Errno::PIPE) if !self.has_ended() => Err(Hangup::Deaf),
            _ => Ok(()),
        }
    }

    /// Whether the front-end has closed its end: what it said before is done, and then its end is met.
    fn has_ended(&self) -> bool {
        let mut end = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        poll(&mut end, Some(&Timespec::default())).is_ok_and(|count| count != 0)
    }

    /// Does what a message says, and answers it.
    fn handle(&self, mut message: Message, dispatcher: &mut Dispatcher<D>) -> Result<Reply, Hangup> {
        let request = FrontendReq::try_from(message.code);
        if let Ok(request) = request
            && let Err(reason) = check_descriptors(request, &message)
        {
            return self.refuse_descriptors(request, &message, reason);
        }
        let request = match request {
            Ok(FrontendReq::SET_BACKEND_REQ_FD) => {
                let taken = self.take_channel(message.files.as_slice());
                return self.replier().acknowledge(&message, taken);
            }
            Ok(FrontendReq::POSTCOPY_ADVISE) => return postcopy_messages::advise(&self.replier(), &message),
            Ok(FrontendReq::POSTCOPY_LISTEN) => return postcopy_messages::listen(&self.replier(), &message),
            Ok(FrontendReq::POSTCOPY_END) => return postcopy_messages::end(&self.replier(), &message),
            _ if postcopy_messages::takes(&self.session, &message) => {
                return postcopy_messages::exchange_memory(&self.replier(), message);
            }
            Ok(request) => match payload::check(request, &mut message) {
                Ok(()) => request,
                Err(error) => return self.refuse(request, &message, error.to_string()),
            },
            Err(_) => return self.replier().acknowledge(&message, Err("is not a known request".into())),
        };
        let (outcome, answer) = dispatcher.dispatch(&message)?;
        self.replier().send(&answer)?;
        match outcome {
            Ok(()) if answer.is_empty() => Ok(Reply::Silent),
            Ok(()) if awaits_value(request) => {
                Ok(Reply::Value(answer.get(HEADER_BYTES..).unwrap_or_default().to_vec()))
            }
            Ok(()) => Ok(Reply::Done),
            Err(error) if answer.is_empty() => self.refuse(request, &message, reason(&error)),
            Err(error) => {
                self.replier().log_refusal(&message, &reason(&error));
                Ok(Reply::Refused(reason(&error)))
            }
        }
    }

    fn replier(&self) -> Replier<'_, D> {
        Replier { stream: &self.stream, session: &self.session }
    }

    /// Refuses a message that has no answer yet: by hanging up, where there is no other way to say no.
    fn refuse(&self, request: FrontendReq, message: &Message, reason: String) -> Result<Reply, Hangup> {
        if awaits_value(request) {
            return Err(Hangup::refused(message, reason));
        }
        self.replier().acknowledge(message, Err(reason))
    }

    /// Refuses a message for its descriptors: nothing is done with either.
    fn refuse_descriptors(
        &self,
        request: FrontendReq,
        message: &Message,
        reason: String,
    ) -> Result<Reply, Hangup> {
        /// vhost-user.rst, SET_DEVICE_STATE_FD: bits 0 to 7 are the error, bit 8 is set as no descriptor comes back.
        const STATE_REFUSED: u64 = 0x101;
        match request {
            FrontendReq::SET_DEVICE_STATE_FD => {
                self.replier().log_refusal(message, &reason);
                self.replier().send(&message.reply(&STATE_REFUSED.to_ne_bytes()))?;
                Ok(Reply::Refused(reason))
            }
            _ => self.refuse(request, message, reason),
        }
    }

    /// `SET_BACKEND_REQ_FD`; see [`BackendChannel`] for why it does not go through `vhost`.
    fn take_channel(&self, files: &[OwnedFd]) -> Result<(), String> {
        if !self.session.has_protocol(VhostUserProtocolFeatures::BACKEND_REQ) {
            return Err("was not negotiated".into());
        }
        let [socket] = files else {
            return Err(format!("comes with {} descriptors, not with one", files.len()));
        };
        let channel = socket.try_clone().and_then(BackendChannel::new).map_err(|error| error.to_string())?;
        self.session.config.set_channel(channel);
        Ok(())
    }
}

impl<D: Disk> Dispatcher<D> {
    fn new(session: Arc<Session<D>>) -> io::Result<Self> {
        let (inside, outside) = UnixStream::pair()?;
        outside.set_nonblocking(true)?;
        let handler =
            BackendReqHandler::from_stream(inside.try_clone()?, Arc::new(MessageHandler::new(session)));
        Ok(Self { handler, inside, outside })
    }

    /// Has a message handled; returns how that went, and the answer to be passed back, if there is one.
    fn dispatch(&mut self, message: &Message) -> io::Result<(Result<(), Error>, Vec<u8>)> {
        message.forward(&self.outside)?;
        let outcome = self.handler.handle_request();
        if outcome.is_err() {
            // What `vhost` has left unread would be taken for the next message.
            self.inside.set_nonblocking(true)?;
            read_away(&self.inside, &mut Vec::new())?;
            self.inside.set_nonblocking(false)?;
        }
        let mut answer = Vec::new();
        read_away(&self.outside, &mut answer)?;
        Ok((outcome, answer))
    }
}

/// Reads what is there. Descriptors that come with it are closed by the kernel.
fn read_away(mut stream: &UnixStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    match stream.read_to_end(bytes) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// What is wrong, without what `vhost` puts around it.
fn reason(error: &Error) -> String {
    match error {
        Error::ReqHandlerError(error) => error.to_string(),
        Error::InactiveOperation(feature) => {
            format!("{} was not negotiated", ProtocolFeatures(feature.bits()))
        }
        Error::InactiveFeature(VhostUserVirtioFeatures::PROTOCOL_FEATURES) => {
            "PROTOCOL_FEATURES was not negotiated".into()
        }
        error => error.to_string(),
    }
}

/// Whether the descriptors that come with a request are of kinds that it accepts.
///
/// # Errors
/// The first that is not.
fn check_descriptors(request: FrontendReq, message: &Message) -> Result<(), String> {
    let Message { files, refused, .. } = message;
    let count = files.len().saturating_add(refused.len());
    if count != 0 && !takes_files(request) {
        return Err(format!("comes with {count} descriptors, and has no use for any"));
    }
    let let_in = files.iter().map(|file| Kind::of(file.as_fd()));
    let mut reasons = refused.iter().cloned().chain(let_in).filter_map(|kind| refusal(request, &kind));
    reasons.next().map_or(Ok(()), Err)
}

/// Whether descriptors may come with a request.
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
            | R::SET_BACKEND_REQ_FD
            | R::GPU_SET_SOCKET
    )
}

/// Whether the front-end waits for a value: there is no way to say no then, but to hang up.
const fn awaits_value(request: FrontendReq) -> bool {
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
