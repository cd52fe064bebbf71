//! In place of eventfds, epoll and the clock, for a worker's thread: one epoll in a model, edge-triggered (epoll(7)).

use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use loom::sync::{Condvar, Mutex};

pub const EFD_CLOEXEC: i32 = 1;
pub const EFD_NONBLOCK: i32 = 2;

/// An eventfd that nobody reads.
#[derive(Debug, Default, Clone, Copy)]
struct State {
    is_written: bool,
    /// As what epoll calls it, while it is watched.
    watched: Option<u64>,
    /// An edge that epoll has not told of.
    is_new: bool,
}

#[derive(Debug)]
struct Kernel {
    files: Mutex<Vec<State>>,
    changed: Condvar,
}

thread_local! {
    /// That of the model that runs, and its time in microseconds; loom runs all its threads in one.
    static KERNEL: RefCell<Option<Arc<Kernel>>> = const { RefCell::new(None) };
    static NOW: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Nothing is open, and it is midnight.
pub fn begin() {
    NOW.set(0);
    KERNEL.set(Some(Arc::new(Kernel { files: Mutex::new(Vec::new()), changed: Condvar::new() })));
}

fn kernel() -> Arc<Kernel> {
    KERNEL.with_borrow(Clone::clone).unwrap()
}

#[derive(Debug)]
pub struct EventFd {
    kernel: Arc<Kernel>,
    number: usize,
}

impl EventFd {
    pub fn new(_: i32) -> std::io::Result<Self> {
        let kernel = kernel();
        let mut files = kernel.files.lock().unwrap();
        files.push(State::default());
        let number = files.len() - 1;
        drop(files);
        Ok(Self { kernel, number })
    }

    pub fn write(&self, _: u64) -> std::io::Result<()> {
        let mut files = self.kernel.files.lock().unwrap();
        (files[self.number].is_written, files[self.number].is_new) = (true, true);
        drop(files);
        self.kernel.changed.notify_one();
        Ok(())
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.number as RawFd
    }
}

#[derive(Debug, Clone, Copy)]
pub struct EventSet;

impl EventSet {
    pub const IN: Self = Self;
    pub const EDGE_TRIGGERED: Self = Self;
}

impl std::ops::BitOr for EventSet {
    type Output = Self;

    fn bitor(self, _: Self) -> Self {
        self
    }
}

#[derive(Debug, Default, Clone, Copy)]
pub struct EpollEvent(u64);

impl EpollEvent {
    pub fn new(_: EventSet, data: u64) -> Self {
        Self(data)
    }

    pub fn data(&self) -> u64 {
        self.0
    }
}

pub enum ControlOperation {
    Add,
    Delete,
}

#[derive(Debug)]
pub struct Epoll(Arc<Kernel>);

impl Epoll {
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(kernel()))
    }

    pub fn ctl(&self, operation: ControlOperation, fd: RawFd, event: EpollEvent) -> std::io::Result<()> {
        let mut files = self.0.files.lock().unwrap();
        let file = &mut files[fd as usize];
        // What is readable when it is added is told of at once.
        (file.watched, file.is_new) = match operation {
            ControlOperation::Add => (Some(event.0), file.is_written),
            ControlOperation::Delete => (None, false),
        };
        Ok(())
    }

    /// Waits for ever, or not at all.
    pub fn wait(&self, timeout_ms: i32, events: &mut [EpollEvent]) -> std::io::Result<usize> {
        let mut files = self.0.files.lock().unwrap();
        let is_ready = |file: &State| file.is_new && file.watched.is_some();
        while timeout_ms < 0 && !files.iter().any(is_ready) {
            files = self.0.changed.wait(files).unwrap();
        }
        let mut count = 0;
        for (file, event) in files.iter_mut().filter(|file| is_ready(file)).zip(events) {
            *event = EpollEvent(file.watched.unwrap_or_default());
            file.is_new = false;
            count += 1;
        }
        Ok(count)
    }
}

/// Time goes on by being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    pub fn now() -> Self {
        NOW.set(NOW.get() + 30);
        Self(NOW.get())
    }

    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    pub fn elapsed(self) -> Duration {
        Self::now().saturating_duration_since(self)
    }
}
