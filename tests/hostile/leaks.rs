//! What a daemon has before and after thousands of hostile connections: the same.

use std::time::Duration;

use crate::common::process::Process;
use crate::common::wait_for;
use crate::table::{Kind, Row};
use crate::target::{Target, alone};

/// Connections, if nothing is said (`HOSTILE_CONNECTIONS=`); ci/soak has many more.
const CONNECTIONS: usize = 3000;

/// What the C library keeps of what threads have returned: pages of its heaps, of which there are up to eight a processor, each of
/// 132 KiB at first; and the stacks of as many threads as there ever were at once. It was seen to come to an end after 30,000.
const MARGIN_BYTES: u64 = 1 << 20;

/// Two such stacks, each a mapping with a guard, and all such heaps, each with what is set aside for it: which threads run at once,
/// and so need one more, is chance. Anything that a connection left behind would be thousands.
fn margin_mappings() -> usize {
    4 + 2 * 8 * std::thread::available_parallelism().unwrap().get()
}

/// Rounds of all rows after which there is nothing that is made at the first use, such as heaps of threads.
const MOST_ROUNDS: usize = 8;

/// What a process and those that have come from it have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resources {
    processes: usize,
    descriptors: usize,
    threads: usize,
    mappings: usize,
    /// Resident memory that is not of files.
    anonymous_bytes: u64,
    /// Disks that were attacked and have a worker of their own, for ten minutes: it is not counted in the others.
    apart: usize,
}

/// What such a worker takes: its thread, and the one that looks when it may end; its mailbox, epoll and the transfers' event.
const APART_THREADS: usize = 2;
const APART_DESCRIPTORS: usize = 3;

impl Resources {
    fn of(process: Process) -> Self {
        // One that has ended has nothing any more; it is reaped when the next one is made.
        let is_there = |process: &Process| !process.has_ended();
        let family = || process.descendants().into_iter().map(Process).filter(is_there).chain([process]);
        let apart = process.threads_named("apart-").len();
        Self {
            processes: family().count(),
            descriptors: family().map(Process::fds).sum::<usize>() - apart * APART_DESCRIPTORS,
            threads: family().map(Process::threads).sum::<usize>() - apart * APART_THREADS,
            apart,
            mappings: process.all_mappings(),
            anonymous_bytes: process.anonymous_bytes(),
        }
    }

    /// Once so many processes are left, and nothing changes any more: one that closes what was refused has ended.
    fn at_rest(process: Process, processes: usize) -> Self {
        wait_for("the daemon comes to rest", || {
            let before = Self::of(process);
            std::thread::sleep(Duration::from_millis(300));
            (before.processes == processes && Self::of(process) == before).then_some(before)
        })
    }

    /// The same, but for what the C library may keep.
    fn is_as(self, before: Self) -> bool {
        let Self { anonymous_bytes, mappings, apart, .. } = before;
        let margins = 1 + self.apart.saturating_sub(apart);
        let is_kept = self.anonymous_bytes <= anonymous_bytes + margins as u64 * MARGIN_BYTES
            && self.mappings <= mappings + margins * margin_mappings();
        Self { anonymous_bytes, mappings, apart, ..self } == before && is_kept
    }
}

/// What is tried over and over: by drivers and front-ends, and nothing that takes long.
pub(crate) fn quick(rows: Vec<Row>) -> Vec<Row> {
    rows.into_iter().filter(|row| !row.is_slow && row.kind != Kind::User).collect()
}

#[test]
fn hostile_connections_leave_nothing_behind() {
    let _alone = alone();
    let said = std::env::var("HOSTILE_CONNECTIONS").ok().map(|number| number.parse().unwrap());
    let connections: usize = said.unwrap_or(CONNECTIONS);
    let rows = quick(crate::rows());
    let mut target = Target::start();
    let neighbour = target.neighbour();
    let process = Process(target.daemon.pid());
    neighbour.wait_for_progress();
    let processes = Resources::of(process).processes;
    let mut before = Resources::at_rest(process, processes);
    for _ in 0..MOST_ROUNDS {
        rows.iter().for_each(|row| target.attack_next(row));
        let earlier = std::mem::replace(&mut before, Resources::at_rest(process, processes));
        println!("{before:?} after another {} attacks", rows.len());
        if before.is_as(earlier) {
            break;
        }
    }
    for number in 0..connections {
        target.attack_next(&rows[number % rows.len()]);
        if number % 100 == 0 {
            neighbour.wait_for_progress();
        }
    }
    let after = Resources::at_rest(process, processes);
    println!("{before:?} before {connections} hostile connections\n{after:?} afterwards");
    assert!(after.is_as(before), "{before:?} before, {after:?} after {connections} hostile connections");
    neighbour.stop();
    target.daemon.stop();
}
