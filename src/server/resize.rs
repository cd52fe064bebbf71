//! Disks that grow while they are served.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::bad_media::update_bad_blocks;
use super::disks::{Disks, Served};
use super::populate_thread::PopulateThread;
use crate::disk::{Backing, Disk as _, GrowError};
use crate::limits::thread;
use crate::log::{Cause, kinds};
use crate::sandbox::ThreadKind;

/// How long the next disk waits for this one: disks that do not hang need one thread, one after the other.
const HEAD_START: Duration = Duration::from_millis(20);

/// Reads the sizes of a server's disks again, from any thread. It keeps the disks of now open as long as it lives.
#[derive(Debug, Clone)]
pub struct Resizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    disks: Arc<Disks<Backing>>,
    /// The threads that populate new parts.
    populating: Mutex<Vec<PopulateThread>>,
}

/// What became of a disk's size; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resized {
    /// Served before.
    pub from_bytes: u64,
    /// Served now: as many, or more.
    pub to_bytes: u64,
}

/// Why a disk keeps the size it had.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// No disk has this name.
    #[error("disk {0:?}: no disk has this name")]
    NoSuchDisk(String),
    /// It cannot grow.
    #[error("disk {disk:?}: {source}")]
    Grow {
        /// The disk's name.
        disk: String,
        /// Why.
        source: GrowError,
    },
}

impl Resizer {
    pub(super) fn new(disks: Arc<Disks<Backing>>) -> Self {
        Self(Arc::new(Inner { disks, populating: Mutex::default() }))
    }

    pub(super) fn disks(&self) -> &Disks<Backing> {
        &self.0.disks
    }

    /// Reads the size of a disk's backing again. If it has grown, all of it is served when this returns,
    /// and front-ends have been told to read the configuration again; no ring stops for it. It may take long,
    /// since the new part is given its space first. A disk with a size of its own (`size=`) keeps it.
    ///
    /// # Errors
    /// [`ResizeError`]; nothing has changed then.
    pub fn resize(&self, disk: &str) -> Result<Resized, ResizeError> {
        let found = self.0.disks.named(disk);
        self.rescan(&found.ok_or_else(|| ResizeError::NoSuchDisk(disk.to_owned()))?)
    }

    /// Serves so many bytes of a disk, after its file has been made as long if it is shorter; a size of its own is this from now
    /// on.
    ///
    /// # Errors
    /// [`ResizeError`]; nothing has changed then.
    pub fn grow(&self, disk: &str, to_bytes: u64) -> Result<Resized, ResizeError> {
        let found = self.0.disks.named(disk).ok_or_else(|| ResizeError::NoSuchDisk(disk.to_owned()))?;
        let grown = found.context.device.disk().grow_to(to_bytes);
        grown.map_err(|source| ResizeError::Grow { disk: disk.to_owned(), source })?;
        self.rescan(&found)
    }

    /// Whether [`grow`](Self::grow) may be done, as far as that is known before it is tried.
    ///
    /// # Errors
    /// [`ResizeError`].
    pub fn check_growth(&self, disk: &str, to_bytes: u64) -> Result<(), ResizeError> {
        let found = self.0.disks.named(disk).ok_or_else(|| ResizeError::NoSuchDisk(disk.to_owned()))?;
        let checked = found.context.device.disk().check_growth(to_bytes);
        checked.map(drop).map_err(|source| ResizeError::Grow { disk: disk.to_owned(), source })
    }

    /// [Resizes](Self::resize) every disk whose backing has grown, and has each find out which of its media is bad by
    /// now; the log says what became of each.
    pub fn resize_all(&self) {
        for disk in self.0.disks.all() {
            self.apart(&disk, |resizer, disk| {
                update_bad_blocks(&disk.context.device);
                if let Some(Resized { from_bytes, to_bytes }) = resizer.rescan_and_log(disk)
                    && from_bytes == to_bytes
                {
                    tracing::info!(disk = disk.name(), bytes = to_bytes, "the size is the same as before");
                }
            });
        }
    }

