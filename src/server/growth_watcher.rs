//! The thread that notices that a disk's file has grown.
//!
//! It waits until a program that had one of the files open for writing has closed it (`IN_CLOSE_WRITE`), as
//! `truncate`, `fallocate` and `dd` do when they are done (`qemu-img resize` respects the lock of a served file). Each
//! write would be told as well (`IN_MODIFY`), but so would every write of a guest. Devices, files on another machine,
//! and `truncate(2)` without an open file are not told: for these there is [`RescanTrigger`].

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::resize::{Resizable, Resizer};
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// Bytes of events read at a time; one without a name has 16.
const EVENTS_BYTES: usize = 1024;

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
    pub(super) fn start(resizer: Resizer, files: Option<Files>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let (is_stopping, wants_rescan) = (AtomicBool::new(false), AtomicBool::new(false));
        let commands = Arc::new(Commands { wake, is_stopping, wants_rescan });
        let epoll = Epoll::new()?;
        let watch = |fd| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0));
        watch(commands.wake.as_raw_fd())?;
        if let Some(files) = &files {
            watch(files.inotify.as_raw_fd())?;
        }
        let (asked, kept) = (commands.clone(), resizer.clone());
        let thread = thread::spawn(ThreadKind::Rescan, "resize", move || {
            // One may have grown since it was opened.
            for disk in resizer.disks() {
                resizer.rescan_and_log(disk);
            }
            while !asked.is_stopping.load(Ordering::Acquire) {
                // Only EINTR can fail here.
                let _ = epoll.wait(-1, &mut [EpollEvent::default(); 2]);
                // Fails when nobody has written to it: a file has changed.
                let _ = asked.wake.read();
                if asked.wants_rescan.swap(false, Ordering::AcqRel) {
                    resizer.resize_all();
                }
                for disk in files.iter().flat_map(|files| files.changed(resizer.disks())) {
                    resizer.rescan_and_log(disk);
                }
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

/// The limit behind an error of inotify: its text reads as if descriptors or space were missing.
fn cause(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EMFILE => Some(
            "this user has as many inotify instances as fs.inotify.max_user_instances allows, or this process as \
             many descriptors (ulimit -n)",
        ),
        libc::ENOSPC => Some("this user has as many watches as fs.inotify.max_user_watches allows"),
        libc::ENFILE => Some("this machine has as many open files as fs.file-max allows"),
        _ => None,
    }
}

/// The files that are watched.
#[derive(Debug)]
pub(super) struct Files {
    inotify: OwnedFd,
    /// Watch descriptors (inotify(7)), in the order of the disks; two disks may share a file.
    names: Vec<Option<i32>>,
}

impl Files {
    /// Watches the files of disks of these names, in this order; none where there is nothing to watch with.
    pub(super) fn of<'a>(disks: impl Iterator<Item = (&'a str, BorrowedFd<'a>)>) -> Option<Self> {
        let files = Self::watch(disks).inspect_err(|error| {
            let cause = cause(error);
            tracing::warn!(%error, cause, "growth of files is only noticed on SIGHUP");
        });
        files.ok()
    }

    fn watch<'a>(disks: impl Iterator<Item = (&'a str, BorrowedFd<'a>)>) -> io::Result<Self> {
        let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let names = disks.map(|(disk, file)| {
            // The open file, whatever its path leads to by now.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let name = add_watch(&inotify, path, WatchFlags::CLOSE_WRITE);
            name.inspect_err(|error| {
                let cause = cause(&(*error).into());
                tracing::warn!(disk, %error, cause, "its growth is only noticed on SIGHUP");
            })
            .ok()
        });
        let names = names.collect();
        Ok(Self { inotify, names })
    }

    /// The disks whose files were written to and closed since the last call.
    fn changed<'a>(&self, disks: &'a [Resizable]) -> Vec<&'a Resizable> {
        let mut buffer = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut changed = vec![false; disks.len()];
        loop {
            match reader.next() {
                Ok(event) => {
                    // -1: the queue has overflowed (IN_Q_OVERFLOW), any file may have changed.
                    let is_meant = |name: &Option<i32>| *name == Some(event.wd()) || event.wd() == -1;
                    for (changed, name) in changed.iter_mut().zip(&self.names) {
                        *changed |= is_meant(name);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        disks.iter().zip(changed).filter(|(_, changed)| *changed).map(|(disk, _)| disk).collect()
    }
}
