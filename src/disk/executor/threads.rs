//! A pool of threads: started as they are needed, up to a bound, and ended when there has been nothing to do for a while.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::pause::Pause;
use super::{Task, TaskName, Unfinished};
use crate::limits::bounds::IO_THREAD_IDLE_TIMEOUT;
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// Such threads, of one disk. They are told to end, and waited for, when this value is dropped.
#[derive(Debug)]
pub struct Threads<T: Task> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// There is something to do, or to end for.
    changed: Condvar,
    kind: ThreadKind,
    /// Most of them.
    most: usize,
}

#[derive(Debug)]
struct State<T> {
    /// What no thread has begun, in the order of submission.
    waiting: VecDeque<(T, Instant)>,
    /// How many of them are exclusive.
    waiting_exclusive: usize,
    /// What is being done, and of how many tasks it is the first.
    running: Vec<Option<(Unfinished, usize)>>,
    /// Threads that wait for something to do.
    idle: usize,
    /// Threads that there are.
    count: usize,
    /// A task that is exclusive runs.
    runs_exclusive: bool,
    pause: Pause,
    handles: Vec<JoinHandle<()>>,
    is_stopping: bool,
}

impl<T: Task> Threads<T> {
    /// At most so many, of this kind.
    pub fn new(kind: ThreadKind, most: usize) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            waiting_exclusive: 0,
            running: Vec::new(),
            idle: 0,
            count: 0,
            runs_exclusive: false,
            pause: Pause::default(),
            handles: Vec::new(),
            is_stopping: false,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), kind, most }) }
    }

    /// Has threads do them, as soon as some are free.
    ///
    /// # Errors
    /// There is no thread, and none can be started: the tasks are where they were.
    pub fn submit(&self, tasks: &mut Vec<T>) -> io::Result<()> {
        let mut state = self.shared.state();
        let exclusive = tasks.iter().filter(|task| task.is_exclusive()).count();
        // Of those that exclude each other one alone can be done at a time.
        let is_first = exclusive != 0 && state.waiting_exclusive == 0 && !state.runs_exclusive;
        let wanted = tasks.len() - exclusive + usize::from(is_first);
        Shared::start_for(&self.shared, &mut state, wanted)?;
        state.waiting_exclusive += exclusive;
        let now = Instant::now();
        state.waiting.extend(tasks.drain(..).map(|task| (task, now)));
        let woken = wanted.min(state.idle);
        drop(state);
        // All at once would be one call, but wake those for which there is nothing.
        (0..woken).for_each(|_| self.shared.changed.notify_one());
        Ok(())
    }

    /// As if a thread had taken so many tasks that exclude others, the first of which is this one: the caller does them itself, and
    /// lets go of the claim then. `None` where it would have to wait for others, or where those before were not quick.
    pub fn claim(&self, name: TaskName, count: usize) -> Option<Claim<T>> {
        let now = Instant::now();
        let mut state = self.shared.state();
        if state.runs_exclusive || state.waiting_exclusive != 0 || state.pause.lasts(now) {
            return None;
        }
        state.runs_exclusive = true;
        let place = state.runs((Unfinished { name, since: now }, count));
        Some(Claim { shared: self.shared.clone(), place, since: now })
    }

    /// How many tasks are submitted and not done, and the oldest of them.
    pub fn unfinished(&self) -> (usize, Option<Unfinished>) {
        let state = self.shared.state();
        let waiting =
            state.waiting.iter().map(|(task, since)| (Unfinished { name: task.name(), since: *since }, 1));
        let all = state.running.iter().flatten().copied().chain(waiting);
        all.fold((0, None), |(count, oldest), (task, tasks)| {
            let older = oldest.filter(|it: &Unfinished| it.since <= task.since).unwrap_or(task);
            (count + tasks, Some(older))
        })
    }
}

impl<T: Task> Drop for Threads<T> {
    fn drop(&mut self) {
        let handles = {
            let mut state = self.shared.state();
            state.is_stopping = true;
            std::mem::take(&mut state.handles)
        };
        self.shared.changed.notify_all();
        for handle in handles {
            // A thread that has panicked has said so already.
            let _ = handle.join();
        }
    }
}

