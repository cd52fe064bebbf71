//! SIGTERM and SIGINT stop the server; a second SIGINT does not wait for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{Builder, JoinHandle};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals};

use crate::server::Stopper;

/// Signals that are caught but not yet acted on: one that arrives while the server starts is not lost.
#[derive(Debug)]
pub(super) struct StopSignals(Signals);

/// Hands signals on until it is dropped.
#[derive(Debug)]
pub(super) struct Forwarder {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl StopSignals {
    pub(super) fn catch() -> io::Result<Self> {
        // Whoever presses Ctrl-C again wants out now. The order matters: the flag that the first SIGINT
        // sets is looked at before it is set. Managers repeat SIGTERM and mean no harm by it.
        let interrupted = Arc::new(AtomicBool::new(false));
        flag::register_conditional_default(SIGINT, Arc::clone(&interrupted))?;
        flag::register(SIGINT, interrupted)?;
        Signals::new([SIGTERM, SIGINT]).map(Self)
    }

    pub(super) fn forward_to(mut self, stopper: Stopper) -> io::Result<Forwarder> {
        let handle = self.0.handle();
        let thread = Builder::new().name("signals".into()).spawn(move || {
            for signal in self.0.forever() {
                let name = if signal == SIGTERM { "SIGTERM" } else { "SIGINT" };
                tracing::info!("stopping on {name}");
                stopper.stop();
            }
        })?;
        Ok(Forwarder { handle, thread: Some(thread) })
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It could only have panicked, and was heard then.
            let _ = thread.join();
        }
    }
}
