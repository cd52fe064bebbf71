//! Other users of the machine: what they do to the socket, the image and the process, and what they leave where a daemon starts.

use std::fs::{File, Permissions, set_permissions};
use std::io::{Error, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};

use crate::common::PATIENCE;
use crate::common::daemon::{Daemon, Place as FileSystem, Setup};
use crate::common::frontend::Session;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::wire::Wire;
use crate::common::process::as_user;
use crate::driver::case::{CAPACITY, DISK_BYTES};
use crate::table::Answer::{self, Denied, Exit, HungUp, Served, Status};
use crate::table::{Kind, Place, Row};

/// The rows. Some need root, to become another user.
pub(crate) fn rows() -> Vec<Row> {
    let mut all = [images(), metrics(), starts(), sockets()].into_iter().flatten().collect::<Vec<_>>();
    if rustix::process::geteuid().is_root() {
        all.extend(strangers());
    } else {
        eprintln!("skipped: cases of other users: needs root to become one");
    }
    all
}

/// A user and a group that need not exist.
const USER: u32 = 54_321;
const GROUP: u32 = 54_322;

fn row(name: impl Into<String>, expected: Answer, attack: impl Fn(&Place<'_>) -> Answer + 'static) -> Row {
    Row::new(Kind::User, name, expected, attack)
}

/// A ring of a front-end of the attacked disk, and its memory.
fn ring(place: &Place<'_>) -> (Session, Ring) {
    let session = Session::connect(&place.socket);
    let ring = session.ring(0, 64);
    (session, ring)
}

fn assert_works(ring: &mut Ring) {
    assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
}

/// What happens to the file under a disk.
fn images() -> Vec<Row> {
    vec![
        row("the image is cut in half", Status(1, 0), |place| {
            let (_session, mut ring) = ring(place);
            assert_works(&mut ring);
            let file = File::options().write(true).open(&place.image).unwrap();
            file.set_len(DISK_BYTES / 2).unwrap();
            let answer = ring.run(&Request::read(CAPACITY / 2, 512));
            assert_works(&mut ring);
            file.set_len(DISK_BYTES).unwrap();
            assert_eq!(ring.run(&Request::read(CAPACITY / 2, 512)).status, OK, "it is there again");
            Status(answer.status, answer.used_bytes)
        })
        .logged("the file was truncated to 33554432 bytes"),
        row("the image is renamed, and another takes its name", Served, |place| {
            let (_session, mut ring) = ring(place);
            let (path, away) = (&place.image, place.image.with_extension("away"));
            std::fs::rename(path, &away).unwrap();
            File::create(path).unwrap().set_len(512).unwrap();
            assert_works(&mut ring);
            assert_eq!(ring.run(&Request::read(CAPACITY - 1, 512)).status, OK, "of the file that was opened");
            std::fs::rename(away, path).unwrap();
            Served
        }),
        row("the image is unlinked", Served, |place| {
            let (_session, mut ring) = ring(place);
            let (path, away) = (&place.image, place.image.with_extension("away"));
            std::fs::hard_link(path, &away).unwrap();
            std::fs::remove_file(path).unwrap();
            assert_works(&mut ring);
            std::fs::rename(away, path).unwrap();
            Served
        }),
        row("nobody may open the image any more", Served, |place| {
            let (_session, mut ring) = ring(place);
            set_permissions(&place.image, Permissions::from_mode(0o000)).unwrap();
            assert_works(&mut ring);
            set_permissions(&place.image, Permissions::from_mode(0o600)).unwrap();
            Served
        }),
        row("another locks the image while a ring runs", Denied, |place| {
            let (_session, mut ring) = ring(place);
            assert_works(&mut ring);
            let image = File::open(&place.image).unwrap();
            denied(flock(&image, FlockOperation::NonBlockingLockExclusive).map_err(Error::from))
        }),
        row("the image grows 100 times", Served, |place| {
            let (_session, mut ring) = ring(place);
            let file = File::options().write(true).open(&place.image).unwrap();
            for more in 1..=100 {
                // A part of a block: the disk stays as it is.
                file.set_len(DISK_BYTES + more).unwrap();
            }
            assert_works(&mut ring);
            file.set_len(DISK_BYTES).unwrap();
            Served
        }),
    ]
}

/// Whether the kernel has said no, and nothing else went wrong.
fn denied<T>(outcome: std::io::Result<T>) -> Answer {
    match outcome {
        Ok(_) => Served,
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::WouldBlock) => Denied,
        Err(error) => Answer::Wrong(error.to_string()),
    }
}

