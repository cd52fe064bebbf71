//! Tests of the threads, with tasks that begin and end when the test says so.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::*;
use crate::disk::executor::pause::FIRST_PAUSE;
use crate::limits::bounds::MAX_IO_THREADS;

/// Says that a step has begun, and ends it when the test says so.
struct Steps {
    number: u64,
    steps: u32,
    is_exclusive: bool,
    begun: Sender<u64>,
    end: Receiver<()>,
    done: Sender<u64>,
}

impl Task for Steps {
    fn is_exclusive(&self) -> bool {
        self.is_exclusive
    }
    fn name(&self) -> TaskName {
        TaskName { operation: "step", offset: self.number, len_bytes: 1 }
    }
    fn run(mut self) -> Option<Self> {
        self.begun.send(self.number).unwrap();
        self.end.recv().unwrap();
        self.steps -= 1;
        if self.steps != 0 {
            return Some(self);
        }
        self.done.send(self.number).unwrap();
        None
    }
}

struct Fixture {
    threads: Threads<Steps>,
    begun: (Sender<u64>, Receiver<u64>),
    done: (Sender<u64>, Receiver<u64>),
}

impl Fixture {
    fn new() -> Self {
        Self { threads: Threads::new(ThreadKind::Io, MAX_IO_THREADS), begun: channel(), done: channel() }
    }

    /// Submits one; what is sent to the sender ends it.
    fn submit(&self, number: u64, is_exclusive: bool) -> Sender<()> {
        self.submit_steps(number, 1, is_exclusive)
    }

    /// As [`submit`](Self::submit); what is sent ends a step.
    fn submit_steps(&self, number: u64, steps: u32, is_exclusive: bool) -> Sender<()> {
        let (sender, end) = channel();
        let (begun, done) = (self.begun.0.clone(), self.done.0.clone());
        let mut tasks = vec![Steps { number, steps, is_exclusive, begun, end, done }];
        self.threads.submit(&mut tasks).unwrap();
        assert!(tasks.is_empty());
        sender
    }
}

#[test]
fn as_many_as_there_may_be_threads_run_at_once_and_the_others_follow() {
    let fixture = Fixture::new();
    let total = MAX_IO_THREADS as u64 + 3;
    let ends: Vec<_> = (0..total).map(|number| fixture.submit(number, false)).collect();
    let mut begun: Vec<_> = fixture.begun.1.iter().take(MAX_IO_THREADS).collect();
    begun.sort_unstable();
    assert_eq!(begun, (0..MAX_IO_THREADS as u64).collect::<Vec<_>>(), "in the order of submission");
    assert!(fixture.begun.1.try_recv().is_err());
    let (count, oldest) = fixture.threads.unfinished();
    assert_eq!((count as u64, oldest.unwrap().name.offset), (total, 0));
    ends.iter().for_each(|end| end.send(()).unwrap());
    assert_eq!(fixture.done.1.iter().take(total as usize).count() as u64, total);
    assert!(fixture.threads.shared.state().count <= MAX_IO_THREADS);
}

#[test]
fn one_that_hangs_holds_up_no_other_but_those_that_exclude_each_other() {
    let fixture = Fixture::new();
    let hung = fixture.submit(0, true);
    assert_eq!(fixture.begun.1.recv(), Ok(0));
    let second = fixture.submit(1, true);
    let other = fixture.submit(2, false);
    assert_eq!(fixture.begun.1.recv(), Ok(2));
    other.send(()).unwrap();
    assert_eq!(fixture.done.1.recv(), Ok(2));
    assert!(fixture.begun.1.try_recv().is_err(), "it excludes the one that runs");
    assert_eq!(fixture.threads.unfinished().1.unwrap().name.offset, 0);
    hung.send(()).unwrap();
    second.send(()).unwrap();
    assert_eq!((fixture.done.1.recv(), fixture.done.1.recv()), (Ok(0), Ok(1)));
}

