//! Mutation tests of the suite: without any one of its flushes and fences the engine breaks a promise, and that is noticed.
//!
//! What is redundant, and why it is not an exception to that:
//! - Where two buffers of a guest meet inside of a line, that line is flushed after the tail of the one and
//!   again after the head of the other. The second flush covers both.
//! - A batch that stores nothing passes a fence too.
//! - With `clflush`, which is ordered by itself, ordinary stores need no fence.
//!
//! The workloads are such that nothing else is redundant: every store changes every byte, and no two requests
//! of a batch touch the same line.

mod syncs;

use std::ops::Range;

use super::check::{Exploration, Violation, check, check_from};
use super::driver::{RINGS, indices_of};
use super::oracle::{Oracle, Promise};
use super::runner::{RunConfig, Trace, run};
use super::states::{LINES, engines};
use super::workload::{self, WorkloadKind};
use crate::copy::recording::{Event, LINE_BYTES, Logged, Omit, Via};

/// A sample contains every value of every unit, so no random states are needed on top.
const EXPLORATION: Exploration = Exploration::Sampled { seed: 7, states: 1 };

const SEED: u64 = 11;

fn non_redundant(seed: u64, config: RunConfig) -> Trace {
    run(&workload::random(seed, 10, WorkloadKind::NonRedundant), config)
}

/// The log without the events that `is_lost` names by number.
fn without(log: &[Logged], is_lost: impl Fn(usize) -> bool) -> Vec<Logged> {
    log.iter().enumerate().filter(|(number, _)| !is_lost(*number)).map(|(_, logged)| logged.clone()).collect()
}

fn check_log(trace: &Trace, log: &[Logged], promise: Promise) -> Result<(), Violation> {
    check(&Oracle::new(trace), log, promise, EXPLORATION).map(|_| ())
}

/// Checks a log that differs from a good one from event number `first` on.
fn check_log_from(first: usize, oracle: &Oracle<'_>, log: &[Logged]) -> Result<(), Violation> {
    check_from(first, oracle, log, Promise::AtCompletion, EXPLORATION).map(|_| ())
}

/// Whether a driver saw something acknowledged at this event.
fn acknowledges(log: &[Logged], number: usize) -> bool {
    let seen = |logged: &Logged| match logged.event {
        Event::Seen(seen) => Some(seen),
        _ => None,
    };
    let used = |seen: u64| (0..RINGS).map(|ring| indices_of(seen, ring).0).sum::<usize>();
    let Some(now) = seen(&log[number]) else { return false };
    used(now) != used(log[..number].iter().rev().find_map(seen).unwrap_or(0))
}

/// Numbers of the events of a CPU behind this one, up to its next fence.
fn until_next_fence(log: &[Logged], number: usize) -> impl Iterator<Item = usize> {
    let cpu = log[number].cpu;
    let rest = (number + 1..log.len()).filter(move |next| log[*next].cpu == cpu);
    rest.take_while(|next| log[*next].event != Event::Fence)
}

/// A flush of a line is needed if no other one of that line comes after it and before the fence.
fn is_last_flush_of_line(log: &[Logged], number: usize) -> bool {
    !until_next_fence(log, number).any(|next| log[next].event == log[number].event)
}

/// A fence is needed if something persists by it that is acknowledged before the next one.
fn is_needed_fence(log: &[Logged], number: usize) -> bool {
    let cpu = log[number].cpu;
    let mut before = log[..number].iter().rev().filter(|logged| logged.cpu == cpu);
    let waits_for_fence = |logged: &Logged| match &logged.event {
        Event::Store { via, .. } => *via == Via::Stream,
        Event::FlushLine { is_ordered, .. } => !is_ordered,
        Event::Fence | Event::SyncBegins(_) | Event::SyncEnds | Event::Seen(_) => false,
    };
    let has_work = before.by_ref().take_while(|logged| logged.event != Event::Fence).any(waits_for_fence);
    has_work && until_next_fence(log, number).any(|next| acknowledges(log, next))
}

fn numbers(log: &[Logged], is_it: impl Fn(&Event) -> bool) -> Vec<usize> {
    (0..log.len()).filter(|number| is_it(&log[*number].event)).collect()
}

const fn is_flush(event: &Event) -> bool {
    matches!(event, Event::FlushLine { .. })
}

#[test]
fn removing_any_flush_or_fence_is_noticed() {
    for (seed, (engine, writeback)) in
        (11..).zip(engines().into_iter().flat_map(|engine| [(engine, true), (engine, false)]))
    {
        let config = RunConfig { engine, ..RunConfig::on(LINES, writeback) };
        let trace = non_redundant(seed, config);
        let (oracle, log) = (Oracle::new(&trace), &trace.log);
        assert_eq!(check_log(&trace, log, Promise::AtCompletion), Ok(()), "seed={seed} {config:?}");
        let steps = numbers(log, |event| is_flush(event) || *event == Event::Fence);
        let (mut needed_flushes, mut needed_fences) = (0, 0);
        for number in steps {
            let is_needed = if is_flush(&log[number].event) {
                let is_needed = is_last_flush_of_line(log, number);
                needed_flushes += usize::from(is_needed);
                is_needed
            } else {
                let is_needed = is_needed_fence(log, number);
                needed_fences += usize::from(is_needed);
                is_needed
            };
            let verdict = check_log_from(number, &oracle, &without(log, |lost| lost == number));
            let what = &log[number];
            assert_eq!(
                verdict.is_err(),
                is_needed,
                "seed={seed} {config:?}: without {number} {what:?}: {verdict:?}"
            );
        }
        assert!(needed_flushes >= 10, "seed={seed} {config:?}: {needed_flushes}");
        // Only batches pass fences; that of a batch that stores is not redundant, whatever the cache mode.
        let storing = batches(log).into_iter().filter(|batch| has_fence_work(&log[batch.clone()])).count();
        assert_eq!(needed_fences, storing, "seed={seed} {config:?}");
        assert!(needed_fences > 0 || !has_fence_work(log), "seed={seed} {config:?}");
    }
}