/// The socket of metrics has readers of its own.
fn metrics() -> Vec<Row> {
    let ask = |bytes: &'static [u8], place: &Place<'_>| {
        let wire = Wire::connect(&place.daemon.metrics_socket());
        wire.send_bytes(bytes, &[]);
        wire
    };
    const LONG: &[u8] = &[b'x'; 9000];
    const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    vec![
        row("metrics are asked for with 9000 bytes of a line", HungUp, move |place| {
            ask(LONG, place).hang_up();
            HungUp
        }),
        row("200 readers of metrics leave at once", Served, move |place| {
            (0..200).for_each(|_| drop(ask(GET, place)));
            Served
        })
        .slow(),
        row("a reader of metrics hands over descriptors", Served, move |place| {
            let null = File::open("/dev/null").unwrap();
            let wire = Wire::connect(&place.daemon.metrics_socket());
            wire.send_bytes(GET, &[null.as_fd(); 32]);
            Served
        }),
        row("a reader of metrics asks for half, and nothing more", HungUp, move |place| {
            ask(&GET[..10], place).hang_up();
            HungUp
        }),
    ]
}

/// What lies where a daemon starts.
fn starts() -> Vec<Row> {
    let at_image = |name: &'static str, code: i32, words: &'static str, put: fn(&Path)| {
        row(format!("{name} where the image is to be"), Exit(code), move |_| {
            let setup = setup("");
            std::fs::remove_file(setup.image(0)).unwrap();
            put(&setup.image(0));
            ended(&setup, words)
        })
    };
    let at_socket = |name: &'static str, code: i32, words: &'static str, put: fn(&Path)| {
        row(format!("{name} where the socket is to be"), Exit(code), move |_| {
            let setup = setup("");
            put(&setup.socket(0));
            let is_there = setup.socket(0).symlink_metadata().unwrap().ino();
            let answer = ended(&setup, words);
            assert_eq!(setup.socket(0).symlink_metadata().unwrap().ino(), is_there, "it was replaced");
            answer
        })
    };
    vec![
        at_image("a pipe", 4, "", |path| mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap()),
        at_image("a folder", 4, "", |path| std::fs::create_dir(path).unwrap()),
        at_image("a socket", 4, "", |path| drop(UnixListener::bind(path).unwrap())),
        at_image("a terminal", 4, "", |path| symlink("/dev/ptmx", path).unwrap()),
        at_image("a link to nothing", 3, "", |path| symlink("/nowhere/at/all", path).unwrap()),
        at_image("a link to itself", 1, "", |path| symlink(path, path).unwrap()),
        at_socket("a file", 12, "", |path| drop(File::create(path).unwrap())),
        at_socket("a folder", 12, "", |path| std::fs::create_dir(path).unwrap()),
        at_socket("a link", 12, "", |path| symlink("/dev/null", path).unwrap()),
        row("a socket that another listens on", Exit(8), |_| {
            let setup = setup("");
            let _other = UnixListener::bind(setup.socket(0)).unwrap();
            ended(&setup, "another process listens on this socket")
        }),
        row("a socket of datagrams that another receives from", Exit(12), |_| {
            let setup = setup("");
            let _other = UnixDatagram::bind(setup.socket(0)).unwrap();
            ended(&setup, "cannot probe the socket")
        }),
        row("an image that another has locked", Exit(9), |_| {
            let setup = setup("");
            let image = File::open(setup.image(0)).unwrap();
            flock(&image, FlockOperation::NonBlockingLockExclusive).unwrap();
            ended(&setup, "")
        }),
        row("an image that is served already", Exit(9), |place| {
            let setup = Setup::new(FileSystem::Tmpfs).disk("");
            symlink(&place.image, setup.image(0)).unwrap();
            ended(&setup, "")
        }),
    ]
}

/// One disk of its own daemon, whose socket's folder others may look into.
fn setup(keys: &str) -> Setup {
    let setup = Setup::new(FileSystem::Tmpfs).disk(keys).lifetime(PATIENCE);
    File::create(setup.image(0)).unwrap().set_len(1 << 20).unwrap();
    set_permissions(setup.socket(0).parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    setup
}

/// A start that fails, and says these words.
fn ended(setup: &Setup, words: &str) -> Answer {
    let output = setup.run();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.is_empty() && text.contains(words), "{text}");
    Exit(output.status.code().unwrap_or(-1))
}

/// What happens to the path of a socket while it listens.
fn sockets() -> Vec<Row> {
    let while_served = |name: &'static str, change: fn(&Path)| {
        row(name, Served, move |_| {
            let daemon = setup("").start();
            let session = Session::connect(&daemon.socket(0));
            let mut ring = session.ring(0, 64);
            let path = daemon.socket(0);
            change(&path);
            let there = path.symlink_metadata().map(|it| it.ino()).ok();
            assert_works(&mut ring);
            drop((ring, session));
            let setup = daemon.stop();
            let left = setup.socket(0).symlink_metadata().map(|it| it.ino()).ok();
            assert_eq!(left, there, "what is not the daemon's own is left alone");
            Served
        })
    };
    vec![
        while_served("the socket is unlinked", |path| std::fs::remove_file(path).unwrap()),
        while_served("another listens at the socket's path", |path| {
            std::fs::remove_file(path).unwrap();
            std::mem::forget(UnixListener::bind(path).unwrap());
        }),
        while_served("a link takes the socket's place", |path| {
            std::fs::remove_file(path).unwrap();
            symlink("/dev/null", path).unwrap();
        }),
        while_served("a file takes the socket's place", |path| {
            std::fs::remove_file(path).unwrap();
            drop(File::create(path).unwrap());
        }),
        row("a socket of datagrams connects", Denied, |place| {
            let outcome = UnixDatagram::unbound().unwrap().connect(&place.socket);
            match outcome.as_ref().map_err(Error::raw_os_error) {
                Err(Some(libc::EPROTOTYPE)) => Denied,
                _ => denied(outcome),
            }
        }),
    ]
}

