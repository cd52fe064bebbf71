//! What the front-ends of a disk may take of the process: mapped memory, regions, descriptors, threads.
//!
//! All disks of a process share these resources, and a disk that used them up would take them from the others. So half of
//! each resource is reserved, in equal parts for each disk, as `memory.min` of a control group is. A disk may have what the
//! others leave, and each of the others counts with what it uses or with what is reserved for it, whichever is more: a
//! single disk may have everything, and none can take what is reserved for another.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource as Limit, getrlimit};

use crate::limits::bounds::{
    CONNECTION_DESCRIPTORS, CONNECTION_THREADS, DISK_DESCRIPTORS, MAPPINGS_PER_REGION,
    MAX_GUEST_MEMORY_BYTES, MAX_THREADS, MAX_THREADS_PER_DISK, PROCESS_DESCRIPTORS, RING_DESCRIPTORS,
};
use crate::limits::map_count::max_map_count;

/// What is counted, in the order of [`Amounts`].
const RESOURCES: [&str; 4] = ["bytes of mapped guest memory", "memory regions", "descriptors", "threads"];

/// An amount of each of [`RESOURCES`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts([u64; RESOURCES.len()]);

impl Amounts {
    /// A connection. Threads: its own, one that waits for another front-end, one that transfers the device's state.
    /// Descriptors, among others: its socket three times, the socket pair that `vhost` reads from, the back-end channel,
    /// the dirty log.
    pub const SESSION: Self = Self([0, 0, CONNECTION_DESCRIPTORS, CONNECTION_THREADS]);

    /// The eventfds of a ring: kick, call and err.
    pub const RING: Self = Self([0, 0, RING_DESCRIPTORS, 0]);

    /// A postcopy migration: a worker of its own for each of the disk's queues, with two descriptors each; the threads
    /// that watch the connection and fetch pages; the userfaultfd.
    pub fn postcopy(queues: u16) -> Self {
        let workers = u64::from(queues);
        Self([0, 0, workers.saturating_mul(2).saturating_add(4), workers.saturating_add(2)])
    }

    /// A region of guest memory; its descriptor is closed once it is mapped.
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

/// What all disks of a process may have, and what each uses.
#[derive(Debug)]
pub struct Budget {
    totals: Amounts,
    /// For each disk: no other may have it.
    reserved: Amounts,
    usage: Mutex<Usage>,
}

#[derive(Debug)]
struct Usage {
    used: Vec<Amounts>,
    /// The sum over all disks of what each uses, or of what is reserved for it where that is more.
    committed: Amounts,
}

impl Budget {
    /// Divides what this process may have among so many disks, which are open; one budget for each.
    pub fn of_process(disks: usize) -> Vec<DiskBudget> {
        let count = u64::try_from(disks).unwrap_or(u64::MAX);
        let own = DISK_DESCRIPTORS.saturating_mul(count).max(open_descriptors());
        let own = own.saturating_add(PROCESS_DESCRIPTORS);
        let open = getrlimit(Limit::Nofile).current.unwrap_or(u64::MAX);
        let threads = MAX_THREADS_PER_DISK.saturating_mul(count).max(MAX_THREADS);
        let regions = u64::try_from(max_map_count()).unwrap_or(u64::MAX) / MAPPINGS_PER_REGION;
        Self::parts(Amounts([MAX_GUEST_MEMORY_BYTES, regions, open.saturating_sub(own), threads]), disks)
    }

