//! In place of `worker/quick.rs`: nothing is left to a worker.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use super::any_ring::AnyRing;
use crate::disk::Disk;
use crate::stubs::blk::Device;
use crate::sync::kernel::Epoll;

#[derive(Debug)]
pub(super) struct Batch<D: Disk> {
    pub(super) device: Arc<Device<D>>,
    pub(super) tasks: Vec<()>,
}

impl<D: Disk> Batch<D> {
    pub(super) fn run(&mut self) {
        self.device.do_quick(&mut self.tasks);
    }
}

#[derive(Debug)]
pub(super) struct Quick<D: Disk>(PhantomData<D>);

impl<D: Disk> Default for Quick<D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<D: Disk> Quick<D> {
    pub(super) fn attend(&mut self, ring: &mut AnyRing<D>, _: &Epoll, _: u64) -> io::Result<()> {
        ring.leave_quick();
        Ok(())
    }

    pub(super) fn add(&mut self, _: &mut AnyRing<D>) {}

    pub(super) fn keep(&mut self, _: Vec<()>) {}

    pub(super) fn next(&mut self) -> Option<Batch<D>> {
        None
    }
}