#[test]
fn one_of_many_steps_lets_those_in_between_that_it_excludes() {
    let fixture = Fixture::new();
    let long = fixture.submit_steps(0, 2, true);
    assert_eq!(fixture.begun.1.recv(), Ok(0));
    let short = fixture.submit(1, true);
    long.send(()).unwrap();
    assert_eq!(fixture.begun.1.recv(), Ok(1));
    assert_eq!(fixture.threads.unfinished().0, 2, "the rest of the long one is not lost");
    short.send(()).unwrap();
    assert_eq!((fixture.done.1.recv(), fixture.begun.1.recv()), (Ok(1), Ok(0)));
    long.send(()).unwrap();
    assert_eq!(fixture.done.1.recv(), Ok(0));
}

#[test]
fn what_the_caller_does_itself_excludes_others_as_what_threads_do() {
    const NAME: TaskName = TaskName { operation: "write", offset: 7, len_bytes: 1 };
    let fixture = Fixture::new();
    let claim = fixture.threads.claim(NAME, 3).unwrap();
    assert!(fixture.threads.claim(NAME, 1).is_none(), "nobody does such at the same time");
    let excluded = fixture.submit(1, true);
    let other = fixture.submit(2, false);
    assert_eq!(fixture.begun.1.recv(), Ok(2));
    let (count, oldest) = fixture.threads.unfinished();
    assert_eq!((count, oldest.unwrap().name), (5, NAME));
    other.send(()).unwrap();
    assert_eq!(fixture.done.1.recv(), Ok(2));
    assert!(fixture.begun.1.try_recv().is_err(), "it waits for the claim");
    drop(claim);
    assert_eq!(fixture.begun.1.recv(), Ok(1), "a thread is found for it");
    assert!(fixture.threads.claim(NAME, 1).is_none(), "a thread does one");
    excluded.send(()).unwrap();
    assert_eq!(fixture.done.1.recv(), Ok(1));
}

#[test]
fn one_that_was_slow_is_followed_by_a_pause() {
    const NAME: TaskName = TaskName { operation: "write", offset: 0, len_bytes: 1 };
    let fixture = Fixture::new();
    let claim = fixture.threads.claim(NAME, 1).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let ended = Instant::now();
    drop(claim);
    while fixture.threads.claim(NAME, 1).is_none() {
        std::thread::yield_now();
    }
    assert!(ended.elapsed() >= FIRST_PAUSE, "it was for threads only after {:?}", ended.elapsed());
}

#[test]
fn a_thread_that_is_free_is_used_again() {
    let fixture = Fixture::new();
    for number in 0..20 {
        fixture.submit(number, number % 2 == 0).send(()).unwrap();
        assert_eq!(fixture.done.1.recv(), Ok(number));
        while fixture.threads.shared.state().idle == 0 {
            std::thread::yield_now();
        }
    }
    assert_eq!(fixture.threads.shared.state().count, 1);
}

/// What becomes of tasks that can be announced.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Announced(u64),
    /// Somebody waits for it.
    Waits(u64),
    Done(u64),
    Heard,
}

/// It is announced, and done when the test says so.
struct Fetch {
    number: u64,
    is_ready: bool,
    events: Sender<Event>,
    end: Receiver<()>,
}

struct Ear(Mutex<Sender<Event>>);

impl std::task::Wake for Ear {
    fn wake(self: Arc<Self>) {
        self.0.lock().unwrap().send(Event::Heard).unwrap();
    }
}

