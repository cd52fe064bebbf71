//! Files that others use, who know other locks than ours: QEMU's tools, Cloud Hypervisor.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::common::daemon::{Place, Setup};
use super::common::wait_for;
use super::{assert_error, image, run, stderr, stdout};
use crate::common::MIB;

/// Longest life of a daemon that is to end by itself at once.
const LIFETIME: Duration = Duration::from_secs(60);

/// One of QEMU's tools; it ends with the test.
fn qemu(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    super::ends_with_us(&mut command);
    command
}

fn output(mut command: Command) -> Output {
    command.output().expect("QEMU's tools cannot be run; ci/lab/install installs them")
}

fn qemu_io(path: &Path, args: &[&str]) -> Output {
    output(qemu("qemu-io", &[&["-f", "raw"], args, &[path.to_str().unwrap()]].concat()))
}

/// A qemu-storage-daemon that has the file open, for writing or not.
struct Storage(Child);

impl Storage {
    fn start(folder: &Path, path: &Path, read_only: bool) -> Self {
        let (on, writable) = if read_only { ("on", "off") } else { ("off", "on") };
        let file = format!("driver=file,filename={},node-name=file,read-only={on}", path.display());
        let raw = format!("driver=raw,file=file,node-name=raw,read-only={on}");
        let socket = folder.join("qsd.sock");
        let _ = std::fs::remove_file(&socket);
        let export = format!(
            "type=vhost-user-blk,id=e,node-name=raw,writable={writable},addr.type=unix,addr.path={}",
            socket.display()
        );
        let args = ["--blockdev", &file, "--blockdev", &raw, "--export", &export];
        let child = qemu("qemu-storage-daemon", &args).spawn();
        let storage = Self(child.expect("no qemu-storage-daemon; ci/lab/install installs it"));
        wait_for("qemu-storage-daemon listens", || socket.exists().then_some(()));
        storage
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A lock of all bytes for this open file, as Cloud Hypervisor takes one.
#[allow(unsafe_code)]
fn lock_whole(file: &File, kind: i32) -> bool {
    let request = libc::flock {
        l_type: kind.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the kernel reads one structure.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) == 0 }
}

/// Closing it is not enough: another test's child may have it as well, up to its exec.
fn unlock(file: &File) {
    assert!(lock_whole(file, libc::F_UNLCK));
}

fn open_both_ways(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, part: &str) {
    assert_ne!(output.status.code(), Some(0), "{}", stdout(output));
    assert!(stderr(output).contains(part), "{part:?} is not in: {}", stderr(output));
}

#[test]
fn qemus_tools_keep_off_a_served_file() {
    for place in Place::ALL {
        let daemon = Setup::new(place).disk("size=1M").start();
        let path = daemon.image(0);
        assert_refused(&qemu_io(&path, &["-c", "write -P 7 0 512"]), "Failed to get \"write\" lock");
        let name = path.to_str().unwrap();
        let copy = format!("{name}.copy");
        let convert = output(qemu("qemu-img", &["convert", "-f", "raw", "-O", "raw", name, &copy]));
        assert_refused(&convert, "Failed to get shared \"write\" lock");
        let resize = output(qemu("qemu-img", &["resize", "-f", "raw", name, "2M"]));
        assert_refused(&resize, "lock");
        let peek = qemu_io(&path, &["-U", "-r", "-c", "read -P 0 0 512"]);
        assert_eq!(peek.status.code(), Some(0), "who says so may look: {}", stderr(&peek));
        let setup = daemon.stop();
        let written = qemu_io(&setup.image(0), &["-c", "write -P 7 0 512"]);
        assert_eq!(written.status.code(), Some(0), "{}", stderr(&written));
    }
}

#[test]
fn a_file_that_qemu_writes_is_9_and_its_holder_is_named() {
    for place in Place::ALL {
        let setup = Setup::new(place).disk("name=mine").disk("readonly=on,name=reader").lifetime(LIFETIME);
        let path = setup.image(0);
        image(&path, MIB);
        image(&setup.image(1), MIB);
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::start(folder.path(), &path, false);
        let holder = format!("process {} (qemu-storage-da", storage.0.id());
        assert_error(&setup.run(), 9, &["disk \"mine\": ", path.to_str().unwrap(), &holder, "; "]);
        let report = run(["info", "--json", path.to_str().unwrap()]);
        let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
        assert_eq!(report["holder_pid"], storage.0.id(), "{report}");
        assert_eq!(report["holder_command"], "qemu-storage-da", "{report}");
        let said = stdout(&run(["info", path.to_str().unwrap()]));
        assert!(said.contains(&format!("locked by {holder}")), "{said}");
        drop(storage);

        let _storage = Storage::start(folder.path(), &setup.image(1), false);
        assert_error(&setup.run(), 9, &["disk \"reader\": ", "qemu-storage-da"]);
    }
}

#[test]
fn readers_of_all_kinds_share_a_file() {
    for place in Place::ALL {
        let setup = Setup::new(place).disk("readonly=on");
        let path = setup.image(0);
        image(&path, MIB);
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::start(folder.path(), &path, true);
        let other = File::open(&path).unwrap();
        assert!(lock_whole(&other, libc::F_RDLCK));
        let daemon = setup.start();
        unlock(&other); // QEMU would not stand that
        let read = qemu_io(&path, &["-r", "-c", "read -P 0 0 512"]);
        assert_eq!(read.status.code(), Some(0), "{}", stderr(&read));
        assert_refused(&qemu_io(&path, &["-c", "write -P 7 0 512"]), "Failed to get \"write\" lock");
        drop(storage);
        assert!(!lock_whole(&open_both_ways(&path), libc::F_WRLCK), "nobody gets it for himself");
        daemon.stop();
    }
}

/// Its locks are of the whole file, or of as many bytes as the disk has.
#[test]
fn cloud_hypervisor_and_we_exclude_each_other() {
    let setup = Setup::new(Place::Tmpfs).disk("size=1M").lifetime(LIFETIME);
    let path = setup.image(0);
    image(&path, MIB);
    let other = open_both_ways(&path);
    for kind in [libc::F_WRLCK, libc::F_RDLCK] {
        assert!(lock_whole(&other, kind));
        let holder = format!("process {} (", std::process::id());
        assert_error(&setup.run(), 9, &[path.to_str().unwrap(), &holder]);
    }
    unlock(&other);
    let daemon = setup.start();
    for kind in [libc::F_WRLCK, libc::F_RDLCK] {
        let may = lock_whole(&open_both_ways(&path), kind);
        assert_eq!(may, kind == libc::F_RDLCK, "a reader's lock is Cloud Hypervisor's business");
    }
    daemon.stop();
}
