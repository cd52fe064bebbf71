//! Requests that the kernel does by itself: begun by a worker, which hears of their end.

use std::io;
use std::sync::{Arc, Once};

use super::aio::{Direct, Transfers};
use crate::disk::executor::Task as _;
use crate::disk::{DirectTransfer, Disk};
use crate::virtio::blk::{Completions, Device, RequestTask};

/// A request on its way.
#[derive(Debug)]
pub(super) struct DirectTask<D: Disk> {
    device: Arc<Device<D>>,
    task: RequestTask<D>,
    /// Where it is noted among what is not done.
    note: usize,
}

/// Those of a worker.
pub(super) type DirectTasks<D> = Transfers<DirectTask<D>>;

impl<D: Disk> Direct for DirectTask<D> {
    fn transfer(&self) -> Option<DirectTransfer<'_>> {
        self.task.direct()
    }
}

impl<D: Disk> DirectTask<D> {
    fn new(device: &Arc<Device<D>>, task: RequestTask<D>) -> Self {
        let note = device.note(&task);
        Self { device: device.clone(), task, note }
    }

    /// It was not begun.
    fn give_back(self) -> RequestTask<D> {
        self.device.forget(self.note);
        self.task
    }

    /// It has ended: done if so many bytes were transferred as it has. Otherwise it is done again as always, which also finds out
    /// what is wrong. Everybody is woken for whom there is something, but for who looks at `here`.
    fn end(self, bytes: Option<usize>, here: &Arc<Completions>) {
        let device = self.device.clone();
        let task = self.give_back();
        if bytes.is_some_and(|bytes| bytes as u64 == task.name().len_bytes) {
            task.transferred(here);
        } else {
            device.submit(&mut vec![task]);
        }
    }
}

/// Begins tasks of one disk. Those that cannot be begun, or that would wait, are done by threads of the disk's.
pub(super) fn begin<D: Disk>(
    transfers: &DirectTasks<D>,
    device: &Arc<Device<D>>,
    tasks: &mut Vec<RequestTask<D>>,
) {
    // Somebody whom the device holds up while he begins some, or has a moment ago.
    let Some(claim) = device.claim(tasks) else { return device.submit(tasks) };
    let mut error = try_begin(transfers, device, tasks);
    if error == Some(libc::EOPNOTSUPP) && !device.waits_to_begin() {
        device.wait_to_begin();
        error = try_begin(transfers, device, tasks);
    }
    if matches!(error, Some(libc::EOPNOTSUPP | libc::EINVAL)) {
        device.refuse_direct();
    }
    drop(claim);
    device.submit(tasks);
}

/// Begins those that can be. Returns what is wrong with the next one.
fn try_begin<D: Disk>(
    transfers: &DirectTasks<D>,
    device: &Arc<Device<D>>,
    tasks: &mut Vec<RequestTask<D>>,
) -> Option<i32> {
    let mut left = Vec::new();
    let wanted =
        tasks.extract_if(.., |task| task.is_still_wanted()).map(|task| DirectTask::new(device, task));
    let result = transfers.begin(wanted, device.waits_to_begin(), |task| left.push(task.give_back()));
    tasks.append(&mut left);
    result.err()?.raw_os_error()
}

/// Hands out what has ended.
pub(super) fn reap<D: Disk>(transfers: &DirectTasks<D>, here: &Arc<Completions>) {
    transfers.reap(|task, bytes| task.end(bytes, here));
}

/// What a worker needs for them, once it has a ring of a disk that can do some. `None`: it is done by threads.
pub(super) fn transfers<D: Disk>() -> Option<DirectTasks<D>> {
    static TOLD: Once = Once::new();
    let told = |error: &io::Error| {
        TOLD.call_once(|| {
            tracing::warn!(
                %error,
                "no asynchronous I/O for block devices: threads do what waits for them, which takes more CPU; raise \
                 fs.aio-max-nr, or allow io_setup and io_submit"
            );
        });
    };
    Transfers::new().inspect_err(told).ok()
}
