//! What a thread tries that it must not, for tests: never a part of what is released.
//!
//! Each thread and process tries it once it is narrowed, and adds a line to the file that `VHOST_USER_PMEM_SANDBOX_PROBE`
//! names: its kind, and each attempt with the number of its error, 0 where it was allowed. The file is mapped before anything
//! is in force, so to write the line takes nothing.
//!
//! What `unsafe` here relies on:
//!
//! - **T1**: a system call is given numbers, and addresses of strings that end in a zero and are there for good; what it
//!   changes, if it is allowed, is used by nobody.
//! - **T2**: the mapping is as long as the file, is never unmapped, and each line has bytes of its own in it.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::ThreadKind;

/// Length of the file.
const FILE_BYTES: usize = 1 << 20;

/// A process that there is not.
const NOBODY: libc::pid_t = libc::pid_t::MAX;

/// Where lines are added, and what attempts need.
#[derive(Debug)]
struct Probe {
    /// Of the file: a counter of bytes, and lines behind it.
    start: usize,
    targets: Targets,
}

/// Files beside it, and a process.
#[derive(Debug)]
struct Targets {
    /// One that is there.
    kept: CString,
    /// One that is not.
    missing: CString,
    /// A process that is nobody's business.
    stranger: libc::pid_t,
}

static PROBE: OnceLock<Probe> = OnceLock::new();

/// Before anything is in force.
pub(crate) fn prepare() {
    let Some(path) = std::env::var_os("VHOST_USER_PMEM_SANDBOX_PROBE") else { return };
    let file = File::options().read(true).write(true).open(&path);
    let Ok(file) = file.and_then(|file| file.set_len(FILE_BYTES as u64).map(|()| file)) else { return };
    let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
    // SAFETY: T2: a new mapping.
    let start = unsafe { libc::mmap(null_mut(), FILE_BYTES, access, libc::MAP_SHARED, fd, 0) };
    let beside = |name: &str| CString::new(format!("{}-{name}", path.display()));
    let stranger = std::env::var("VHOST_USER_PMEM_SANDBOX_STRANGER");
    let stranger = stranger.ok().and_then(|pid| pid.parse().ok()).unwrap_or(NOBODY);
    let (Ok(kept), Ok(missing)) = (beside("kept"), beside("missing")) else { return };
    if start != libc::MAP_FAILED {
        let _ = PROBE
            .set(Probe { start: start.expose_provenance(), targets: Targets { kept, missing, stranger } });
    }
}

/// Tries all of it, if a test asks.
pub(crate) fn run(kind: ThreadKind) {
    let Some(Probe { start, targets }) = PROBE.get() else { return };
    let mut line = kind.name().to_owned();
    for (name, attempt) in ATTEMPTS {
        let outcome = match attempt(targets) {
            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
            _ => 0,
        };
        line.push_str(&format!("\t{name}={outcome}"));
    }
    line.push('\n');
    let counter = std::ptr::with_exposed_provenance::<AtomicUsize>(*start);
    // SAFETY: T2: it begins with a counter, which is aligned as the page is.
    let at = unsafe { &*counter }.fetch_add(line.len(), Ordering::Relaxed);
    let at = size_of::<AtomicUsize>().wrapping_add(at);
    if at.saturating_add(line.len()) <= FILE_BYTES {
        let place = std::ptr::with_exposed_provenance_mut::<u8>(start.wrapping_add(at));
        // SAFETY: T2: inside of it, and only this line's.
        unsafe { place.copy_from_nonoverlapping(line.as_ptr(), line.len()) };
    }
}

/// An attempt: its name, and what it returns.
type Attempt = (&'static str, fn(&Targets) -> libc::c_long);

/// Where it is allowed, none of them fails with `EPERM`.
const ATTEMPTS: [Attempt; 16] = [
    // SAFETY: T1: all operands are there for good.
    ("open", |_| unsafe {
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), libc::O_RDONLY)
    }),
    // SAFETY: T1: all operands are there for good.
    ("create", |targets| unsafe {
        let flags = libc::O_CREAT | libc::O_WRONLY;
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, targets.missing.as_ptr(), flags, 0o600)
    }),
    // SAFETY: T1: all operands are there for good.
    ("remove", |targets| unsafe {
        libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, targets.kept.as_ptr(), 0)
    }),
    // SAFETY: T1: all operands are there for good.
    ("rename", |Targets { kept, missing, .. }| unsafe {
        let here = libc::AT_FDCWD;
        libc::syscall(libc::SYS_renameat2, here, kept.as_ptr(), here, missing.as_ptr(), 0)
    }),
    // SAFETY: T1: all operands are there for good.
    ("socket", |_| unsafe { libc::syscall(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0) }),
    // SAFETY: T1: all operands are there for good.
    ("connect", |_| unsafe { libc::syscall(libc::SYS_connect, -1, null::<u8>(), 0) }),
    // SAFETY: T1: all operands are there for good.
    ("bind", |_| unsafe { libc::syscall(libc::SYS_bind, -1, null::<u8>(), 0) }),
    // SAFETY: T1: where it is allowed, there is no such program.
    ("exec", |_| unsafe {
        let nothing = [null::<libc::c_char>()];
        libc::syscall(libc::SYS_execve, c"/no/such/program".as_ptr(), nothing.as_ptr(), nothing.as_ptr())
    }),
    // SAFETY: T1: all operands are there for good.
    ("ptrace", |_| unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, NOBODY, 0, 0) }),
    // SAFETY: T1: all operands are there for good.
    ("process_vm_writev", |_| unsafe {
        libc::syscall(libc::SYS_process_vm_writev, NOBODY, null::<u8>(), 0, null::<u8>(), 0, 0)
    }),
    // SAFETY: T1: of a type that there is not.
    ("mount", |_| unsafe {
        let none = c"none".as_ptr();
        libc::syscall(libc::SYS_mount, none, c"/".as_ptr(), none, 0, null::<u8>())
    }),
    // SAFETY: T1: all operands are there for good.
    ("mmap executable", |_| unsafe {
        let (access, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::syscall(libc::SYS_mmap, null::<u8>(), 4096, access, flags, -1, 0)
    }),
    // SAFETY: T1: of no bytes.
    ("mprotect executable", |_| unsafe {
        libc::syscall(libc::SYS_mprotect, null::<u8>(), 0, libc::PROT_READ | libc::PROT_EXEC)
    }),
    // SAFETY: T1: all operands are there for good.
    ("kill", |targets| unsafe { libc::syscall(libc::SYS_kill, targets.stranger, libc::SIGKILL) }),
    // SAFETY: T1: a flag that there is not.
    ("unshare", |_| unsafe { libc::syscall(libc::SYS_unshare, 1) }),
    // SAFETY: T1: no user.
    ("setuid", |_| unsafe { libc::syscall(libc::SYS_setresuid, -1, -1, -1) }),
];
