//! Threads: none is started that could not begin.
//!
//! The standard library has each new thread map a stack for its signals, and ends the process where that fails. So it is
//! tried before whether there is enough address space, and threads are started one after the other.

use std::io;
use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::copy::fault::AltStack;
use crate::limits::address_space;
use crate::limits::bounds::MIN_THREAD_ADDRESS_SPACE_BYTES;
use crate::limits::map_count::{Charge, Purpose};
use crate::sandbox::{self, ThreadKind};

/// Mappings of a thread: two stacks, each with a guard page, and a heap that may be its own, with what it may grow into.
const MAPPINGS: usize = 6;

/// Held while a thread begins, so that no other takes the address space that was found for it.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts a thread of this kind with this name, and waits until it has all that it needs.
///
/// # Errors
/// There is no thread, memory or mapping left for it, or it cannot be narrowed to what its kind does.
pub(crate) fn spawn<T: Send + 'static>(
    kind: ThreadKind,
    name: impl Into<String>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    start(name.into(), Some(kind), run)
}

/// Starts a thread that may all that the first one may, and has ended when that enters the sandbox.
///
/// # Errors
/// There is no thread, memory or mapping left for it.
pub(crate) fn spawn_before_sandbox<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    start(name.to_owned(), None, run)
}

fn start<T: Send + 'static>(
    name: String,
    kind: Option<ThreadKind>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let charge = Charge::new(Purpose::Thread, MAPPINGS)?;
    let (begun, has_begun) = sync_channel(1);
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    address_space::check(MIN_THREAD_ADDRESS_SPACE_BYTES)?;
    let thread = Builder::new().name(name).spawn(move || {
        let _charge = charge;
        let _stack = AltStack::on_this_thread();
        let narrowed = kind.map_or(Ok(()), sandbox::narrow);
        let may_run = narrowed.is_ok();
        // Ignored: `spawn` waits for it, so somebody receives it.
        let _ = begun.send(narrowed);
        if !may_run {
            // Nobody has the handle; it only must not run.
            resume_unwind(Box::new("not narrowed"));
        }
        #[cfg(feature = "sandbox-probe")]
        kind.into_iter().for_each(sandbox::probe::run);
        run()
    })?;
    // No answer means that the thread has panicked already, and who joins it finds that.
    has_begun.recv().unwrap_or(Ok(()))?;
    Ok(thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_their_names_and_give_results() {
        let thread =
            spawn(ThreadKind::Log, "named", || std::thread::current().name().map(ToOwned::to_owned)).unwrap();
        assert_eq!(thread.join().unwrap().as_deref(), Some("named"));
    }
}