/// A user who is neither the daemon's nor in its group, and may do so to its daemon.
fn as_stranger(daemon: &Daemon, act: impl FnOnce(Pid, PathBuf) -> std::io::Result<()> + Send) -> Answer {
    let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    let socket = daemon.socket(0);
    denied(as_user(USER, GROUP, move || act(pid, socket)))
}

/// What a stranger tries with a daemon of its own kind; the folder of its socket may be looked into.
fn stranger(
    name: &'static str,
    keys: &'static str,
    act: impl Fn(Pid, PathBuf) -> std::io::Result<()> + Send + Sync + 'static,
) -> Row {
    row(name, Denied, move |_| {
        let daemon = setup(keys).start();
        let answer = as_stranger(&daemon, &act);
        let session = Session::connect(&daemon.socket(0));
        assert_works(&mut session.ring(0, 64));
        drop(session);
        daemon.stop();
        answer
    })
}

/// The file of a process in `/proc`.
fn of_process(pid: Pid, name: &str) -> PathBuf {
    format!("/proc/{}/{name}", pid.as_raw_nonzero()).into()
}

fn strangers() -> Vec<Row> {
    vec![
        stranger("a stranger connects", "", |_, socket| UnixStream::connect(socket).map(drop)),
        stranger("a stranger removes the socket", "", |_, socket| std::fs::remove_file(socket)),
        stranger("a stranger moves the socket", "", |_, socket| {
            std::fs::rename(&socket, socket.with_extension("away"))
        }),
        stranger("a stranger makes the socket everybody's", "", |_, socket| {
            set_permissions(socket, Permissions::from_mode(0o666))
        }),
        stranger("a stranger kills the daemon", "", |pid, _| Ok(kill_process(pid, Signal::KILL)?)),
        stranger("a stranger stops the daemon", "", |pid, _| Ok(kill_process(pid, Signal::STOP)?)),
        stranger("a stranger has it read its bad media again", "", |pid, _| {
            Ok(kill_process(pid, Signal::HUP)?)
        }),
        stranger("a stranger reads the daemon's memory", "", |pid, _| {
            File::open(of_process(pid, "mem")).map(drop)
        }),
        stranger("a stranger lists the daemon's descriptors", "", |pid, _| {
            std::fs::read_dir(of_process(pid, "fd")).map(drop)
        }),
        stranger("a stranger looks where the daemon's memory is", "", |pid, _| {
            std::fs::read(of_process(pid, "maps")).map(drop)
        }),
        stranger("a stranger takes the daemon's descriptors", "", |pid, _| {
            let process = pidfd_open(pid, PidfdFlags::empty())?;
            Ok(pidfd_getfd(&process, 3, PidfdGetfdFlags::empty()).map(drop)?)
        }),
        stranger("a stranger traces the daemon", "", |pid, _| traced(pid)),
        row("a stranger who is not in allow-uid=", HungUp, |_| {
            let keys = format!("socket-mode=0666,allow-uid={}", USER + 1);
            let daemon = setup(&keys).start();
            let socket = daemon.socket(0);
            let stranger = as_user(USER, GROUP, || UnixStream::connect(socket)).unwrap();
            Wire::new(stranger).hang_up();
            daemon.wait_for_log(&format!("a process of user {USER}, which is not in allow-uid="));
            daemon.stop();
            HungUp
        }),
        row("a stranger opens an image that the daemon has made", Denied, |_| {
            let setup = Setup::new(FileSystem::Tmpfs).disk("size=1M");
            set_permissions(setup.folder(), Permissions::from_mode(0o755)).unwrap();
            let daemon = setup.start();
            let image = daemon.image(0);
            let answer = denied(as_user(USER, GROUP, || File::open(image).map(drop)));
            daemon.stop();
            answer
        }),
        row("a stale socket of a stranger", Exit(12), |_| {
            let setup = setup("");
            drop(UnixListener::bind(setup.socket(0)).unwrap());
            chown(setup.socket(0), Some(USER), None).unwrap();
            ended(&setup, "belongs to user 54321")
        }),
    ]
}

/// The kernel's answer to a wish to trace a process.
#[allow(unsafe_code)]
fn traced(pid: Pid) -> std::io::Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: it has no memory operands, and is refused, or ends with this thread.
    let outcome = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid.as_raw_nonzero().get(), nothing, nothing) };
    if outcome == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
