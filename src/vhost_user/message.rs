//! Whole messages on a stream socket: a header, a payload, descriptors.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, RecvMsg, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::FrontendReq;

use super::checker::{DescriptorChecker, Received};
use super::descriptor::Kind;
use crate::limits::bounds::{MAX_MESSAGE_BYTES, MAX_MESSAGE_DESCRIPTORS, MESSAGE_TIMEOUT};

/// Length of a header in bytes: request, flags, length of the payload, 32 bits each.
pub(crate) const HEADER_BYTES: usize = 12;

/// Header flags: the protocol's version, that it is a reply, that a reply is asked for.
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// A message as it came.
#[derive(Debug)]
pub(super) struct Message {
    /// Header and payload.
    bytes: Vec<u8>,
    pub(super) code: u32,
    flags: u32,
    pub(super) files: Vec<OwnedFd>,
    /// What the others were that came with it, and that the checker did not pass on.
    pub(super) refused: Vec<Kind>,
}

/// Why no message could be received.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("the stream ended")]
    End,
    #[error("a message was begun and not completed within {} s", MESSAGE_TIMEOUT.as_secs())]
    Unfinished,
    #[error("not a vhost-user request (flags {0:#x}, payload of {1} bytes)")]
    NotARequest(u32, u32),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Message {
    /// The next message, however many pieces it comes in. Nothing behind it is read, so descriptors cannot
    /// get to the wrong one.
    pub(super) fn receive(stream: &UnixStream, checker: &DescriptorChecker) -> Result<Self, ReceiveError> {
        let mut message =
            Self { bytes: Vec::new(), code: 0, flags: 0, files: Vec::new(), refused: Vec::new() };
        let mut deadline = None;
        message.fill(stream, checker, HEADER_BYTES, &mut deadline)?;
        let [code, flags, payload_bytes] = header(&message.bytes);
        if flags & !NEED_REPLY != VERSION || payload_bytes > MAX_MESSAGE_BYTES {
            return Err(ReceiveError::NotARequest(flags, payload_bytes));
        }
        (message.code, message.flags) = (code, flags);
        message.fill(
            stream,
            checker,
            HEADER_BYTES.saturating_add(usize::try_from(payload_bytes).unwrap_or(0)),
            &mut deadline,
        )?;
        Ok(message)
    }

    /// Receives until the message has `len` bytes. Bytes that descriptors come with are received by the checker, so that no
    /// unchecked descriptor gets into this process. The first byte of a message may come any time; the others have a deadline
    /// from then on.
    fn fill(
        &mut self,
        stream: &UnixStream,
        checker: &DescriptorChecker,
        len: usize,
        deadline: &mut Option<Instant>,
    ) -> Result<(), ReceiveError> {
        while let Some(missing @ 1..) = len.checked_sub(self.bytes.len()) {
            if let Some(deadline) = deadline {
                wait_until(stream, *deadline)?;
            }
            let mut bytes = vec![0; missing];
            let peeked = peek(stream, &mut bytes)?;
            if peeked.bytes == 0 {
                return Err(ReceiveError::End);
            }
            deadline.get_or_insert_with(|| Instant::now() + MESSAGE_TIMEOUT);
            bytes.truncate(peeked.bytes);
            if peeked.flags.contains(ReturnFlags::CTRUNC) {
                let code = if self.bytes.is_empty() { header(&bytes)[0] } else { header(&self.bytes)[0] };
                let Received { bytes, files, refused } = checker.receive(stream, code, bytes.len())?;
                self.bytes.extend(bytes);
                self.files.extend(files);
                self.refused.extend(refused);
                // Each piece may come with as many as a whole message may.
                self.files.truncate(MAX_MESSAGE_DESCRIPTORS);
                self.refused.truncate(MAX_MESSAGE_DESCRIPTORS);
            } else {
                let mut read = stream;
                read.read_exact(&mut bytes)?;
                self.bytes.extend(bytes);
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn of(code: u32, payload: &[u8], files: Vec<OwnedFd>) -> Self {
        let header = [code, VERSION, u32::try_from(payload.len()).unwrap()].map(u32::to_ne_bytes);
        Self {
            bytes: [header.as_flattened(), payload].concat(),
            code,
            flags: VERSION,
            files,
            refused: Vec::new(),
        }
    }

    /// What follows the header.
    pub(super) fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// Takes away what follows the first `payload_bytes` of the payload.
    pub(super) fn truncate_payload(&mut self, payload_bytes: usize) {
        if payload_bytes >= self.payload().len() {
            return;
        }
        self.bytes.truncate(HEADER_BYTES.saturating_add(payload_bytes));
        if let (Some(field), Ok(length)) = (self.bytes.get_mut(8..HEADER_BYTES), u32::try_from(payload_bytes))
        {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Passes it on in one piece.
    pub(super) fn forward(&self, stream: &UnixStream) -> io::Result<()> {
        let files: Vec<BorrowedFd<'_>> = self.files.iter().map(OwnedFd::as_fd).collect();
        send(stream, &self.bytes, &files)
    }

    /// The request's name in the specification, or its number.
    pub(super) fn request_name(&self) -> String {
        FrontendReq::try_from(self.code)
            .map_or_else(|_| format!("request {}", self.code), |request| format!("{request:?}"))
    }

    /// Whether the front-end wants to be told how it went.
    pub(super) const fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// An answer to it.
    pub(super) fn reply(&self, payload: &[u8]) -> Vec<u8> {
        let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = [self.code, VERSION | REPLY, payload_bytes].map(u32::to_ne_bytes);
        [header.as_flattened(), payload].concat()
    }

    /// The answer to a message that has no other: done, or refused.
    pub(super) fn acknowledgement(&self, is_done: bool) -> Vec<u8> {
        self.reply(&u64::from(!is_done).to_ne_bytes())
    }
}

/// Sends bytes, and descriptors along with the first of them.
pub(super) fn send(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent =
        retry_on_intr(|| sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL))?;
    (&*stream).write_all(bytes.get(sent..).unwrap_or_default())
}

/// Reads what comes next and leaves it in the socket. No descriptor is received, since there is no room for any:
/// [`ReturnFlags::CTRUNC`] says whether there are some.
fn peek(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<RecvMsg> {
    let peeked = retry_on_intr(|| {
        let mut place = [IoSliceMut::new(bytes)];
        recvmsg(stream, &mut place, &mut RecvAncillaryBuffer::default(), RecvFlags::PEEK)
    });
    Ok(peeked?)
}

/// Request, flags, length of the payload; zeroes for what has not come yet.
fn header(bytes: &[u8]) -> [u32; 3] {
    let mut words = [[0; 4]; 3];
    for (place, byte) in words.as_flattened_mut().iter_mut().zip(bytes) {
        *place = *byte;
    }
    words.map(u32::from_ne_bytes)
}

fn wait_until(stream: &UnixStream, deadline: Instant) -> Result<(), ReceiveError> {
    let polled = retry_on_intr(|| {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&left))
    })
    .map_err(io::Error::from)?;
    if polled == 0 { Err(ReceiveError::Unfinished) } else { Ok(()) }
}
