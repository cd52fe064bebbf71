//! A thread that rewrites guest memory as fast as it can, while somebody else reads it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::common::guarded::GuardedMemory;

/// What is written, over and over: guest addresses and bytes.
pub type Writes = Vec<(u64, Vec<u8>)>;

/// The thread.
pub struct Racer {
    work: SyncSender<(Writes, Arc<AtomicBool>)>,
    ready: Receiver<()>,
}

impl Racer {
    /// Starts it; it ends with the process, or when this is dropped.
    pub fn start(memory: GuardedMemory) -> Self {
        let (work, orders) = sync_channel::<(Writes, Arc<AtomicBool>)>(1);
        let (report, ready) = sync_channel(0);
        std::thread::spawn(move || {
            for (writes, is_over) in orders {
                let before: Writes =
                    writes.iter().map(|(at, bytes)| (*at, memory.read(*at, bytes.len()))).collect();
                if report.send(()).is_err() {
                    return;
                }
                while !is_over.load(Ordering::Acquire) {
                    // What is good is there as often as what is not.
                    for (address, bytes) in writes.iter().chain(&before) {
                        memory.write(*address, bytes);
                    }
                }
                if report.send(()).is_err() {
                    return;
                }
            }
        });
        Self { work, ready }
    }

    /// Writes these until what is returned is dropped.
    pub fn race(&self, writes: Writes) -> Racing<'_> {
        let is_over = Arc::new(AtomicBool::new(false));
        self.work.send((writes, is_over.clone())).unwrap();
        self.ready.recv().unwrap();
        Racing { racer: self, is_over }
    }
}

/// It is writing.
pub struct Racing<'a> {
    racer: &'a Racer,
    is_over: Arc<AtomicBool>,
}

impl Drop for Racing<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        self.racer.ready.recv().unwrap();
    }
}
