//! Waiting for what should happen soon.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

/// How long a condition may take on a busy machine before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` yields a value; panics with `what` when that takes longer than [`PATIENCE`].
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait(PATIENCE, what, condition)
}

/// The same for what the kernel may put off for much longer on a busy machine.
pub fn wait_long_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait(4 * PATIENCE, what, condition)
}

fn wait<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `fd` is readable; panics with `what` when that takes longer than [`PATIENCE`].
pub fn wait_readable(what: &str, fd: &impl AsRawFd) {
    assert!(is_readable(fd, PATIENCE), "waited {PATIENCE:?} in vain until {what}");
}

/// True when `fd` is readable, or becomes so within `limit`.
pub fn is_readable(fd: &impl AsRawFd, limit: Duration) -> bool {
    // SAFETY: `fd` is borrowed for this call, so its owner keeps it open.
    #[allow(unsafe_code)]
    let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let limit = Timespec::try_from(limit).unwrap();
    let mut waits = [PollFd::new(&fd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut waits, Some(&limit))).unwrap() == 1
}

/// Says that it is over when it is dropped: threads of a scope that work until then end with a test that fails, too.
#[must_use]
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
