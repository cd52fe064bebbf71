//! The loop of a worker's thread.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::task::Waker;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::mailbox::{Command, Inbox, WorkerWaker};
use super::ring::{Ring, RingKey, Served};
use crate::disk::Disk;

/// Events taken from the kernel at once.
const EVENTS: usize = 64;

/// The mailbox's event; no ring has this [`token`].
const MAILBOX: u64 = u64::MAX;

/// A ring's number in the worker.
const fn token(key: RingKey) -> u64 {
    (key.session as u64) << 16 | key.index as u64
}

/// A ring and whether it is queued to be looked at.
#[derive(Debug)]
struct Slot<D: Disk> {
    ring: Box<Ring<D>>,
    is_ready: bool,
}

/// A worker's thread: its rings, and the order in which they are looked at.
#[derive(Debug)]
pub(super) struct Runner<D: Disk> {
    inbox: Inbox<D>,
    epoll: Epoll,
    slots: BTreeMap<u64, Slot<D>>,
    /// Rings with work: first come, first served, a batch at a time.
    ready: VecDeque<u64>,
    /// Rings that wait for a flush.
    held: Vec<u64>,
    waker: Waker,
}

impl<D: Disk> Runner<D> {
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new(inbox: Inbox<D>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, MAILBOX);
        epoll.ctl(ControlOperation::Add, inbox.wake.as_raw_fd(), event)?;
        let waker = Waker::from(Arc::new(WorkerWaker(inbox.wake.clone())));
        let (slots, ready, held) = (BTreeMap::new(), VecDeque::new(), Vec::new());
        Ok(Self { inbox, epoll, slots, ready, held, waker })
    }

    /// Serves its rings until it is told to stop. Sleeps when there is nothing to do.
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            let timeout_ms = if self.ready.is_empty() { -1 } else { 0 };
            // Only EINTR can fail here, and then there is nothing to do but to wait again.
            let count = self.epoll.wait(timeout_ms, &mut events).unwrap_or(0);
            let mut has_mail = false;
            for event in events.iter().take(count) {
                match event.data() {
                    MAILBOX => has_mail = true,
                    token => self.mark_ready(token),
                }
            }
            if has_mail && !self.read_mail() {
                return;
            }
            self.serve_ready();
        }
    }

    /// One batch for each ring that had work when the round began.
    fn serve_ready(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(token) = self.ready.pop_front() else { return };
            // A ring that was taken back may still be queued.
            let Some(slot) = self.slots.get_mut(&token) else { continue };
            let served = slot.ring.serve(&self.waker);
            slot.is_ready = served == Served::More;
            match served {
                Served::Idle => {}
                Served::More => self.ready.push_back(token),
                Served::Held if self.held.contains(&token) => {}
                Served::Held => self.held.push(token),
            }
        }
    }

    fn mark_ready(&mut self, token: u64) {
        if let Some(slot) = self.slots.get_mut(&token).filter(|slot| !slot.is_ready) {
            slot.is_ready = true;
            self.ready.push_back(token);
        }
    }

    /// Obeys the control plane, and looks after rings whose flush may be done. Returns whether to go on. An answer that nobody waits for any more is dropped.
    fn read_mail(&mut self) -> bool {
        // Emptied before anything is looked at, so that nothing is slept over.
        let _ = self.inbox.wake.read();
        for token in std::mem::take(&mut self.held) {
            self.mark_ready(token);
        }
        while let Ok(command) = self.inbox.commands.try_recv() {
            match command {
                Command::Attach(ring, answer) => drop(answer.send(self.attach(ring))),
                Command::Detach(key, answer) => drop(answer.send(self.detach(key))),
                Command::Stop => return false,
            }
        }
        true
    }

    fn attach(&mut self, ring: Box<Ring<D>>) -> io::Result<()> {
        let token = token(ring.key());
        // Edge-triggered: a kick wakes us without the eventfd having to be read.
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
        self.epoll.ctl(ControlOperation::Add, ring.kick().as_raw_fd(), event)?;
        self.slots.insert(token, Slot { ring, is_ready: false });
        self.mark_ready(token);
        Ok(())
    }

    fn detach(&mut self, key: RingKey) -> Option<Box<Ring<D>>> {
        let Slot { ring, .. } = self.slots.remove(&token(key))?;
        let nothing = EpollEvent::default();
        // Cannot fail for a descriptor that was added; the ring still holds it open.
        let _ = self.epoll.ctl(ControlOperation::Delete, ring.kick().as_raw_fd(), nothing);
        Some(ring)
    }
}
