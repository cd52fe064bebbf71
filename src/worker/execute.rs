//! What becomes of a chain in its ring: completed at once, or kept until a flush, or all of its slices, are done.

use crate::disk::Disk;
use crate::virtio::blk::{CacheMode, Counters, Device, HeldRequest, Progress, SlicedRequest};
use crate::virtio::queue::{Chain, Completion, RingError, RingLog, Virtqueue};

/// A request that waits for a flush, or is behind one that does.
#[derive(Debug)]
pub(super) enum Waiting {
    Finished(Completion),
    Unsettled(HeldRequest),
}

/// Does what any chain asks, and marks what it may have written.
#[inline]
pub(super) fn execute<D: Disk>(
    chain: Chain<'_>,
    device: &Device<D>,
    cache: &CacheMode,
    counters: &mut Counters,
    sliced: &mut SlicedRequest,
    log: &mut Option<Box<RingLog>>,
) -> Result<Progress, RingError> {
    match log {
        None => device.execute(chain, cache, counters, sliced),
        Some(log) => execute_logged(chain, device, cache, counters, sliced, log),
    }
}

#[cold]
#[inline(never)]
fn execute_logged<D: Disk>(
    chain: Chain<'_>,
    device: &Device<D>,
    cache: &CacheMode,
    counters: &mut Counters,
    sliced: &mut SlicedRequest,
    log: &mut RingLog,
) -> Result<Progress, RingError> {
    log.note(&chain);
    let progress = device.execute(chain, cache, counters, sliced);
    // A request that has only begun has written nothing.
    if !matches!(progress, Ok(Progress::Sliced)) {
        // Non-temporal stores are visible after the fence, and not before: a page is marked after it was written.
        device.fence();
        log.executed(matches!(progress, Ok(Progress::Held(_))));
    }
    progress
}

/// Completes a request, or holds it. Returns whether the ring goes no further before it is done: it is a flush that takes time,
/// or done in slices.
#[inline(always)] // one of its four callers is on the way of each request
pub(super) fn complete_or_hold(
    queue: &mut impl Virtqueue,
    held: &mut Vec<Waiting>,
    progress: Progress,
) -> bool {
    match progress {
        Progress::Completed(completion) if held.is_empty() => queue.complete(completion),
        Progress::Completed(completion) => held.push(Waiting::Finished(completion)),
        Progress::Held(request) => {
            let is_flush = request.is_flush();
            held.push(Waiting::Unsettled(request));
            return is_flush;
        }
        Progress::Sliced => return true,
    }
    false
}
