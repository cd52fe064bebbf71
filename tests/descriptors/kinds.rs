//! What each message takes, and what is said of what it does not.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::{blocking_event, bystander, two_disks};
use crate::common::daemon::Daemon;
use crate::common::frontend::memory::Span;
use crate::common::frontend::message::{
    ADD_MEM_REG, SET_BACKEND_REQ_FD, SET_DEVICE_STATE_FD, SET_LOG_BASE, SET_MEM_TABLE, SET_VRING_CALL,
    SET_VRING_ERR, SET_VRING_KICK,
};
use crate::common::frontend::wire::{HEADER_BYTES, NEED_REPLY, VERSION, Wire};
use crate::common::frontend::{Options, Session};
use crate::common::process::Process;
use crate::common::wait_for;

/// What it is, who takes it, and what the refusal calls it.
struct Sample {
    fd: OwnedFd,
    kind: &'static str,
    taken_by: &'static [u32],
}

const MEMORY: &[u32] = &[SET_MEM_TABLE, SET_LOG_BASE, ADD_MEM_REG, SET_DEVICE_STATE_FD];
pub const ALL: [u32; 8] = [
    SET_MEM_TABLE,
    SET_LOG_BASE,
    SET_VRING_KICK,
    SET_VRING_CALL,
    SET_VRING_ERR,
    SET_BACKEND_REQ_FD,
    ADD_MEM_REG,
    SET_DEVICE_STATE_FD,
];

const BYTES: u64 = 1 << 20;

fn memory_file(folder: &Path) -> OwnedFd {
    let path = folder.join("memory");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file.set_len(BYTES).unwrap();
    file.into()
}

/// Of every kind. The other ends are kept open.
fn samples() -> (Vec<Sample>, Vec<OwnedFd>) {
    let sample = |fd: OwnedFd, kind, taken_by| Sample { fd, kind, taken_by };
    let memfd = File::from(rustix::fs::memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    memfd.set_len(BYTES).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, peer) = UnixStream::pair().unwrap();
    let (datagram, _) = UnixDatagram::pair().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let on_disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path_only = rustix::fs::open("/dev/null", OFlags::PATH, Mode::empty()).unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let datagrams: &[u32] = &[SET_DEVICE_STATE_FD];
    let streams: &[u32] = &[SET_VRING_CALL, SET_VRING_ERR, SET_BACKEND_REQ_FD, SET_DEVICE_STATE_FD];
    let list = vec![
        sample(blocking_event(), "an eventfd", &[SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR]),
        sample(memfd.into(), "a file", MEMORY),
        sample(memory_file(Path::new("/dev/shm")), "a file", MEMORY),
        sample(memory_file(on_disk), "a file", MEMORY),
        sample(writer.into(), "a pipe", &[SET_DEVICE_STATE_FD]),
        sample(socket.into(), "a Unix socket", streams),
        // Not to be called: what waits in it cannot be told.
        sample(datagram.into(), "a Unix socket", datagrams),
        sample(tcp.into(), "a socket that is no Unix socket", &[]),
        sample(File::open("/dev/null").unwrap().into(), "/dev/null (a character device)", &[]),
        sample(File::open("/dev/zero").unwrap().into(), "/dev/zero (a character device)", &[]),
        sample(File::open("/").unwrap().into(), "/ (a folder)", &[]),
        sample(File::open("/proc/self/mem").unwrap().into(), "/mem (on proc,", &[]),
        sample(path_only, "/dev/null (opened as a path only)", &[]),
        sample(epoll, "anon_inode:[eventpoll] (", &[]),
    ];
    (list, vec![reader.into(), peer.into(), listener.into()])
}

/// The payload that makes sense with a message.
fn payload(message: u32) -> Vec<u8> {
    let words: &[u64] = match message {
        // One region, padding; guest address, bytes, user address, offset.
        SET_MEM_TABLE => &[1, 1 << 40, BYTES, 1 << 40, 0],
        ADD_MEM_REG => &[0, 1 << 40, BYTES, 1 << 40, 0],
        SET_LOG_BASE => &[BYTES, 0],
        // Direction: save.
        SET_DEVICE_STATE_FD => &[0],
        SET_BACKEND_REQ_FD => &[],
        _ => &[0],
    };
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Taken,
    Refused,
}

