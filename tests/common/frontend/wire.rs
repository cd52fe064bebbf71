//! Messages byte by byte: what `vhost`'s front-end would never send.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::common::PATIENCE;

/// Every message carries this version in its flags.
pub const VERSION: u32 = 1;
/// Flag of an answer.
pub const REPLY: u32 = 4;
/// Flag of a message that wants an answer.
pub const NEED_REPLY: u32 = 8;

/// Length of a message's header in bytes: code, flags, size of the payload.
pub const HEADER_BYTES: usize = 12;

/// A message that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What is asked or answered.
    pub code: u32,
    /// Version and flags.
    pub flags: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Message {
    /// The payload of most answers.
    pub fn value(&self) -> u64 {
        u64::from_le_bytes(self.payload[..].try_into().unwrap())
    }
}

/// How a message was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Done.
    Ack,
    /// Refused; the connection goes on.
    Nack,
    /// Refused by closing the connection.
    Closed,
}

/// A socket without a memory of what was said.
#[derive(Debug)]
pub struct Wire(UnixStream);

impl Wire {
    /// Connects to a back-end.
    pub fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    /// Speaks through a connected socket.
    pub fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// The bytes of a message.
    pub fn encode(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let header = [code, flags, payload.len() as u32].map(u32::to_le_bytes);
        [header.as_flattened(), payload].concat()
    }

    /// Sends bytes, and descriptors along with the first of them. False when the back-end has closed.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let bytes_of = [IoSlice::new(bytes)];
        let send = || rustix::net::sendmsg(&self.0, &bytes_of, &mut control, SendFlags::NOSIGNAL);
        match rustix::io::retry_on_intr(send) {
            Ok(sent) => assert_eq!(sent, bytes.len()),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return false,
            Err(error) => panic!("sendmsg: {error}"),
        }
        true
    }

    /// Sends a message.
    pub fn send(&self, code: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.send_bytes(&Self::encode(code, flags, payload), fds)
    }

    /// The socket itself.
    pub const fn socket(&self) -> &UnixStream {
        &self.0
    }

    /// Receives a message; `None` when the back-end has closed.
    pub fn receive(&self) -> Option<Message> {
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header)?;
        self.receive_payload(header)
    }

    /// Receives a message, and the descriptors that come with it; `None` when the back-end has closed.
    pub fn receive_with_files(&self) -> Option<(Message, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut header = [0; HEADER_BYTES];
        let received = rustix::io::retry_on_intr(|| {
            let mut bytes = [IoSliceMut::new(&mut header)];
            rustix::net::recvmsg(&self.0, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let bytes = received.ok().map(|received| received.bytes).filter(|bytes| *bytes > 0)?;
        self.fill(&mut header[bytes..])?;
        let files = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let files = files.flatten().collect();
        Some((self.receive_payload(header)?, files))
    }

    fn receive_payload(&self, header: [u8; HEADER_BYTES]) -> Option<Message> {
        let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; field(8) as usize];
        self.fill(&mut payload)?;
        Some(Message { code: field(0), flags: field(4), payload })
    }

    /// Sends a message and receives its answer; `None` when the back-end has closed.
    pub fn ask(&self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Message> {
        if !self.send(code, VERSION | NEED_REPLY, payload, fds) {
            return None;
        }
        let answer = self.receive()?;
        assert_eq!((answer.code, answer.flags), (code, VERSION | REPLY), "answer to message {code}");
        Some(answer)
    }

    /// Sends a message that has no answer of its own, and insists on some reaction.
    pub fn tell(&self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Verdict {
        match self.ask(code, payload, fds) {
            None => Verdict::Closed,
            Some(answer) if answer.value() == 0 => Verdict::Ack,
            Some(_) => Verdict::Nack,
        }
    }

    /// Throws away what has come so far.
    pub fn drain(&self) {
        self.0.set_nonblocking(true).unwrap();
        let mut bytes = [0; 4096];
        while matches!((&self.0).read(&mut bytes), Ok(1..)) {}
        self.0.set_nonblocking(false).unwrap();
    }

    /// Says no more, and waits until the back-end has seen that.
    pub fn hang_up(self) {
        let _ = self.0.shutdown(Shutdown::Write);
        let mut bytes = [0; 4096];
        loop {
            match (&self.0).read(&mut bytes) {
                Ok(1..) => {}
                Ok(0) => return,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("not closed within {PATIENCE:?}: {error}"),
            }
        }
    }

    /// Whether nothing has come that was not received.
    pub fn is_silent(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let mut byte = [0];
        let peeked = rustix::net::recv(&self.0, &mut byte, RecvFlags::PEEK);
        self.0.set_nonblocking(false).unwrap();
        peeked == Err(rustix::io::Errno::AGAIN)
    }

    fn fill(&self, bytes: &mut [u8]) -> Option<()> {
        match (&self.0).read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                None
            }
            Err(error) => panic!("no answer within {PATIENCE:?}: {error}"),
        }
    }
}