    /// Half of `totals` is reserved, the same part for each disk.
    fn parts(totals: Amounts, disks: usize) -> Vec<DiskBudget> {
        let parts = u64::try_from(disks).unwrap_or(u64::MAX).saturating_mul(2).max(1);
        let reserved = totals.zip(totals, |total, _| total / parts);
        let committed = (0..disks).fold(Amounts::default(), |sum, _| sum.zip(reserved, u64::saturating_add));
        let usage = Usage { used: vec![Amounts::default(); disks], committed };
        let budget = Arc::new(Self { totals, reserved, usage: Mutex::new(usage) });
        let part = |disk| DiskBudget { budget: budget.clone(), disk, refusals: Arc::default() };
        (0..disks).map(part).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what a disk uses.
    fn change(&self, usage: &mut Usage, disk: usize, used: Amounts) {
        let Some(place) = usage.used.get_mut(disk) else { return };
        let without = usage.committed.zip(place.zip(self.reserved, u64::max), u64::saturating_sub);
        usage.committed = without.zip(used.zip(self.reserved, u64::max), u64::saturating_add);
        *place = used;
    }
}

/// The budget of one disk.
#[derive(Debug, Clone)]
pub struct DiskBudget {
    budget: Arc<Budget>,
    disk: usize,
    refusals: Arc<AtomicU64>,
}

impl DiskBudget {
    /// Charges the disk with these amounts, until the charge is dropped.
    ///
    /// # Errors
    /// [`Exceeded`]; nothing is charged then.
    pub fn charge(&self, amounts: Amounts) -> Result<Charge, Exceeded> {
        let Budget { totals, reserved, .. } = &*self.budget;
        let mut usage = self.budget.lock();
        let used = usage.used.get(self.disk).copied().unwrap_or_default();
        let of_others = usage.committed.zip(used.zip(*reserved, u64::max), u64::saturating_sub);
        let most = totals.zip(of_others, u64::saturating_sub);
        let wanted = used.zip(amounts, u64::saturating_add);
        let all = RESOURCES.iter().zip(amounts.0).zip(used.0).zip(most.0).zip(wanted.0);
        for ((((resource, wanted), used), most), sum) in all {
            if wanted != 0 && sum > most {
                self.refusals.fetch_add(1, Ordering::Relaxed);
                let others = usage.used.len().saturating_sub(1);
                return Err(Exceeded { resource, wanted, used, most, others });
            }
        }
        self.budget.change(&mut usage, self.disk, wanted);
        Ok(Charge { part: self.clone(), amounts })
    }

    /// What the disk's front-ends use.
    pub fn used(&self) -> Amounts {
        self.budget.lock().used.get(self.disk).copied().unwrap_or_default()
    }

    /// How often a front-end did not get what it asked for.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }
}

/// What a front-end uses; given back when this is dropped.
#[derive(Debug)]
pub struct Charge {
    part: DiskBudget,
    amounts: Amounts,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let DiskBudget { budget, disk, .. } = &self.part;
        let mut usage = budget.lock();
        let used = usage.used.get(*disk).copied().unwrap_or_default();
        budget.change(&mut usage, *disk, used.zip(self.amounts, u64::saturating_sub));
    }
}

/// How many this process has: disks with DAX have more than others. None where /proc is not there.
fn open_descriptors() -> u64 {
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    u64::try_from(open).unwrap_or(u64::MAX)
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
        let charge = alone[0].charge(threads(100)).unwrap();
        let refused = alone[0].charge(threads(1)).unwrap_err().to_string();
        assert_eq!(refused, "1 threads are too many: this disk's front-ends have 100 of at most 100");
        assert_eq!((alone[0].refusals(), alone[0].used()), (1, threads(100)));
        drop(charge);
        alone[0].charge(threads(100)).unwrap();
    }

    #[test]
    fn what_is_kept_for_another_disk_is_not_to_be_had() {
        let [hog, victim] = <[DiskBudget; 2]>::try_from(of_threads(100, 2)).unwrap();
        let hogs = hog.charge(threads(75)).unwrap();
        let refused = hog.charge(threads(1)).unwrap_err().to_string();
        assert!(
            refused.ends_with("have 75 of at most 75 beside 1 other disks, for which some are kept"),
            "{refused}"
        );
        let first = victim.charge(threads(25)).unwrap();
        assert!(victim.charge(threads(1)).is_err());
        drop(hogs);
        let second = victim.charge(threads(50)).unwrap();
        assert!(hog.charge(threads(26)).is_err());
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
            let reserved = total / (2 * disks as u64);
            let mut charges: Vec<(usize, Charge)> = Vec::new();
            for (disk, count, takes) in steps {
                let disk = disk % disks;
                let used = |disk: usize| parts[disk].used().0[3];
                if takes {
                    let before = used(disk);
                    match parts[disk].charge(threads(count)) {
                        Ok(charge) => charges.push((disk, charge)),
                        Err(_) => prop_assert!(before + count > reserved),
                    }
                } else if !charges.is_empty() {
                    charges.swap_remove(count as usize % charges.len());
                }
                prop_assert!((0..disks).map(used).sum::<u64>() <= total);
                for disk in 0..disks {
                    let taken: u64 = charges.iter().filter(|it| it.0 == disk).map(|it| it.1.amounts.0[3]).sum();
                    prop_assert_eq!(used(disk), taken);
                }
            }
        }
    }
}
