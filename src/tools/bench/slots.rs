//! Memory slots for back-ends that have none (SPDK, and whatever else is built on DPDK's library), since `virtio-driver`
//! insists on them (`CONFIGURE_MEM_SLOTS`).
//!
//! A thread relays messages between the library and the back-end. It adds the protocol feature to what the back-end offers,
//! and sends a whole SET_MEM_TABLE whenever a region is added. All other messages pass unchanged; requests do not come
//! this way.

use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

const SET_MEM_TABLE: u32 = 5;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_MAX_MEM_SLOTS: u32 = 36;
const ADD_MEM_REG: u32 = 37;

/// The protocol feature.
const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;

/// Flags of an answer: version 1, and that it is one.
const ANSWER: u32 = 1 | 4;

/// Most regions of a memory table.
const MOST_REGIONS: usize = 8;

/// Longest payload of the messages that are passed on.
const MOST_BYTES: u32 = 4096;

/// The socket that the library connects to; it can be dropped once it has.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) path: PathBuf,
}

impl Relay {
    /// Connects to the back-end, and awaits the library.
    pub(super) fn start(socket: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let backend = UnixStream::connect(socket)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("vhost-user-pmem-bench-{}-{number}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path)?;
        std::thread::Builder::new().name("relay".to_owned()).spawn(move || {
            // Ignored: when one side has left, the other is hung up on, and that is reported there.
            let _ = listener.accept().and_then(|(driver, _)| pass_on(&driver, &backend));
        })?;
        Ok(Self { path })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Ignored: somebody else may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Until one of them leaves.
fn pass_on(driver: &UnixStream, backend: &UnixStream) -> io::Result<()> {
    let mut slots = Vec::new();
    loop {
        let mut fds = [PollFd::new(driver, PollFlags::IN), PollFd::new(backend, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, None))?;
        let [from_driver, from_backend] = fds.map(|fd| !fd.revents().is_empty());
        if from_driver {
            let message = Message::receive(driver)?;
            if message.code == GET_MAX_MEM_SLOTS {
                let payload = (MOST_REGIONS as u64).to_le_bytes().to_vec();
                Message { flags: ANSWER, payload, ..message }.send(driver)?;
            } else {
                ask(message, &mut slots).send(backend)?;
            }
        }
        if from_backend {
            answer(Message::receive(backend)?).send(driver)?;
        }
    }
}

/// What the back-end is told instead.
fn ask(mut message: Message, slots: &mut Vec<Message>) -> Message {
    match message.code {
        SET_PROTOCOL_FEATURES => message.change_word(|features| features & !CONFIGURE_MEM_SLOTS),
        ADD_MEM_REG => {
            let flags = message.flags;
            slots.push(message);
            // Those on vhost-user-backend want a sorted table.
            slots.sort_by_key(|slot| slot.word(1));
            return table(flags, slots);
        }
        _ => {}
    }
    message
}

/// What the library is told instead.
fn answer(mut message: Message) -> Message {
    match message.code {
        GET_PROTOCOL_FEATURES => message.change_word(|features| features | CONFIGURE_MEM_SLOTS),
        SET_MEM_TABLE => message.code = ADD_MEM_REG,
        _ => {}
    }
    message
}

/// The table of all regions; each message that added one has it behind a word of padding.
fn table(flags: u32, slots: &[Message]) -> Message {
    let mut payload = (slots.len() as u64).to_le_bytes().to_vec();
    slots.iter().for_each(|slot| payload.extend(slot.payload.iter().skip(8)));
    let fds = slots.iter().flat_map(|slot| &slot.fds).filter_map(|fd| fd.try_clone().ok()).collect();
    Message { code: SET_MEM_TABLE, flags, payload, fds }
}

/// A message of either side.
#[derive(Debug)]
struct Message {
    code: u32,
    flags: u32,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Message {
    /// A word of the payload, 0 behind its end. The second one of a region's message is its guest address.
    fn word(&self, place: usize) -> u64 {
        self.payload.as_chunks().0.get(place).map_or(0, |word| u64::from_le_bytes(*word))
    }

    fn change_word(&mut self, change: impl FnOnce(u64) -> u64) {
        if let Some(word) = self.payload.first_chunk_mut() {
            *word = change(u64::from_le_bytes(*word)).to_le_bytes();
        }
    }

    /// Waits for one, or an error when the other side has left.
    fn receive(mut socket: &UnixStream) -> io::Result<Self> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_REGIONS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut words = [[0; 4]; 3];
        let header = words.as_flattened_mut();
        let received = retry_on_intr(|| {
            recvmsg(socket, &mut [IoSliceMut::new(header)], &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        socket.read_exact(header.get_mut(received.bytes..).unwrap_or_default())?;
        let fds = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        });
        let fds = fds.collect();
        let [code, flags, bytes] = words.map(u32::from_le_bytes);
        if bytes > MOST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        socket.read_exact(&mut payload)?;
        Ok(Self { code, flags, payload, fds })
    }

    fn send(&self, socket: &UnixStream) -> io::Result<()> {
        let bytes = u32::try_from(self.payload.len()).map_err(io::Error::other)?;
        let mut message = [self.code, self.flags, bytes].map(u32::to_le_bytes).as_flattened().to_vec();
        message.extend(&self.payload);
        let fds: Vec<_> = self.fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_REGIONS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("more descriptors than a message has"));
        }
        let sent = sendmsg(socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)?;
        if sent < message.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}
