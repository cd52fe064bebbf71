//! Descriptors of every kind, handed over with every message that takes one.

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use crate::common::folder;
use crate::common::frontend::Session;
use crate::common::frontend::handover::{ALL, BYTES, Outcome, connect, hand_over};
use crate::common::frontend::message::{
    ADD_MEM_REG, SET_BACKEND_REQ_FD, SET_DEVICE_STATE_FD, SET_LOG_BASE, SET_MEM_TABLE, SET_VRING_CALL,
    SET_VRING_ERR, SET_VRING_KICK,
};
use crate::common::frontend::request::{OK, Request};
use crate::common::{full_pipe, wait_for};
use crate::table::Answer::{self, Done, HungUp, Nack};
use crate::table::{Kind, Place, Row};

const EVENTS: &[u32] = &[SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR];
const MEMORY: &[u32] = &[SET_MEM_TABLE, SET_LOG_BASE, ADD_MEM_REG, SET_DEVICE_STATE_FD];
const STREAMS: &[u32] = &[SET_VRING_CALL, SET_VRING_ERR, SET_BACKEND_REQ_FD, SET_DEVICE_STATE_FD];
/// What comes through it is only found out then.
const STATE: &[u32] = &[SET_DEVICE_STATE_FD];
const NOTHING: &[u32] = &[];

/// A descriptor, and what keeps it as it is.
type Made = io::Result<(OwnedFd, Vec<OwnedFd>)>;

/// A kind of descriptor.
#[derive(Clone, Copy)]
struct Sample {
    name: &'static str,
    taken_by: &'static [u32],
    make: fn() -> Made,
}

const fn sample(name: &'static str, taken_by: &'static [u32], make: fn() -> Made) -> Sample {
    Sample { name, taken_by, make }
}

fn alone(fd: impl Into<OwnedFd>) -> Made {
    Ok((fd.into(), Vec::new()))
}

fn open(path: &str) -> Made {
    alone(File::open(path)?)
}

fn event(initial: u32, flags: EventfdFlags) -> Made {
    alone(rustix::event::eventfd(initial, flags | EventfdFlags::CLOEXEC)?)
}

