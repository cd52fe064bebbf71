//! Sets of CPUs, as Linux and taskset(1) write them: `2-5,8`.

use std::fmt;
use std::io;
use std::num::NonZeroU16;
use std::path::Path;
use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::limits::bounds::OWN_WORKER_NICE;

/// Which CPUs a worker may run on: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

/// Why a text is no set of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write CPU numbers below {} and ranges of them, as 2-5 or 2-5,8", CpuSet::MAX_CPU)]
pub struct NotCpus;

impl FromStr for Cpus {
    type Err = NotCpus;

    fn from_str(text: &str) -> Result<Self, NotCpus> {
        let number =
            |text: &str| text.parse::<usize>().ok().filter(|cpu| *cpu < CpuSet::MAX_CPU).ok_or(NotCpus);
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = number(first)?..=number(last)?;
            if range.is_empty() {
                return Err(NotCpus);
            }
            cpus.extend(range);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for run in self.0.chunk_by(|cpu, next| cpu.wrapping_add(1) == *next) {
            if let [first, .., last] = run {
                write!(f, "{comma}{first}-{last}")?;
            } else if let [only] = run {
                write!(f, "{comma}{only}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

impl Cpus {
    /// How many there are.
    pub fn count(&self) -> NonZeroU16 {
        u16::try_from(self.0.len()).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN)
    }

    /// Those of a NUMA node that this process may use; `None` where Linux does not say, or none is left.
    pub fn of_node(node: u32) -> Option<Self> {
        let path = format!("/sys/devices/system/node/node{node}/cpulist");
        Self::listed_in(Path::new(&path))?.allowed()
    }

    fn listed_in(path: &Path) -> Option<Self> {
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// Those of the set that this process may use, if any.
    pub fn allowed(&self) -> Option<Self> {
        let all = sched_getaffinity(None).ok()?;
        let left: Vec<_> = self.0.iter().copied().filter(|cpu| all.is_set(*cpu)).collect();
        (!left.is_empty()).then_some(Self(left))
    }

    /// Has this thread run on these CPUs only.
    ///
    /// # Errors
    /// The machine, or the control group, has none of them.
    pub fn pin_this_thread(&self) -> io::Result<()> {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|cpu| set.set(*cpu));
        Ok(sched_setaffinity(None, &set)?)
    }
}

/// Has this thread run wherever its process may, and behind others.
pub(super) fn give_way() {
    // Of the first thread, as it is now: who has started this one may be pinned.
    let process = Some(rustix::process::getpid());
    // Ignored: it is served all the same then.
    let _ = sched_getaffinity(process).and_then(|cpus| sched_setaffinity(None, &cpus));
    let _ = rustix::process::setpriority_process(None, OWN_WORKER_NICE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_linux_does() {
        for (text, written) in
            [("3", "3"), ("2-5", "2-5"), ("8,2-5,3", "2-5,8"), ("0,1", "0-1"), ("7,5", "5,7"), ("1-1", "1")]
        {
            assert_eq!(text.parse::<Cpus>().unwrap().to_string(), written, "{text}");
        }
        assert_eq!("2-5,8".parse::<Cpus>().unwrap().count().get(), 5);
        for wrong in ["", "a", "5-2", "1,", "-1", "1-", "0x1", "1024", "0-99999999999"] {
            assert_eq!(wrong.parse::<Cpus>(), Err(NotCpus), "{wrong}");
        }
    }

    #[test]
    fn a_thread_is_pinned() {
        let all = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap();
        let set = Cpus(vec![first, CpuSet::MAX_CPU - 1]);
        let now = std::thread::spawn(move || {
            set.pin_this_thread().unwrap();
            sched_getaffinity(None).unwrap()
        });
        let now = now.join().unwrap();
        assert_eq!((now.count(), now.is_set(first)), (1, true));
        assert!(Cpus(vec![CpuSet::MAX_CPU - 1]).pin_this_thread().is_err(), "no machine has it");
    }

    #[test]
    fn nodes_have_cpus() {
        let found = Cpus::of_node(0);
        let node = Path::new("/sys/devices/system/node/node0/cpulist");
        assert_eq!(found.is_some(), node.exists(), "{found:?}");
        assert_eq!(Cpus::of_node(u32::MAX), None);
    }
}
