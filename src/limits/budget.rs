//! What the front-ends of a disk may take of the process: mapped memory, regions, descriptors, threads.
//!
//! Each of these ends somewhere for all disks together, and whoever comes to the end takes it from the others. So a disk
//! may have what the others leave, where each of the others counts with what it has or with what is kept for it, whichever
//! is more: one disk alone may have nearly all, and none can take what is kept for another.

use crate::limits::bounds::{
    CONNECTION_DESCRIPTORS, CONNECTION_THREADS, DISK_DESCRIPTORS, MAPPINGS_PER_REGION,
    MAX_GUEST_MEMORY_BYTES, MAX_THREADS, MAX_THREADS_PER_DISK, PROCESS_DESCRIPTORS, RING_DESCRIPTORS,
};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource as Limit, getrlimit};

/// Mappings that Linux allows a process, where it does not say.
const DEFAULT_MAPPINGS: u64 = 65_530;

/// What there is.
const RESOURCES: [&str; 4] = ["bytes of mapped guest memory", "memory regions", "descriptors", "threads"];

/// So much of each of [`RESOURCES`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts([u64; RESOURCES.len()]);

impl Amounts {
    /// A connection: its thread, the one that waits for another front-end, the one that carries the device's state; its
    /// socket thrice, the pair that `vhost` reads from, the channel, the dirty log.
    pub const SESSION: Self = Self([0, 0, CONNECTION_DESCRIPTORS, CONNECTION_THREADS]);

    /// The eventfds of a ring: kick, call and err.
    pub const RING: Self = Self([0, 0, RING_DESCRIPTORS, 0]);

    /// A migration in which pages are missing: a worker for each of the disk's queues, with two descriptors; who watches
    /// the connection, who fetches pages, and the userfaultfd.
    pub fn postcopy(queues: u16) -> Self {
        let workers = u64::from(queues);
        Self([0, 0, workers.saturating_mul(2).saturating_add(4), workers.saturating_add(2)])
    }

    /// A region of guest memory; its file is closed once it is mapped.
    pub const fn region(len_bytes: u64) -> Self {
        Self([len_bytes, 1, 0, 0])
    }

    /// Bytes of guest memory that are mapped.
    pub const fn memory_bytes(&self) -> u64 {
        let [bytes, ..] = self.0;
        bytes
    }

    fn zip(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        let mut both = self;
        both.0.iter_mut().zip(other.0).for_each(|(here, there)| *here = join(*here, there));
        both
    }
}

/// Why a front-end does not get what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Exceeded {
    resource: &'static str,
    wanted: u64,
    used: u64,
    most: u64,
    others: usize,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, wanted, used, most, others } = self;
        write!(f, "{wanted} {resource} are too many: this disk's front-ends have {used} of at most {most}")?;
        if *others == 0 { Ok(()) } else { write!(f, " beside {others} other disks, for which some are kept") }
    }
}

/// What all disks of a process have.
#[derive(Debug)]
pub struct Budget {
    totals: Amounts,
    /// For each disk.
    kept: Amounts,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used: Vec<Amounts>,
    /// The sum over the disks of what each has, or of what is kept for it where that is more.
    claimed: Amounts,
}

impl Budget {
    /// What this process has for so many disks; one part for each.
    pub fn of_process(disks: usize) -> Vec<DiskBudget> {
        let count = u64::try_from(disks).unwrap_or(u64::MAX);
        let own = DISK_DESCRIPTORS.saturating_mul(count).saturating_add(PROCESS_DESCRIPTORS);
        let open = getrlimit(Limit::Nofile).current.unwrap_or(u64::MAX);
        let threads = MAX_THREADS_PER_DISK.saturating_mul(count).max(MAX_THREADS);
        let regions = most_mappings() / MAPPINGS_PER_REGION;
        Self::parts(Amounts([MAX_GUEST_MEMORY_BYTES, regions, open.saturating_sub(own), threads]), disks)
    }

