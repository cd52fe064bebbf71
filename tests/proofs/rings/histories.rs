//! Every order of a driver's and a device's steps, up to so many chains: the states that can be reached are visited, each once.
//!
//! A device's steps are those of `worker/ring.rs` and `worker/run.rs`: a turn in which chains are taken and completed or held,
//! with a part of them published on the way or not; a flush that the ring waits for, behind which nothing is taken; arming,
//! and sleep. A driver's: chains, kicks when it likes, taking back what is used, and sleep until it is called.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash as _, Hasher as _};

use super::driver::{Device, Driver, Guest, Offered, Queue, RING_BYTES, Shape};
use super::queue::{Completion, PackedQueue, RingKind, SplitQueue, Virtqueue as _};

/// What was checked.
#[derive(Debug, Default, Clone, Copy)]
pub struct Visited {
    pub states: usize,
    pub steps: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    // The driver's.
    Offer(u16),
    Kick,
    Reap,
    SleepUntil(u16),
    Called,
    // The device's.
    Kicked,
    KickIgnored,
    Begin,
    Complete,
    Hold,
    HoldFlush,
    PublishSome,
    Publish,
    Flushed,
    Arm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Asleep,
    Polled,
    Turn,
    /// The turn is to end: a flush was taken.
    Flush,
    Held,
}

/// What the model knows, besides the driver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Model {
    phase: Phase,
    kick_is_pending: bool,
    call_is_pending: bool,
    /// How many chains behind the first under way the driver waits for.
    sleeps_until: Option<u16>,
    /// Made available and not taken; taken and held; completed and not published; published and not reaped.
    available: VecDeque<Offered>,
    held: VecDeque<Offered>,
    completed: VecDeque<Offered>,
    published: VecDeque<Offered>,
}

struct World<Q> {
    guest: Guest,
    driver: Driver,
    device: Device<Q>,
    model: Model,
    limit: u16,
}

/// A state that others follow.
struct Saved<Q> {
    memory: [u8; RING_BYTES],
    driver: Driver,
    queue: Q,
    model: Model,
    history: Vec<Step>,
}

/// Visits all states of a ring on which `chains` chains are sent.
pub fn visit(shape: Shape, chains: u16) -> Result<Visited, String> {
    match shape.kind {
        RingKind::Split => visit_all::<SplitQueue>(shape, chains),
        RingKind::Packed => visit_all::<PackedQueue>(shape, chains),
    }
}

fn visit_all<Q: Queue>(shape: Shape, limit: u16) -> Result<Visited, String> {
    let guest = Guest::new(shape);
    guest.clear();
    let driver = Driver::new(&guest);
    let device = Device::<Q>::start(&guest);
    let none = VecDeque::new;
    let model = Model {
        phase: Phase::Polled,
        kick_is_pending: false,
        call_is_pending: false,
        sleeps_until: None,
        available: none(),
        held: none(),
        completed: none(),
        published: none(),
    };
    let mut world = World { guest, driver, device, model, limit };
    let mut seen = HashSet::from([world.key()]);
    let mut to_do = vec![world.save(Vec::new())];
    let mut visited = Visited { states: 1, steps: 0 };
    while let Some(state) = to_do.pop() {
        world.restore(&state);
        for step in world.possible() {
            world.restore(&state);
            let told = |error: String| format!("{error}; after {:?}, {step:?}", state.history);
            world.take_step(step).map_err(told)?;
            world.check().map_err(told)?;
            visited.steps += 1;
            if seen.insert(world.key()) {
                visited.states += 1;
                let mut history = state.history.clone();
                history.push(step);
                to_do.push(world.save(history));
            }
        }
    }
    Ok(visited)
}

