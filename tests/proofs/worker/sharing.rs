//! In place of `worker/sharing.rs`: there is one disk.

use super::any_ring::AnyRing;
use super::state::Slot;
use crate::disk::Disk;

#[derive(Debug)]
pub(super) struct Sharing;

impl Sharing {
    pub(super) fn new((): ()) -> Self {
        Self
    }

    pub(super) fn update<D: Disk>(&mut self, _: &[Option<Slot<D>>]) {}

    pub(super) fn with<D: Disk>(_: &AnyRing<D>, _: &[Option<Slot<D>>]) {}

    pub(super) fn on_this_thread(&self) {}

    pub(super) const fn is_shared(&self) -> bool {
        false
    }

    pub(super) fn next_round(&mut self) {}

    pub(super) fn turn_of<D: Disk>(&self, _: &AnyRing<D>) {}

    pub(super) fn turn_is_over(&self) {}

    pub(super) fn go_on(&mut self) {}

    pub(super) fn pause(&self) {}
}
