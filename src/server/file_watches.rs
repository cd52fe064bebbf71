//! Which files were written to and closed (inotify(7)): those of disks that may have grown.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use rustix::io::Errno;

/// Bytes of events read at a time; one without a name has 16.
const EVENTS_BYTES: usize = 1024;

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
    /// How many disks have a file, by its watch descriptor (inotify(7)).
    watches: Mutex<HashMap<i32, usize>>,
}

/// A file that is watched, until [`end`](Self::end), or as long as any is.
#[derive(Debug)]
pub(super) struct FileWatch {
    files: Arc<Files>,
    descriptor: i32,
}

/// Files that were written to, by their watch descriptors.
#[derive(Debug)]
pub(super) struct Changed(HashSet<i32>);

impl Changed {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, watch: &FileWatch) -> bool {
        // -1: the queue has overflowed (IN_Q_OVERFLOW), any file may have changed.
        self.0.contains(&-1) || self.0.contains(&watch.descriptor)
    }
}

impl AsFd for Files {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Files {
    /// None where there is nothing to watch with.
    pub(super) fn new() -> Option<Arc<Self>> {
        match init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC) {
            Ok(inotify) => Some(Arc::new(Self { inotify, watches: Mutex::default() })),
            Err(errno) => {
                let error = io::Error::from(errno);
                let cause = cause(&error);
                tracing::warn!(%error, cause, "growth of files is only noticed on SIGHUP");
                None
            }
        }
    }

    /// Watches the file of the disk of this name; two disks may share one. None where it cannot be watched.
    pub(super) fn watch(self: &Arc<Self>, disk: &str, file: BorrowedFd<'_>) -> Option<FileWatch> {
        // The open file, whatever its path leads to by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut watches = self.lock();
        match add_watch(&self.inotify, path, WatchFlags::CLOSE_WRITE) {
            Ok(descriptor) => {
                let disks = watches.entry(descriptor).or_default();
                *disks = disks.saturating_add(1);
                Some(FileWatch { files: self.clone(), descriptor })
            }
            Err(error) => {
                let cause = cause(&error.into());
                tracing::warn!(disk, %error, cause, "its growth is only noticed on SIGHUP");
                None
            }
        }
    }

    /// Whose files were written to and closed since the last call.
    pub(super) fn changed(&self) -> Changed {
        let mut buffer = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut changed = HashSet::new();
        loop {
            match reader.next() {
                Ok(event) => drop(changed.insert(event.wd())),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        Changed(changed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, usize>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileWatch {
    /// Its disk is removed. Not when it is dropped: at the end of a server that is left to the end of all watches, which takes no
    /// system call that threads with a filter must not make.
    pub(super) fn end(&self) {
        let mut watches = self.files.lock();
        if let Some(disks) = watches.get_mut(&self.descriptor) {
            *disks = disks.saturating_sub(1);
            if *disks == 0 {
                watches.remove(&self.descriptor);
                // Fails where its file system is not mounted any more.
                let _ = remove_watch(&self.files.inotify, self.descriptor);
            }
        }
    }
}
