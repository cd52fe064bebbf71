//! The thread that says which disks hang, as long as they do.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::disks::{Disks, Served};
use crate::disk::executor::Unfinished;
use crate::disk::{Backing, Disk as _};
use crate::limits::bounds::STALL_INTERVAL;
use crate::limits::thread;
use crate::log::{Cause, kinds};
use crate::sandbox::ThreadKind;

/// The thread, which runs as soon as there is a disk that may wait for media.
#[derive(Debug)]
pub(super) struct StallWatcher {
    disks: Arc<Disks<Backing>>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    NotNeeded,
    /// Dropping the sender ends it.
    Runs(Sender<()>, JoinHandle<()>),
    Over,
}

impl StallWatcher {
    /// Nothing is watched before the first [`look`](Self::look).
    pub(super) const fn new(disks: Arc<Disks<Backing>>) -> Self {
        Self { disks, state: Mutex::new(State::NotNeeded) }
    }

    /// There are other disks than before.
    ///
    /// # Errors
    /// No thread is left.
    pub(super) fn look(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let may_wait = || self.disks.all().iter().any(|disk| disk.context.device.disk().may_wait());
        if matches!(*state, State::NotNeeded) && may_wait() {
            let (stop, is_stopped) = channel();
            let disks = self.disks.clone();
            let thread = thread::spawn(ThreadKind::Stalls, "stalls", move || {
                while is_stopped.recv_timeout(STALL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    disks.all().iter().for_each(|disk| report(disk));
                }
            })?;
            *state = State::Runs(stop, thread);
        }
        Ok(())
    }

    /// Ends it, for good.
    pub(super) fn end(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Runs(stop, thread) = std::mem::replace(&mut *state, State::Over) {
            drop(stop);
            // It waits for nothing else; if it has panicked, that is in the log.
            let _ = thread.join();
        }
    }
}

fn report(disk: &Served<Backing>) {
    let hangs = [waits(disk), unanswered(disk)].contains(&true);
    if disk.hangs.swap(hangs, Ordering::Relaxed)
        && !hangs
        && let Some(suppressed) = disk.context.log_limit.admit(Cause::Stalled)
    {
        let disk = disk.name();
        tracing::warn!(name: kinds::MEDIA_ANSWERS, disk, suppressed, "the disk goes on: its media has answered");
    }
}

/// Says that the disk waits for something that no guest has asked for, if it does so for long.
fn waits(disk: &Served<Backing>) -> bool {
    let Some((what, since)) = disk.waits_for() else { return false };
    if since.elapsed() < STALL_INTERVAL {
        return false;
    }
    if let Some(suppressed) = disk.context.log_limit.admit(Cause::Stalled) {
        let (disk, seconds) = (disk.name(), since.elapsed().as_secs());
        tracing::warn!(
            name: kinds::MEDIA_HANGS,
            disk,
            what,
            seconds,
            suppressed,
            "the disk hangs: its media does not tell what it is asked for"
        );
    }
    true
}

/// The same of requests.
fn unanswered(disk: &Served<Backing>) -> bool {
    let (requests, Some(Unfinished { name, since })) = disk.context.device.unfinished() else { return false };
    let waits = since.elapsed();
    if waits < STALL_INTERVAL {
        return false;
    }
    if let Some(suppressed) = disk.context.log_limit.admit(Cause::Stalled) {
        tracing::warn!(
            name: kinds::MEDIA_HANGS,
            disk = disk.name(),
            path = disk.summary.as_ref().map(|summary| tracing::field::display(summary.path.display())),
            operation = name.operation,
            offset = name.offset,
            bytes = name.len_bytes,
            seconds = waits.as_secs(),
            requests,
            suppressed,
            "the disk hangs: its media does not answer"
        );
    }
    true
}