pub fn tell(session: &Session, message: u32, fd: BorrowedFd<'_>) -> Outcome {
    assert!(session.wire.send(message, VERSION | NEED_REPLY, &payload(message), &[fd]));
    match session.wire.receive() {
        // There is no way to say no to who sets a log, but to hang up.
        None => Outcome::Refused,
        Some(answer) => match (message, answer.payload.len(), answer.payload.get(..8)) {
            (SET_LOG_BASE, 16, _) => Outcome::Taken,
            (SET_DEVICE_STATE_FD, 8, Some(value)) if value == 0x100_u64.to_le_bytes() => Outcome::Taken,
            (_, 8, Some(value)) if value == [0; 8] => Outcome::Taken,
            _ => Outcome::Refused,
        },
    }
}

/// With everything that a message needs.
pub fn connect(daemon: &Daemon) -> Session {
    let protocol = VhostUserProtocolFeatures::all();
    let spans = vec![Span { guest_start: 0, bytes: 1 << 20 }];
    let mut session = Session::open(&daemon.socket(0), &spans);
    session.negotiate(&Options { protocol, spans, ..Options::default() });
    session
}

#[test]
fn each_message_takes_its_kinds_and_says_what_else_it_was() {
    const { assert!(HEADER_BYTES == 12) };
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    let (samples, _others) = samples();
    for Sample { fd, kind, taken_by } in &samples {
        for message in ALL {
            let flags = rustix::fs::fcntl_getfl(fd).unwrap();
            let session = connect(&daemon);
            let before = daemon.log().len();
            let outcome = tell(&session, message, fd.as_fd());
            let expected = if taken_by.contains(&message) { Outcome::Taken } else { Outcome::Refused };
            assert_eq!(outcome, expected, "{kind} with message {message}");
            assert_eq!(rustix::fs::fcntl_getfl(fd).unwrap(), flags, "{kind} with message {message}");
            if outcome == Outcome::Refused && !(message == SET_BACKEND_REQ_FD && *kind == "a Unix socket") {
                // Lines that a front-end can cause are limited: what is left out is counted.
                let log = daemon.log()[before..].to_owned();
                let told = log.contains(kind) || !log.contains("refused");
                assert!(told, "{kind} with message {message}: {log}");
            }
            drop(session);
            load.wait_for_progress();
        }
    }
    load.stop();
    daemon.stop();
}

/// One of each, slowly enough for the limit on lines.
#[test]
fn a_refusal_names_what_came_and_what_is_taken() {
    let daemon = two_disks();
    let null = File::open("/dev/null").unwrap();
    for (message, words) in [
        (SET_VRING_KICK, "the kick is /dev/null (a character device); an eventfd is taken"),
        (SET_VRING_CALL, "the call is /dev/null (a character device); an eventfd or a Unix socket is taken"),
        (SET_MEM_TABLE, "guest memory is /dev/null (a character device); a memfd, a file on tmpfs"),
        (SET_LOG_BASE, "the dirty log is /dev/null (a character device); a memfd"),
    ] {
        let session = connect(&daemon);
        assert_eq!(tell(&session, message, null.as_fd()), Outcome::Refused);
        daemon.wait_for_log(words);
    }
}

/// With each of them as many as a message may have: what is beyond that does not stay.
#[test]
fn a_message_in_pieces_has_no_more_descriptors_than_another() {
    const PIECES: usize = 100;
    const MOST: usize = 32;
    let daemon = two_disks();
    let session = connect(&daemon);
    let event = blocking_event();
    let process = Process(daemon.pid());
    let before = process.fds();
    let message = Wire::encode(SET_MEM_TABLE, VERSION, &[0; 4 * PIECES]);
    for byte in message.iter().take(PIECES) {
        assert!(session.wire.send_bytes(&[*byte], &[event.as_fd(); MOST]));
    }
    // What was sent has been received.
    wait_for("all pieces are received", || (process.fds() >= before + MOST).then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(process.fds() <= before + 2 * MOST, "{} descriptors, {before} before", process.fds());
    drop(session);
    wait_for("all are closed", || (process.fds() <= before).then_some(()));
}

/// Killed by hand, or for want of memory.
#[test]
fn the_processes_that_receive_descriptors_are_replaced() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    for _ in 0..2 {
        let checkers = Process(daemon.pid()).descendants();
        assert_eq!(checkers.len(), 2, "one makes them, one is at work");
        for checker in checkers {
            let pid = Pid::from_raw(checker.cast_signed()).unwrap();
            // The second may be gone with the first.
            let _ = kill_process(pid, Signal::KILL);
        }
        let is_gone = || Process(daemon.pid()).descendants().len() <= 1;
        wait_for("they are gone", || is_gone().then_some(()));
        let session = connect(&daemon);
        assert_eq!(tell(&session, SET_VRING_CALL, blocking_event().as_fd()), Outcome::Taken);
        load.wait_for_progress();
    }
    load.stop();
    daemon.stop();
}