impl Task for Fetch {
    fn is_exclusive(&self) -> bool {
        false
    }
    fn name(&self) -> TaskName {
        TaskName { operation: "fetch", offset: self.number, len_bytes: 1 }
    }
    fn can_be_announced(&self) -> bool {
        true
    }
    fn announce(&self) {
        self.events.send(Event::Announced(self.number)).unwrap();
    }
    fn try_run(self) -> Result<Option<Waker>, Self> {
        if !self.is_ready {
            return Err(self);
        }
        self.events.send(Event::Done(self.number)).unwrap();
        Ok(Some(Waker::from(Arc::new(Ear(Mutex::new(self.events.clone()))))))
    }
    fn run(self) -> Option<Self> {
        self.events.send(Event::Waits(self.number)).unwrap();
        self.end.recv().unwrap();
        self.events.send(Event::Done(self.number)).unwrap();
        None
    }
}

/// So many of them, and what ends each. Those before the first number are there already when they are looked at.
fn fetches(total: u64, ready: u64, events: &Sender<Event>) -> (Vec<Fetch>, Vec<Sender<()>>) {
    let fetch = |number| {
        let (end, ended) = channel();
        (Fetch { number, is_ready: number < ready, events: events.clone(), end: ended }, end)
    };
    (0..total).map(fetch).unzip()
}

#[test]
fn one_thread_waits_for_as_many_as_it_announces_in_their_order() {
    let threads = Threads::new(ThreadKind::Io, MAX_IO_THREADS);
    let (send, events) = channel();
    let total = ANNOUNCED as u64;
    let (mut tasks, ends) = fetches(total, 0, &send);
    threads.submit(&mut tasks).unwrap();
    let next = || events.recv().unwrap();
    for number in 0..total {
        assert_eq!(next(), Event::Announced(number), "all of them before one is waited for");
    }
    for (number, end) in (0..total).zip(&ends) {
        assert_eq!(next(), Event::Waits(number));
        assert_eq!(threads.shared.state().count, 1);
        let (count, oldest) = threads.unfinished();
        assert_eq!((count as u64, oldest.unwrap().name.offset), (total - number, number));
        end.send(()).unwrap();
        assert_eq!(next(), Event::Done(number));
    }
}

#[test]
fn what_hangs_leaves_a_thread_for_those_that_come_later() {
    let threads = Threads::new(ThreadKind::Io, MAX_IO_THREADS);
    let (send, events) = channel();
    let (mut tasks, ends) = fetches(2, 0, &send);
    threads.submit(&mut tasks).unwrap();
    while events.recv().unwrap() != Event::Waits(0) {}
    let total = ANNOUNCED as u64;
    let (mut later, later_ends) = fetches(total, 0, &send);
    threads.submit(&mut later).unwrap();
    while events.recv().unwrap() != Event::Waits(1) {}
    ends.iter().chain(&later_ends).for_each(|end| end.send(()).unwrap());
    let done = std::iter::from_fn(|| events.recv().ok()).filter(|event| matches!(event, Event::Done(_)));
    assert_eq!(done.take(2 + ANNOUNCED).count(), 2 + ANNOUNCED);
}

#[test]
fn nobody_waits_for_media_while_somebody_is_not_told() {
    let threads = Threads::new(ThreadKind::Io, MAX_IO_THREADS);
    let (send, events) = channel();
    let ready = UNHEARD as u64 + 2;
    let (mut tasks, ends) = fetches(ready + 1, ready, &send);
    threads.submit(&mut tasks).unwrap();
    let is_other = |event: &Event| !matches!(event, Event::Announced(_));
    let events: Vec<_> = events.iter().filter(is_other).take(2 * (UNHEARD + 2) + 1).collect();
    let (done, heard) = (|event: &Event| matches!(event, Event::Done(_)), |it: &Event| *it == Event::Heard);
    assert!(events[..UNHEARD].iter().all(done) && events[UNHEARD..2 * UNHEARD].iter().all(heard));
    assert!(events[2 * UNHEARD..2 * UNHEARD + 2].iter().all(done));
    assert!(events[2 * UNHEARD + 2..2 * UNHEARD + 4].iter().all(heard));
    assert_eq!(events.last(), Some(&Event::Waits(ready)));
    ends[UNHEARD + 2].send(()).unwrap();
}