fn memory(bytes: u64, seals: SealFlags) -> Made {
    let file = rustix::fs::memfd_create("memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, bytes)?;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    alone(file)
}

fn file(folder: &Path, is_writable: bool) -> Made {
    let path = folder.join(format!("memory-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    let read_only = File::open(&path)?;
    std::fs::remove_file(path)?;
    file.set_len(BYTES)?;
    alone(if is_writable { file } else { read_only })
}

/// What a system call has returned, which makes a descriptor of its own.
#[allow(unsafe_code)]
fn made(number: i64) -> Made {
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call has just made it, and nobody else knows it.
    alone(unsafe { OwnedFd::from_raw_fd(number as i32) })
}

/// A system call of three numbers that makes a descriptor.
#[allow(unsafe_code)]
fn call(number: i64, first: u64, second: u64, third: u64) -> Made {
    // SAFETY: those below take numbers, or null for an address.
    made(unsafe { libc::syscall(number, first, second, third) })
}

fn signals() -> Made {
    let none = 0_u64;
    // SAFETY: the mask is read only, and as long as is said.
    #[allow(unsafe_code)]
    made(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const none, 8, 0) })
}

fn full_socket() -> Made {
    let (socket, peer) = UnixStream::pair()?;
    while rustix::net::send(&socket, &[0; 4096], rustix::net::SendFlags::DONTWAIT).is_ok() {}
    Ok((socket.into(), vec![peer.into()]))
}

const SAMPLES: [Sample; 48] = [
    sample("an eventfd", EVENTS, || event(0, EventfdFlags::empty())),
    sample("an eventfd that does not block", EVENTS, || event(0, EventfdFlags::NONBLOCK)),
    sample("a semaphore", EVENTS, || event(7, EventfdFlags::SEMAPHORE)),
    sample("a full eventfd", EVENTS, || {
        let (event, _) = event(0, EventfdFlags::empty())?;
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes())?;
        alone(event)
    }),
    sample("a memfd", MEMORY, || memory(BYTES, SealFlags::empty())),
    sample("a memfd that cannot shrink", MEMORY, || memory(BYTES, SealFlags::SHRINK | SealFlags::SEAL)),
    sample("a memfd that cannot be written", STATE, || memory(BYTES, SealFlags::WRITE)),
    sample("a memfd that can only be written by those who map it", STATE, || {
        memory(BYTES, SealFlags::FUTURE_WRITE)
    }),
    sample("a memfd of no bytes", STATE, || memory(0, SealFlags::empty())),
    sample("a memfd of a byte too few", STATE, || memory(BYTES - 1, SealFlags::empty())),
    sample("a file on tmpfs", MEMORY, || file(Path::new("/dev/shm"), true)),
    sample("a file", MEMORY, || file(folder::on_files().path(), true)),
    sample("a file that may only be read", STATE, || file(folder::on_files().path(), false)),
    sample("the end of an empty pipe", STATE, || {
        let (reader, writer) = io::pipe()?;
        Ok((reader.into(), vec![writer.into()]))
    }),
    sample("the end of a pipe that nobody writes to", STATE, || alone(io::pipe()?.0)),
    sample("the beginning of a pipe", STATE, || {
        let (reader, writer) = io::pipe()?;
        Ok((writer.into(), vec![reader.into()]))
    }),
    sample("the beginning of a full pipe", STATE, || {
        let (reader, writer) = full_pipe();
        Ok((writer, vec![reader]))
    }),
    sample("the beginning of a pipe that nobody reads", STATE, || alone(io::pipe()?.1)),
    sample("a Unix socket", STREAMS, || {
        let (socket, peer) = UnixStream::pair()?;
        Ok((socket.into(), vec![peer.into()]))
    }),
    sample("a full Unix socket", STREAMS, full_socket),
    sample("a Unix socket whose peer is gone", STREAMS, || alone(UnixStream::pair()?.0)),
    sample("a Unix socket of datagrams", NOTHING, || {
        let (socket, peer) = UnixDatagram::pair()?;
        Ok((socket.into(), vec![peer.into()]))
    }),
    sample("a Unix socket that listens", NOTHING, || {
        let folder = folder::for_sockets();
        alone(UnixListener::bind(folder.path().join("socket"))?)
    }),
    sample("a TCP socket", NOTHING, || {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        Ok((TcpStream::connect(listener.local_addr()?)?.into(), vec![listener.into()]))
    }),
    sample("a TCP socket that listens", NOTHING, || alone(TcpListener::bind(("127.0.0.1", 0))?)),
    sample("a UDP socket", NOTHING, || alone(UdpSocket::bind(("127.0.0.1", 0))?)),
    sample("a netlink socket", NOTHING, || call(libc::SYS_socket, 16, 3, 0)),
    sample("/dev/null", NOTHING, || open("/dev/null")),
    sample("/dev/zero", NOTHING, || open("/dev/zero")),
    sample("/dev/full", NOTHING, || open("/dev/full")),
    sample("/dev/urandom", NOTHING, || open("/dev/urandom")),
    sample("/dev/kmsg", NOTHING, || open("/dev/kmsg")),
    sample("/dev/fuse", NOTHING, || open("/dev/fuse")),
    sample("a terminal", NOTHING, || open("/dev/ptmx")),
    sample("a folder", NOTHING, || open("/")),
    sample("/proc/self/mem", NOTHING, || open("/proc/self/mem")),
    sample("/proc/self/maps", NOTHING, || open("/proc/self/maps")),
    sample("a file of sysfs", NOTHING, || open("/sys/kernel/mm/transparent_hugepage/enabled")),
    sample("a file opened as a path only", NOTHING, || {
        alone(rustix::fs::open("/dev/null", OFlags::PATH, Mode::empty())?)
    }),
    sample("an epoll", NOTHING, || {
        alone(rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?)
    }),
    sample("a userfaultfd", NOTHING, || call(libc::SYS_userfaultfd, 1, 0, 0)),
    sample("a timerfd", NOTHING, || call(libc::SYS_timerfd_create, 1, 0, 0)),
    sample("a signalfd", NOTHING, signals),
    sample("a pidfd", NOTHING, || call(libc::SYS_pidfd_open, std::process::id().into(), 0, 0)),
    sample("an inotify", NOTHING, || call(libc::SYS_inotify_init1, 0, 0, 0)),
    sample("a fanotify", NOTHING, || call(libc::SYS_fanotify_init, 0, 0, 0)),
    sample("secret memory", NOTHING, || call(libc::SYS_memfd_secret, 0, 0, 0)),
    sample("a namespace", NOTHING, || open("/proc/self/ns/net")),
];

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let each = |sample: Sample| ALL.into_iter().filter_map(move |code| row(sample, code));
    SAMPLES.into_iter().flat_map(each).collect()
}

