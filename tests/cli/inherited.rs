//! The back-end program conventions: a socket path, or a socket as an inherited descriptor.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::common::frontend::Session;
use super::common::host::Loop;
use super::common::{folder, wait_for};
use super::{Running, assert_error, assert_served, image, is_closed, program, run};

/// A folder with an image of 1 MiB in it.
fn disk() -> (TempDir, PathBuf) {
    let folder = folder::in_memory();
    let path = folder.path().join("db.img");
    image(&path, 1 << 20);
    (folder, path)
}

/// The program with `fd` as its descriptor 3. Only a shell can do that without unsafe code here.
fn with_fd_3(fd: OwnedFd, path: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "exec \"$@\" 3<&0 </dev/null", "sh"])
        .arg(env!("CARGO_BIN_EXE_vhost-user-pmem"))
        .args(["--fd=3", "--blk-file"])
        .arg(path)
        .env_remove("VHOST_USER_PMEM_LOG")
        .stdin(fd);
    command
}

#[test]
fn a_socket_path_is_served_until_sigterm() {
    let (folder, path) = disk();
    let socket = folder.path().join("s");
    let args = [format!("--socket-path={}", socket.display()), format!("--blk-file={}", path.display())];
    let mut backend = Running::spawn(program(args));
    drop(assert_served(wait_for("it listens", || UnixStream::connect(&socket).ok())));
    drop(assert_served(UnixStream::connect(&socket).unwrap()));
    assert_eq!(backend.terminate().code(), Some(0));
    assert!(!socket.exists(), "the socket stayed behind");
    assert_eq!(backend.output(), "", "standard output belongs to the management software");
}

#[test]
fn read_only_is_offered_as_such() {
    const VIRTIO_BLK_F_RO: u64 = 1 << 5;
    use vhost::VhostBackend;
    let (folder, path) = disk();
    for (options, expected) in [(&[][..], 0), (&["--read-only"], VIRTIO_BLK_F_RO)] {
        let socket = folder.path().join("s");
        let args = [format!("--socket-path={}", socket.display()), format!("--blk-file={}", path.display())];
        let mut command = program(args);
        command.args(options);
        let mut backend = Running::spawn(command);
        let frontend = assert_served(wait_for("it listens", || UnixStream::connect(&socket).ok()));
        assert_eq!(frontend.get_features().unwrap() & VIRTIO_BLK_F_RO, expected, "{options:?}");
        assert_eq!(backend.terminate().code(), Some(0));
    }
}

#[test]
fn an_inherited_listening_socket_is_served_until_sigterm() {
    let (folder, path) = disk();
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut backend = Running::spawn(with_fd_3(listener.into(), &path));
    // The socket listens before the program runs: a connection waits for it.
    for _ in 0..3 {
        drop(assert_served(UnixStream::connect(&socket).unwrap()));
    }
    let connected = UnixStream::connect(&socket).unwrap();
    let frontend = assert_served(connected.try_clone().unwrap());
    assert_eq!(backend.terminate().code(), Some(0));
    assert!(is_closed(&connected));
    assert!(socket.exists(), "a socket that it did not make is not its to remove");
    drop(frontend);
}

#[test]
fn an_inherited_connected_socket_is_served_until_its_front_end_leaves() {
    let (_folder, path) = disk();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut backend = Running::spawn(with_fd_3(theirs.into(), &path));
    drop(assert_served(ours));
    assert_eq!(backend.wait().code(), Some(0));
}

#[test]
fn an_inherited_connected_socket_is_served_until_sigterm() {
    let (_folder, path) = disk();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut backend = Running::spawn(with_fd_3(theirs.into(), &path));
    let frontend = assert_served(ours.try_clone().unwrap());
    assert_eq!(backend.terminate().code(), Some(0));
    assert!(is_closed(&ours));
    drop(frontend);
}

#[test]
fn a_descriptor_that_is_no_socket_is_12() {
    let (_folder, path) = disk();
    let path_arg = format!("--blk-file={}", path.display());
    for standard in ["0", "1", "2"] {
        let output = run([&format!("--fd={standard}"), &path_arg]);
        let object = format!("--fd={standard}: it is standard input, output or error; pass the socket as 3");
        assert_error(&output, 12, &[&object]);
    }
    let output = run(["--fd=99", &path_arg]);
    assert_error(&output, 12, &["--fd=99: no such descriptor is open; ", "without close-on-exec"]);
    assert_error(&run(["--fd", "-1", &path_arg]), 12, &["--fd=-1: no such descriptor is open; "]);

    let file = std::fs::File::open(&path).unwrap();
    let output = with_fd_3(file.into(), &path).output().unwrap();
    assert_error(&output, 12, &["--fd=3: not a Unix stream socket; pass one that listens"]);

    // A descriptor of its own making, not one that was inherited.
    let mut command = Command::new("/bin/sh");
    command.args([
        "-c",
        "exec \"$@\" 3<&-",
        "sh",
        env!("CARGO_BIN_EXE_vhost-user-pmem"),
        "--fd=3",
        &path_arg,
    ]);
    let output = command.output().unwrap();
    assert_error(&output, 12, &["--fd=3: no such descriptor is open; "]);
}

