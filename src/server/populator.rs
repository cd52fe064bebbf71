//! The thread that enters mappings into the page tables while the disks are served already.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::disk::{Backing, Populated};
use crate::virtio::blk::Device;

/// A running thread. Dropping it stops it, after a step of at most 64 MiB.
#[derive(Debug)]
pub(super) struct Populator {
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Populator {
    /// Populates the disks one after another. Without a thread they are served as well, only slower at first.
    pub(super) fn start(devices: Vec<Arc<Device<Backing>>>) -> Option<Self> {
        if devices.is_empty() {
            return None;
        }
        let is_stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_stopping);
        let run = move || {
            for device in devices {
                if let Some(populated) = device.disk().populate(|| stop.load(Ordering::Relaxed)) {
                    report(&device.identity().name, populated);
                }
            }
        };
        match std::thread::Builder::new().name("populate".into()).spawn(run) {
            Ok(thread) => Some(Self { is_stopping, thread: Some(thread) }),
            Err(error) => {
                tracing::warn!(%error, "no thread to populate mappings; first touches will be slower");
                None
            }
        }
    }
}

impl Populator {
    pub(super) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Populator {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has hurt nobody.
            let _ = thread.join();
        }
    }
}

fn report(disk: &str, populated: Populated) {
    let Populated { bytes, failed_bytes, huge_bytes } = populated;
    tracing::info!(disk, bytes, huge_bytes, "populated");
    if failed_bytes != 0 {
        tracing::warn!(
            disk,
            failed_bytes,
            "parts of the mapping could not be populated; first touches are slower"
        );
    }
}
