//! The loop of a worker's thread.
//!
//! A ring is *polled* or *armed*. The driver of a polled ring has been asked not to kick: the worker reads the ring again and
//! again. A polled ring that has been empty for as long as the [`PollWindow`] says is armed: its driver is asked to kick,
//! and its kick descriptor wakes the worker, which sleeps in `epoll_wait` when no ring is polled.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender};
use std::task::Waker;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::any_ring::{AnyRing, with_ring};
use super::mailbox::{Command, Inbox, RingCount};
use super::poll::{PollWindow, Polling};
use super::quick::{Batch, Quick};
use super::relief::{Post, Relief, Runs};
use super::report::RingReport;
use super::ring::{RingKey, Served};
use super::sharing::Sharing;
use super::state::{Slot, State};
use super::throttled::Throttled;
use super::timer::Timer;
use crate::disk::Disk;

/// Events taken from the kernel at once.
const EVENTS: usize = 64;

/// The mailbox's event; no ring has this number.
const MAILBOX: u64 = u64::MAX;

/// That of what the kernel has done by itself.
const TRANSFERS: u64 = u64::MAX - 1;

/// How often empty rings are polled before the clock is read for the first time: 1 to 3 µs, less than it takes to sleep.
const UNTIMED_POLLS: u32 = 32;

/// How often they are polled between two readings of the clock.
const POLLS: u32 = 16;

/// How long kicks of armed rings may wait while others are polled.
const KICK_CHECK_INTERVAL: Duration = Duration::from_micros(20);

/// A polled ring that was empty at so many checks for kicks, one after the other, while others were not, is armed.
const MAX_IDLE_CHECKS: u8 = 100;

/// A worker's thread: its rings, and which of them are polled.
#[derive(Debug)]
pub(super) struct Runner<D: Disk> {
    inbox: Inbox<D>,
    epoll: Epoll,
    /// A ring's index is what epoll reports of it. The event of a ring that is gone may poll the one that has its place.
    slots: Vec<Option<Slot<D>>>,
    /// When the ring in each place has come.
    since: Vec<Instant>,
    /// The rings that are polled; each gets a batch in its turn.
    polled: Vec<usize>,
    /// How many are armed, and one more where disks share the worker: if none is, neither epoll nor the clock need be asked.
    armed: usize,
    throttled: Throttled,
    sharing: Sharing,
    /// Rings that are leaving, and who waits for each.
    leaving: Vec<(usize, SyncSender<Option<AnyRing<D>>>)>,
    window: PollWindow,
    last_kick_check: Instant,
    /// It has just been woken, and so knows who has kicked.
    has_just_woken: bool,
    waker: Waker,
    /// What it is to do itself of its rings' requests, as soon as each ring has had its turn.
    quick: Quick<D>,
    timer: Timer,
    /// Where its thread leaves it meanwhile.
    post: Arc<Post<Self>>,
}

impl<D: Disk> Runs for Runner<D> {
    fn go_on(self: Box<Self>) {
        // The thread before may have been about to look.
        self.inbox.waker.nudge();
        self.run();
    }
}

