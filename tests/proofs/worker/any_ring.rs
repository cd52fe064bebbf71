//! In place of a ring: a number that its driver counts up, and what `Ring` promises a worker. The rings themselves have models
//! of their own (`rings/`).

use std::marker::PhantomData;
use std::sync::Arc;
use std::task::Waker;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use super::ring::{RingKey, Served};
use crate::disk::Disk;
use crate::stubs::blk::{Counters, Device};
use crate::sync::Event;
use crate::sync::kernel::{EventFd, Instant};

/// What driver and device share.
#[derive(Debug)]
pub struct Shared {
    available: AtomicU32,
    used: AtomicU32,
    no_kicks: AtomicBool,
    kick: EventFd,
    call: Event,
    /// Requests wait for a flush: who is to be woken, and whether it is done.
    is_flushed: AtomicBool,
    begun: Event,
    waker: Mutex<Option<Waker>>,
}

impl Shared {
    pub fn new(waits_for_flush: bool) -> Self {
        Self {
            available: AtomicU32::new(0),
            used: AtomicU32::new(0),
            no_kicks: AtomicBool::new(false),
            kick: EventFd::new(0).unwrap(),
            call: Event::new(),
            is_flushed: AtomicBool::new(!waits_for_flush),
            begun: Event::new(),
            waker: Mutex::new(None),
        }
    }

    /// The driver: one request after the other.
    pub fn drive(&self, requests: u32) {
        for number in 1..=requests {
            self.available.store(number, Ordering::Release);
            fence(Ordering::SeqCst);
            if !self.no_kicks.load(Ordering::Relaxed) {
                self.kick.write(1).unwrap();
            }
            while self.used.load(Ordering::Acquire) < number {
                self.call.wait();
            }
        }
    }

    /// The flusher: as `disk/durability/flush.rs`.
    pub fn flush(&self) {
        self.begun.wait();
        let waker = self.waker.lock().unwrap().take().unwrap();
        self.is_flushed.store(true, Ordering::Release);
        waker.wake();
    }
}

/// Nothing takes long.
pub(super) struct HoldUps;

impl HoldUps {
    pub(super) fn watch<R>(&self, work: impl FnOnce() -> R) -> R {
        work()
    }
}

#[derive(Debug)]
pub struct AnyRing<D: Disk> {
    shared: Arc<Shared>,
    taken: u32,
    is_held: bool,
    device: Arc<Device<D>>,
    counters: Counters,
}

/// There is one format.
macro_rules! with_ring {
    ($any:expr, $ring:ident => $result:expr) => {{
        let $ring = $any;
        $result
    }};
}
pub(super) use with_ring;

impl<D: Disk> AnyRing<D> {
    pub fn start(shared: &Arc<Shared>) -> Self {
        Self {
            shared: shared.clone(),
            taken: 0,
            is_held: false,
            device: Arc::new(Device(PhantomData)),
            counters: Counters,
        }
    }

    pub fn key(&self) -> RingKey {
        RingKey(1)
    }

    pub fn kick(&self) -> &EventFd {
        &self.shared.kick
    }

    pub(super) fn waits_for_media(&self) -> bool {
        false
    }

    pub fn leave_quick(&mut self) {}

    /// Nothing limits it.
    pub fn renew_limits(&mut self) {}

    pub fn tell_slow(&mut self) {}

    pub fn resume(&mut self) {}

    pub fn held_until(&self) -> Option<Instant> {
        None
    }

    pub fn is_broken(&self) -> bool {
        false
    }

    pub fn device(&self) -> &Arc<Device<D>> {
        &self.device
    }

    pub(super) fn hold_ups(&self) -> HoldUps {
        HoldUps
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether all that was taken is published.
    pub fn is_quiet(&self) -> bool {
        self.taken == self.shared.used.load(Ordering::Relaxed)
    }

    /// Nothing of it is ever under way.
    pub fn drain(&mut self, _: &Waker) -> bool {
        true
    }

    pub fn has_work(&self) -> bool {
        self.is_held || self.shared.available.load(Ordering::Acquire) != self.taken
    }

    pub fn arm(&mut self) -> bool {
        self.shared.no_kicks.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.has_work()
    }

    pub fn serve(&mut self, waker: &Waker) -> Served {
        let shared = &self.shared;
        if self.is_held && !shared.is_flushed.load(Ordering::Acquire) {
            return Served::Held;
        }
        shared.no_kicks.store(true, Ordering::Relaxed);
        self.taken = shared.available.load(Ordering::Acquire);
        if !self.is_held && !shared.is_flushed.load(Ordering::Acquire) {
            *shared.waker.lock().unwrap() = Some(waker.clone());
            shared.begun.signal();
            self.is_held = true;
            return Served::Held;
        }
        self.is_held = false;
        shared.used.store(self.taken, Ordering::Release);
        shared.call.signal();
        Served::Idle
    }
}
