//! Messages of a front-end: some good, some nearly good, some noise, as a [`Random`] chooses.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use super::Random;
use super::frontend::features::{CONFIG_WCE, FLUSH};
use super::frontend::memory::{Memory, Span, USER_BASE};
use super::frontend::request::Request;
use super::frontend::ring::Ring;
use super::frontend::wire::{NEED_REPLY, REPLY, VERSION, Wire};
use super::frontend::{EVENT_IDX, LOG_ALL, RING_PACKED, SPANS};

/// Messages on one connection.
const MESSAGES: u64 = 60;

/// Numbers at which something may happen.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    63,
    64,
    1024,
    4095,
    4096,
    0x10_0000,
    0xffff,
    0x1_0000,
    0xffff_ffff,
    1 << 32,
    1 << 63,
    u64::MAX - 4095,
    u64::MAX,
];

/// Places in [`Messages::files`].
const MEMORY: usize = 0;
const EVENT: usize = 2;
const READER: usize = 4;
const WRITER: usize = 5;
const CHANNEL: usize = 6;
const STATE: usize = 7;

/// What messages are made of.
pub struct Messages {
    random: Random,
    memory: Memory,
    /// Memory, eventfds, and what is neither.
    files: Vec<OwnedFd>,
    /// Where messages of the back-end come out; nobody reads them.
    _channel: UnixStream,
    /// The guest's.
    pub ring: Ring,
    /// How many of the messages that start a ring have been sent.
    started: usize,
}

impl Messages {
    /// Chosen by `random`.
    pub fn new(random: Random) -> Self {
        let memory = Memory::new(&SPANS);
        let (channel, other_end) = UnixStream::pair().unwrap();
        let files = files(&memory, other_end);
        let ring = Ring::new(&memory, 0, 64, EVENT_IDX);
        Self { random, memory, files, _channel: channel, ring, started: 0 }
    }

    /// One message, and how many bytes of it are sent.
    fn message(&mut self) -> (Vec<u8>, Vec<usize>) {
        let code = if self.random.one_in(20) { self.random.next() as u32 } else { self.code() };
        let mut payload = self.payload(code);
        if self.random.one_in(40) {
            payload.resize(self.random.below(100) as usize, 0xff);
        }
        let flags = match self.random.below(200) {
            0 => self.random.next() as u32,
            1 => VERSION | REPLY,
            2..100 => VERSION,
            _ => VERSION | NEED_REPLY,
        };
        let mut bytes = Wire::encode(code, flags, &payload);
        if self.random.one_in(100) {
            let at = self.random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.random.below(8);
        }
        if self.random.one_in(200) {
            bytes.truncate(self.random.below(bytes.len() as u64) as usize);
        }
        (bytes, self.files_for(code))
    }

    /// Mostly what would start a ring, as far as that has come, or messages of which something comes.
    fn code(&mut self) -> u32 {
        const START: [u32; 13] = [1, 2, 15, 16, 21, 5, 8, 9, 10, 14, 13, 12, 18];
        const USEFUL: [u32; 22] =
            [2, 5, 6, 8, 9, 10, 11, 12, 13, 14, 18, 37, 38, 24, 25, 34, 21, 42, 43, 31, 32, 41];
        if let Some(code) = START.get(self.started).filter(|_| !self.random.one_in(4)) {
            self.started += 1;
            return *code;
        }
        if self.random.one_in(8) {
            self.started = 0;
        }
        if self.random.one_in(4) { self.random.below(46) as u32 } else { self.random.pick(&USEFUL) }
    }

    fn files_for(&mut self, code: u32) -> Vec<usize> {
        let expected = match code {
            5 => SPANS.len(),
            6 | 12..=14 | 21 | 32 | 33 | 37 | 42 => 1,
            _ => 0,
        };
        let count = if self.random.one_in(25) { self.random.below(5) as usize } else { expected };
        let number = self.files.len() as u64;
        let usual = match code {
            5 | 6 | 32 | 37 => MEMORY,
            21 | 33 => CHANNEL,
            42 => self.random.pick(&[READER, WRITER, STATE, STATE]),
            _ => EVENT,
        };
        let pick =
            |random: &mut Random| if random.one_in(20) { random.below(number) as usize } else { usual };
        (0..count).map(|_| pick(&mut self.random)).collect()
    }

    fn payload(&mut self, code: u32) -> Vec<u8> {
        match code {
            // The ring is a split one: as a packed one it is only more noise.
            2 if self.random.one_in(4) => self.words(&[u64::MAX]),
            2 => {
                let without = self.random.pick(&[0, 0, 0, 0, FLUSH, LOG_ALL, CONFIG_WCE, FLUSH | LOG_ALL]);
                self.words(&[!(RING_PACKED | without)])
            }
            16 => self.words(&[u64::MAX]),
            5 => self.table(),
            6 => self.words(&[1 << 16, 0]),
            8 => self.halves(64),
            9 => self.addresses(),
            10 | 11 => self.halves(0),
            12..=14 => self.words(&[0]),
            18 => self.halves(1),
            24 | 25 => self.config(code),
            37 | 38 => self.slot(),
            // Sizes of an in-flight region, and of its queues.
            31 | 32 => [self.words(&[4096, 0]), self.halves(64)[..4].to_vec()].concat(),
            // The number of an object.
            41 => self.words(&[1, 2]),
            // To be saved, or to be loaded.
            42 => {
                let direction = self.random.below(2);
                self.words(&[direction])
            }
            _ => Vec::new(),
        }
    }

