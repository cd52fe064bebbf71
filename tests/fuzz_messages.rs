//! Random messages from a seed: some good, some nearly good, some noise. Whatever they do to their own
//! connection, the daemon lives, another disk is served all the time, and a new front-end finds all in order.
//!
//! `SEED` repeats a run, `FUZZ_SECONDS` lengthens it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

mod common;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use common::daemon::{Place, Setup};
use common::frontend::load::Load;
use common::frontend::memory::{Memory, Span, USER_BASE};
use common::frontend::request::{OK, Request};
use common::frontend::ring::Ring;
use common::frontend::wire::{NEED_REPLY, REPLY, VERSION, Wire};
use common::frontend::{EVENT_IDX, RING_PACKED, SPANS, Session};
use common::process::Process;
use common::{Random, wait_for};

/// How long the test runs if nothing is said.
const SECONDS: u64 = 8;

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

/// What messages are made of.
struct Fuzzer {
    random: Random,
    memory: Memory,
    /// Memory, eventfds, and what is neither.
    files: Vec<OwnedFd>,
    ring: Ring,
    /// How many of the messages that start a ring have been sent.
    started: usize,
}

impl Fuzzer {
    fn new(seed: u64) -> Self {
        let memory = Memory::new(&SPANS);
        let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let (pipe, _) = std::io::pipe().unwrap();
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let short = Memory::new(&[Span { guest_start: 0, bytes: 4096 }]);
        let files = vec![
            memory.fd().try_clone_to_owned().unwrap(),
            short.fd().try_clone_to_owned().unwrap(),
            event(),
            event(),
            pipe.into(),
            socket.into(),
            std::fs::File::open("/dev/null").unwrap().into(),
        ];
        let ring = Ring::new(&memory, 0, 64, EVENT_IDX);
        Self { random: Random::new(seed), memory, files, ring, started: 0 }
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
        const START: [u32; 11] = [1, 2, 15, 16, 5, 8, 9, 10, 13, 12, 18];
        const USEFUL: [u32; 16] = [2, 5, 8, 9, 10, 11, 12, 13, 14, 18, 37, 38, 24, 25, 34, 21];
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
            12..=14 | 21 | 37 => 1,
            _ => 0,
        };
        let count = if self.random.one_in(25) { self.random.below(5) as usize } else { expected };
        let number = self.files.len() as u64;
        let usual = if matches!(code, 5 | 37) { 0 } else { 2 };
        let pick =
            |random: &mut Random| if random.one_in(12) { random.below(number) as usize } else { usual };
        (0..count).map(|_| pick(&mut self.random)).collect()
    }

    fn payload(&mut self, code: u32) -> Vec<u8> {
        match code {
            // The ring is a split one: as a packed one it is only more noise.
            2 if self.random.one_in(4) => self.words(&[u64::MAX]),
            2 => self.words(&[!RING_PACKED]),
            16 => self.words(&[u64::MAX]),
            5 => self.table(),
            8 => self.halves(64),
            9 => self.addresses(),
            10 | 11 => self.halves(0),
            12..=14 => self.words(&[0]),
            18 => self.halves(1),
            24 | 25 => self.config(code),
            37 | 38 => self.slot(),
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
        let ring = self.random.pick(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 63, 64, u32::MAX]);
        let value = if self.random.one_in(20) { self.random.pick(&EDGES) as u32 } else { value };
        [ring, value].map(u32::to_le_bytes).concat()
    }

    fn table(&mut self) -> Vec<u8> {
        let mut words = vec![SPANS.len() as u64];
        for region in self.memory.announcement() {
            words.extend([
                region.guest_phys_addr,
                region.memory_size,
                region.userspace_addr,
                region.mmap_offset,
            ]);
        }
        self.words(&words)
    }

    fn slot(&mut self) -> Vec<u8> {
        let start = (1 << 40) + (self.random.below(4) << 30);
        self.words(&[0, start, 1 << 20, USER_BASE + start, 0])
    }

    fn addresses(&mut self) -> Vec<u8> {
        let places = [self.ring.descriptors, self.ring.used, self.ring.available].map(Ring::user);
        let mut payload = self.halves(0)[..4].to_vec();
        payload.extend([0; 4]);
        payload.extend(self.words(&places));
        payload.extend([0; 8]);
        payload
    }

    fn config(&mut self, code: u32) -> Vec<u8> {
        let bytes = if code == 24 { self.random.pick(&[1, 36, 57, 60, 256]) } else { 1 };
        let offset = if code == 24 { self.random.pick(&[0, 0x100, 32, 4095]) } else { 32 };
        let fields = [offset, bytes, 0].map(u32::to_le_bytes).concat();
        [fields, vec![0; bytes as usize]].concat()
    }

    /// A connection's worth of messages; returns how many were sent before it was closed.
    fn connection(&mut self, wire: &Wire) -> u64 {
        for sent in 0..MESSAGES {
            if self.random.one_in(3) && self.ring.next_used().is_none() {
                // The guest goes on meanwhile, whatever its ring is like by now.
                self.ring.submit(&Request::read(0, 512));
                self.ring.kick.ring();
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

#[test]
fn random_messages_harm_only_their_own_connection() {
    let variable = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = variable("SEED").unwrap_or(1);
    let limit = Duration::from_secs(variable("FUZZ_SECONDS").unwrap_or(SECONDS));
    let mut daemon = Setup::new(Place::Tmpfs).disk("size=64M").disk("size=64M").start();
    let bystander = Session::connect(&daemon.socket(1));
    let load = Load::start(bystander.ring(0, 128), 0);
    let process = Process(daemon.pid());
    drop(Session::connect(&daemon.socket(0)).ring(0, 64));
    // With the bystander, who is gone at the end.
    let fds_before = process.fds();

    let (start, mut connections, mut messages, mut ran) = (Instant::now(), 0, 0, 0);
    while start.elapsed() < limit {
        println!("SEED={seed}, connection {connections}");
        let mut fuzzer = Fuzzer::new(seed << 32 | connections);
        let wire = Wire::connect(&daemon.socket(0));
        messages += fuzzer.connection(&wire);
        wire.hang_up();
        ran += u64::from(fuzzer.ring.used_index() > 0);
        connections += 1;
        if connections % 20 == 0 {
            load.wait_for_progress();
            daemon.assert_alive();
            assert_serves(&daemon.socket(0));
        }
    }
    println!("{messages} messages on {connections} connections, {ran} of them with a ring that ran");
    assert!(ran > connections / 20, "connections end too soon to find anything");
    assert_serves(&daemon.socket(0));
    load.stop();
    drop(bystander);
    let threads = 8;
    wait_for("what the connections had is gone", || {
        (process.fds() < fds_before && process.threads() < threads).then_some(())
    });
    daemon.stop();
}

/// A new front-end gets an answer to everything.
fn assert_serves(socket: &std::path::Path) {
    let session = Session::connect(socket);
    let answer = session.ring(0, 64).run(&Request::read(0, 4096));
    assert_eq!((answer.status, answer.used_bytes), (OK, 4097));
}
