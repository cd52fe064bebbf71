//! The thread that populates mappings (enters them into the page tables) while the disks are served already.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::disks::Served;
use crate::disk::{self, Backing, Disk as _, Populated};
use crate::limits::bounds::THREAD_STOP_TIMEOUT;
use crate::limits::thread;
use crate::log::Cause;
use crate::sandbox::ThreadKind;
use crate::virtio::blk::Device;

/// How often it is looked whether it is to end, while it pauses.
const POLL: Duration = Duration::from_millis(10);

/// A running thread. Dropping it stops it.
#[derive(Debug)]
pub(super) struct PopulateThread {
    is_stopping: Arc<AtomicBool>,
    /// Dropped when it may begin: it waits for the end of this channel.
    waits: Option<Sender<()>>,
    has_ended: Receiver<()>,
}

impl PopulateThread {
    /// What populates the disks one after another, from this byte on, once it may [begin](Self::begin). Without a thread
    /// they are served as well, only slower at first.
    pub(super) fn new(disks: &[Arc<Served<Backing>>], from_bytes: u64) -> Option<Self> {
        let log_limit = disks.first()?.context.log_limit.clone();
        let disks: Vec<_> = disks.iter().map(Arc::downgrade).collect();
        let is_stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_stopping);
        let (waits, may_begin) = channel::<()>();
        let (ending, has_ended) = channel::<()>();
        let run = move || {
            let _ending = ending;
            // Returns an error when `waits` is dropped; nothing is ever sent.
            let _ = may_begin.recv();
            let should_stop = || stop.load(Ordering::Relaxed);
            // Their turns wait for pages that are not entered yet, for this thread, and for who is run in its place.
            let served = disks.iter().filter_map(Weak::upgrade);
            let excuses: Vec<_> = served.map(|disk| disk.context.hold_ups.excuse_waits()).collect();
            for disk in disks.iter().filter_map(Weak::upgrade) {
                if should_stop() {
                    return;
                }
                let device = &disk.context.device;
                let should_stop = || should_stop() || disk.is_leaving();
                if let Some(populated) = device.disk().populate(from_bytes, should_stop) {
                    report(device, populated);
                }
            }
            drop(excuses);
            count_huge_pages(disks, should_stop);
        };
        match thread::spawn(ThreadKind::Populate, "populate", run) {
            Ok(_) => Some(Self { is_stopping, waits: Some(waits), has_ended }),
            Err(error) => {
                if let Some(suppressed) = log_limit.admit(Cause::Populate) {
                    tracing::warn!(%error, suppressed, "no thread to populate mappings; first touches are slower");
                }
                None
            }
        }
    }
}

impl PopulateThread {
    /// Lets it begin.
    pub(super) fn begin(&mut self) {
        self.waits = None;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.has_ended.try_recv() == Err(TryRecvError::Disconnected)
    }
}

impl Drop for PopulateThread {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.waits = None;
        // If it has not ended by then, it is left to itself.
        let _ = self.has_ended.recv_timeout(THREAD_STOP_TIMEOUT);
    }
}

/// Limited: a file that grows again and again is populated as often.
fn report(device: &Device<Backing>, populated: Populated) {
    let Populated { bytes, failed_bytes, full_bytes } = populated;
    let Some(suppressed) = device.log_limit().admit(Cause::Populate) else { return };
    let disk = &device.identity().name;
    tracing::info!(disk, bytes, suppressed, "populated");
    if full_bytes != 0 {
        tracing::warn!(
            disk,
            full_bytes,
            suppressed,
            "the file system has no space for parts of the disk: writes there fail; free some"
        );
    }
    if failed_bytes > full_bytes {
        tracing::warn!(
            disk,
            failed_bytes,
            suppressed,
            "parts of the mapping could not be populated; first touches are slower"
        );
    }
}

/// Disks of this process whose huge pages are to be counted.
static UNCOUNTED: Mutex<Uncounted> =
    Mutex::new(Uncounted { disks: Vec::new(), last_came: None, is_counting: false });

#[derive(Debug)]
struct Uncounted {
    disks: Vec<Weak<Served<Backing>>>,
    /// When the last of them was populated.
    last_came: Option<Instant>,
    /// A thread counts, and will count what is added.
    is_counting: bool,
}

/// Disks are counted once no other has come for so long: whatever maps something meanwhile waits for a count, and disks often come
/// one after the other.
const QUIET: Duration = Duration::from_millis(200);

/// But not later than this.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Has the huge pages of these disks counted. A count takes the longer the more the process has mapped, whatever is asked for: it
/// is made by one thread, for all that have come meanwhile, and no disk is held while it waits for it.
fn count_huge_pages(disks: Vec<Weak<Served<Backing>>>, should_stop: impl Fn() -> bool) {
    let mut uncounted = lock_uncounted();
    uncounted.disks.extend(disks);
    uncounted.last_came = Some(Instant::now());
    if std::mem::replace(&mut uncounted.is_counting, true) {
        return;
    }
    while !uncounted.disks.is_empty() && !should_stop() {
        drop(uncounted);
        wait_for_quiet(&should_stop);
        let disks = std::mem::take(&mut lock_uncounted().disks);
        report_huge_pages(&disks.iter().filter_map(Weak::upgrade).collect::<Vec<_>>());
        uncounted = lock_uncounted();
    }
    uncounted.is_counting = false;
}

/// Returns when no disk has come for [`QUIET`], and in the end anyway.
fn wait_for_quiet(should_stop: impl Fn() -> bool) {
    let end = Instant::now() + LONGEST_WAIT;
    let is_quiet = || lock_uncounted().last_came.is_none_or(|came| came.elapsed() >= QUIET);
    while !is_quiet() && Instant::now() < end && !should_stop() {
        std::thread::sleep(POLL);
    }
}

fn lock_uncounted() -> MutexGuard<'static, Uncounted> {
    UNCOUNTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk of which less is mapped in huge pages is only slower.
fn report_huge_pages(disks: &[Arc<Served<Backing>>]) {
    let devices = || disks.iter().map(|disk| &disk.context.device);
    disk::count_huge_pages(devices().map(|device| device.disk()));
    for device in devices() {
        let (disk, bytes) = (&device.identity().name, device.disk().geometry().capacity_bytes);
        if let Some(huge_bytes) = device.disk().huge_bytes()
            && let Some(suppressed) = device.log_limit().admit(Cause::HugePages)
        {
            tracing::info!(disk, huge_bytes, bytes, suppressed, "mapped in huge pages");
        }
    }
}