/// Of a batch so large that its first half is published before the second is done, neither half can do without its fence.
#[test]
fn both_halves_of_a_large_batch_are_fenced() {
    const BATCHES: usize = 6;
    for (seed, writeback) in [(31, true), (32, false)] {
        let config = RunConfig::on(LINES, writeback);
        let trace = run(&workload::large_batches(seed, BATCHES), config);
        let (oracle, log) = (Oracle::new(&trace), &trace.log);
        assert_eq!(check_log(&trace, log, Promise::AtCompletion), Ok(()), "{config:?}");
        assert_eq!(batches(log).len(), 2 * BATCHES, "{config:?}: each batch is published in two halves");
        let fences = numbers(log, |event| *event == Event::Fence);
        let needed: Vec<_> = fences.into_iter().filter(|number| is_needed_fence(log, *number)).collect();
        assert_eq!(needed.len(), 2 * BATCHES, "{config:?}");
        for number in needed {
            let verdict = check_log_from(number, &oracle, &without(log, |lost| lost == number));
            assert!(verdict.is_err(), "{config:?}: without {number}");
        }
    }
}

/// The events up to each acknowledgement, from the one before on.
fn batches(log: &[Logged]) -> Vec<Range<usize>> {
    let ends: Vec<usize> = (0..log.len()).filter(|number| acknowledges(log, *number)).collect();
    let starts = std::iter::once(&0).chain(&ends);
    starts.zip(&ends).map(|(start, end)| *start..*end).collect()
}

/// Whether anything waits for fences at all: ordinary stores flushed by `clflush` do not.
fn has_fence_work(log: &[Logged]) -> bool {
    log.iter().any(|logged| {
        matches!(
            logged.event,
            Event::Store { via: Via::Stream, .. } | Event::FlushLine { is_ordered: false, .. }
        )
    })
}

/// A batch that is published first and fenced then.
#[test]
fn a_fence_behind_the_used_index_is_noticed() {
    let config = RunConfig::on(LINES, true);
    let trace = non_redundant(SEED, config);
    let oracle = Oracle::new(&trace);
    let mut moved = 0;
    for number in 1..trace.log.len() {
        let is_fence = trace.log[number - 1].event == Event::Fence;
        if !is_fence || !acknowledges(&trace.log, number) || !is_needed_fence(&trace.log, number - 1) {
            continue;
        }
        moved += 1;
        let mut log = trace.log.clone();
        log.swap(number - 1, number);
        assert!(check_log_from(number - 1, &oracle, &log).is_err(), "{number}");
    }
    assert!(moved >= 5, "{moved}");
}

/// An engine that does not flush the lines of heads and tails, or whose fence is none: even a driver that
/// flushes loses what was flushed.
#[test]
fn an_engine_that_forgets_breaks_every_promise() {
    for (engine, omit) in
        engines().into_iter().flat_map(|engine| [(engine, Omit::LineFlushes), (engine, Omit::Fences)])
    {
        for (writeback, promise) in
            [(true, Promise::AtFlush), (true, Promise::AtCompletion), (false, Promise::AtCompletion)]
        {
            let config = RunConfig { engine, omit, ..RunConfig::on(LINES, writeback) };
            let trace = non_redundant(SEED, config);
            let whole = non_redundant(SEED, RunConfig { omit: Omit::Nothing, ..config });
            assert_eq!(check_log(&whole, &whole.log, promise), Ok(()));
            let is_needed = omit == Omit::LineFlushes || has_fence_work(&whole.log);
            assert_eq!(check_log(&trace, &trace.log, promise).is_err(), is_needed, "{config:?} {promise:?}");
        }
    }
}

/// A flush on one ring does not stand for the fences of another: only its own CPU passes it. So without the
/// fences of batches what a driver has flushed may be lost.
#[test]
fn the_fence_of_a_flush_does_not_replace_that_of_another_rings_batch() {
    let ops = [workload::Op::Whole, workload::Op::FlushElsewhere];
    let config = RunConfig::on(LINES, true);
    let trace = run(&workload::small(&ops, 0), config);
    let mutant =
        without(&trace.log, |lost| lost < trace.log.len() / 2 && trace.log[lost].event == Event::Fence);
    assert!(mutant.len() < trace.log.len());
    let oracle = Oracle::new(&trace);
    let all = Exploration::Exhaustive { at_most: 64 };
    assert!(check(&oracle, &trace.log, Promise::AtFlush, all).is_ok());
    assert!(check(&oracle, &mutant, Promise::AtFlush, all).is_err());
}

/// The line that a cut falls into is flushed for each side of it, in whole lines.
#[test]
fn lines_that_are_stored_in_part_are_flushed() {
    let config = RunConfig::on(LINES, true);
    let trace = run(&workload::small(&[workload::Op::Cut], 0), config);
    let flush = Event::FlushLine { at: LINE_BYTES, is_ordered: false };
    let flushed = numbers(&trace.log, is_flush);
    assert!(
        flushed.len() == 2 && flushed.iter().all(|number| trace.log[*number].event == flush),
        "{flushed:?}"
    );
}
