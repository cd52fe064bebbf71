//! What of its rings' requests a worker does itself.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::any_ring::AnyRing;
use super::direct::{self, DirectTasks};
use crate::disk::Disk;
use crate::virtio::blk::{Device, RequestTask};

/// Requests of one disk that a worker does itself.
#[derive(Debug)]
pub(super) struct Batch<D: Disk> {
    pub(super) device: Arc<Device<D>>,
    pub(super) tasks: Vec<RequestTask<D>>,
    transfers: Option<Arc<DirectTasks<D>>>,
}

impl<D: Disk> Batch<D> {
    /// Does them, or has the kernel do them.
    pub(super) fn run(&mut self) {
        let Self { device, tasks, transfers } = self;
        match transfers {
            Some(transfers) if device.has_direct() => direct::begin(transfers, device, tasks),
            _ => device.do_quick(tasks),
        }
    }
}

/// What a worker is to do itself. Of each disk by itself: what hangs takes no other's with it.
#[derive(Debug)]
pub(super) struct Quick<D: Disk> {
    batches: Vec<Batch<D>>,
    /// Empty ones, to be used again.
    spare: Vec<Vec<RequestTask<D>>>,
    /// What the kernel does by itself.
    transfers: Option<Arc<DirectTasks<D>>>,
}

impl<D: Disk> Default for Quick<D> {
    fn default() -> Self {
        Self { batches: Vec::new(), spare: Vec::new(), transfers: None }
    }
}

impl<D: Disk> Quick<D> {
    /// Has a ring leave to its worker what that does. `event` is what `epoll` reports then of what the kernel has done.
    pub(super) fn attend(&mut self, ring: &mut AnyRing<D>, epoll: &Epoll, event: u64) -> io::Result<()> {
        if ring.device().has_direct()
            && self.transfers.is_none()
            && let Some(transfers) = direct::transfers()
        {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, event);
            epoll.ctl(ControlOperation::Add, transfers.event().as_raw_fd(), event)?;
            self.transfers = Some(Arc::new(transfers));
        }
        ring.leave_quick(self.transfers.as_ref().filter(|_| ring.device().has_direct()).cloned());
        Ok(())
    }

    /// Takes what a ring has left to its worker.
    #[cold]
    pub(super) fn add(&mut self, ring: &mut AnyRing<D>) {
        let mut tasks = self.spare.pop().unwrap_or_default();
        ring.take_quick(&mut tasks);
        let (device, transfers) = (ring.device().clone(), self.transfers.clone());
        self.batches.push(Batch { device, tasks, transfers });
    }

    /// Keeps a vector, once it is empty.
    pub(super) fn keep(&mut self, tasks: Vec<RequestTask<D>>) {
        self.spare.push(tasks);
    }

    pub(super) fn next(&mut self) -> Option<Batch<D>> {
        self.batches.pop()
    }
}
