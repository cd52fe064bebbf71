//! What the front-ends of a disk may take of the process: mapped memory, regions, descriptors, threads.
//!
//! All disks of a process share these resources, and a disk that used them up would take them from the others. So half of
//! each resource is reserved, in equal parts for each disk, as `memory.min` of a control group is. A disk may have what the
//! others leave, and each of the others counts with what it uses or with what is reserved for it, whichever is more: a
//! single disk may have everything, and none can take what is reserved for another.

use std::collections::BTreeMap;
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

    /// The same with a disk of its own, and that one's memory.
    pub const PRIVATE_SESSION: Self = Self([0, 0, CONNECTION_DESCRIPTORS + 1, CONNECTION_THREADS]);

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

/// What all disks of a process may have together, by their number.
#[derive(Debug, Clone, Copy)]
struct Supply {
    /// Whatever their number; each disk takes some of the descriptors.
    amounts: Amounts,
    /// Descriptors that each disk takes for itself.
    disk_descriptors: u64,
    /// Threads for each disk, where that is more.
    disk_threads: u64,
}

impl Supply {
    fn of(&self, disks: u64) -> Amounts {
        let Amounts([bytes, regions, descriptors, threads]) = self.amounts;
        let descriptors = descriptors.saturating_sub(self.disk_descriptors.saturating_mul(disks));
        Amounts([bytes, regions, descriptors, threads.max(self.disk_threads.saturating_mul(disks))])
    }
}

/// What all disks of a process may have, and what each uses. Disks come with [`add`](Self::add), and go with the last copy of
/// their [`DiskBudget`].
#[derive(Debug)]
pub struct Budget {
    supply: Supply,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: BTreeMap<u64, Amounts>,
    /// Disks that have come so far: the number of the next.
    came: u64,
    /// Of all disks together.
    totals: Amounts,
    /// For each disk: no other may have it.
    reserved: Amounts,
    /// The sum over all disks of what each uses, or of what is reserved for it where that is more.
    committed: Amounts,
}

impl State {
    /// Divides what there is anew: half of it is reserved, the same part for each disk. A disk that has more than the rest keeps
    /// it, and who comes later has what is left until it is given back.
    fn divide(&mut self, supply: Supply) {
        let disks = u64::try_from(self.used.len()).unwrap_or(u64::MAX);
        self.totals = supply.of(disks);
        let parts = disks.saturating_mul(2).max(1);
        self.reserved = self.totals.zip(self.totals, |total, _| total / parts);
        let of_disks = self.used.values().map(|used| used.zip(self.reserved, u64::max));
        self.committed = of_disks.fold(Amounts::default(), |sum, it| sum.zip(it, u64::saturating_add));
    }

    /// Replaces what a disk uses.
    fn change(&mut self, disk: u64, used: Amounts) {
        let Some(place) = self.used.get_mut(&disk) else { return };
        let without = self.committed.zip(place.zip(self.reserved, u64::max), u64::saturating_sub);
        self.committed = without.zip(used.zip(self.reserved, u64::max), u64::saturating_add);
        *place = used;
    }
}

impl Budget {
    /// What this process may have, in which so many disks are open that are [added](Self::add) next.
    pub fn of_process(open_disks: usize) -> Arc<Self> {
        let disks = u64::try_from(open_disks).unwrap_or(u64::MAX);
        // Disks with DAX have more descriptors than others, and who embeds this has some of its own.
        let own = open_descriptors().saturating_sub(DISK_DESCRIPTORS.saturating_mul(disks));
        let open = getrlimit(Limit::Nofile).current.unwrap_or(u64::MAX);
        let regions = u64::try_from(max_map_count()).unwrap_or(u64::MAX) / MAPPINGS_PER_REGION;
        let descriptors = open.saturating_sub(own).saturating_sub(PROCESS_DESCRIPTORS);
        Self::new(Supply {
            amounts: Amounts([MAX_GUEST_MEMORY_BYTES, regions, descriptors, MAX_THREADS]),
            disk_descriptors: DISK_DESCRIPTORS,
            disk_threads: MAX_THREADS_PER_DISK,
        })
    }

    fn new(supply: Supply) -> Arc<Self> {
        Arc::new(Self { supply, state: Mutex::default() })
    }

