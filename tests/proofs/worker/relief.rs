//! In place of `worker/relief.rs`: no thread is ever away from its rings, and none is relieved.

use std::marker::PhantomData;
use std::sync::Arc;

pub(super) trait Runs: Send + 'static {
    fn go_on(self: Box<Self>);
}

#[derive(Debug)]
pub(super) struct Post<R: Runs>(PhantomData<fn() -> R>);

impl<R: Runs> Post<R> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(PhantomData))
    }

    pub(super) fn is_behind(&self) -> bool {
        false
    }

    pub(super) fn watch(&self) -> &() {
        &()
    }

    pub(super) fn leave(&self, _: Box<R>) -> u64 {
        unreachable!("nobody is there who would take it");
    }

    pub(super) fn take(&self, _: u64) -> Option<Box<R>> {
        None
    }
}

pub(super) struct Relief;

impl Relief {
    pub(super) fn is_there<R: Runs>(_: &Post<R>) -> bool {
        false
    }
}