impl<Q: Queue> World<Q> {
    fn key(&self) -> u128 {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, self.guest.snapshot(), self.driver.key(), &self.model, self.device.queue.hidden())
                .hash(&mut hasher);
            u128::from(hasher.finish())
        };
        half(0) << 64 | half(1)
    }

    fn save(&self, history: Vec<Step>) -> Saved<Q> {
        let (memory, queue) = (self.guest.snapshot(), self.device.queue.clone());
        Saved { memory, driver: self.driver.clone(), queue, model: self.model.clone(), history }
    }

    fn restore(&mut self, state: &Saved<Q>) {
        self.guest.restore(&state.memory);
        self.driver = state.driver.clone();
        self.device.queue = state.queue.clone();
        self.model = state.model.clone();
    }

    fn possible(&self) -> Vec<Step> {
        let (model, driver) = (&self.model, &self.driver);
        let mut steps = Vec::new();
        if driver.chains < self.limit {
            steps.extend((1..=3).filter(|slots| driver.has_room(*slots)).map(Step::Offer));
        }
        if driver.has_to_check() {
            steps.push(Step::Kick);
        }
        match model.sleeps_until {
            None => {
                if !model.published.is_empty() {
                    steps.push(Step::Reap);
                }
                let under_way = driver.under_way.len() as u16;
                steps.extend((0..under_way.min(2)).map(Step::SleepUntil));
            }
            Some(_) if model.call_is_pending => steps.push(Step::Called),
            Some(_) => {}
        }
        match model.phase {
            Phase::Asleep if model.kick_is_pending => steps.push(Step::Kicked),
            Phase::Asleep => {}
            Phase::Polled => {
                if model.kick_is_pending {
                    steps.push(Step::KickIgnored);
                }
                steps.push(Step::Arm);
                if !model.available.is_empty() {
                    steps.push(Step::Begin);
                }
            }
            Phase::Turn => {
                if !model.available.is_empty() {
                    steps.extend([Step::Complete, Step::Hold, Step::HoldFlush]);
                }
                steps.push(Step::Publish);
                if !model.completed.is_empty() {
                    steps.push(Step::PublishSome);
                }
            }
            Phase::Flush => steps.push(Step::Publish),
            Phase::Held => steps.push(Step::Flushed),
        }
        steps
    }

    fn take_step(&mut self, step: Step) -> Result<(), String> {
        let Self { driver, device, model, .. } = self;
        match step {
            Step::Offer(slots) => model.available.push_back(driver.offer(slots)),
            Step::Kick => model.kick_is_pending |= driver.kick_is_wanted(),
            Step::Reap => {
                if !driver.reap()? || model.published.pop_front().is_none() {
                    return Err("a chain that was published is not to be seen".into());
                }
            }
            Step::SleepUntil(ahead) => {
                let is_there = driver.want_call(ahead);
                if is_there != (usize::from(ahead) < model.published.len()) {
                    return Err("the driver sees other used chains than there are".into());
                }
                if is_there {
                    driver.park_calls();
                } else {
                    model.sleeps_until = Some(ahead);
                    // What called it earlier was of before.
                    model.call_is_pending = false;
                }
            }
            Step::Called => {
                driver.park_calls();
                (model.sleeps_until, model.call_is_pending) = (None, false);
            }
            Step::Kicked => (model.phase, model.kick_is_pending) = (Phase::Polled, false),
            Step::KickIgnored => model.kick_is_pending = false,
            Step::Begin => {
                device.queue.park_kicks();
                model.phase = Phase::Turn;
            }
            Step::Complete => self.take(false)?,
            Step::Hold => self.take(true)?,
            Step::HoldFlush => {
                self.take(true)?;
                self.model.phase = Phase::Flush;
            }
            Step::PublishSome => self.publish()?,
            Step::Publish => {
                self.publish()?;
                self.model.phase = if self.model.held.is_empty() { Phase::Polled } else { Phase::Held };
            }
            Step::Flushed => {
                while let Some(held) = model.held.pop_front() {
                    device.queue.complete(completion(held));
                    model.completed.push_back(held);
                }
                self.publish()?;
                self.model.phase = Phase::Polled;
            }
            Step::Arm => {
                let has_more = device.queue.arm_kicks();
                if has_more == model.available.is_empty() {
                    return Err(format!("armed, and there is more: {has_more}"));
                }
                model.phase = if has_more { Phase::Polled } else { Phase::Asleep };
            }
        }
        Ok(())
    }

    /// Takes a chain, which must be the first that is available, and completes it, or keeps it behind others that are held.
    fn take(&mut self, holds: bool) -> Result<(), String> {
        let Some(expected) = self.model.available.pop_front() else { return Err("no chain".into()) };
        let Some((slots, _, taken)) = self.device.take(expected.2)? else {
            return Err("a chain that is available is not found".into());
        };
        if (slots, taken.head()) != (expected.0, expected.1) {
            return Err(format!("taken: {slots} slots, id {}, not {expected:?}", taken.head()));
        }
        if holds || !self.model.held.is_empty() {
            self.model.held.push_back(expected);
        } else {
            self.device.queue.complete(taken);
            self.model.completed.push_back(expected);
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<(), String> {
        let is_called = self.device.queue.publish();
        if is_called && self.model.completed.is_empty() {
            return Err("the driver is called, and nothing was completed".into());
        }
        self.model.call_is_pending |= is_called;
        self.model.published.append(&mut self.model.completed);
        Ok(())
    }

    /// Neither sleeps over something that it is to do, unless it is about to be woken.
    fn check(&self) -> Result<(), String> {
        let (model, driver) = (&self.model, &self.driver);
        let is_woken = model.kick_is_pending || driver.has_to_check();
        if model.phase == Phase::Asleep && !model.available.is_empty() && !is_woken {
            return Err("a kick is lost".into());
        }
        if let Some(ahead) = model.sleeps_until
            && model.published.len() > usize::from(ahead)
            && !model.call_is_pending
        {
            return Err("a call is lost".into());
        }
        if driver.has_more_to_reap() == model.published.is_empty() {
            return Err("the driver sees what is not published, or not what is".into());
        }
        let all = [&model.published, &model.completed, &model.held, &model.available];
        if !all.into_iter().flatten().eq(&driver.under_way) {
            return Err("the chains under way are not those that were sent, in order".into());
        }
        Ok(())
    }
}

/// What was held, given back: a chain that only its number is left of.
fn completion((_, id, written): Offered) -> Completion {
    Completion::of(id, written)
}
