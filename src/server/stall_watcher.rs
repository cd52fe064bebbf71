//! The thread that says which disks hang, as long as they do, and has workers say which requests are slow.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::disks::{Disks, Served};
use crate::disk::executor::Unfinished;
use crate::disk::{Backing, Disk as _};
use crate::limits::bounds::{SLOW_INTERVALS, STALL_INTERVAL};
use crate::limits::thread;
use crate::log::{Cause, kinds};
use crate::sandbox::ThreadKind;
use crate::virtio::blk::Slow;
use crate::worker::{Pool, tell_held_up};

/// The thread, which runs as soon as there is a disk that may wait for media, or of which requests are slow.
#[derive(Debug)]
pub(super) struct StallWatcher {
    disks: Arc<Disks<Backing>>,
    pool: Arc<Pool<Backing>>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    NotNeeded,
    /// It is told that there are other disks than before; dropping the sender ends it.
    Runs(Sender<()>, JoinHandle<()>),
    Over,
}

impl StallWatcher {
    /// Nothing is watched before the first [`look`](Self::look).
    pub(super) const fn new(disks: Arc<Disks<Backing>>, pool: Arc<Pool<Backing>>) -> Self {
        Self { disks, pool, state: Mutex::new(State::NotNeeded) }
    }

    /// There are other disks than before.
    ///
    /// # Errors
    /// No thread is left.
    pub(super) fn look(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            // It only fails where the thread has ended.
            State::Runs(news, _) => drop(news.send(())),
            State::NotNeeded if self.disks.all().iter().any(|disk| is_watched(disk)) => {
                let (news, has_news) = channel();
                let (disks, pool) = (self.disks.clone(), self.pool.clone());
                let thread =
                    thread::spawn(ThreadKind::Stalls, "stalls", move || watch(&disks, &pool, &has_news))?;
                *state = State::Runs(news, thread);
            }
            State::NotNeeded | State::Over => {}
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

fn is_watched(disk: &Served<Backing>) -> bool {
    let device = &disk.context.device;
    device.disk().may_wait() || device.slow().threshold().is_some()
}

/// Runs until nobody has news any more.
fn watch(disks: &Disks<Backing>, pool: &Pool<Backing>, has_news: &Receiver<()>) {
    let mut next = Instant::now() + STALL_INTERVAL;
    loop {
        let all = disks.all();
        let slow = || all.iter().map(|disk| disk.context.device.slow());
        let shortest = slow().filter_map(Slow::threshold).min();
        let (least, most) = SLOW_INTERVALS;
        let left = next.saturating_duration_since(Instant::now());
        let patience = shortest.map_or(left, |shortest| left.min(shortest.clamp(least, most)));
        // Each is asked.
        let waiting = slow().filter(|slow| slow.threshold().is_some() && slow.take_may_wait()).count();
        if waiting != 0 {
            pool.tell_slow();
        }
        // Those that hold up their workers' threads.
        all.iter().for_each(|disk| tell_held_up(&disk.context.device));
        // They are not kept meanwhile.
        drop(all);
        match has_news.recv_timeout(patience) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) if Instant::now() < next => {}
            Err(RecvTimeoutError::Timeout) => {
                disks.all().iter().for_each(|disk| report(disk));
                next = Instant::now() + STALL_INTERVAL;
            }
            Err(RecvTimeoutError::Disconnected) => return,
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
    let (requests, Some(Unfinished { name, since })) = disk.context.unfinished() else { return false };
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