    /// The budget of one more disk.
    pub fn add(self: &Arc<Self>) -> DiskBudget {
        let mut state = self.lock();
        let disk = state.came;
        state.came = state.came.saturating_add(1);
        state.used.insert(disk, Amounts::default());
        state.divide(self.supply);
        DiskBudget(Arc::new(Part { budget: self.clone(), disk, refusals: AtomicU64::new(0) }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The budget of one disk. What was reserved for it is the others' once all copies and all charges are gone.
#[derive(Debug, Clone)]
pub struct DiskBudget(Arc<Part>);

#[derive(Debug)]
struct Part {
    budget: Arc<Budget>,
    disk: u64,
    refusals: AtomicU64,
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.used.remove(&self.disk);
        state.divide(self.budget.supply);
    }
}

impl DiskBudget {
    /// Charges the disk with these amounts, until the charge is dropped.
    ///
    /// # Errors
    /// [`Exceeded`]; nothing is charged then.
    pub fn charge(&self, amounts: Amounts) -> Result<Charge, Exceeded> {
        let Part { budget, disk, refusals } = &*self.0;
        let mut state = budget.lock();
        let used = state.used.get(disk).copied().unwrap_or_default();
        let of_others = state.committed.zip(used.zip(state.reserved, u64::max), u64::saturating_sub);
        let most = state.totals.zip(of_others, u64::saturating_sub);
        let wanted = used.zip(amounts, u64::saturating_add);
        let all = RESOURCES.iter().zip(amounts.0).zip(used.0).zip(most.0).zip(wanted.0);
        for ((((resource, wanted), used), most), sum) in all {
            if wanted != 0 && sum > most {
                refusals.fetch_add(1, Ordering::Relaxed);
                let others = state.used.len().saturating_sub(1);
                return Err(Exceeded { resource, wanted, used, most, others });
            }
        }
        state.change(*disk, wanted);
        Ok(Charge { part: self.clone(), amounts })
    }

    /// What the disk's front-ends use.
    pub fn used(&self) -> Amounts {
        self.0.budget.lock().used.get(&self.0.disk).copied().unwrap_or_default()
    }

    /// How often a front-end did not get what it asked for.
    pub fn refusals(&self) -> u64 {
        self.0.refusals.load(Ordering::Relaxed)
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
        let Part { budget, disk, .. } = &*self.part.0;
        let mut state = budget.lock();
        let used = state.used.get(disk).copied().unwrap_or_default();
        state.change(*disk, used.zip(self.amounts, u64::saturating_sub));
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

    fn with_threads(total: u64) -> Arc<Budget> {
        Budget::new(Supply { amounts: threads(total), disk_descriptors: 0, disk_threads: 0 })
    }

    fn of_threads(total: u64, disks: usize) -> Vec<DiskBudget> {
        let budget = with_threads(total);
        (0..disks).map(|_| budget.add()).collect()
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

    #[test]
    fn a_disk_that_comes_later_has_its_part_once_others_have_given_it_back() {
        let budget = with_threads(100);
        let first = budget.add();
        let (half, all_but_ten) = (first.charge(threads(50)).unwrap(), first.charge(threads(40)).unwrap());
        let second = budget.add();
        assert!(second.charge(threads(11)).is_err());
        let early = second.charge(threads(10)).unwrap();
        drop(half);
        let late = second.charge(threads(15)).unwrap();
        assert!(first.charge(threads(36)).is_err(), "75 are all that the second leaves to it");
        drop((early, late));
        assert!(first.charge(threads(36)).is_err(), "25 are kept for it");
        drop(second);
        first.charge(threads(60)).unwrap();
        drop(all_but_ten);
    }

    #[test]
    fn a_disk_that_has_gone_counts_until_all_is_given_back() {
        let budget = with_threads(100);
        let (stays, goes) = (budget.add(), budget.add());
        let lingers = goes.charge(threads(60)).unwrap();
        drop(goes);
        assert!(stays.charge(threads(41)).is_err());
        drop(lingers);
        stays.charge(threads(100)).unwrap();
    }

    #[test]
    fn each_disk_takes_descriptors_and_may_bring_threads() {
        let amounts = Amounts([7, 7, 100, 8]);
        let supply = Supply { amounts, disk_descriptors: 30, disk_threads: 3 };
        let of = [1, 2, 3, 4].map(|disks| supply.of(disks).0);
        assert_eq!(of, [[7, 7, 70, 8], [7, 7, 40, 8], [7, 7, 10, 9], [7, 7, 0, 12]]);
    }

    proptest! {
        /// All together never have more than there is, and each has what it was given, whoever comes and goes.
        #[test]
        fn disks_come_and_go(
            total in 0..1000_u64,
            steps in prop::collection::vec((0..4_u8, 0..6_usize, 0..400_u64), 0..80),
        ) {
            let budget = with_threads(total);
            let mut disks: Vec<(DiskBudget, Vec<Charge>)> = Vec::new();
            for (what, which, count) in steps {
                let number = which.checked_rem(disks.len());
                match (what, number) {
                    (0, _) => disks.push((budget.add(), Vec::new())),
                    (1, Some(number)) => drop(disks.swap_remove(number)),
                    (2, Some(number)) => {
                        let (disk, charges) = &mut disks[number];
                        charges.extend(disk.charge(threads(count)));
                    }
                    (_, Some(number)) => drop(disks[number].1.pop()),
                    (_, None) => {}
                }
                let taken = |charges: &[Charge]| charges.iter().map(|it| it.amounts.0[3]).sum::<u64>();
                prop_assert!(disks.iter().map(|(_, charges)| taken(charges)).sum::<u64>() <= total);
                for (disk, charges) in &disks {
                    prop_assert_eq!(disk.used(), threads(taken(charges)));
                }
            }
            drop(disks);
            let only = budget.add();
            prop_assert!(only.charge(threads(total)).is_ok());
        }

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
