//! The thread that learns of bad media while disks are served, before a request reads it.
//!
//! Linux reports it in two ways. It adds to the `badblocks` of a device or region, which can be polled; and it
//! signals the page to whoever has it mapped (`SIGBUS`, `BUS_MCEERR_AO`) ([`action_optional`]), also where there is no such list.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::disks::{Disks, Served};
use crate::copy::fault::action_optional;
use crate::disk::Backing;
use crate::limits::bounds::THREAD_STOP_TIMEOUT;
use crate::limits::thread;
use crate::log::{Cause, kinds};
use crate::sandbox::ThreadKind;
use crate::virtio::blk::Device;

/// How often it is looked whether the thread has ended.
const POLL: Duration = Duration::from_millis(1);

/// The thread, which runs as soon as there is a disk that is persistent memory.
#[derive(Debug)]
pub(super) struct MediaWatcher {
    disks: Arc<Disks<Backing>>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    NotNeeded,
    Runs(Running),
    Over,
}

/// Dropping it ends it.
#[derive(Debug)]
struct Running {
    wake: Arc<EventFd>,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MediaWatcher {
    /// Nothing is watched before the first [`look`](Self::look).
    pub(super) const fn new(disks: Arc<Disks<Backing>>) -> Self {
        Self { disks, state: Mutex::new(State::NotNeeded) }
    }

    /// There are other disks than before.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub(super) fn look(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Runs(running) => running.wake(),
            State::NotNeeded if !persistent_memory(&self.disks).is_empty() => {
                *state = State::Runs(Running::start(self.disks.clone())?);
            }
            State::NotNeeded | State::Over => {}
        }
        Ok(())
    }

    /// Ends it, for good.
    pub(super) fn end(&self) {
        let ended =
            std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Over);
        drop(ended);
    }
}

impl Running {
    fn start(disks: Arc<Disks<Backing>>) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let is_stopping = Arc::new(AtomicBool::new(false));
        let epoll = Epoll::new()?;
        let news = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), news)?;
        let stop = is_stopping.clone();
        let thread = thread::spawn(ThreadKind::Media, "media", move || {
            if let Err(error) = watch(&disks, &epoll, &stop) {
                tracing::warn!(%error, "bad media is only noticed when a request fails");
            }
        })?;
        Ok(Self { wake, is_stopping, thread: Some(thread) })
    }

    fn wake(&self) {
        // Only a full counter can fail, and that wakes as well.
        let _ = self.wake.write(1);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Release);
        self.wake();
        let Some(thread) = self.thread.take() else { return };
        let deadline = Instant::now() + THREAD_STOP_TIMEOUT;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        // Not waited for any longer: a device may not answer. If it has panicked, that is in the log.
    }
}

fn persistent_memory(disks: &Disks<Backing>) -> Vec<Arc<Served<Backing>>> {
    let mut all = disks.all();
    all.retain(|disk| disk.context.device.disk().is_persistent_memory() && !disk.is_leaving());
    all
}

/// Runs until it is to stop. The kernel signals bad pages to this thread.
fn watch(disks: &Disks<Backing>, epoll: &Epoll, is_stopping: &AtomicBool) -> io::Result<()> {
    let event = action_optional::listen()?;
    let news = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), news)?;
    while !is_stopping.load(Ordering::Acquire) {
        for served in persistent_memory(disks) {
            let device = &served.context.device;
            if let Some(list) = device.disk().bad_block_list() {
                let news = EpollEvent::new(EventSet::PRIORITY | EventSet::EDGE_TRIGGERED, 0);
                // Fails where it is waited for already, until it is closed with its disk; and on kernels whose list cannot be
                // polled; they signal the pages all the same.
                let _ = epoll.ctl(ControlOperation::Add, list.as_raw_fd(), news);
                // sysfs(5): a change is reported once the list has been read since the change before. Where it cannot be
                // read, `update_bad_blocks` says so.
                let _ = list.read_at(&mut [0; 64], 0);
            }
            update_bad_blocks(device);
        }
        // Only EINTR can fail here.
        let _ = epoll.wait(-1, &mut [EpollEvent::default(); 8]);
    }
    Ok(())
}

/// Has a disk find out which of its media is bad by now; logs the ranges that were not known before.
pub(super) fn update_bad_blocks(device: &Device<Backing>) {
    let ranges = device.disk().update_bad_blocks();
    if !ranges.is_empty()
        && let Some(suppressed) = device.log_limit().admit(Cause::Media)
    {
        let disk = &device.identity().name;
        tracing::error!(
            name: kinds::MEDIA_BAD,
            disk,
            ?ranges,
            suppressed,
            "bad media: reads of these ranges fail until they are written"
        );
    }
}
