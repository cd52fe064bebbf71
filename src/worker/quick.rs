//! What of its rings' requests a worker does itself.

use std::sync::Arc;

use super::any_ring::AnyRing;
use crate::disk::Disk;
use crate::virtio::blk::{Device, RequestTask};

/// Requests of one disk that a worker does itself.
#[derive(Debug)]
pub(super) struct Batch<D: Disk> {
    pub(super) device: Arc<Device<D>>,
    pub(super) tasks: Vec<RequestTask<D>>,
}

/// What a worker is to do itself. Of each disk by itself: what hangs takes no other's with it.
#[derive(Debug)]
pub(super) struct Quick<D: Disk> {
    batches: Vec<Batch<D>>,
    /// Empty ones, to be used again.
    spare: Vec<Vec<RequestTask<D>>>,
}

impl<D: Disk> Default for Quick<D> {
    fn default() -> Self {
        Self { batches: Vec::new(), spare: Vec::new() }
    }
}

impl<D: Disk> Quick<D> {
    /// Takes what a ring has left to its worker.
    #[cold]
    pub(super) fn add(&mut self, ring: &mut AnyRing<D>) {
        let mut tasks = self.spare.pop().unwrap_or_default();
        ring.take_quick(&mut tasks);
        self.batches.push(Batch { device: ring.device().clone(), tasks });
    }

    /// Keeps a vector, once it is empty.
    pub(super) fn keep(&mut self, tasks: Vec<RequestTask<D>>) {
        self.spare.push(tasks);
    }

    pub(super) fn next(&mut self) -> Option<Batch<D>> {
        self.batches.pop()
    }
}
