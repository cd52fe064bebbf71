//! In place of `worker/report.rs`: nobody looks.

use std::marker::PhantomData;

use super::any_ring::AnyRing;
use crate::disk::Disk;
use crate::sync::kernel::Instant;

#[derive(Debug)]
pub struct RingReport<D: Disk>(PhantomData<D>);

impl<D: Disk> RingReport<D> {
    pub(super) fn of(_: &AnyRing<D>, _: &'static str, _: Instant) -> Self {
        Self(PhantomData)
    }
}