/// There is no option for either.
#[test]
fn blocks_and_size_are_those_of_the_file_or_device() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let odd = folder.path().join("odd.img");
    image(&odd, (1 << 20) + 700);
    let device = Loop::over(&odd, &["--sector-size", "4096", "--sizelimit", "1048576"]);
    let of_device = device.iter().map(|device| (device.path(), 1 << 20, 4096));
    for (path, bytes, block_bytes) in [(&*odd, (1 << 20) + 512, 512)].into_iter().chain(of_device) {
        let socket = folder.path().join("s");
        let args = [format!("--socket-path={}", socket.display()), format!("--blk-file={}", path.display())];
        let mut command = program(args);
        command.stderr(std::process::Stdio::piped());
        let mut backend = Running::spawn(command);
        wait_for("it listens", || UnixStream::connect(&socket).ok());
        let config = Session::connect(&socket).config(0, 60).unwrap();
        assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()) * 512, bytes, "{}", path.display());
        assert_eq!(u32::from_le_bytes(config[20..24].try_into().unwrap()), block_bytes, "{}", path.display());
        assert_eq!(backend.terminate().code(), Some(0));
        let log = std::io::read_to_string(backend.0.stderr.take().unwrap()).unwrap();
        let says = log.contains("the last bytes are less than a block of 512 and are not served");
        assert_eq!(says, block_bytes == 512, "{log}");
    }
}

#[test]
fn its_errors_have_the_same_codes() {
    let (folder, path) = disk();
    let socket = format!("--socket-path={}", folder.path().join("s").display());
    let none = folder.path().join("none.img");
    let output = run([&socket, &format!("--blk-file={}", none.display())]);
    let advice = "; correct --blk-file, or give size= to create it (a key of `vhost-user-pmem serve --disk`)";
    assert_error(&output, 3, &["disk \"none\": ", none.to_str().unwrap(), advice]);
    let output = run([&socket, "--blk-file=/"]);
    assert_error(&output, 4, &["/: ", "a directory", "; "]);
    drop(path);
}

/// Says what comes of it when the front-end that has this connection connects again the moment it is closed.
fn comes_back(mut connected: UnixStream, socket: PathBuf) -> std::thread::JoinHandle<std::io::Result<()>> {
    std::thread::spawn(move || {
        // It is closed, or reset where what it said was not read.
        let _ = connected.read(&mut [0]);
        UnixStream::connect(socket).map(drop)
    })
}

/// Where the parent has not kept it, nobody listens there once the sessions have ended: a front-end that connects again
/// the moment its session has ended is refused, and so is one that had said nothing.
#[test]
fn a_socket_is_released_before_the_sessions() {
    let is_refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    let is_gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let signals = [Signal::KILL, Signal::TERM, Signal::KILL, Signal::TERM];
    for (is_inherited, signal) in [true, false].into_iter().flat_map(|it| signals.map(|signal| (it, signal)))
    {
        let (folder, path) = disk();
        let socket = folder.path().join("s");
        let mut backend = Running::spawn(if is_inherited {
            with_fd_3(UnixListener::bind(&socket).unwrap().into(), &path)
        } else {
            program([format!("--socket-path={}", socket.display()), format!("--blk-file={}", path.display())])
        });
        let silent = wait_for("it listens", || UnixStream::connect(&socket).ok());
        let connected = UnixStream::connect(&socket).unwrap();
        let frontend = assert_served(connected.try_clone().unwrap());
        let come_back = [connected, silent].map(|it| comes_back(it, socket.clone()));
        backend.signal(signal);
        backend.wait();
        for (who, outcome) in ["who was served", "who said nothing"].iter().zip(come_back) {
            let error = outcome.join().unwrap().expect_err(who);
            assert!(is_refused(&error) || !is_inherited && is_gone(&error), "{who}, {signal:?}: {error}");
        }
        drop(frontend);
    }
}
