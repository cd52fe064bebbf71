//! Looks whether workers that several disks share get on, and has a turn ended that holds up the others.
//!
//! How long a turn takes is known behind it, and a front-end may have one go on for as long as it likes: it takes pages of its
//! memory away as fast as they are touched. So a thread looks at each such worker [now and then](TICK) while one is busy. One that is
//! in the same round as before gets a signal ([`interruption`](crate::copy::fault::interruption)): its copy ends if pages are the
//! reason. Nothing of that turn is published; the ring rests until it is with a worker of its disk's own ([`HoldUps`]), and goes on
//! there where its used index stands.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::hold_ups::Counted;
use super::watchdog::{Look, Watchdog, lock};
use crate::copy::fault::interruption::Interruptible;
use crate::limits::bounds::MAX_ROUND;

/// How often it is looked: by the second look in a round it is known what the reason is.
const TICK: Duration = Duration::from_millis(25);
const _: () = assert!(2 * TICK.as_nanos() == MAX_ROUND.as_nanos(), "not later than the bound");

/// A worker that disks share.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// What its thread does.
    pub(super) task: Arc<Interruptible>,
    /// The disks, one for each of their rings; none while it is not shared.
    pub(super) disks: Mutex<Vec<Counted>>,
}

impl Watched {
    fn waits_count(&self) -> bool {
        lock(&self.disks).iter().all(Counted::waits_count)
    }
}

/// What looks at the workers of a pool that are shared.
pub(super) type Watch = Watchdog<Workers>;

/// Each with the round that was seen last.
#[derive(Debug, Default)]
pub(super) struct Workers(Vec<(Arc<Watched>, u64)>);

impl Watch {
    /// Has this worker looked at from now on.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(super) fn begin(self: &Arc<Self>, worker: &Arc<Watched>) -> io::Result<()> {
        let add = |Workers(workers): &mut Workers| {
            if !workers.iter().any(|(known, _)| Arc::ptr_eq(known, worker)) {
                workers.push((worker.clone(), 0));
            }
        };
        self.attend(add).map(drop)
    }

    /// Forgets it.
    pub(super) fn end(&self, worker: &Arc<Watched>) {
        self.forget(|Workers(workers)| workers.retain(|(known, _)| !Arc::ptr_eq(known, worker)));
    }
}

impl Look for Workers {
    const TICK: Duration = TICK;

    /// Has the rounds ended that were seen before. Returns whether any worker is in one.
    fn look(&mut self) -> bool {
        let mut is_any_busy = false;
        for (worker, seen) in &mut self.0 {
            let round = worker.task.round();
            if round != 0 && round == *seen {
                worker.task.end(round, worker.waits_count());
            }
            is_any_busy |= round != 0;
            *seen = round;
        }
        is_any_busy
    }
}
