//! How a message is answered: done, refused, or by hanging up.

use std::fmt;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::message::{self, Message};
use super::session::Session;
use crate::disk::Disk;

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Hangup {
    /// The front-end closed it.
    #[error("the front-end left")]
    Left,
    /// It can no longer be used.
    #[error("{0}")]
    Broken(#[from] io::Error),
    /// It cannot hear any answer: it has handed over its own end of the connection.
    #[error("the front-end's own end of the connection cannot be a descriptor that it hands over")]
    Deaf,
    /// It hands over what cannot be taken, again and again.
    #[error("{0} of its messages came with descriptors that cannot be taken")]
    Useless(u64),
    /// What came is not vhost-user.
    #[error("{0}")]
    Garbage(String),
    /// The front-end waits for a value that there is no way to refuse.
    #[error("{request}: {reason}")]
    Refused {
        /// The message.
        request: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Hangup {
    /// The front-end waits for a value: there is no other way to say no.
    pub(super) fn refused(message: &Message, reason: impl fmt::Display) -> Self {
        Self::Refused { request: message.request_name(), reason: reason.to_string() }
    }
}

/// How a message was answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// It was done, and nobody asked for more.
    Silent,
    /// It was acknowledged.
    Done,
    /// It was not done, whether the front-end asked to be told or not.
    Refused(String),
    /// What the front-end asked for.
    Value(Vec<u8>),
    /// A descriptor that it asked for.
    Descriptor,
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("not asked for"),
            Self::Done => f.write_str("ok"),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Value(bytes) => match <[u8; 8]>::try_from(bytes.as_slice()) {
                Ok(word) => write!(f, "{:#x}", u64::from_ne_bytes(word)),
                Err(_) => write!(f, "{} bytes", bytes.len()),
            },
            Self::Descriptor => f.write_str("a descriptor"),
        }
    }
}

/// Answers the messages of one session.
#[derive(Debug)]
pub(super) struct Replier<'a, D: Disk> {
    pub(super) stream: &'a UnixStream,
    pub(super) session: &'a Session<D>,
}

impl<D: Disk> Replier<'_, D> {
    /// Sends an answer as it is.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream;
        stream.write_all(bytes)
    }

    /// Answers with a descriptor.
    pub(super) fn send_descriptor(&self, message: &Message, file: BorrowedFd<'_>) -> io::Result<()> {
        message::send(self.stream, &message.reply(&[]), &[file])
    }

    /// Acknowledges or refuses a message that has no answer yet, if the front-end asked to be told.
    pub(super) fn acknowledge(
        &self,
        message: &Message,
        outcome: Result<(), String>,
    ) -> Result<Reply, Hangup> {
        if let Err(reason) = &outcome {
            self.log_refusal(message, reason);
        }
        let is_told =
            message.needs_reply() && self.session.has_protocol(VhostUserProtocolFeatures::REPLY_ACK);
        if is_told {
            self.send(&message.acknowledgement(outcome.is_ok()))?;
        }
        Ok(match outcome {
            Err(reason) => Reply::Refused(reason),
            Ok(()) if is_told => Reply::Done,
            Ok(()) => Reply::Silent,
        })
    }

    pub(super) fn log_refusal(&self, message: &Message, reason: &str) {
        self.session.context.front_ends.count_refused_message();
        if let Some(suppressed) = self.session.context.log_limit.admit_refusal(message.code) {
            let (disk, session, request) = (self.session.disk(), self.session.id(), message.request_name());
            let (bytes, descriptors) = (message.payload().len(), message.files.len());
            tracing::warn!(disk, session, request, bytes, descriptors, reason, suppressed, "message refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_in_words() {
        assert_eq!(Reply::Value(64_u64.to_ne_bytes().to_vec()).to_string(), "0x40");
        assert_eq!(Reply::Value(vec![0; 72]).to_string(), "72 bytes");
        assert_eq!(Reply::Refused("why".into()).to_string(), "refused: why");
    }
}
