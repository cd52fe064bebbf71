//! A pool of threads: started as they are needed, up to a bound, and ended when there has been nothing to do for a while.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Instant;

use super::pause::Pause;
use super::{Task, TaskName, Unfinished};
use crate::limits::bounds::IO_THREAD_IDLE_TIMEOUT;
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// So many tasks that were announced keep the media busy while a thread waits for the first of them.
const ANNOUNCED: usize = 32;

/// So many tasks are told of at once, if none of them has to be waited for: to wake somebody takes longer than to do one.
const UNHEARD: usize = 8;

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
    /// How many of them are exclusive, and how many are to be announced.
    waiting_exclusive: usize,
    waiting_unannounced: usize,
    /// What was announced, and no thread has begun.
    announced: VecDeque<(T, Instant)>,
    /// Threads that announce tasks, or wait for one that was.
    announcers: usize,
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
            waiting_unannounced: 0,
            announced: VecDeque::new(),
            announcers: 0,
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
        let unannounced = tasks.iter().filter(|task| task.can_be_announced()).count();
        let others = tasks.len() - exclusive - unannounced + usize::from(is_first);
        let wanted = others + state.missing_announcers(unannounced);
        Shared::start_for(&self.shared, &mut state, wanted)?;
        state.waiting_exclusive += exclusive;
        state.waiting_unannounced += unannounced;
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

    /// Notes a task that no thread does. Returns where.
    pub fn note(&self, name: TaskName) -> usize {
        self.shared.state().runs((Unfinished { name, since: Instant::now() }, 1))
    }

    /// What was noted there is over.
    pub fn forget(&self, place: usize) {
        self.shared.state().ran(place, false);
    }

    /// How many tasks are submitted and not done, and the oldest of them.
    pub fn unfinished(&self) -> (usize, Option<Unfinished>) {
        let state = self.shared.state();
        let waiting = state.announced.iter().chain(&state.waiting);
        let waiting = waiting.map(|(task, since)| (Unfinished { name: task.name(), since: *since }, 1));
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
    /// How many more threads it takes for the tasks that are to be announced, with so many new ones.
    fn missing_announcers(&self, new: usize) -> usize {
        let tasks = new + self.waiting_unannounced + self.announced.len();
        tasks.div_ceil(ANNOUNCED).saturating_sub(self.announcers)
    }

    /// Moves tasks that are to be announced.
    fn take_unannounced(&mut self, into: &mut Vec<(T, Instant)>) {
        let room = ANNOUNCED.saturating_sub(self.announced.len());
        let mut next = 0;
        while self.waiting_unannounced != 0 && into.len() < room {
            match self.waiting.get(next) {
                Some((task, _)) if task.can_be_announced() => {
                    into.extend(self.waiting.remove(next));
                    self.waiting_unannounced -= 1;
                }
                Some(_) => next += 1,
                None => break,
            }
        }
    }

    /// The next task that may run now. First one that was not announced: more threads are there for it.
    fn take(&mut self) -> Option<(T, Instant)> {
        let may_run = |(task, _): &(T, Instant)| {
            !(task.can_be_announced() || self.runs_exclusive && task.is_exclusive())
        };
        let Some(next) = self.waiting.iter().position(may_run) else { return self.announced.pop_front() };
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
        let others = state.waiting_exclusive + state.waiting_unannounced;
        let free = state.waiting.len().saturating_sub(others) + usize::from(is_one_free);
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
        let (mut room, mut unheard) = (Vec::new(), Unheard::default());
        let mut state = self.state();
        loop {
            if state.waiting_unannounced != 0 {
                state = self.announce(state, &mut room);
            }
            if let Some((task, since)) = state.take() {
                let (name, is_exclusive) = (task.name(), task.is_exclusive());
                let place = state.runs((Unfinished { name, since }, 1));
                let announcers = usize::from(task.can_be_announced());
                state.announcers += announcers;
                drop(state);
                let rest = unheard.run(task);
                state = self.state();
                state.ran(place, is_exclusive);
                state.announcers -= announcers;
                if let Some(rest) = rest {
                    state.wait_again(rest, since);
                }
                continue;
            }
            if unheard.tasks != 0 {
                drop(state);
                unheard.wake();
                state = self.state();
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
            let is_empty = state.waiting.is_empty() && state.announced.is_empty();
            if timeout.timed_out() && is_empty {
                break;
            }
        }
        state.count -= 1;
    }

    /// Announces tasks, as many as there is room for; `room` is where they are meanwhile.
    fn announce<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<T>>,
        room: &mut Vec<(T, Instant)>,
    ) -> MutexGuard<'a, State<T>> {
        state.take_unannounced(room);
        // One that is alone is about to be waited for.
        if let [(first, since), ..] = &**room
            && (room.len() > 1 || !state.announced.is_empty() || state.announcers != 0)
        {
            let place = state.runs((Unfinished { name: first.name(), since: *since }, room.len()));
            state.announcers += 1;
            drop(state);
            room.iter().for_each(|(task, _)| task.announce());
            state = self.state();
            state.ran(place, false);
            state.announcers -= 1;
        }
        state.announced.extend(room.drain(..));
        state
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a thread has done, and has told nobody.
#[derive(Debug, Default)]
struct Unheard {
    tasks: usize,
    wakers: Vec<Waker>,
}

impl Unheard {
    /// Does a task, or a step of it, which leaves the rest. Nobody waits for media while he is not told of what is done.
    fn run<T: Task>(&mut self, task: T) -> Option<T> {
        match task.try_run() {
            Ok(waker) => {
                self.tasks += 1;
                self.wakers.extend(waker);
                if self.tasks == UNHEARD {
                    self.wake();
                }
                None
            }
            Err(task) => {
                self.wake();
                task.run()
            }
        }
    }

    fn wake(&mut self) {
        self.tasks = 0;
        self.wakers.drain(..).for_each(Waker::wake);
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
        state = self.shared.announce(state, &mut Vec::new());
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
mod tests;
