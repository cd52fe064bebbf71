//! Kills a process at a certain step of what one of its threads has others do: just before a system call, by its number.

use std::collections::HashSet;
use std::io;
use std::thread::JoinHandle;

use super::wait_for;

/// What `waitpid` says of a thread that stops before or behind a system call (PTRACE_O_TRACESYSGOOD).
const SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;

/// Somebody who follows all threads that another one begins from now on, until the process ends.
#[derive(Debug)]
pub struct Killer(JoinHandle<u64>);

impl Killer {
    /// Kills the process just before the system call of this number (1: the first) that they make, all together. Returns when the
    /// thread is followed.
    pub fn follow(process: u32, thread: u32, at: u64) -> Self {
        let number = |number: u32| libc::pid_t::try_from(number).unwrap();
        let (process, first) = (number(process), number(thread));
        let (is_there, there) = std::sync::mpsc::channel();
        let killer = std::thread::spawn(move || {
            let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE;
            let seized = trace(libc::PTRACE_SEIZE, first, usize::try_from(options).unwrap());
            is_there.send(seized.is_ok()).unwrap();
            seized.unwrap();
            follow(process, first, at)
        });
        assert!(wait_for("the thread is followed", || there.try_recv().ok()), "it cannot be traced");
        Self(killer)
    }

    /// Once the process has ended: how many system calls there were.
    pub fn end(self) -> u64 {
        self.0.join().unwrap()
    }
}

fn follow(process: libc::pid_t, first: libc::pid_t, at: u64) -> u64 {
    // Those that are in a system call.
    let (mut inside, mut count) = (HashSet::new(), 0);
    while let Some((thread, status)) = wait() {
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        if signal == SYSTEM_CALL && !inside.remove(&thread) {
            inside.insert(thread);
            count += 1;
            if count == at {
                kill(process);
            }
        }
        let passed_on =
            if signal == SYSTEM_CALL || event != 0 { 0 } else { usize::try_from(signal).unwrap() };
        let go_on = if thread == first { libc::PTRACE_CONT } else { libc::PTRACE_SYSCALL };
        // It fails for one that was killed.
        let _ = trace(go_on, thread, passed_on);
    }
    count
}

/// The next thread of which there is something to say; none when all have ended. Only those that this thread follows.
#[allow(unsafe_code)]
fn wait() -> Option<(libc::pid_t, i32)> {
    let mut status = 0;
    // SAFETY: the status is there to be written to.
    let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    (thread > 0).then_some((thread, status))
}

#[allow(unsafe_code)]
fn trace(request: libc::c_uint, thread: libc::pid_t, data: usize) -> io::Result<()> {
    // SAFETY: these requests have no memory operands; the thread is another process's.
    let result = unsafe { libc::ptrace(request, thread, std::ptr::null_mut::<libc::c_void>(), data) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[allow(unsafe_code)]
fn kill(process: libc::pid_t) {
    // SAFETY: kill has no memory operands, and the process is a child that is not reaped yet.
    assert_eq!(unsafe { libc::kill(process, libc::SIGKILL) }, 0);
}
