//! The workers of a process, and which ring goes to which.

use std::io;
use std::num::NonZeroU16;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::aio::prepare;
use super::any_ring::AnyRing;
use super::cpus::Cpus;
use super::hold_ups::HoldUps;
use super::mailbox::{Command, Mailbox, RingCount, mailbox};
use super::poll::Polling;
use super::relief::{Place, Post, Relief};
use super::report::RingReport;
use super::ring::RingKey;
use super::run::Runner;
use super::watch::Watch;
use crate::copy::fault::interruption;
use crate::disk::Disk;

/// A worker, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerId(usize);

/// Why a ring could not be handed over or taken back.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// No thread or no descriptor for a worker.
    #[error("cannot start a worker thread: {0}")]
    Spawn(io::Error),
    /// Its kick descriptor cannot be waited for.
    #[error("the kick descriptor cannot be watched: {0}")]
    Kick(io::Error),
    /// The worker's thread has ended: the process is stopping.
    #[error("the worker has stopped")]
    Stopped,
}

#[derive(Debug)]
struct Worker<D: Disk> {
    mailbox: Mailbox<D>,
    /// Its threads.
    post: Arc<Post<Runner<D>>>,
    /// Rings it owns.
    load: usize,
    /// The disk that it serves alone, or has served last.
    owner: Option<Weak<HoldUps>>,
}

impl<D: Disk> Worker<D> {
    fn is_for(&self, disk: &Arc<HoldUps>) -> bool {
        self.owner.as_ref().is_some_and(|owner| std::ptr::eq(owner.as_ptr(), Arc::as_ptr(disk)))
    }
}

/// The workers. They are started when rings need them: never more than rings were in use at once.
///
/// Rings that are to be driven on certain CPUs have workers there, which drive no others.
#[derive(Debug)]
pub struct Pool<D: Disk> {
    /// Only the control plane takes this lock; workers do not know of it.
    workers: Mutex<Vec<Worker<D>>>,
    /// Most workers for each choice of CPUs; none: one for each CPU.
    most: Option<NonZeroU16>,
    /// CPUs that this process may use, as they were at the start.
    cpus: NonZeroU16,
    polling: Polling,
    relief: Arc<Relief<Runner<D>>>,
    watch: Arc<Watch>,
    /// Pools [beside](Self::beside) this one.
    beside: Mutex<Vec<Weak<Self>>>,
}

impl<D: Disk> Pool<D> {
    /// A pool of at most `most` threads for each choice of CPUs, or of one a CPU; none runs yet.
    pub fn new(most: Option<NonZeroU16>, polling: Polling) -> Self {
        prepare();
        let (workers, cpus, beside) = (Mutex::new(Vec::new()), all_cpus(), Mutex::default());
        // Ignored: a turn may be long then, and its disk leaves behind it.
        let _ = interruption::install();
        Self { workers, most, cpus, polling, relief: Arc::default(), watch: Arc::default(), beside }
    }

    /// A pool for rings that may stand still for long: each has a thread of its own, so that none holds another up.
    /// They are counted with the rings of this one.
    pub fn beside(&self) -> Arc<Self> {
        let (workers, most, beside) = (Mutex::new(Vec::new()), Some(NonZeroU16::MAX), Mutex::default());
        let pool = Arc::new(Self {
            workers,
            most,
            cpus: self.cpus,
            polling: self.polling,
            relief: Arc::default(),
            watch: Arc::default(),
            beside,
        });
        let mut beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        beside.retain(|pool| pool.strong_count() != 0);
        beside.push(Arc::downgrade(&pool));
        pool
    }

    /// Hands a ring to the worker that has the fewest rings on these CPUs (or on any), which polls it at once. One of a disk that
    /// [holds up](HoldUps) its workers has those of the disk's own. Where no worker can be started one that is there takes it.
    ///
    /// # Errors
    /// [`PoolError`]; the ring is stopped then.
    pub fn attach(&self, ring: AnyRing<D>, cpus: Option<&Arc<Cpus>>) -> Result<WorkerId, PoolError> {
        let (answer, answered) = sync_channel(1);
        let id = {
            let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            let apart = Some(ring.hold_ups()).filter(|disk| disk.is_apart());
            let id = match self.choose(&mut workers, cpus, apart) {
                Ok(id) => id,
                // A ring that stands still is worse than one that shares: whoever has taken it back gives it to nobody else.
                Err(error) => match idlest(&workers, apart) {
                    Some(id) => {
                        ring.hold_ups().lacks_worker(&error);
                        id
                    }
                    None => return Err(PoolError::Spawn(error)),
                },
            };
            let worker = workers.get_mut(id.0).ok_or(PoolError::Stopped)?;
            worker.load = worker.load.saturating_add(1);
            worker.mailbox.post(Command::Attach(ring, answer));
            id
        };
        match answered.recv() {
            Ok(Ok(())) => Ok(id),
            Ok(Err(error)) => {
                self.unload(id);
                Err(PoolError::Kick(error))
            }
            Err(_) => Err(PoolError::Stopped),
        }
    }