impl<D: Disk> Runner<D> {
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new(inbox: Inbox<D>, polling: Polling, post: Arc<Post<Self>>) -> io::Result<Box<Self>> {
        let epoll = Epoll::new()?;
        // Edge-triggered, here and for kicks: they wake us without having to be read.
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, MAILBOX);
        epoll.ctl(ControlOperation::Add, inbox.waker.event().as_raw_fd(), event)?;
        Ok(Box::new(Self {
            waker: Waker::from(inbox.waker.clone()),
            inbox,
            epoll,
            slots: Vec::new(),
            since: Vec::new(),
            polled: Vec::new(),
            armed: 0,
            throttled: Throttled::default(),
            sharing: Sharing::new(post.watch().clone()),
            leaving: Vec::new(),
            window: PollWindow::new(polling),
            last_kick_check: Instant::now(),
            has_just_woken: false,
            quick: Quick::default(),
            timer: Timer::new(post.is_behind()),
            post,
        }))
    }

    /// Serves its rings until it is told to stop, or its thread is relieved. Sleeps when there is nothing to do.
    pub(super) fn run(mut self: Box<Self>) {
        let _interruptible = self.sharing.on_this_thread();
        loop {
            if self.inbox.waker.take_wake() {
                match self.wake_up() {
                    Some(runner) => self = runner,
                    None => return,
                }
            }
            if !self.serve_polled() {
                self.rest();
            } else if self.timer.counts() {
                self.time();
            } else if self.armed > 0 && !std::mem::take(&mut self.has_just_woken) {
                self.check_kicks(Instant::now());
            }
        }
    }

    /// No ring had anything to do.
    fn rest(&mut self) {
        if self.timer.is_timing() {
            return self.timer.stop(&mut self.polled);
        }
        self.wait();
        if self.timer.is_due() {
            self.time();
        }
    }

    /// Has the next turn of a ring timed, or says how long it took.
    #[cold]
    #[inline(never)]
    fn time(&mut self) {
        let Self { slots, polled, timer, .. } = self;
        timer.step(polled, |number| slots.get(number).and_then(Option::as_ref).map(|slot| &slot.ring));
        if self.timer.is_timing() {
            self.check_kicks(Instant::now());
        }
    }

    /// One batch for each polled ring that has something to do. Returns whether any had.
    #[inline]
    fn serve_polled(&mut self) -> bool {
        let mut has_served = false;
        let mut turn = 0;
        while let Some(&number) = self.polled.get(turn) {
            let Some(slot) = self.slots.get_mut(number).and_then(Option::as_mut) else { break };
            if slot.ring.has_work() {
                has_served = true;
                slot.state = State::Polled { idle_checks: 0 };
                self.sharing.turn_of(&slot.ring);
                let rests = match with_ring!(&mut slot.ring, ring => ring.serve(&self.waker)) {
                    Served::Held => Some(State::of_held(&slot.ring)),
                    Served::Begun => {
                        self.quick.add(&mut slot.ring);
                        self.inbox.waker.nudge();
                        slot.ring.is_broken().then_some(State::Broken)
                    }
                    _ if slot.ring.is_broken() => Some(State::Broken),
                    Served::Idle | Served::More => None,
                };
                if let Some(state) = rests {
                    self.sharing.turn_is_over();
                    slot.state = state;
                    self.throttled.note(state);
                    self.armed = self.armed.saturating_add(state.is_armed().into());
                    self.polled.swap_remove(turn);
                    continue;
                }
            }
            turn = turn.wrapping_add(1);
        }
        has_served
    }

    /// Nothing is to be done: waits until there is, polling or sleeping.
    fn wait(&mut self) {
        if !self.window.length().is_zero() && !self.polled.is_empty() && self.poll(UNTIMED_POLLS) {
            return;
        }
        if self.window.may_sleep() && self.wait_for_media() {
            return;
        }
        let start = Instant::now();
        let mut now = start;
        while !self.polled.is_empty() && now.saturating_duration_since(start) < self.window.length() {
            self.check_kicks(now);
            let has_work = self.poll(POLLS);
            now = Instant::now();
            if has_work {
                return self.window.adapt(now.saturating_duration_since(start));
            }
        }
        if self.arm_polled() {
            return;
        }
        self.sleep();
        self.window.adapt(self.last_kick_check.saturating_duration_since(start));
    }

    fn sleep(&mut self) {
        if self.sharing.is_shared() {
            let since = Instant::now().saturating_duration_since(self.last_kick_check);
            self.timer.took(since, self.polled.len());
            self.sharing.pause();
        }
        self.wait_for_events(self.throttled.timeout_ms(&self.slots));
        self.has_just_woken = true;
        self.last_kick_check = Instant::now();
        self.sharing.go_on();
    }

    /// Sleeps, if all that is polled waits for media: what comes from there wakes it, and no pause of a driver is learnt from that.
    fn wait_for_media(&mut self) -> bool {
        let waits = |number: &usize| {
            self.slots.get(*number).and_then(Option::as_ref).is_some_and(|it| it.ring.waits_for_media())
        };
        if self.polled.is_empty() || !self.polled.iter().all(waits) {
            return false;
        }
        if !self.arm_polled() {
            self.sleep();
        }
        true
    }

    /// Polls the rings and the mailbox so many times. Returns whether there is something to do.
    #[inline]
    fn poll(&self, times: u32) -> bool {
        let has_work = |number: &usize| {
            self.slots.get(*number).and_then(Option::as_ref).is_some_and(|it| it.ring.has_work())
        };
        for _ in 0..times {
            if self.polled.iter().any(has_work) || self.inbox.waker.is_woken() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Arms the polled rings. Returns whether one has got something to do meanwhile.
    fn arm_polled(&mut self) -> bool {
        let Self { slots, polled, armed, throttled, .. } = self;
        polled.retain(|number| {
            let Some(slot) = slots.get_mut(*number).and_then(Option::as_mut) else { return false };
            if slot.ring.arm() {
                return true;
            }
            slot.state = State::at_rest(&slot.ring);
            throttled.note(slot.state);
            *armed = armed.saturating_add(1);
            false
        });
        !polled.is_empty()
    }

    /// Every [`KICK_CHECK_INTERVAL`]: asks epoll for kicks of armed rings while others are polled, and arms those that have
    /// been empty for long. Since the last one there was no more than a round: it is looked who made it long.
    fn check_kicks(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.last_kick_check);
        if self.armed == 0 || since < KICK_CHECK_INTERVAL {
            return;
        }
        self.last_kick_check = now;
        if self.sharing.is_shared() {
            self.timer.took(since, self.polled.len());
            self.sharing.next_round();
            if self.armed == 1 {
                return;
            }
        }
        self.wait_for_events(0);
        let Self { slots, polled, armed, throttled, .. } = self;
        polled.retain(|number| {
            let Some(slot) = slots.get_mut(*number).and_then(Option::as_mut) else { return false };
            let State::Polled { idle_checks } = &mut slot.state else { return false };
            *idle_checks = idle_checks.saturating_add(1);
            if *idle_checks <= MAX_IDLE_CHECKS || slot.ring.arm() {
                return true;
            }
            slot.state = State::at_rest(&slot.ring);
            throttled.note(slot.state);
            *armed = armed.saturating_add(1);
            false
        });
    }

    fn wait_for_events(&mut self, timeout_ms: i32) {
        let mut events = [EpollEvent::default(); EVENTS];
        // Only EINTR can fail here, and then there is nothing to do but to poll again.
        let count = self.epoll.wait(timeout_ms, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            if event.data() == TRANSFERS {
                self.inbox.waker.nudge();
            }
            // The mailbox's event has woken us, which is all it is for.
            if let Ok(number) = usize::try_from(event.data()) {
                self.poll_from_now_on(number, State::Armed);
            }
        }
        if self.throttled.has_some() {
            let Self { slots, polled, armed, throttled, .. } = self;
            throttled.resume(slots, polled, armed);
        }
    }

    /// Has each ring limited as its device says by now.
    #[cold]
    fn renew_limits(&mut self) {
        for number in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(number).and_then(Option::as_mut) else { continue };
            slot.ring.renew_limits();
            if slot.ring.held_until().is_none() {
                self.poll_from_now_on(number, State::Throttled);
            }
        }
    }

    /// Polls a ring from now on, if it is in this state.
    fn poll_from_now_on(&mut self, number: usize, from: State) {
        let Some(slot) = self.slots.get_mut(number).and_then(Option::as_mut) else { return };
        if slot.state == from {
            slot.state = State::Polled { idle_checks: 0 };
            self.polled.push(number);
            self.armed = self.armed.saturating_sub(usize::from(from.is_armed()));
        }
    }

    /// Does what its rings have left to it, and what it is asked. `None`: the thread is to end.
    #[cold]
    #[inline(never)]
    fn wake_up(mut self: Box<Self>) -> Option<Box<Self>> {
        self.sharing.pause();
        if self.timer.is_timing() {
            self.timer.stop(&mut self.polled);
        }
        while let Some(batch) = self.quick.next() {
            self = self.leave_for(batch)?;
        }
        let goes_on = self.read_mailbox();
        self.sharing.go_on();
        goes_on.then_some(self)
    }

    /// Does a batch, while the rings are at the post. `None`: the thread was relieved, and is to end.
    fn leave_for(mut self: Box<Self>, mut batch: Batch<D>) -> Option<Box<Self>> {
        let (post, waker) = (self.post.clone(), self.waker.clone());
        if !Relief::is_there(&post) {
            // Nobody would relieve it.
            batch.device.submit(&mut batch.tasks);
            self.quick.keep(batch.tasks);
            return Some(self);
        }
        let time = post.leave(self);
        batch.run();
        let Some(mut runner) = post.take(time) else {
            waker.wake();
            return None;
        };
        runner.quick.keep(batch.tasks);
        Some(runner)
    }

    /// Does what the control plane asks, and polls rings whose flush may be done. Returns whether to go on. A reply that
    /// nobody waits for any more is dropped.
    #[cold]
    fn read_mailbox(&mut self) -> bool {
        for number in 0..self.slots.len() {
            self.poll_from_now_on(number, State::Held);
            // Requests of it have come back, which no kick tells.
            if self.slots.get(number).and_then(Option::as_ref).is_some_and(|slot| slot.ring.has_work()) {
                self.poll_from_now_on(number, State::Armed);
                self.poll_from_now_on(number, State::Throttled);
            }
        }
        self.give_back();
        while let Ok(command) = self.inbox.commands.try_recv() {
            match command {
                Command::Attach(ring, answer) => drop(answer.send(self.attach(ring))),
                Command::Detach(key, answer) => self.detach(key, answer),
                Command::Count(answers) => self.count(&answers),
                Command::Report(answers) => self.report(&answers),
                Command::RenewLimits(done) => {
                    self.renew_limits();
                    drop(done);
                }
                Command::TellSlow => self.slots.iter_mut().flatten().for_each(|slot| slot.ring.tell_slow()),
                Command::Stop(answer) => {
                    // Ignored: nobody waits for the thread.
                    let _ = answer.send(std::thread::current().id());
                    return false;
                }
            }
        }
        true
    }

    fn count(&self, answers: &Sender<RingCount<D>>) {
        for slot in self.slots.iter().flatten() {
            // Ignored: whoever has asked has stopped waiting.
            let _ = answers.send((slot.ring.device().clone(), slot.ring.key(), *slot.ring.counters()));
        }
    }

    #[cold]
    fn report(&self, answers: &Sender<RingReport<D>>) {
        for (slot, since) in self.slots.iter().zip(&self.since) {
            let Some(Slot { ring, state }) = slot else { continue };
            // Ignored: whoever has asked has stopped waiting.
            let _ = answers.send(RingReport::of(ring, state.word(), *since));
        }
    }

    fn attach(&mut self, mut ring: AnyRing<D>) -> io::Result<()> {
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, free as u64);
        let kick = ring.kick().as_raw_fd();
        let _shared = Sharing::with(&ring, &self.slots);
        ring.hold_ups().watch(|| self.epoll.ctl(ControlOperation::Add, kick, event))?;
        self.quick.attend(&mut ring, &self.epoll, TRANSFERS)?;
        ring.renew_limits();
        let slot = Some(Slot { ring, state: State::Polled { idle_checks: 0 } });
        match self.slots.get_mut(free) {
            Some(place) => *place = slot,
            None => self.slots.push(slot),
        }
        self.since.resize(self.slots.len(), Instant::now());
        self.since.get_mut(free).into_iter().for_each(|since| *since = Instant::now());
        // Room for each of them, so that nothing is allocated after this (D7).
        self.polled.push(free);
        self.polled.reserve(self.slots.len().saturating_sub(self.polled.len()));
        self.timer.make_room(self.slots.len());
        self.see_who_shares();
        Ok(())
    }

    fn see_who_shares(&mut self) {
        let armed = self.armed.saturating_sub(self.sharing.is_shared().into());
        self.sharing.update(&self.slots);
        self.armed = armed.saturating_add(self.sharing.is_shared().into());
        self.last_kick_check = Instant::now();
    }

    /// Gives a ring back, now or when no request of it is under way any more.
    fn detach(&mut self, key: RingKey, answer: SyncSender<Option<AnyRing<D>>>) {
        let has_key = |slot: &Option<Slot<D>>| slot.as_ref().is_some_and(|slot| slot.ring.key() == key);
        let Some(number) = self.slots.iter().position(has_key) else {
            // Ignored: nobody waits for it.
            let _ = answer.send(None);
            return;
        };
        if let Some(slot) = self.slots.get_mut(number).and_then(Option::as_mut) {
            let state = std::mem::replace(&mut slot.state, State::Leaving);
            self.armed = self.armed.saturating_sub(usize::from(state.is_armed()));
        }
        self.polled.retain(|polled| *polled != number);
        self.leaving.push((number, answer));
        self.give_back();
    }

    /// Gives back the rings that are leaving and have nothing under way.
    fn give_back(&mut self) {
        for (number, answer) in std::mem::take(&mut self.leaving) {
            let ring = self.slots.get_mut(number).and_then(Option::as_mut).map(|slot| &mut slot.ring);
            if ring.is_some_and(|ring| !ring.drain(&self.waker)) {
                self.leaving.push((number, answer));
                continue;
            }
            // Ignored: nobody waits for it; it is dropped.
            let _ = answer.send(self.take(number));
        }
    }

    fn take(&mut self, number: usize) -> Option<AnyRing<D>> {
        let Slot { mut ring, .. } = self.slots.get_mut(number)?.take()?;
        ring.resume();
        // Cannot fail for a descriptor that was added; the ring still holds it open.
        let (kick, nothing) = (ring.kick().as_raw_fd(), EpollEvent::default());
        let _ = ring.hold_ups().watch(|| self.epoll.ctl(ControlOperation::Delete, kick, nothing));
        self.see_who_shares();
        Some(ring)
    }
}