impl<T: Task> State<T> {
    /// The next task that may run now.
    fn take(&mut self) -> Option<(T, Instant)> {
        let may_run = |(task, _): &(T, Instant)| !(self.runs_exclusive && task.is_exclusive());
        let next = self.waiting.iter().position(may_run)?;
        let (task, since) = self.waiting.remove(next)?;
        if task.is_exclusive() {
            self.runs_exclusive = true;
            self.waiting_exclusive = self.waiting_exclusive.saturating_sub(1);
        }
        Some((task, since))
    }

    /// The rest of a task has its turn behind the others.
    fn wait_again(&mut self, rest: T, since: Instant) {
        self.waiting_exclusive += usize::from(rest.is_exclusive());
        self.waiting.push_back((rest, since));
    }

    /// Notes what runs. Returns where.
    fn runs(&mut self, running: (Unfinished, usize)) -> usize {
        let place = self.running.iter().position(Option::is_none).unwrap_or(self.running.len());
        match self.running.get_mut(place) {
            Some(free) => *free = Some(running),
            None => self.running.push(Some(running)),
        }
        place
    }

    /// What was noted there has ended.
    fn ran(&mut self, place: usize, is_exclusive: bool) {
        if let Some(done) = self.running.get_mut(place) {
            *done = None;
        }
        if is_exclusive {
            self.runs_exclusive = false;
        }
    }
}

impl<T: Task> Shared<T> {
    /// Starts threads until so many tasks need not wait for one besides those that do, or there are as many as there may be.
    ///
    /// # Errors
    /// There is none at all.
    fn start_for(self: &Arc<Self>, state: &mut State<T>, wanted: usize) -> io::Result<()> {
        let is_one_free = state.waiting_exclusive != 0 && !state.runs_exclusive;
        let free = state.waiting.len().saturating_sub(state.waiting_exclusive) + usize::from(is_one_free);
        let mut missing = free.saturating_add(wanted).saturating_sub(state.idle);
        while missing > 0 && state.count < self.most {
            if let Err(error) = self.start(state) {
                return if state.count == 0 { Err(error) } else { Ok(()) };
            }
            missing -= 1;
        }
        Ok(())
    }

    fn start(self: &Arc<Self>, state: &mut State<T>) -> io::Result<()> {
        let shared = self.clone();
        let handle = thread::spawn(self.kind, self.kind.name(), move || shared.run())?;
        state.handles.retain(|handle| !handle.is_finished());
        state.handles.push(handle);
        state.count += 1;
        Ok(())
    }

    /// A thread: does one task after the other, or steps of them, until there has been nothing to do for a while.
    fn run(&self) {
        let mut state = self.state();
        loop {
            if let Some((task, since)) = state.take() {
                let (name, is_exclusive) = (task.name(), task.is_exclusive());
                let place = state.runs((Unfinished { name, since }, 1));
                drop(state);
                let rest = task.run();
                state = self.state();
                state.ran(place, is_exclusive);
                if let Some(rest) = rest {
                    state.wait_again(rest, since);
                }
                continue;
            }
            if state.is_stopping {
                break;
            }
            state.idle += 1;
            let waited = self.changed.wait_timeout(state, IO_THREAD_IDLE_TIMEOUT);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.waiting.is_empty() {
                break;
            }
        }
        state.count -= 1;
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to do tasks that exclude others, until this value is dropped.
#[derive(Debug)]
#[must_use = "tasks are done while it lasts"]
pub struct Claim<T: Task> {
    shared: Arc<Shared<T>>,
    place: usize,
    since: Instant,
}

impl<T: Task> Drop for Claim<T> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.shared.state();
        state.ran(self.place, true);
        state.pause.learn(now.saturating_duration_since(self.since), now);
        if state.waiting_exclusive == 0 {
            return;
        }
        // Nobody was to do them before.
        if Shared::start_for(&self.shared, &mut state, 0).is_ok() {
            drop(state);
            return self.shared.changed.notify_one();
        }
        // There is no thread: who has claimed them does them.
        while let Some((task, since)) = state.take() {
            let is_exclusive = task.is_exclusive();
            drop(state);
            let rest = task.run();
            state = self.shared.state();
            state.ran(usize::MAX, is_exclusive);
            if let Some(rest) = rest {
                state.wait_again(rest, since);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
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
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(claim);
        assert!(fixture.threads.claim(NAME, 1).is_none(), "it is for threads now");
        while fixture.threads.claim(NAME, 1).is_none() {
            std::thread::yield_now();
        }
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
}
