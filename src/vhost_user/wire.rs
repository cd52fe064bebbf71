//! Whole messages on a stream socket: a header, a body, descriptors.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Length of a header: request, flags, length of the body.
pub(super) const HEADER_BYTES: usize = 12;

/// Longest body that `vhost` takes.
const MAX_BODY_BYTES: u32 = 0x1000;

/// Most descriptors with a message: one for each region of SET_MEM_TABLE.
const MAX_FILES: usize = 32;

/// Header flags: the protocol's version, that it is a reply, that a reply is asked for.
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// A message as it came.
#[derive(Debug)]
pub(super) struct Message {
    /// Header and body.
    bytes: Vec<u8>,
    pub(super) code: u32,
    flags: u32,
    pub(super) files: Vec<OwnedFd>,
}

/// Why no message could be received.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("the stream ended")]
    End,
    #[error("not a vhost-user request (flags {0:#x}, body of {1} bytes)")]
    NotARequest(u32, u32),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Message {
    /// The next message, however many pieces it comes in. Nothing behind it is read, so descriptors cannot
    /// get to the wrong one.
    pub(super) fn receive(stream: &UnixStream) -> Result<Self, ReceiveError> {
        let (mut header, mut files) = ([0; HEADER_BYTES], Vec::new());
        fill(stream, &mut header, &mut files)?;
        let [c0, c1, c2, c3, f0, f1, f2, f3, b0, b1, b2, b3] = header;
        let (code, flags) = (u32::from_ne_bytes([c0, c1, c2, c3]), u32::from_ne_bytes([f0, f1, f2, f3]));
        let body_bytes = u32::from_ne_bytes([b0, b1, b2, b3]);
        if flags & !NEED_REPLY != VERSION || body_bytes > MAX_BODY_BYTES {
            return Err(ReceiveError::NotARequest(flags, body_bytes));
        }
        let mut body = vec![0; usize::try_from(body_bytes).unwrap_or(0)];
        fill(stream, &mut body, &mut files)?;
        Ok(Self { bytes: [&header[..], &body].concat(), code, flags, files })
    }

    #[cfg(test)]
    pub(super) fn of(code: u32, body: &[u8], files: Vec<OwnedFd>) -> Self {
        let header = [code, VERSION, u32::try_from(body.len()).unwrap()].map(u32::to_ne_bytes);
        Self { bytes: [header.as_flattened(), body].concat(), code, flags: VERSION, files }
    }

    /// What follows the header.
    pub(super) fn body(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// Takes away what follows the first `body_bytes` of the body.
    pub(super) fn cut_body(&mut self, body_bytes: usize) {
        if body_bytes >= self.body().len() {
            return;
        }
        self.bytes.truncate(HEADER_BYTES.saturating_add(body_bytes));
        if let (Some(field), Ok(length)) = (self.bytes.get_mut(8..HEADER_BYTES), u32::try_from(body_bytes)) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Passes it on in one piece.
    pub(super) fn forward(&self, stream: &UnixStream) -> io::Result<()> {
        let files: Vec<BorrowedFd<'_>> = self.files.iter().map(OwnedFd::as_fd).collect();
        send(stream, &self.bytes, &files)
    }

    /// Whether the front-end wants to be told how it went.
    pub(super) const fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// An answer to it.
    pub(super) fn answer(&self, body: &[u8]) -> Vec<u8> {
        let body_bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let header = [self.code, VERSION | REPLY, body_bytes].map(u32::to_ne_bytes);
        [header.as_flattened(), body].concat()
    }

    /// The answer to a message that has no other: done, or refused.
    pub(super) fn acknowledgement(&self, is_done: bool) -> Vec<u8> {
        self.answer(&u64::from(!is_done).to_ne_bytes())
    }
}

/// Sends bytes, and descriptors along with the first of them.
pub(super) fn send(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = again(|| sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL))?;
    (&*stream).write_all(bytes.get(sent..).unwrap_or_default())
}

/// Fills `bytes`, and appends the descriptors that come with them; those beyond [`MAX_FILES`] are closed.
fn fill(stream: &UnixStream, mut bytes: &mut [u8], files: &mut Vec<OwnedFd>) -> Result<(), ReceiveError> {
    while !bytes.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = again(|| {
            let mut place = [IoSliceMut::new(bytes)];
            recvmsg(stream, &mut place, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        })?;
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                let room = MAX_FILES.saturating_sub(files.len());
                files.extend(rights.take(room));
            }
        }
        if received.bytes == 0 {
            return Err(ReceiveError::End);
        }
        bytes = bytes.get_mut(received.bytes..).unwrap_or_default();
    }
    Ok(())
}

fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}