    /// These words, or nearly.
    fn words(&mut self, words: &[u64]) -> Vec<u8> {
        let mutate = |random: &mut Random, word: u64| match random.below(60) {
            0 => random.pick(&EDGES),
            1 => random.next(),
            2 => word ^ 1 << random.below(64),
            3 => word.wrapping_add(random.pick(&EDGES)),
            _ => word,
        };
        words.iter().flat_map(|word| mutate(&mut self.random, *word).to_le_bytes()).collect()
    }

    /// A ring's number and `value`, or nearly.
    fn halves(&mut self, value: u32) -> Vec<u8> {
        let ring = if self.random.one_in(12) { self.random.pick(&[1, 2, 63, 64, u32::MAX]) } else { 0 };
        let value = if self.random.one_in(20) { self.random.pick(&EDGES) as u32 } else { value };
        [ring, value].map(u32::to_le_bytes).concat()
    }

    fn table(&mut self) -> Vec<u8> {
        let words = self.memory.table();
        self.words(&words)
    }

    fn slot(&mut self) -> Vec<u8> {
        let start = (1 << 40) + (self.random.below(4) << 30);
        self.words(&[0, start, 1 << 20, USER_BASE + start, 0])
    }

    fn addresses(&mut self) -> Vec<u8> {
        let places = [self.ring.descriptors, self.ring.used, self.ring.available].map(Ring::user);
        let mut payload = self.halves(0)[..4].to_vec();
        // Whether what is written there is logged, and where.
        let is_logged = self.random.below(2) as u32;
        payload.extend(is_logged.to_le_bytes());
        payload.extend(self.words(&places));
        payload.extend(self.words(&[self.ring.used]));
        payload
    }

    fn config(&mut self, code: u32) -> Vec<u8> {
        let bytes = if code == 24 { self.random.pick(&[1, 36, 57, 60, 256]) } else { 1 };
        let offset = if code == 24 { self.random.pick(&[0, 0x100, 32, 4095]) } else { 32 };
        let fields = [offset, bytes, 0].map(u32::to_le_bytes).concat();
        let value = if code == 25 { self.random.below(3) as u8 } else { 0 };
        [fields, vec![value; bytes as usize]].concat()
    }

    /// A connection's worth of messages; returns how many were sent before it was closed.
    pub fn connection(&mut self, wire: &Wire) -> u64 {
        for sent in 0..MESSAGES {
            if self.random.is_over() {
                return sent;
            }
            if self.random.one_in(3) && self.ring.next_used().is_none() {
                // The guest goes on meanwhile, whatever its ring is like by now.
                let request = match self.random.one_in(3) {
                    true => Request::write(0, &[1; 512]),
                    false => Request::read(0, 512),
                };
                self.ring.submit(&request);
                self.ring.kick.signal();
            }
            let (bytes, files) = self.message();
            let files: Vec<BorrowedFd<'_>> =
                files.into_iter().map(|index| self.files[index].as_fd()).collect();
            if bytes.is_empty() {
                continue;
            }
            if !wire.send_bytes(&bytes, &files) {
                return sent;
            }
            // Neither always nor never: answers must not be needed for going on.
            if self.random.one_in(2) {
                wire.drain();
            }
        }
        MESSAGES
    }
}

/// The state of a disk of 8 MiB with the serial number of the fuzz targets, whose driver has acknowledged nothing.
fn state() -> std::fs::File {
    let mut state =
        [b"vupmemst", &[1, 0, 0, 0, 0, 2, 0, 0][..], &(8_u64 << 20).to_le_bytes(), &[0; 8]].concat();
    state.extend(b"fuzz0123456789abcdef");
    state.push(1);
    state.resize(64, 0);
    let file = std::fs::File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(&state, 0).unwrap();
    file
}

/// Memory first, then eventfds, then what is neither.
fn files(memory: &Memory, channel: UnixStream) -> Vec<OwnedFd> {
    let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let (pipe, writer) = std::io::pipe().unwrap();
    let (socket, _) = UnixStream::pair().unwrap();
    let short = Memory::new(&[Span { guest_start: 0, bytes: 4096 }]);
    let (full, mut sender) = UnixStream::pair().unwrap();
    sender.write_all(b"unread").unwrap();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let sealed = std::fs::File::from(rustix::fs::memfd_create("sealed", flags).unwrap());
    sealed.set_len(SPANS.iter().map(|span| span.bytes).sum()).unwrap();
    rustix::fs::fcntl_add_seals(&sealed, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).unwrap();
    vec![
        memory.fd().try_clone_to_owned().unwrap(),
        short.fd().try_clone_to_owned().unwrap(),
        event(),
        event(),
        pipe.into(),
        writer.into(),
        channel.into(),
        state().into(),
        socket.into(),
        sealed.into(),
        std::fs::File::open("/dev/null").unwrap().into(),
        std::fs::File::open("/dev/zero").unwrap().into(),
        std::fs::File::open("/proc/self/exe").unwrap().into(),
        std::fs::File::open("/").unwrap().into(),
        std::fs::File::open("/proc/self/status").unwrap().into(),
        rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap(),
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        UnixDatagram::unbound().unwrap().into(),
        full.into(),
    ]
}