/// What a message is called.
fn called(code: u32) -> &'static str {
    match code {
        SET_MEM_TABLE => "SET_MEM_TABLE",
        SET_LOG_BASE => "SET_LOG_BASE",
        SET_VRING_KICK => "SET_VRING_KICK",
        SET_VRING_CALL => "SET_VRING_CALL",
        SET_VRING_ERR => "SET_VRING_ERR",
        SET_BACKEND_REQ_FD => "SET_BACKEND_REQ_FD",
        ADD_MEM_REG => "ADD_MEM_REG",
        _ => "SET_DEVICE_STATE_FD",
    }
}

/// None where there is no such descriptor to be had here, and says so.
fn row(Sample { name, taken_by, make }: Sample, code: u32) -> Option<Row> {
    let fd = match make() {
        Ok((fd, _)) => fd,
        Err(error) => {
            println!("skipped: {name}: {error}");
            return None;
        }
    };
    let (is_taken, is_called) = (taken_by.contains(&code), format!("{} with {name}", called(code)));
    let expected = match code {
        _ if is_taken => Done,
        SET_LOG_BASE => HungUp,
        _ => Nack,
    };
    let row = Row::new(Kind::Descriptor, is_called, expected, move |place| attack(place, code, make));
    Some(if is_taken { row } else { row.logged(reason(&fd, name, code)) })
}

/// What is said of it.
fn reason(fd: &OwnedFd, name: &str, code: u32) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    let link = link.display().to_string();
    match name {
        _ if name.contains("eventfd") || name == "a semaphore" => "is an eventfd; ".into(),
        _ if name.contains("Unix socket") => "Unix socket".into(),
        _ if link.starts_with("socket:") => "is a socket that is no Unix socket; ".into(),
        _ if link.starts_with("pipe:") => "is a pipe; ".into(),
        // The right kind; what is wrong with it is found out when it is to be mapped.
        _ if name.contains("byte") && MEMORY.contains(&code) => "its file has ".into(),
        _ if link.starts_with("/memfd:memory") || link.contains("/memory-") => match MEMORY.contains(&code) {
            true => "mmap: ".into(),
            false => "is a file; ".into(),
        },
        // Of the daemon's own, it has another number.
        _ if link.starts_with("/proc/") => " (on proc, which others can make wait".into(),
        _ => format!("is {link} ("),
    }
}

/// A kick through an eventfd that may be full: there is no room for one then.
fn kick_through(event: &OwnedFd) {
    let flags = rustix::fs::fcntl_getfl(event).unwrap();
    rustix::fs::fcntl_setfl(event, flags | OFlags::NONBLOCK).unwrap();
    let _ = rustix::io::read(event, &mut [0; 8]);
    rustix::io::write(event, &1_u64.to_ne_bytes()).unwrap();
}

fn attack(place: &Place<'_>, code: u32, make: fn() -> Made) -> Answer {
    let (fd, _others) = make().unwrap();
    let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
    let mut session = connect(&place.socket);
    let is_of_ring = EVENTS.contains(&code);
    if is_of_ring {
        session = Session::connect(&place.socket);
    }
    let mut ring = is_of_ring.then(|| session.ring(0, 64));
    let answer = match hand_over(&session, code, fd.as_fd()) {
        Outcome::Taken => Done,
        Outcome::Refused if code == SET_LOG_BASE => HungUp,
        Outcome::Refused => Nack,
    };
    assert_eq!(rustix::fs::fcntl_getfl(&fd).unwrap(), flags, "its flags were changed");
    if let Some(ring) = &mut ring {
        // Whoever is told of it.
        let request = Request::read(0, 4096);
        ring.submit(&request);
        ring.kick.signal();
        if answer == Done && code == SET_VRING_KICK {
            kick_through(&fd);
        }
        let used = wait_for("a read is done", || ring.next_used());
        assert_eq!(ring.answer(&request, used).status, OK);
    } else if answer != HungUp {
        session.config(0, 8).unwrap();
    }
    answer
}
