//! Threads: none is started that could not begin.
//!
//! The standard library gives each new thread a stack for signals, in the thread itself, and where there is no memory for
//! it the process ends. So it is looked for before, and one thread after the other is started.

use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::copy::fault::AltStack;
use crate::limits::map_count::{self, Claim, Use};

/// Mappings of a thread: two stacks, each with a guard page, and a heap that may be its own, with what it may grow into.
const MAPPINGS: usize = 6;

/// Held while a thread begins: what was found to be there for it is not another one's.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts a thread with this name, and waits until it has all that it needs.
///
/// # Errors
/// There is no thread, memory or mapping left for it.
pub(crate) fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let claim = Claim::new(Use::Thread, MAPPINGS)?;
    let (begun, has_begun) = sync_channel(1);
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    map_count::check_address_space(Use::Thread)?;
    let thread = Builder::new().name(name.into()).spawn(move || {
        let _claim = claim;
        let _stack = AltStack::on_this_thread();
        // Who has started it waits for that.
        let _ = begun.send(());
        run()
    })?;
    // An error says that the thread has panicked already, as who joins it will find.
    let _ = has_begun.recv();
    Ok(thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_their_names_and_give_results() {
        let thread = spawn("named", || std::thread::current().name().map(ToOwned::to_owned)).unwrap();
        assert_eq!(thread.join().unwrap().as_deref(), Some("named"));
    }
}
