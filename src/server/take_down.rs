//! The end of a server: sessions end, and each disk is flushed once more as soon as its own have ended. What hangs is given up
//! when the time is over, and holds no other disk up until then.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::disks::DiskNumber;
use super::error::GivenUp;
use crate::disk::executor::Unfinished;
use crate::disk::{Disk, Ticket};
use crate::vhost_user::{ClosedByChecker, SessionContext};
use crate::virtio::blk::Counters;

/// How often it is looked whether something has ended.
const POLL: Duration = Duration::from_millis(1);

/// A session that was hung up on.
#[derive(Debug)]
pub(super) struct Leaving {
    /// The disk that it is connected to.
    pub(super) disk: DiskNumber,
    pub(super) thread: JoinHandle<()>,
    /// Dropped after the session's own copies.
    pub(super) stream: ClosedByChecker<UnixStream>,
}

/// How far the last flush of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastFlush {
    /// There are sessions.
    Waits,
    Begun(Ticket),
    Over,
}

/// Waits until all sessions have ended and all disks are flushed.
///
/// # Errors
/// [`GivenUp`]: that was not so in time. What hangs is left to itself.
pub(super) fn take_down<D: Disk>(
    contexts: &[(DiskNumber, Arc<SessionContext<D>>)],
    mut leaving: Vec<Leaving>,
    timeout: Duration,
) -> Result<(), GivenUp> {
    let deadline = Instant::now() + timeout;
    let mut flushes = vec![LastFlush::Waits; contexts.len()];
    loop {
        leaving = leaving.into_iter().filter_map(join_if_finished).collect();
        for (flush, (number, context)) in flushes.iter_mut().zip(contexts) {
            let has_session = || leaving.iter().any(|session| session.disk == *number);
            *flush = match *flush {
                LastFlush::Waits if has_session() => LastFlush::Waits,
                LastFlush::Waits => begin_flush(context),
                LastFlush::Begun(ticket) => finish_flush(context, ticket),
                LastFlush::Over => LastFlush::Over,
            };
        }
        if leaving.is_empty() && flushes.iter().all(|flush| *flush == LastFlush::Over) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            break;
        }
        std::thread::park_timeout(POLL);
    }
    for ((_, context), _) in contexts.iter().zip(&flushes).filter(|(_, flush)| **flush == LastFlush::Over) {
        // A process with a thread that is stuck in the kernel stays, and with it the files: another is to have this disk.
        if context.unfinished().0 == 0 {
            context.writer_lock.end();
        }
    }
    let unfinished = contexts.iter().zip(flushes).filter(|(_, flush)| *flush != LastFlush::Over);
    let sessions = |number| leaving.iter().filter(|session| session.disk == number).count();
    let described = unfinished.map(|((number, context), _)| describe(context, sessions(*number)));
    let given_up = GivenUp(described.collect());
    // Their threads hang: nobody may wait for them.
    std::mem::forget(leaving);
    Err(given_up)
}

fn join_if_finished(session: Leaving) -> Option<Leaving> {
    if !session.thread.is_finished() {
        return Some(session);
    }
    // If it has panicked, that is in the log, and its rings end with the workers.
    let _ = session.thread.join();
    drop(session.stream);
    None
}

/// What guests were told to be durable is; this is for what they have not flushed.
fn begin_flush<D: Disk>(context: &SessionContext<D>) -> LastFlush {
    let device = &context.device;
    match device.disk().try_flush() {
        Some(Ok(())) => LastFlush::Over,
        Some(Err(error)) => {
            tracing::error!(disk = device.identity().name, %error, "the last flush failed");
            LastFlush::Over
        }
        None => LastFlush::Begun(device.begin_flush(Waker::noop(), &Counters::default())),
    }
}

fn finish_flush<D: Disk>(context: &SessionContext<D>, ticket: Ticket) -> LastFlush {
    match context.device.poll_flush(ticket) {
        None => return LastFlush::Begun(ticket),
        Some(true) => {}
        Some(false) => {
            tracing::error!(disk = context.device.identity().name, "the last flush failed");
        }
    }
    LastFlush::Over
}

/// What hangs of a disk.
fn describe<D: Disk>(context: &SessionContext<D>, sessions: usize) -> String {
    let (count, oldest) = context.unfinished();
    let name = &context.device.identity().name;
    match oldest {
        None if sessions == 0 => format!("disk {name:?}: its media did not answer to a flush"),
        None => format!("disk {name:?}: {sessions} sessions of front-ends did not end"),
        Some(Unfinished { name: what, since }) => format!(
            "disk {name:?}: its media did not answer to {count} of its requests, the oldest a {} of {} bytes at offset {} that waits for {} s",
            what.operation,
            what.len_bytes,
            what.offset,
            since.elapsed().as_secs()
        ),
    }
}
