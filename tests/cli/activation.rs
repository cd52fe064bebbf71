//! Sockets that outlive the process: passed by a service manager, or kept by it from one run to the next.

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;
use vhost::VhostBackend;

use super::common::{PATIENCE, folder};
use super::{Running, assert_error, assert_served, image, is_closed};

const VIRTIO_BLK_F_RO: u64 = 1 << 5;

/// A folder with images of 1 MiB called `a.img` and `b.img`.
fn folder() -> TempDir {
    let folder = folder::in_memory();
    ["a.img", "b.img"].iter().for_each(|name| image(&folder.path().join(name), 1 << 20));
    folder
}

/// `serve` with the disks `a` and, read-only, `b` in this folder, started as systemd would with one or two
/// sockets. Only a shell can place descriptors without unsafe code here.
fn serve(folder: &Path, sockets: &[&UnixListener], names: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    let place = match sockets.len() {
        0 => "exec \"$@\" </dev/null",
        1 => "LISTEN_PID=$$ exec \"$@\" 3<&0 </dev/null",
        _ => "LISTEN_PID=$$ exec \"$@\" 3<&0 4<&1 </dev/null >/dev/null",
    };
    let at = |name: &str| folder.join(name).display().to_string();
    let disk =
        |name: &str, more: &str| format!("path={},socket={}{more}", at(&format!("{name}.img")), at(name));
    command.args(["-c", place, "sh", env!("CARGO_BIN_EXE_vhost-user-pmem"), "serve"]);
    command.args(["--disk", &disk("a", ""), "--disk", &disk("b", ",readonly")]);
    command.env_remove("VHOST_USER_PMEM_LOG").env_remove("NOTIFY_SOCKET").env_remove("FDSTORE");
    command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names);
    let mut fds = sockets.iter().map(|socket| OwnedFd::from(socket.try_clone().unwrap()));
    command.stdin(fds.next().map_or_else(Stdio::null, Stdio::from));
    command.stdout(fds.next().map_or_else(Stdio::null, Stdio::from));
    command
}

fn spawn(mut command: Command) -> Running {
    Running(command.stderr(Stdio::null()).spawn().unwrap())
}

fn is_read_only(socket: &Path) -> bool {
    let frontend = assert_served(UnixStream::connect(socket).unwrap());
    frontend.get_features().unwrap() & VIRTIO_BLK_F_RO != 0
}

#[test]
fn front_ends_that_connect_while_no_daemon_runs_are_served_by_the_next() {
    let folder = folder();
    let socket = folder.path().join("a");
    let listener = UnixListener::bind(&socket).unwrap();
    for _ in 0..3 {
        let waiting = UnixStream::connect(&socket).unwrap();
        let mut daemon = spawn(serve(folder.path(), &[&listener], "a"));
        let frontend = assert_served(waiting.try_clone().unwrap());
        assert_eq!(daemon.terminate().code(), Some(0));
        assert!(is_closed(&waiting));
        assert!(socket.exists(), "a socket that it did not make is not its to remove");
        assert!(!folder.path().join("b").exists(), "this one it did make");
        drop(frontend);
    }
}

