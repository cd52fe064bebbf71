//! The thread that notices that a disk's file has grown.
//!
//! It waits until a program that had one of the files open for writing has closed it (`IN_CLOSE_WRITE`), as
//! `truncate`, `fallocate` and `dd` do when they are done (`qemu-img resize` respects the lock of a served file). Each
//! write would be told as well (`IN_MODIFY`), but so would every write of a guest. Devices, files on another machine,
//! and `truncate(2)` without an open file are not told: for these there is [`RescanTrigger`].

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::disks::Served;
use super::file_watches::{Changed, Files};
use super::resize::Resizer;
use crate::disk::Backing;
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// Asks a server to read the sizes of its disks again; returns at once.
#[derive(Debug, Clone)]
pub struct RescanTrigger(Arc<Commands>);

/// What the thread is asked for.
#[derive(Debug)]
struct Commands {
    wake: EventFd,
    is_stopping: AtomicBool,
    wants_rescan: AtomicBool,
}

impl RescanTrigger {
    /// Has the sizes of all disks read again, as often as it is called; the log says what became of each.
    pub fn trigger(&self) {
        self.0.wants_rescan.store(true, Ordering::Release);
        self.0.wake();
    }
}

impl Commands {
    fn wake(&self) {
        // Only a full counter can fail, and that wakes as well.
        let _ = self.wake.write(1);
    }
}

/// The running thread. Dropping it ends it, as soon as what it is at is done, and ends what populates new parts then.
#[derive(Debug)]
pub(super) struct GrowthWatcher {
    commands: Arc<Commands>,
    thread: Option<JoinHandle<()>>,
    resizer: Resizer,
}

impl GrowthWatcher {
    /// # Errors
    /// No descriptor or thread is left.
    pub(super) fn start(resizer: Resizer, files: Option<Arc<Files>>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let (is_stopping, wants_rescan) = (AtomicBool::new(false), AtomicBool::new(false));
        let commands = Arc::new(Commands { wake, is_stopping, wants_rescan });
        let epoll = Epoll::new()?;
        let watch = |fd| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0));
        watch(commands.wake.as_raw_fd())?;
        if let Some(files) = &files {
            watch(files.as_fd().as_raw_fd())?;
        }
        let (asked, kept) = (commands.clone(), resizer.clone());
        let thread = thread::spawn(ThreadKind::Rescan, "resize", move || {
            // One may have grown since it was opened.
            for disk in resizer.disks().all() {
                resizer.begin_rescan(&disk);
            }
            while !asked.is_stopping.load(Ordering::Acquire) {
                // Only EINTR can fail here.
                let _ = epoll.wait(-1, &mut [EpollEvent::default(); 2]);
                // Fails when nobody has written to it: a file has changed.
                let _ = asked.wake.read();
                if asked.wants_rescan.swap(false, Ordering::AcqRel) {
                    resizer.resize_all();
                }
                let changed = files.as_ref().map(|files| files.changed());
                rescan(&resizer, changed.filter(|changed| !changed.is_empty()));
            }
        })?;
        Ok(Self { commands, thread: Some(thread), resizer: kept })
    }

    /// What reads the sizes of the disks again, from any thread.
    pub(super) fn resizer(&self) -> Resizer {
        self.resizer.clone()
    }

    /// What asks this thread for that.
    pub(super) fn rescan_trigger(&self) -> RescanTrigger {
        RescanTrigger(self.commands.clone())
    }
}

impl Drop for GrowthWatcher {
    fn drop(&mut self) {
        self.commands.is_stopping.store(true, Ordering::Release);
        self.commands.wake();
        if let Some(thread) = self.thread.take() {
            // If it has panicked, that is in the log; disks only do not grow any more then.
            let _ = thread.join();
        }
        self.resizer.stop_populating();
    }
}

/// Reads the sizes of the disks again whose files have changed.
fn rescan(resizer: &Resizer, changed: Option<Changed>) {
    let Some(changed) = changed else { return };
    let is_meant = |disk: &Served<Backing>| disk.watch.as_ref().is_some_and(|it| changed.contains(it));
    for disk in resizer.disks().all().into_iter().filter(|disk| is_meant(disk)) {
        resizer.begin_rescan(&disk);
    }
}
