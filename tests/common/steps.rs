//! Counts the instructions that a thread of another process runs in user space, by having it stop after each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::process::Process;
use super::wait_for;

/// A thread that is stepped through. It must be woken once after [`Steps::end`] was asked for.
#[derive(Debug)]
pub struct Steps {
    thread: u32,
    count: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    tracer: JoinHandle<()>,
}

impl Steps {
    /// Follows a thread; returns when it is followed.
    pub fn follow(thread: u32) -> Self {
        let (count, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, over) = (count.clone(), is_over.clone());
        let tracee = libc::pid_t::try_from(thread).unwrap();
        let tracer = std::thread::spawn(move || {
            trace(libc::PTRACE_ATTACH, tracee);
            wait_for_stop(tracee);
            while !over.load(Ordering::Acquire) {
                counter.fetch_add(1, Ordering::Release);
                trace(libc::PTRACE_SINGLESTEP, tracee);
                wait_for_stop(tracee);
            }
            trace(libc::PTRACE_DETACH, tracee);
        });
        let steps = Self { thread, count, is_over, tracer };
        wait_for("the thread is followed", || (steps.count() > 0).then_some(()));
        steps
    }

    /// Instructions until it sleeps.
    pub fn at_rest(&self) -> u64 {
        wait_for("the thread sleeps", || {
            let count = self.count();
            (Process(self.thread).is_asleep() && count == self.count()).then_some(count)
        })
    }

    /// Lets the thread go, which `wake` wakes.
    pub fn end(self, wake: impl FnOnce()) {
        self.is_over.store(true, Ordering::Release);
        wake();
        self.tracer.join().unwrap();
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }
}

#[allow(unsafe_code)]
fn trace(request: libc::c_uint, thread: libc::pid_t) {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests have no memory operands; the thread is another process's.
    let result = unsafe { libc::ptrace(request, thread, nothing, nothing) };
    assert_eq!(result, 0, "ptrace {request}: {}", std::io::Error::last_os_error());
}

#[allow(unsafe_code)]
fn wait_for_stop(thread: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the status is there to be written to.
    let result = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert_eq!(result, thread, "waitpid: {}", std::io::Error::last_os_error());
    assert!(libc::WIFSTOPPED(status), "the thread has ended: {status:#x}");
}