/// By the name of the disk, wherever they are bound; otherwise by where.
#[test]
fn each_disk_gets_its_own_socket() {
    let folder = folder();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    let named = [&one, &two].map(|path| UnixListener::bind(path).unwrap());
    for (names, read_only) in [("a:b", [false, true]), ("b:a", [true, false])] {
        let mut daemon = spawn(serve(folder.path(), &[&named[0], &named[1]], names));
        assert_eq!([&one, &two].map(|socket| is_read_only(socket)), read_only, "{names}");
        assert_eq!(daemon.terminate().code(), Some(0));
    }
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    let bound = [&b, &a].map(|path| UnixListener::bind(path).unwrap());
    let mut daemon = spawn(serve(folder.path(), &[&bound[0], &bound[1]], ""));
    assert_eq!([&a, &b].map(|socket| is_read_only(socket)), [false, true]);
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn a_socket_that_no_disk_is_meant_by_is_12() {
    let folder = folder();
    let other = folder.path().join("other.sock");
    let listener = UnixListener::bind(&other).unwrap();
    let output = serve(folder.path(), &[&listener], "c").stdout(Stdio::piped()).output().unwrap();
    assert_error(
        &output,
        12,
        &["descriptor 3 of LISTEN_FDS (\"c\"", other.to_str().unwrap(), "FileDescriptorName="],
    );
    let file = File::open(folder.path().join("a.img")).unwrap();
    let output = serve(folder.path(), &[&listener], "a").stdin(file).stdout(Stdio::piped()).output().unwrap();
    assert_error(&output, 12, &["descriptor 3 of LISTEN_FDS cannot be used", "pass Unix stream sockets"]);
    // Meant for a process that this one is not.
    let mut command = serve(folder.path(), &[], "c");
    let mut daemon = spawn({
        command.env("LISTEN_PID", "1").env("LISTEN_FDS", "7");
        command
    });
    let socket = folder.path().join("a");
    let stream = super::common::wait_for("it listens", || UnixStream::connect(&socket).ok());
    drop(assert_served(stream));
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// The next message to the service manager, and the descriptors that came with it.
fn receive(manager: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(manager, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let fds = fds.collect();
    (String::from_utf8(bytes[..received.bytes].to_vec()).unwrap(), fds)
}

fn manager(folder: &Path) -> UnixDatagram {
    let manager = UnixDatagram::bind(folder.join("notify")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    manager
}

#[test]
fn the_service_manager_is_told_once_the_sockets_listen() {
    let folder = folder();
    let manager = manager(folder.path());
    let mut command = serve(folder.path(), &[], "");
    command.env("NOTIFY_SOCKET", folder.path().join("notify"));
    let mut daemon = spawn(command);
    let (text, fds) = receive(&manager);
    assert_eq!((text.as_str(), fds.len()), ("READY=1\n", 0));
    for name in ["a", "b"] {
        drop(assert_served(UnixStream::connect(folder.path().join(name)).unwrap()));
    }
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(!folder.path().join("a").exists());
}

#[test]
fn the_service_manager_keeps_the_sockets_for_the_next_run() {
    let folder = folder();
    let manager = manager(folder.path());
    let socket = folder.path().join("a");
    let with_store = |mut command: Command| {
        command.env("NOTIFY_SOCKET", folder.path().join("notify")).env("FDSTORE", "8");
        command
    };
    let mut daemon = spawn(with_store(serve(folder.path(), &[], "")));
    let kept = ["a", "b"].map(|name| {
        let (text, mut fds) = receive(&manager);
        assert_eq!((text, fds.len()), (format!("FDSTORE=1\nFDNAME={name}\n"), 1));
        UnixListener::from(fds.remove(0))
    });
    assert_eq!(receive(&manager).0, "READY=1\n");
    drop(assert_served(UnixStream::connect(&socket).unwrap()));
    assert_eq!(daemon.terminate().code(), Some(0));
    // No daemon runs now.
    let waiting = UnixStream::connect(&socket).unwrap();
    let mut daemon = spawn(with_store(serve(folder.path(), &[&kept[0], &kept[1]], "a:b")));
    assert_eq!(receive(&manager).0, "READY=1\n", "they are kept already");
    drop(assert_served(waiting));
    assert!(is_read_only(&folder.path().join("b")));
    assert_eq!(daemon.terminate().code(), Some(0));
    // What is not kept any more is stale, and replaced.
    drop(kept);
    let mut daemon = spawn(with_store(serve(folder.path(), &[], "")));
    while receive(&manager).0 != "READY=1\n" {}
    drop(assert_served(UnixStream::connect(&socket).unwrap()));
    assert_eq!(daemon.terminate().code(), Some(0));
}
