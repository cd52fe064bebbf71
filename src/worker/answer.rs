//! What becomes of a chain in its ring: completed at once, or kept until a flush, or all of its slices, are done.

use crate::disk::Disk;
use crate::virtio::blk::{CacheMode, Counters, Device, HeldRequest, Progress, SlicedRequest};
use crate::virtio::queue::{Chain, Completion, RingError, RingLog, Virtqueue};

/// A request behind, or at, a flush.
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
    let answer = device.execute(chain, cache, counters, sliced);
    // What has only begun has written nothing.
    if !matches!(answer, Ok(Progress::Sliced)) {
        // What was copied past the caches is stored when it can be seen, and not before.
        device.fence();
        log.executed(matches!(answer, Ok(Progress::Held(_))));
    }
    answer
}

/// Notes what became of a request. Returns whether the ring goes no further before it is done: it is a flush that takes time,
/// or done in slices.
#[inline(always)] // of its four callers one is of a batch
pub(super) fn note(queue: &mut impl Virtqueue, held: &mut Vec<Waiting>, answer: Progress) -> bool {
    match answer {
        Progress::Completed(completion) if held.is_empty() => queue.complete(completion),
        Progress::Completed(completion) => held.push(Waiting::Finished(completion)),
        Progress::Held(answer) => {
            let is_flush = answer.is_flush();
            held.push(Waiting::Unsettled(answer));
            return is_flush;
        }
        Progress::Sliced => return true,
    }
    false
}
