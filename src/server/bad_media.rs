//! The thread that learns of bad media while disks are served, before a request reads it.
//!
//! Linux reports it in two ways. It adds to the `badblocks` of a device or region, which can be polled; and it
//! signals the page to whoever has it mapped (`SIGBUS`, `BUS_MCEERR_AO`) ([`action_optional`]), also where there is no such list.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::copy::fault::action_optional;
use crate::disk::Backing;
use crate::limits::thread;
use crate::log::Cause;
use crate::sandbox::ThreadKind;
use crate::virtio::blk::Device;

/// The running thread. Dropping it ends it.
#[derive(Debug)]
pub(super) struct MediaWatcher {
    wake: Arc<EventFd>,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MediaWatcher {
    /// Watches those disks that are persistent memory; none where no disk is.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub(super) fn start(devices: impl Iterator<Item = Arc<Device<Backing>>>) -> io::Result<Option<Self>> {
        let devices: Vec<_> = devices.filter(|it| it.disk().is_persistent_memory()).collect();
        if devices.is_empty() {
            return Ok(None);
        }
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let is_stopping = Arc::new(AtomicBool::new(false));
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
        let stop = is_stopping.clone();
        let thread = thread::spawn(ThreadKind::Media, "media", move || {
            if let Err(error) = watch(&devices, &epoll, &stop) {
                tracing::warn!(%error, "bad media is only noticed when a request fails");
            }
        })?;
        Ok(Some(Self { wake, is_stopping, thread: Some(thread) }))
    }
}

impl Drop for MediaWatcher {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Release);
        // Only a full counter can fail, and that wakes as well.
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // If it has panicked, that is in the log; bad media is only noticed later then.
            let _ = thread.join();
        }
    }
}

/// Runs until it is to stop. The kernel signals bad pages to this thread.
fn watch(devices: &[Arc<Device<Backing>>], epoll: &Epoll, is_stopping: &AtomicBool) -> io::Result<()> {
    let event = action_optional::listen()?;
    let news = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), news)?;
    let lists: Vec<_> = devices.iter().filter_map(|device| device.disk().bad_block_list()).collect();
    for list in &lists {
        let news = EpollEvent::new(EventSet::PRIORITY | EventSet::EDGE_TRIGGERED, 0);
        // Fails on kernels whose list cannot be polled; they signal the pages all the same.
        let _ = epoll.ctl(ControlOperation::Add, list.as_raw_fd(), news);
    }
    while !is_stopping.load(Ordering::Acquire) {
        // sysfs(5): a change is reported once the list has been read since the change before.
        for list in &lists {
            // Where it cannot be read, `look_for_bad` says so.
            let _ = list.read_at(&mut [0; 64], 0);
        }
        devices.iter().for_each(|device| update_bad_blocks(device));
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
            disk,
            ?ranges,
            suppressed,
            "bad media: reads of these ranges fail until they are written"
        );
    }
}
