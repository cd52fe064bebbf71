//! The same for what takes a system call: a sync that is missing, too narrow, or counted too early.

use super::super::check::{Exploration, Violation, check};
use super::super::oracle::{Oracle, Promise};
use super::super::runner::{Bug, RunConfig, Schedule, run};
use super::super::states::{LINES, SYNCED, promise_of};
use super::super::workload::{self, Op, WorkloadKind};
use super::{acknowledges, check_log, check_log_from, numbers, without};
use crate::copy::recording::{Event, Logged, Omit, Synced, Via};

const fn is_sync(event: &Event) -> bool {
    matches!(event, Event::SyncBegins(_))
}

/// Whether a sync has anything to do: the first one may be for what a process before may have left.
fn has_work(log: &[Logged], begin: usize) -> bool {
    let is_deep = log[begin].event == Event::SyncBegins(Synced::Queues);
    let is_work = |logged: &Logged| match logged.event {
        Event::Store { via, .. } => !is_deep || via != Via::File,
        _ => false,
    };
    log[..begin].iter().any(is_work)
}

/// The end of a sync that begins here.
fn end_of(log: &[Logged], begin: usize) -> usize {
    let is_end = |logged: &Logged| logged.cpu == log[begin].cpu && logged.event == Event::SyncEnds;
    begin + log[begin..].iter().position(is_end).unwrap()
}

/// Each is made for something that is acknowledged when it is over: also each run of pages, and that of what
/// `write_zeroes` has given back. That is what reusing the result of an earlier sync comes to as well.
#[test]
fn removing_any_sync_is_noticed() {
    let kinds = SYNCED.into_iter().chain([LINES]);
    let (mut ranges, mut layouts, mut queues) = (0, 0, 0);
    for (seed, kind) in (21..).zip(kinds.flat_map(|kind| [kind; 4])) {
        let config = RunConfig::on(kind, false);
        // Space is rarely given back.
        let batches = if kind == LINES { 60 } else { 10 };
        let trace = run(&workload::random(seed, batches, WorkloadKind::NonRedundant), config);
        let (oracle, log) = (Oracle::new(&trace), &trace.log);
        assert_eq!(check_log(&trace, log, Promise::AtCompletion), Ok(()), "seed={seed} {config:?}");
        let syncs = numbers(log, is_sync).into_iter().filter(|begin| has_work(log, *begin));
        for begin in syncs {
            let end = end_of(log, begin);
            match log[begin].event {
                Event::SyncBegins(Synced::Range { .. }) => ranges += 1,
                Event::SyncBegins(Synced::Everything) if kind == LINES => layouts += 1,
                Event::SyncBegins(Synced::Queues) => queues += 1,
                _ => {}
            }
            let mutant = without(log, |lost| lost == begin || lost == end);
            let verdict = check_log_from(begin, &oracle, &mutant);
            assert!(verdict.is_err(), "seed={seed} {config:?}: without {begin} {:?}", log[begin]);
        }
    }
    assert!(ranges >= 5 && layouts >= 2 && queues >= 5, "{ranges} {layouts} {queues}");
}

/// Without any sync, or any fence before one, nothing is kept. (What the kernel copies needs no fence.)
#[test]
fn forgotten_syncs_and_fences_break_every_promise() {
    for (kind, omit) in SYNCED.into_iter().flat_map(|kind| [(kind, Omit::Syncs), (kind, Omit::Fences)]) {
        for writeback in [false, true] {
            let config = RunConfig { omit, ..RunConfig::on(kind, writeback) };
            let trace = run(&workload::random(31, 20, WorkloadKind::NonRedundant), config);
            let is_needed = omit == Omit::Syncs || !kind.is_written_by_kernel();
            assert_eq!(check_log(&trace, &trace.log, promise_of(config)).is_err(), is_needed, "{config:?}");
        }
    }
}

/// A sync may begin, and be over, in the midst of a batch: only the fence that each write passes before it
/// calls itself finished makes such a sync cover it. That of the batch comes too late.
#[test]
fn the_fence_of_a_batch_does_not_replace_those_of_its_writes() {
    for kind in SYNCED.into_iter().filter(|kind| !kind.is_written_by_kernel()) {
        let is_noticed = |seed| {
            let config = RunConfig { schedule: Schedule::Random(seed), ..RunConfig::on(kind, false) };
            let trace = run(&workload::random(seed, 40, WorkloadKind::NonRedundant), config);
            assert_eq!(
                check_log(&trace, &trace.log, Promise::AtCompletion),
                Ok(()),
                "seed={seed} {config:?}"
            );
            let log = &trace.log;
            let is_lost = |number: usize| {
                let is_of_batch = number + 1 == log.len() || !matches!(log[number + 1].event, Event::Fence);
                log[number].event == Event::Fence && !is_of_batch
            };
            check_log(&trace, &without(log, is_lost), Promise::AtCompletion).is_err()
        };
        assert!((1..60).any(is_noticed), "{kind:?}");
    }
}

/// The end of a sync counts, not its beginning.
#[test]
fn an_acknowledgement_before_the_end_of_its_sync_is_noticed() {
    for kind in SYNCED {
        let trace = run(&workload::random(41, 10, WorkloadKind::NonRedundant), RunConfig::on(kind, false));
        let (oracle, log) = (Oracle::new(&trace), &trace.log);
        let mut moved = 0;
        for begin in numbers(log, is_sync).into_iter().filter(|begin| has_work(log, *begin)) {
            let end = end_of(log, begin);
            if acknowledges(log, end + 1) {
                let mut log = log.clone();
                log.swap(end, end + 1);
                moved += 1;
                assert!(check_log_from(end, &oracle, &log).is_err(), "{kind:?} {end}");
            }
        }
        assert!(moved >= 3, "{kind:?}: {moved}");
    }
}

fn run_all(ops: &[Op], config: RunConfig) -> Result<(), Violation> {
    let trace = run(&workload::small(ops, 0), config);
    check(&Oracle::new(&trace), &trace.log, promise_of(config), Exploration::Exhaustive { at_most: 64 })
        .map(|_| ())
}

/// What goes wrong only when something happens while a sync runs.
#[test]
fn mistakes_about_syncs_that_run_are_noticed() {
    use Op::{Flush, FlushElsewhere, Whole, WholeElsewhere};
    let cases = [
        (Bug::CleanAfterSync, &[Whole, Flush, WholeElsewhere, FlushElsewhere][..], [0, 1, 9]),
        (Bug::AnswerDuringSync, &[Whole, Flush, FlushElsewhere][..], [0, 1, 0]),
    ];
    for kind in SYNCED {
        for (bug, ops, turns) in cases {
            let right = RunConfig { schedule: Schedule::AfterBatches(turns), ..RunConfig::on(kind, true) };
            assert_eq!(run_all(ops, right), Ok(()), "{right:?}");
            let wrong = RunConfig { bug: Some(bug), ..right };
            assert!(run_all(ops, wrong).is_err(), "{wrong:?}");
            let in_turn = RunConfig { schedule: Schedule::AtOnce, ..wrong };
            assert_eq!(run_all(ops, in_turn), Ok(()), "one after the other all is well: {in_turn:?}");
        }
    }
}
