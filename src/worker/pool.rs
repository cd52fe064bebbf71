//! The workers of a process, and which ring goes to which.

use std::io;
use std::num::NonZeroU16;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use super::mailbox::{Command, Mailbox, mailbox};
use super::ring::{Ring, RingKey};
use super::run::Runner;
use crate::copy::fault::AltStack;
use crate::disk::Disk;

/// A worker, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(usize);

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
    thread: JoinHandle<()>,
    /// Rings it owns.
    load: usize,
}

/// The workers. They are started when rings need them: never more than rings were in use at once.
#[derive(Debug)]
pub struct Pool<D: Disk> {
    /// Only the control plane takes this lock; workers do not know of it.
    workers: Mutex<Vec<Worker<D>>>,
    most: usize,
}

impl<D: Disk> Pool<D> {
    /// A pool of at most `most` threads; none runs yet.
    pub fn new(most: NonZeroU16) -> Self {
        Self { workers: Mutex::new(Vec::new()), most: usize::from(most.get()) }
    }

    /// Hands a ring to the worker with the fewest, which looks at it at once.
    ///
    /// # Errors
    /// [`PoolError`]; the ring is stopped then.
    pub fn attach(&self, ring: Box<Ring<D>>) -> Result<Place, PoolError> {
        let (answer, answered) = sync_channel(1);
        let place = {
            let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            let place = self.place(&mut workers)?;
            let worker = workers.get_mut(place.0).ok_or(PoolError::Stopped)?;
            worker.load = worker.load.saturating_add(1);
            worker.mailbox.post(Command::Attach(ring, answer));
            place
        };
        match answered.recv() {
            Ok(Ok(())) => Ok(place),
            Ok(Err(error)) => {
                self.unload(place);
                Err(PoolError::Kick(error))
            }
            Err(_) => Err(PoolError::Stopped),
        }
    }

    /// Takes a ring back: when this returns, everything fetched from it is published and its worker does not
    /// touch it, nor its memory, any more. `None` if that worker does not have it.
    pub fn detach(&self, place: Place, key: RingKey) -> Option<Box<Ring<D>>> {
        let (answer, answered) = sync_channel(1);
        {
            let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            workers.get(place.0)?.mailbox.post(Command::Detach(key, answer));
        }
        let ring = answered.recv().ok().flatten()?;
        self.unload(place);
        Some(ring)
    }

    /// Threads running.
    pub fn threads(&self) -> usize {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends all workers; sessions have taken their rings back before.
    pub fn stop(&self) {
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in &workers {
            worker.mailbox.post(Command::Stop);
        }
        for worker in workers {
            // A worker that panicked has said so already.
            let _ = worker.thread.join();
        }
    }

    /// The idlest worker; a new one as long as none is idle and there may be more.
    fn place(&self, workers: &mut Vec<Worker<D>>) -> Result<Place, PoolError> {
        let idlest = workers.iter().enumerate().min_by_key(|(_, worker)| worker.load);
        match idlest {
            Some((number, worker)) if worker.load == 0 || workers.len() >= self.most => Ok(Place(number)),
            _ => {
                let number = workers.len();
                workers.push(spawn(number).map_err(PoolError::Spawn)?);
                Ok(Place(number))
            }
        }
    }

    fn unload(&self, place: Place) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = workers.get_mut(place.0) {
            worker.load = worker.load.saturating_sub(1);
        }
    }
}

fn spawn<D: Disk>(number: usize) -> io::Result<Worker<D>> {
    let (mailbox, inbox) = mailbox()?;
    let runner = Runner::new(inbox)?;
    let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(|| {
        let _stack = AltStack::on_this_thread();
        runner.run();
    })?;
    Ok(Worker { mailbox, thread, load: 0 })
}
