//! Paths become disks, or errors that say what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_possible_truncation
)]
#![allow(unsafe_code, missing_docs)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use vhost_user_pmem::disk::{
    Backing, BackingKind, DiscardPolicy, Disk, DiskError, Durability, FileKind, LockMode, OpenError,
    OpenOptions, Opened, describe, open,
};

mod copy_on_write;
mod create;
mod device;
mod durable;
#[path = "../common/folder.rs"]
#[allow(dead_code, unreachable_pub)]
mod folder;
mod fuse;
#[path = "../common/host.rs"]
#[allow(dead_code, unreachable_pub)]
mod host;
mod refuse;
mod share;

const MIB: u64 = 1 << 20;

fn options() -> OpenOptions {
    OpenOptions::new("db0")
}

fn sized(size_bytes: u64) -> OpenOptions {
    OpenOptions { size_bytes: Some(size_bytes), ..options() }
}

/// A folder on tmpfs.
fn memory() -> TempDir {
    folder::in_memory()
}

/// A folder on the file system of the sources, when that is an ordinary one.
fn ordinary() -> Option<TempDir> {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let kind = open(&folder.path().join("probe"), &sized(512)).unwrap().media.kind;
    if matches!(kind, BackingKind::OrdinaryFile { .. }) {
        return Some(folder);
    }
    eprintln!("skipped: the sources are not on an ordinary file system but on {kind}");
    None
}

fn folders() -> Vec<TempDir> {
    [Some(memory()), ordinary()].into_iter().flatten().collect()
}

fn sparse_file(path: &Path, len: u64) {
    File::create_new(path).unwrap().set_len(len).unwrap();
}

fn allocated_bytes(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn capacity(opened: &Opened) -> u64 {
    opened.disk.geometry().capacity_bytes
}

fn refused(path: &Path, options: &OpenOptions) -> OpenError {
    match open(path, options) {
        Err(error) => error,
        Ok(opened) => panic!("{} was opened: {opened:?}", path.display()),
    }
}

/// The error's message, which must name disk and path, without that beginning.
fn message(path: &Path, error: &OpenError) -> String {
    let start = format!("disk \"db0\": {}: ", path.display());
    error.to_string().strip_prefix(&start).unwrap_or_else(|| panic!("{error}")).to_owned()
}

fn is_root() -> bool {
    // SAFETY: it has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Runs `test` in a thread with its own mounts, after `mount` with these arguments.
fn with_mount(arguments: &[&str], test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: it concerns this thread only, which ends with the test.
                assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "unshare");
                // mount(8) is started by this thread, and so works on its mounts.
                for arguments in [["--make-rprivate", "/"].as_slice(), arguments] {
                    let mut mount = Command::new("mount");
                    assert!(mount.args(arguments).status().unwrap().success(), "{arguments:?}");
                }
                test();
            })
            .join()
            .unwrap();
    });
}

/// Runs `test` in a thread that belongs to nobody.
fn as_nobody(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: the bare system call concerns this thread only, which ends with the test.
                assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
                test();
            })
            .join()
            .unwrap();
    });
}
