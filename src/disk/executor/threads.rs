//! A pool of threads: started as they are needed, up to a bound, and ended when there has been nothing to do for a while.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{Task, Unfinished};
use crate::limits::bounds::IO_THREAD_IDLE_TIMEOUT;
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// Such threads, of one disk. They are told to end, and waited for, when this value is dropped.
#[derive(Debug)]
pub struct Threads<T: Task> {
    shared: Arc<Shared<T>>,
    kind: ThreadKind,
    /// Most of them.
    most: usize,
}

/// What became of a task that was submitted.
#[derive(Debug)]
#[must_use = "without a thread, the task is still to be done"]
pub enum Submit<T> {
    /// A thread does it.
    Begun,
    /// There is no thread, and none can be started.
    NoThread(T, io::Error),
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// There is something to do, or to end for.
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// What no thread has begun, in the order of submission.
    waiting: VecDeque<(T, Instant)>,
    /// How many of them are exclusive.
    waiting_exclusive: usize,
    /// What is being done.
    running: Vec<Option<Unfinished>>,
    /// Threads that wait for something to do.
    idle: usize,
    /// Threads that there are.
    count: usize,
    /// A task that is exclusive runs.
    runs_exclusive: bool,
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
            handles: Vec::new(),
            is_stopping: false,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }), kind, most }
    }

    /// Has a thread do it, as soon as one is free.
    pub fn submit(&self, task: T) -> Submit<T> {
        let mut state = self.shared.state();
        if state.count < self.most
            && state.needs_thread(&task)
            && let Err(error) = self.start(&mut state)
            && state.count == 0
        {
            return Submit::NoThread(task, error);
        }
        state.waiting_exclusive += usize::from(task.is_exclusive());
        state.waiting.push_back((task, Instant::now()));
        drop(state);
        self.shared.changed.notify_one();
        Submit::Begun
    }

    /// How many tasks are submitted and not done, and the oldest of them.
    pub fn unfinished(&self) -> (usize, Option<Unfinished>) {
        let state = self.shared.state();
        let running = state.running.iter().flatten().map(|it| Unfinished { name: it.name, since: it.since });
        let waiting =
            state.waiting.iter().map(|(task, since)| Unfinished { name: task.name(), since: *since });
        let all = running.chain(waiting);
        all.fold((0, None), |(count, oldest), task| {
            let older = oldest.filter(|it: &Unfinished| it.since <= task.since).unwrap_or(task);
            (count + 1, Some(older))
        })
    }

    fn start(&self, state: &mut State<T>) -> io::Result<()> {
        let shared = self.shared.clone();
        let handle = thread::spawn(self.kind, self.kind.name(), move || shared.run())?;
        state.handles.retain(|handle| !handle.is_finished());
        state.handles.push(handle);
        state.count += 1;
        Ok(())
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
    /// Whether a task that is submitted now would wait for a thread.
    fn needs_thread(&self, task: &T) -> bool {
        let exclusive = self.waiting_exclusive + usize::from(task.is_exclusive());
        let startable_exclusive = exclusive.min(usize::from(!self.runs_exclusive));
        let startable = self.waiting.len() - self.waiting_exclusive
            + usize::from(!task.is_exclusive())
            + startable_exclusive;
        startable > self.idle
    }

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
}

impl<T: Task> Shared<T> {
    /// A thread: does one task after the other, or steps of them, until there has been nothing to do for a while.
    fn run(&self) {
        let mut state = self.state();
        loop {
            if let Some((task, since)) = state.take() {
                let (name, is_exclusive) = (task.name(), task.is_exclusive());
                let place = state.running.iter().position(Option::is_none).unwrap_or(state.running.len());
                let running = Some(Unfinished { name, since });
                match state.running.get_mut(place) {
                    Some(free) => *free = running,
                    None => state.running.push(running),
                }
                drop(state);
                let rest = task.run();
                state = self.state();
                if let Some(done) = state.running.get_mut(place) {
                    *done = None;
                }
                if is_exclusive {
                    state.runs_exclusive = false;
                }
                if let Some(rest) = rest {
                    state.waiting_exclusive += usize::from(is_exclusive);
                    state.waiting.push_back((rest, since));
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::disk::executor::TaskName;
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
            let submitted = self.threads.submit(Steps { number, steps, is_exclusive, begun, end, done });
            assert!(matches!(submitted, Submit::Begun));
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
