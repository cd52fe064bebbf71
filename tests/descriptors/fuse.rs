//! Files of a FUSE mount whose server has stopped: whoever asks it for anything, or closes one, waits for ever, and no signal
//! ends that.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{Pid, Signal, kill_process};
use vm_memory::{FileOffset, MmapRegion};

use super::state::{Direction, begin, check};
use super::{bystander, connect, two_disks, with_own_table};
use crate::common::MIB;
use crate::common::daemon::Daemon;
use crate::common::frontend::Session;
use crate::common::frontend::handover::{ALL, Outcome, hand_over};
use crate::common::frontend::message::{SET_DEVICE_STATE_FD, SET_VRING_CALL};
use crate::common::frontend::request::Request;
use crate::common::process::ends_with_us;
use crate::common::wait_for;

/// A FUSE mount, and a file of it that nobody has closed yet: a server that answers to the first FUSE_FLUSH that it does not
/// know it is never sent another.
pub(super) struct Stopped {
    server: Child,
    file: Option<File>,
    /// The file, of which no page has been touched.
    memory: Option<Arc<MmapRegion>>,
}

impl Stopped {
    fn mount(device: &Path, mount: &Path) -> Self {
        let server = ends_with_us(Command::new("fuse2fs").args(["-f", "-o", "rw"]).args([device, mount]))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut stopped = Self { server, file: None, memory: None };
        let is_mounted = || {
            let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            mounts.lines().any(|line| line.contains("fuse") && line.contains(mount.to_str().unwrap()))
        };
        wait_for("the file system is mounted", || is_mounted().then_some(()));
        let path = mount.join("file");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(MIB).unwrap();
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        stopped.memory = Some(Arc::new(MmapRegion::from_file(mapped, MIB as usize).unwrap()));
        stopped.file = Some(file);
        kill_process(Pid::from_child(&stopped.server), Signal::STOP).unwrap();
        stopped
    }

    /// All requests fail from now on, and so everything can be closed.
    pub(super) fn fail(&self) {
        kill_process(Pid::from_child(&self.server), Signal::KILL).unwrap();
    }

    pub(super) fn file(&self) -> &File {
        self.file.as_ref().unwrap()
    }
}

impl Drop for Stopped {
    /// First the server, with which all requests fail that wait for it; then the file.
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        (self.file, self.memory) = (None, None);
    }
}

/// Runs a test with a daemon and such a file, in a mount namespace that ends with it, or says why it does not.
#[allow(unsafe_code)]
pub(super) fn with_stopped_file(test: impl FnOnce(Daemon, &Stopped) + Send) {
    let mut program = Command::new("fuse2fs");
    let is_installed = program.arg("-V").stderr(Stdio::null()).stdout(Stdio::null()).status().is_ok();
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() || !is_installed {
        eprintln!("skipped: no root, no /dev/fuse, or no fuse2fs");
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (device, mount) = (folder.path().join("device"), folder.path().join("mount"));
    File::create(&device).unwrap().set_len(64 * MIB).unwrap();
    std::fs::create_dir(&mount).unwrap();
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("mkfs.ext4").arg("-q").arg(&device));
    with_own_table(|| {
        // SAFETY: it concerns this thread only, which ends with the test, and what it starts.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "unshare");
        run(Command::new("mount").args(["--make-rprivate", "/"]));
        let daemon = two_disks();
        let stopped = Stopped::mount(&device, &mount);
        test(daemon, &stopped);
        drop(stopped);
        run(Command::new("umount").arg("--lazy").arg(&mount));
    });
}

/// With each message. The other disk is served all the while, and another front-end of this one afterwards.
fn hand_over_everywhere(daemon: &Daemon, file: &File) {
    for message in ALL {
        let session = connect(daemon);
        assert_eq!(hand_over(&session, message, file.as_fd()), Outcome::Refused, "message {message}");
        let mut another = Session::connect(&daemon.socket(0));
        let mut ring = another.ring(0, 64);
        ring.run(&Request::read(0, 512));
        another.set_features(another.features);
    }
}

