//! Who does what may wait for media: threads of the disk's own, so that no worker waits, and nothing else waits with it.
//!
//! What hangs takes threads of its disk alone. (The kernel's own pool for such work, that of io_uring, belongs to the thread
//! that submits, which for a worker means: to all disks whose rings it has.) Of reads that the media can be told of, one thread
//! waits for many. What the kernel does while no thread waits at all is noted here, and done elsewhere (`worker/direct.rs`).

mod pause;
mod threads;

use std::task::Waker;
use std::time::Instant;

pub use threads::{Claim, Threads};

/// Something to be done that may take long.
pub trait Task: Sized + Send + 'static {
    /// Whether no other of this kind may run at the same time on this disk.
    fn is_exclusive(&self) -> bool;

    /// What a person calls it, and where on the disk it is done.
    fn name(&self) -> TaskName;

    /// Does it, or a step of it: returns what is left then, so that others that may not run at the same time have their turn.
    fn run(self) -> Option<Self>;

    /// Whether the media can be told what it waits for, and goes on by itself: of such tasks one thread waits for many.
    fn can_be_announced(&self) -> bool {
        false
    }

    /// Tells the media.
    fn announce(&self) {}

    /// Does it if it was announced and need not be waited for any more. Returns who is to be woken then.
    ///
    /// # Errors
    /// It would have to be waited for, and is as it was.
    fn try_run(self) -> Result<Option<Waker>, Self> {
        Err(self)
    }
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskName {
    /// What a person calls it.
    pub operation: &'static str,
    /// Where it begins, in bytes of the disk.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len_bytes: u64,
}

/// A task that is not done yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished {
    /// What it does.
    pub name: TaskName,
    /// When it was submitted.
    pub since: Instant,
}
