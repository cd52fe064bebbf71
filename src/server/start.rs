//! Opens the disks of a start, on a thread of their own: media that does not answer may hold up a system call for as long as it
//! likes, and who waits for the start says so, and ends it when that is asked for.

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::{GivenUp, ServerError};
use super::open::{Created, DiskSummary, open};
use super::service::Service;
use crate::config::DiskConfig;
use crate::disk::Backing;
use crate::limits::bounds::STALL_INTERVAL;
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// How often it is looked whether the start is to end.
const POLL: Duration = Duration::from_millis(10);

/// Disks that are open.
#[derive(Debug, Default)]
pub(super) struct OpenDisks {
    pub(super) services: Vec<Service<Backing>>,
    pub(super) summaries: Vec<DiskSummary>,
    pub(super) created: Created,
}

/// A disk that is being opened.
#[derive(Debug)]
struct Current {
    name: String,
    path: PathBuf,
    since: Instant,
}

/// Which disk is being opened.
type Place = Arc<Mutex<Option<Current>>>;

/// Opens all of them. There is no thread any more when it returns, but where it gives up.
///
/// # Errors
/// [`ServerError`]: of the first disk that cannot be opened; [`Stopped`](ServerError::Stopped) once `should_stop`, or
/// [`GivenUp`](ServerError::GivenUp) where the disk that is being opened does not let that be known for `stop_timeout`.
pub(super) fn open_all(
    disks: Vec<DiskConfig>,
    should_stop: &Arc<AtomicBool>,
    stop_timeout: Duration,
) -> Result<OpenDisks, ServerError> {
    let place = Place::default();
    let (sender, opened) = sync_channel(1);
    let (of_thread, should_thread_stop) = (place.clone(), should_stop.clone());
    let thread = thread::spawn_before_sandbox(ThreadKind::Main.name(), move || {
        let opened = open_each(disks, &of_thread, &should_thread_stop);
        // If nobody waits any more, it is dropped, and what was created is removed.
        let _ = sender.send(opened);
    })
    .map_err(ServerError::Threads)?;
    let (mut stop_by, mut say_at) = (None, Instant::now() + STALL_INTERVAL);
    loop {
        match opened.recv_timeout(POLL) {
            Err(RecvTimeoutError::Timeout) => {}
            opened => {
                if let Err(panic) = thread.join() {
                    resume_unwind(panic);
                }
                return opened.unwrap_or(Err(ServerError::Stopped));
            }
        }
        let now = Instant::now();
        if now >= say_at {
            say_at = now + STALL_INTERVAL;
            report(&place);
        }
        if should_stop.load(Ordering::Relaxed)
            && now >= *stop_by.get_or_insert_with(|| now + stop_timeout)
            && let Some(Current { name, path, since }) = lock(&place).take()
        {
            let (path, seconds) = (path.display(), since.elapsed().as_secs());
            let what = format!("disk {name:?}: {path} is being opened since {seconds} s");
            return Err(ServerError::GivenUp(GivenUp(vec![what])));
        }
    }
}

fn open_each(
    disks: Vec<DiskConfig>,
    place: &Place,
    should_stop: &Arc<AtomicBool>,
) -> Result<OpenDisks, ServerError> {
    let mut all = OpenDisks::default();
    for disk in disks {
        let should_stop_now = || should_stop.load(Ordering::Relaxed);
        if should_stop_now() {
            return Err(ServerError::Stopped);
        }
        *lock(place) =
            Some(Current { name: disk.name.clone(), path: disk.path.clone(), since: Instant::now() });
        let opened = open(disk, &mut all.created, should_stop);
        let (service, summary) = opened.map_err(|error| match should_stop_now() {
            // Opening failed as it was asked to stop; or for a reason that does not matter any more.
            true => ServerError::Stopped,
            false => error,
        })?;
        all.services.push(service);
        all.summaries.push(summary);
    }
    Ok(all)
}

fn report(place: &Place) {
    let current = lock(place);
    let Some(Current { name, path, since }) = &*current else { return };
    let seconds = since.elapsed().as_secs();
    if seconds >= STALL_INTERVAL.as_secs() {
        tracing::warn!(disk = name, path = %path.display(), seconds, "the start waits: the disk is still being opened");
    }
}

fn lock(place: &Place) -> MutexGuard<'_, Option<Current>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}
