//! SIGTERM and SIGINT stop the server; a second SIGINT does not wait for it. SIGHUP has it read the sizes of
//! its disks, and its configuration where disks may come and go.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals};
use vmm_sys_util::signal::unblock_signal;

use crate::api::control::Reloads;
use crate::limits::thread;
use crate::log::kinds;
use crate::sandbox::ThreadKind;
use crate::server::{RescanTrigger, Stopper};

const CAUGHT: [c_int; 3] = [SIGTERM, SIGINT, SIGHUP];

/// Signals that are caught but not yet acted on: one that arrives while the server starts is not lost.
#[derive(Debug)]
pub(super) struct CaughtSignals {
    signals: Signals,
    /// One of those that stop the server has arrived.
    should_stop: Arc<AtomicBool>,
}

/// Hands signals on until it is dropped.
#[derive(Debug)]
pub(super) struct Forwarder {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl CaughtSignals {
    pub(super) fn catch() -> io::Result<Self> {
        // Whoever presses Ctrl-C again wants out now. The order matters: the flag that the first SIGINT
        // sets is read before it is set. Managers repeat SIGTERM and mean no harm by it.
        let interrupted = Arc::new(AtomicBool::new(false));
        flag::register_conditional_default(SIGINT, Arc::clone(&interrupted))?;
        flag::register(SIGINT, interrupted)?;
        let signals = Signals::new(CAUGHT)?;
        // The parent may have blocked them, and masks are inherited.
        for signal in CAUGHT {
            unblock_signal(signal).map_err(|error| io::Error::other(error.to_string()))?;
        }
        let should_stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            flag::register(signal, Arc::clone(&should_stop))?;
        }
        Ok(Self { signals, should_stop })
    }

    /// Set once the server is to stop, also before the signals are handed on.
    pub(super) fn should_stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.should_stop)
    }

    pub(super) fn forward_to(
        mut self,
        stopper: Stopper,
        rescan: Option<RescanTrigger>,
        reloads: Option<Reloads>,
    ) -> io::Result<Forwarder> {
        let handle = self.signals.handle();
        let thread = thread::spawn(ThreadKind::Signals, "signals", move || {
            for signal in self.signals.forever() {
                if signal == SIGHUP {
                    match &reloads {
                        Some(reloads) => {
                            tracing::info!(
                                "reading the configuration, and the sizes of the disks, again on SIGHUP"
                            );
                            reloads.ask();
                        }
                        None => tracing::info!("reading the sizes of the disks again on SIGHUP"),
                    }
                    rescan.iter().for_each(RescanTrigger::trigger);
                    continue;
                }
                let name = if signal == SIGTERM { "SIGTERM" } else { "SIGINT" };
                tracing::info!(name: kinds::STOPPING, "stopping on {name}");
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