    /// Resizes a disk if its backing has grown. One whose media may hang does so on a thread of its own.
    pub(super) fn begin_rescan(&self, disk: &Arc<Served<Backing>>) {
        self.apart(disk, |resizer, disk| _ = resizer.rescan_and_log(disk));
    }

    fn apart(&self, disk: &Arc<Served<Backing>>, rescan: fn(&Self, &Arc<Served<Backing>>)) {
        if disk.context.device.disk().may_wait() {
            let resizer = self.clone();
            begin_apart(disk, move |disk| rescan(&resizer, disk));
        } else {
            rescan(self, disk);
        }
    }

    /// As [`rescan`](Self::rescan); the log has the reason when that fails.
    fn rescan_and_log(&self, disk: &Arc<Served<Backing>>) -> Option<Resized> {
        match self.rescan(disk) {
            Ok(resized) => Some(resized),
            Err(error) => {
                if let Some(suppressed) = disk.context.log_limit.admit(Cause::Size) {
                    tracing::warn!(suppressed, "{error}");
                }
                None
            }
        }
    }

    fn rescan(&self, disk: &Arc<Served<Backing>>) -> Result<Resized, ResizeError> {
        let (context, name) = (&disk.context, disk.name());
        let grown = context.device.rescan_size();
        let (from_bytes, to_bytes) =
            grown.map_err(|source| ResizeError::Grow { disk: name.to_owned(), source })?;
        if from_bytes < to_bytes {
            if let Some(suppressed) = context.log_limit.admit(Cause::Grown) {
                tracing::info!(name: kinds::DISK_RESIZED, disk = name, from_bytes, to_bytes, suppressed, "the disk has grown");
            }
            context.front_ends.config_changed();
            if !disk.is_sparse() {
                self.populate(disk, from_bytes);
            }
        }
        Ok(Resized { from_bytes, to_bytes })
    }

    /// Populates a disk from this byte on, on a thread that ends when it is done. Not what is before a new part: that was
    /// populated, or is shared with a clone by now, and would be copied.
    pub(super) fn populate(&self, disk: &Arc<Served<Backing>>, from_bytes: u64) {
        let mut populating = self.0.populating.lock().unwrap_or_else(PoisonError::into_inner);
        populating.retain(|it| !it.is_finished());
        let mut thread = PopulateThread::new(std::slice::from_ref(disk), from_bytes);
        thread.iter_mut().for_each(PopulateThread::begin);
        populating.extend(thread);
    }

    /// Ends the threads that populate: at the end of the server they would only delay it.
    pub(super) fn stop_populating(&self) {
        let populating =
            std::mem::take(&mut *self.0.populating.lock().unwrap_or_else(PoisonError::into_inner));
        drop(populating);
    }
}

/// Has a disk rescanned on a thread of its own, and waits a moment for it.
fn begin_apart(disk: &Arc<Served<Backing>>, rescan: impl Fn(&Arc<Served<Backing>>) + Send + 'static) {
    if !disk.rescan.begins() {
        return;
    }
    let (ending, has_ended) = channel::<()>();
    let of_thread = disk.clone();
    let thread = thread::spawn(ThreadKind::Rescan, ThreadKind::Rescan.name(), move || {
        loop {
            rescan(&of_thread);
            if of_thread.rescan.is_over() {
                break;
            }
        }
        // The disk first: who waits may want to be its last user.
        drop((of_thread, ending));
    });
    match thread {
        // It says so when it ends, and may be left to itself.
        Ok(_) => _ = has_ended.recv_timeout(HEAD_START),
        Err(error) => {
            let _ = disk.rescan.is_over();
            if let Some(suppressed) = disk.context.log_limit.admit(Cause::Size) {
                tracing::warn!(disk = disk.name(), %error, suppressed, "no thread to read its size again");
            }
        }
    }
}
