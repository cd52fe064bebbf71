//! A child process that goes on with this program's code, and has nothing else of it: a copy of the memory as it is then, and
//! the few descriptors that it is given.
//!
//! What `unsafe` here relies on:
//!
//! - **P1**: the child does its `body` and ends; it never returns to whoever called [`fork`], whose values it has copies of.
//! - **P2**: a set of signals is a place of ours, and filled before it is read.
//! - **P3**: the child has a table of descriptors of its own, and does not use what owned those that it closes.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::ThreadKind;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid};

/// Whether a child is killed when the thread that it comes from ends (`PR_SET_PDEATHSIG`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiesWithParent {
    /// It ends when it is done.
    No,
    /// It is killed then.
    Yes,
}

/// How long to wait before a child is asked for again.
const WAIT_STEP: Duration = Duration::from_micros(200);

/// Forks a child, of a kind if it is to be narrowed to that, which does `body` and ends. No signal reaches it but SIGKILL, and of all descriptors it has only these.
///
/// It must neither log nor panic nor wait for a lock: whatever thread had one is not there. Memory may be allocated
/// (the C library sees to that).
///
/// # Errors
/// No process is to be had.
pub(crate) fn fork(
    kind: Option<ThreadKind>,
    given: &[BorrowedFd<'_>],
    dies_with_parent: DiesWithParent,
    body: impl FnOnce(),
) -> io::Result<Pid> {
    let mut given: Vec<RawFd> = given.iter().map(|fd| fd.as_raw_fd()).collect();
    given.sort_unstable();
    let parent = rustix::process::getpid();
    let before = block_signals();
    // SAFETY: P1: `forked == 0` never leaves the branch below.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        close_others(&given);
        if let Some(kind) = kind {
            begin(kind);
        }
        if dies_with_parent == DiesWithParent::Yes {
            let asked = set_parent_process_death_signal(Some(Signal::KILL));
            if asked.is_err() || rustix::process::getppid() != Some(parent) {
                end();
            }
        }
        // Ignored: a panic has been reported, and ends the process as well.
        let _ = catch_unwind(AssertUnwindSafe(body));
        end();
    }
    let forked = if forked < 0 { Err(io::Error::last_os_error()) } else { Ok(forked) };
    // SAFETY: P2: the set is the one that was in force.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    Pid::from_raw(forked?).ok_or_else(|| io::ErrorKind::Other.into())
}

/// Before it asks to be told of its parent's end: who becomes another user is not told.
fn begin(kind: ThreadKind) {
    // Ignored: the name is for whoever lists processes.
    let _ = rustix::thread::set_name(&CString::new(kind.name()).unwrap_or_default());
    if super::narrow(kind).is_err() {
        end();
    }
    #[cfg(feature = "sandbox-probe")]
    super::probe::run(kind);
}

/// Ends the process at once. The kernel closes its descriptors, and whoever has something to say to that is waited for by
/// this process alone, which has given its memory back by then.
pub(crate) fn end() -> ! {
    // SAFETY: P1: it has no precondition, and runs nothing of this program.
    unsafe { libc::_exit(0) }
}

/// Kills a child, and forgets it once it is dead.
pub(crate) fn kill(child: Pid) {
    // Ignored: it fails only if the child has ended already.
    let _ = kill_process(child, Signal::KILL);
}

/// A child that has ended, if one has that was not told of before. Those that are at their end have not.
pub(crate) fn reap() -> Option<Pid> {
    waitpid(None, WaitOptions::NOHANG).ok().flatten().map(|(child, _)| child)
}

/// Waits until a child has ended, but not longer than this.
pub(crate) fn wait_for(child: Pid, patience: Duration) {
    let deadline = Instant::now() + patience;
    let runs =
        || matches!(waitpid(Some(child), WaitOptions::NOHANG), Ok(None) | Err(rustix::io::Errno::INTR));
    while runs() && Instant::now() < deadline {
        std::thread::sleep(WAIT_STEP);
    }
}

/// Waits until a child has ended.
pub(crate) fn wait(child: Pid) {
    while matches!(waitpid(Some(child), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
}

/// Returns what was blocked before.
fn block_signals() -> MaybeUninit<libc::sigset_t> {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::zeroed());
    // SAFETY: P2: a place for a set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: P2: one set is initialised just now, the other is a place for one.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    before
}

/// Closes all descriptors but these, which are sorted.
fn close_others(given: &[RawFd]) {
    let mut first = 0;
    for &fd in given.iter().chain([&RawFd::MAX]) {
        if first < fd {
            close_range(first, fd.saturating_sub(1));
        }
        first = fd.saturating_add(1);
    }
}

fn close_range(first: RawFd, last: RawFd) {
    // SAFETY: P3: a range of numbers, of the child's table.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed != 0 {
        // Before Linux 5.9.
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
        for fd in first..=last.min(RawFd::try_from(most).unwrap_or(RawFd::MAX)) {
            // SAFETY: P3: a number of the child's table.
            unsafe { libc::close(fd) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_child_has_what_it_is_given_and_nothing_else() {
        let (mut answers, mut answer) = io::pipe().unwrap();
        let (_kept_here, other) = io::pipe().unwrap();
        let other = other.as_raw_fd();
        let answered = answer.try_clone().unwrap();
        let child = fork(None, &[answered.as_fd()], DiesWithParent::Yes, || {
            let fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
            // Of the folder that is read, there is one.
            let text = format!("{fds} {}", std::fs::exists(format!("/proc/self/fd/{other}")).unwrap_or(true));
            let _ = (&answered).write_all(text.as_bytes());
        })
        .unwrap();
        drop((answered, std::mem::replace(&mut answer, io::pipe().unwrap().1)));
        let mut text = String::new();
        answers.read_to_string(&mut text).unwrap();
        wait(child);
        assert_eq!(text, "2 false");
    }
}