    /// Takes a ring back: when this returns, everything fetched from it is published and its worker does not
    /// touch it, nor its memory, any more. `None` if that worker does not have it.
    pub fn detach(&self, id: WorkerId, key: RingKey) -> Option<AnyRing<D>> {
        let (answer, answered) = sync_channel(1);
        {
            let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            workers.get(id.0)?.mailbox.post(Command::Detach(key, answer));
        }
        let ring = answered.recv().ok().flatten()?;
        self.unload(id);
        Some(ring)
    }

    /// What each ring that runs has done so far. Workers that do not answer within `patience`, since their media
    /// is slow, are left out.
    pub fn count(&self, patience: Duration) -> Vec<RingCount<D>> {
        self.ask(patience, Command::Count)
    }

    /// The same, with all that is to be seen of a ring.
    pub fn report(&self, patience: Duration) -> Vec<RingReport<D>> {
        self.ask(patience, Command::Report)
    }

    /// Has each ring limited as its device says by now. Workers that are busy for longer than `patience` do so later.
    pub fn renew_limits(&self, patience: Duration) {
        self.ask(patience, Command::RenewLimits);
    }

    /// Has the log say which requests are slow and have not ended, soon.
    pub fn tell_slow(&self) {
        self.post_to_all(&|| Command::TellSlow);
    }

    /// Asks all workers for something of each of their rings.
    fn ask<T>(&self, patience: Duration, command: impl Fn(Sender<T>) -> Command<D>) -> Vec<T> {
        let (answer, answers) = channel();
        self.post_to_all(&|| command(answer.clone()));
        // Only the workers' ends are left: the answers end when the last worker has let go of its own.
        drop(answer);
        let deadline = Instant::now() + patience;
        let next = || answers.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
        std::iter::from_fn(next).collect()
    }

    /// Also of pools beside this one.
    fn post_to_all(&self, command: &dyn Fn() -> Command<D>) {
        self.post_all(command);
        for pool in
            self.beside.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade)
        {
            pool.post_all(command);
        }
    }

    fn post_all(&self, command: &dyn Fn() -> Command<D>) {
        for worker in self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            worker.mailbox.post(command());
        }
    }

    /// Threads running.
    pub fn threads(&self) -> usize {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends all workers; sessions have taken their rings back before.
    pub fn stop(&self) {
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        let ends: Vec<_> = workers
            .iter()
            .map(|worker| {
                let (answer, answered) = sync_channel(1);
                worker.mailbox.post(Command::Stop(answer));
                answered
            })
            .collect();
        for (worker, answered) in workers.iter().zip(ends) {
            worker.post.join(answered.recv().ok());
        }
        self.relief.stop();
        self.watch.stop();
    }

    /// The idlest worker there; a new one as long as none is idle and there may be more.
    ///
    /// # Errors
    /// It cannot be started.
    fn choose(
        &self,
        workers: &mut Vec<Worker<D>>,
        cpus: Option<&Arc<Cpus>>,
        apart: Option<&Arc<HoldUps>>,
    ) -> io::Result<WorkerId> {
        let place = match (apart, cpus) {
            (Some(_), _) => Place::Behind,
            (None, Some(cpus)) => Place::On(cpus.clone()),
            (None, None) => Place::Anywhere,
        };
        let is_there = |(_, worker): &(usize, &Worker<D>)| {
            *worker.post.place() == place && apart.is_none_or(|disk| worker.load == 0 || worker.is_for(disk))
        };
        let there = || workers.iter().enumerate().filter(is_there);
        let most = match (self.most, &place) {
            (Some(most), _) => most,
            (None, Place::On(cpus)) => cpus.count(),
            (None, Place::Anywhere | Place::Behind) => self.cpus,
        };
        let number = match there().min_by_key(|(_, worker)| worker.load) {
            Some((number, worker)) if worker.load == 0 || there().count() >= usize::from(most.get()) => {
                number
            }
            _ => {
                workers.push(self.spawn(workers.len(), place)?);
                workers.len().saturating_sub(1)
            }
        };
        if let (Some(disk), Some(worker)) = (apart, workers.get_mut(number)) {
            worker.owner = Some(Arc::downgrade(disk));
        }
        Ok(WorkerId(number))
    }

    fn spawn(&self, number: usize, place: Place) -> io::Result<Worker<D>> {
        let (mailbox, inbox) = mailbox()?;
        let post = Post::new(&self.relief, &self.watch, format!("worker-{number}"), place);
        let runner = Runner::new(inbox, self.polling, post.clone())?;
        post.start(move |_| Some(runner))?;
        Ok(Worker { mailbox, post, load: 0, owner: None })
    }

    fn unload(&self, id: WorkerId) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = workers.get_mut(id.0) {
            worker.load = worker.load.saturating_sub(1);
        }
    }
}

/// The worker that has the fewest rings, but for those of disks that hold up their own.
fn idlest<D: Disk>(workers: &[Worker<D>], apart: Option<&Arc<HoldUps>>) -> Option<WorkerId> {
    let is_for = |worker: &Worker<D>| apart.is_some_and(|disk| worker.is_for(disk));
    let cost = |(_, worker): &(usize, &Worker<D>)| (worker.post.is_behind() && !is_for(worker), worker.load);
    workers.iter().enumerate().min_by_key(cost).map(|(number, _)| WorkerId(number))
}

fn all_cpus() -> NonZeroU16 {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    u16::try_from(cpus).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN)
}