#[test]
fn a_file_of_a_stopped_server_is_refused_and_holds_nobody_up() {
    with_stopped_file(|daemon, stopped| {
        let (_bystander, load) = bystander(&daemon);
        hand_over_everywhere(&daemon, stopped.file());
        daemon.wait_for_log("which others can make wait or fail");
        load.wait_for_progress();
        load.stop();
        // SIGTERM, and exit code 0.
        daemon.stop();
    });
}

#[test]
fn a_daemon_that_was_sent_one_can_be_killed_and_releases_the_other_disk() {
    with_stopped_file(|daemon, stopped| {
        let (_bystander, load) = bystander(&daemon);
        hand_over_everywhere(&daemon, stopped.file());
        load.wait_for_progress();
        let image = File::open(daemon.image(1)).unwrap();
        let lock = || rustix::fs::flock(&image, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(lock(), Err(Errno::AGAIN), "its rings run");
        // Under way: the load fails.
        let _setup = daemon.kill();
        wait_for("the other disk's lock is released", || lock().ok());
        std::mem::forget(load);
    });
}

/// A reader of the pipe that is held up in the middle of a read has the pipe locked: whoever writes to it, asks for its
/// size or closes it waits as well.
#[test]
fn a_pipe_that_is_locked_by_its_reader_holds_nobody_up() {
    with_stopped_file(|daemon, stopped| {
        let (_bystander, load) = bystander(&daemon);
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::write(&writer, &[0; 64]).unwrap();
        let (held, place) = (OwnedFd::from(reader), Arc::clone(stopped.memory.as_ref().unwrap()));
        let number = held.as_raw_fd();
        // It ends when the server does.
        std::thread::spawn(move || read_into(number, &place));
        wait_for("the reader is held up", || is_held_up().then_some(()));
        let session = connect(&daemon);
        assert_eq!(begin(&session, Direction::Save, writer.as_fd()), Outcome::Taken);
        assert!(!check(&session), "it is given up");
        assert_eq!(hand_over(&session, SET_VRING_CALL, writer.as_fd()), Outcome::Refused);
        assert_eq!(hand_over(&session, SET_DEVICE_STATE_FD, held.as_fd()), Outcome::Taken);
        load.wait_for_progress();
        load.stop();
        daemon.stop();
        drop(session);
        // To close these is to wait for that reader, too.
        std::mem::forget((held, writer));
    });
}

#[allow(unsafe_code)]
fn read_into(fd: i32, memory: &MmapRegion) -> isize {
    // SAFETY: the place is mapped for as long as `memory` is, and so long; nothing else uses it.
    unsafe { libc::read(fd, memory.as_ptr().cast(), 64) }
}

/// A thread of this process waits for a page of the file.
fn is_held_up() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.flatten().any(|task| {
        let syscall = std::fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
        syscall.contains("fuse") || syscall.contains("request_wait_answer") || syscall.contains("folio_wait")
    })
}

/// Who receives from a socket holds its lock, for as long as the memory for it takes to come.
#[test]
fn a_socket_that_is_being_read_from_is_answered_for() {
    with_stopped_file(receive_from_it);
}

#[allow(unsafe_code)]
fn receive_from_it(daemon: Daemon, stopped: &Stopped) {
    let (_bystander, load) = bystander(&daemon);
    let session = connect(&daemon);
    let (socket, peer) = UnixStream::pair().unwrap();
    rustix::net::send(&peer, &[0], SendFlags::OOB).unwrap();
    let (reader, memory) = (socket.try_clone().unwrap(), Arc::clone(stopped.memory.as_ref().unwrap()));
    std::thread::spawn(move || {
        // SAFETY: the memory is as long, nobody else uses it, and it is mapped until this has returned.
        unsafe { libc::recv(reader.as_raw_fd(), memory.as_ptr().cast(), 1, libc::MSG_OOB) }
    });
    wait_for("the byte has been taken", || (rustix::io::ioctl_fionread(&socket) == Ok(0)).then_some(()));
    assert_eq!(hand_over(&session, SET_VRING_CALL, socket.as_fd()), Outcome::Taken);
    load.wait_for_progress();
    load.stop();
    drop(session);
    daemon.stop();
}