    /// Half of it is kept, for each disk the same.
    fn parts(totals: Amounts, disks: usize) -> Vec<DiskBudget> {
        let shares = u64::try_from(disks).unwrap_or(u64::MAX).saturating_mul(2).max(1);
        let kept = totals.zip(totals, |total, _| total / shares);
        let claimed = (0..disks).fold(Amounts::default(), |sum, _| sum.zip(kept, u64::saturating_add));
        let state = State { used: vec![Amounts::default(); disks], claimed };
        let budget = Arc::new(Self { totals, kept, state: Mutex::new(state) });
        let part = |disk| DiskBudget { budget: budget.clone(), disk, refusals: Arc::default() };
        (0..disks).map(part).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what a disk has.
    fn change(&self, state: &mut State, disk: usize, used: Amounts) {
        let Some(place) = state.used.get_mut(disk) else { return };
        let without = state.claimed.zip(place.zip(self.kept, u64::max), u64::saturating_sub);
        state.claimed = without.zip(used.zip(self.kept, u64::max), u64::saturating_add);
        *place = used;
    }
}

/// The part of one disk.
#[derive(Debug, Clone)]
pub struct DiskBudget {
    budget: Arc<Budget>,
    disk: usize,
    refusals: Arc<AtomicU64>,
}

impl DiskBudget {
    /// Takes so much, until the share is dropped.
    ///
    /// # Errors
    /// [`Exceeded`]; nothing is taken then.
    pub fn take(&self, amounts: Amounts) -> Result<Share, Exceeded> {
        let Budget { totals, kept, .. } = &*self.budget;
        let mut state = self.budget.lock();
        let used = state.used.get(self.disk).copied().unwrap_or_default();
        let of_others = state.claimed.zip(used.zip(*kept, u64::max), u64::saturating_sub);
        let most = totals.zip(of_others, u64::saturating_sub);
        let wanted = used.zip(amounts, u64::saturating_add);
        let all = RESOURCES.iter().zip(amounts.0).zip(used.0).zip(most.0).zip(wanted.0);
        for ((((resource, wanted), used), most), sum) in all {
            if wanted != 0 && sum > most {
                self.refusals.fetch_add(1, Ordering::Relaxed);
                let others = state.used.len().saturating_sub(1);
                return Err(Exceeded { resource, wanted, used, most, others });
            }
        }
        self.budget.change(&mut state, self.disk, wanted);
        Ok(Share { part: self.clone(), amounts })
    }

    /// What the disk's front-ends have.
    pub fn used(&self) -> Amounts {
        self.budget.lock().used.get(self.disk).copied().unwrap_or_default()
    }

    /// How often one did not get what it asked for.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }
}

/// What somebody has; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    part: DiskBudget,
    amounts: Amounts,
}

impl Drop for Share {
    fn drop(&mut self) {
        let DiskBudget { budget, disk, .. } = &self.part;
        let mut state = budget.lock();
        let used = state.used.get(*disk).copied().unwrap_or_default();
        budget.change(&mut state, *disk, used.zip(self.amounts, u64::saturating_sub));
    }
}

fn most_mappings() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT_MAPPINGS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn threads(count: u64) -> Amounts {
        Amounts([0, 0, 0, count])
    }

    fn of_threads(total: u64, disks: usize) -> Vec<DiskBudget> {
        Budget::parts(threads(total), disks)
    }

    #[test]
    fn one_disk_alone_may_have_all() {
        let alone = of_threads(100, 1);
        let share = alone[0].take(threads(100)).unwrap();
        let refused = alone[0].take(threads(1)).unwrap_err().to_string();
        assert_eq!(refused, "1 threads are too many: this disk's front-ends have 100 of at most 100");
        assert_eq!((alone[0].refusals(), alone[0].used()), (1, threads(100)));
        drop(share);
        alone[0].take(threads(100)).unwrap();
    }

    #[test]
    fn what_is_kept_for_another_disk_is_not_to_be_had() {
        let [hog, victim] = <[DiskBudget; 2]>::try_from(of_threads(100, 2)).unwrap();
        let hogs = hog.take(threads(75)).unwrap();
        let refused = hog.take(threads(1)).unwrap_err().to_string();
        assert!(
            refused.ends_with("have 75 of at most 75 beside 1 other disks, for which some are kept"),
            "{refused}"
        );
        let first = victim.take(threads(25)).unwrap();
        assert!(victim.take(threads(1)).is_err());
        drop(hogs);
        let second = victim.take(threads(50)).unwrap();
        assert!(hog.take(threads(26)).is_err());
        drop((first, second));
    }

    proptest! {
        /// Whatever the others do, a disk gets what is kept for it, and all together never have more than there is.
        #[test]
        fn nobody_goes_short(
            total in 0..1000_u64,
            disks in 1..6_usize,
            steps in prop::collection::vec((0..6_usize, 0..400_u64, any::<bool>()), 0..60),
        ) {
            let parts = of_threads(total, disks);
            let kept = total / (2 * disks as u64);
            let mut shares: Vec<(usize, Share)> = Vec::new();
            for (disk, count, takes) in steps {
                let disk = disk % disks;
                let used = |disk: usize| parts[disk].used().0[3];
                if takes {
                    let before = used(disk);
                    match parts[disk].take(threads(count)) {
                        Ok(share) => shares.push((disk, share)),
                        Err(_) => prop_assert!(before + count > kept),
                    }
                } else if !shares.is_empty() {
                    shares.swap_remove(count as usize % shares.len());
                }
                prop_assert!((0..disks).map(used).sum::<u64>() <= total);
                for disk in 0..disks {
                    let taken: u64 = shares.iter().filter(|it| it.0 == disk).map(|it| it.1.amounts.0[3]).sum();
                    prop_assert_eq!(used(disk), taken);
                }
            }
        }
    }
}
