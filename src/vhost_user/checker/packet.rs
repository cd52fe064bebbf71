//! What is asked of the checker, and what it answers: one packet each.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair,
};

use crate::limits::bounds::{IN_FLIGHT_TIMEOUT, MAX_MESSAGE_DESCRIPTORS};
use crate::vhost_user::descriptor::Kind;

/// Longer than any packet: a message of at most 4 KiB, and a description of each of its descriptors.
pub(super) const MOST_BYTES: usize = 64 << 10;

/// How often a packet is sent again whose descriptors are too many at the moment.
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(5);

/// Room for as many descriptors as a message may have; the kernel drops further ones without having installed them.
type Space = [MaybeUninit<u8>; rustix::cmsg_space!(ScmRights(MAX_MESSAGE_DESCRIPTORS))];

/// Bytes of a message, and the descriptors that came with them.
#[derive(Debug)]
pub(in crate::vhost_user) struct Received {
    pub(in crate::vhost_user) bytes: Vec<u8>,
    pub(in crate::vhost_user) files: Vec<OwnedFd>,
    /// What the others were that came with it, and were not passed on.
    pub(in crate::vhost_user) refused: Vec<Kind>,
}

/// What is asked of the checker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum What {
    /// To receive up to `most` bytes from the stream whose descriptor comes with the request.
    Receive,
    /// To close the socket that comes with it. Sent twice: with the socket, which the checker keeps; and without, once the
    /// daemon has closed its own copy.
    Close,
    /// The same, with an answer: a pidfd of the process that closes.
    CloseAwaited,
    /// How many checkers are at their end with what the disk's front-ends have sent. The spawner answers.
    Count,
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) number: u64,
    /// Whose front-ends it is about.
    pub(super) disk: u64,
    pub(super) what: What,
    /// The message's request number, if its header is known.
    pub(super) code: u32,
    pub(super) most: u32,
}

/// The answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) number: u64,
    /// The process that answers serves nobody any more: it is about to close what it has.
    pub(super) retires: bool,
    pub(super) outcome: io::Result<Received>,
}

impl Received {
    /// An answer that is no message.
    pub(super) const fn of(bytes: Vec<u8>, files: Vec<OwnedFd>) -> Self {
        Self { bytes, files, refused: Vec::new() }
    }
}

impl What {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Receive,
            1 => Self::Close,
            2 => Self::CloseAwaited,
            3 => Self::Count,
            _ => return None,
        })
    }
}

impl Request {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let Self { number, disk, what, code, most } = self;
        let (number, disk) = (number.to_ne_bytes(), disk.to_ne_bytes());
        [&number[..], &disk, &[*what as u8], &code.to_ne_bytes(), &most.to_ne_bytes()].concat()
    }

    pub(super) fn send(&self, to: &OwnedFd, stream: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send(to, &self.bytes(), stream.as_slice())
    }

    /// The next request, and the descriptor that came with it; none when the daemon is gone.
    pub(super) fn receive(from: BorrowedFd<'_>) -> Option<(Self, Option<OwnedFd>)> {
        let (bytes, mut files) = receive(from, MOST_BYTES, RecvFlags::empty()).ok()?;
        let mut rest = bytes.as_slice();
        let request = Self {
            number: u64::from_ne_bytes(take(&mut rest)?),
            disk: u64::from_ne_bytes(take(&mut rest)?),
            what: What::of(u8::from_ne_bytes(take(&mut rest)?))?,
            code: u32::from_ne_bytes(take(&mut rest)?),
            most: u32::from_ne_bytes(take(&mut rest)?),
        };
        Some((request, files.pop()))
    }
}

impl Answer {
    pub(super) fn send(&self, to: BorrowedFd<'_>) -> io::Result<()> {
        let number = [&self.number.to_ne_bytes()[..], &[u8::from(self.retires)]].concat();
        let received = match &self.outcome {
            Ok(received) => received,
            Err(error) => {
                let error = error.raw_os_error().unwrap_or(libc::EIO);
                return send(to, &[&number[..], &error.to_ne_bytes()].concat(), &[]);
            }
        };
        let count = u32::try_from(received.refused.len()).unwrap_or(u32::MAX);
        let mut bytes = [&number[..], &0_i32.to_ne_bytes(), &count.to_ne_bytes()].concat();
        for kind in &received.refused {
            let words = kind.to_string();
            bytes.extend(u32::try_from(words.len()).unwrap_or(0).to_ne_bytes());
            bytes.extend(words.as_bytes());
        }
        bytes.extend(&received.bytes);
        let files: Vec<_> = received.files.iter().map(|file| file.as_fd()).collect();
        match send(to, &bytes, &files) {
            // Whoever asked must have some answer, or takes the next one for it.
            Err(error) if !files.is_empty() => Self { outcome: Err(error), ..*self }.send(to),
            sent => sent,
        }
    }

    pub(super) fn receive(from: &OwnedFd) -> io::Result<Self> {
        // As much room as this packet takes: a thousand sessions with room for the longest would take 64 MiB.
        let look = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        let (_, most) = retry_on_intr(|| recv(from, &mut [0_u8; 0][..], look))?;
        let (bytes, files) = receive(from.as_fd(), most, RecvFlags::DONTWAIT)?;
        Self::decode(&bytes, files).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn decode(bytes: &[u8], files: Vec<OwnedFd>) -> Option<Self> {
        let mut rest = bytes;
        let number = u64::from_ne_bytes(take(&mut rest)?);
        let retires = take(&mut rest)? != [0];
        let error = i32::from_ne_bytes(take(&mut rest)?);
        if error != 0 {
            let outcome = Err(io::Error::from_raw_os_error(error));
            return Some(Self { number, retires, outcome });
        }
        let mut refused = Vec::new();
        for _ in 0..u32::from_ne_bytes(take(&mut rest)?) {
            let len = usize::try_from(u32::from_ne_bytes(take(&mut rest)?)).ok()?;
            let words = rest.split_off(..len)?;
            refused.push(Kind::Other(String::from_utf8_lossy(words).into_owned()));
        }
        let outcome = Ok(Received { bytes: rest.to_owned(), files, refused });
        Some(Self { number, retires, outcome })
    }
}

pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    rest.split_off(..N)?.try_into().ok()
}

/// Sends a packet. Blocks while the other side has not received those before; and for a while if the processes of this user have
/// as many descriptors on their way in sockets as they may (`ETOOMANYREFS`): somebody may have to receive or close them first.
pub(super) fn send(to: impl std::os::fd::AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let deadline = Instant::now() + IN_FLIGHT_TIMEOUT;
    loop {
        let mut space: Space = [MaybeUninit::uninit(); _];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::other("too many descriptors"));
        }
        match sendmsg(&to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::TOOMANYREFS) if Instant::now() < deadline => std::thread::sleep(IN_FLIGHT_PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives up to `most` bytes, and the descriptors that come with them.
pub(super) fn receive(
    from: BorrowedFd<'_>,
    most: usize,
    flags: RecvFlags,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space: Space = [MaybeUninit::uninit(); _];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; most.min(MOST_BYTES)];
    let received = retry_on_intr(|| {
        let mut place = [IoSliceMut::new(&mut bytes)];
        recvmsg(from, &mut place, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    bytes.truncate(received.bytes);
    let mut files = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            files.extend(rights);
        }
    }
    Ok((bytes, files))
}

/// A pair of sockets, in which each packet is received as it was sent.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}
