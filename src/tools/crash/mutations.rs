//! The suite would notice: without any one of its flushes and fences the engine breaks a promise.
//!
//! What is redundant, and why it is not an exception to that:
//! - Where two buffers of a guest meet inside of a line, that line is flushed after the tail of the one and
//!   again after the head of the other. The second flush covers both.
//! - A batch that stores nothing passes a fence too.
//! - With `clflush`, which is ordered by itself, ordinary stores need no fence.
//!
//! The histories are such that nothing else is redundant: every store changes every byte, and no two requests
//! of a batch touch the same line.

mod syncs;

use std::ops::Range;

use super::check::{Effort, Violation, check, check_from};
use super::driver::{RINGS, indices_of};
use super::oracle::{Oracle, Promise};
use super::runner::{Play, Played, play};
use super::states::{LINES, engines};
use super::workload::{self, Style};
use crate::copy::recording::{Event, Forgets, LINE_BYTES, Logged, Via};

/// A sample contains every value of every unit, so no random states are needed on top.
const EFFORT: Effort = Effort::Sample { seed: 7, states: 1 };

const SEED: u64 = 11;

fn plain(seed: u64, how: Play) -> Played {
    play(&workload::random(seed, 10, Style::Plain), how)
}

/// The log without the events that `is_lost` names by number.
fn without(log: &[Logged], is_lost: impl Fn(usize) -> bool) -> Vec<Logged> {
    log.iter().enumerate().filter(|(number, _)| !is_lost(*number)).map(|(_, logged)| logged.clone()).collect()
}

fn judge(played: &Played, log: &[Logged], promise: Promise) -> Result<(), Violation> {
    check(&Oracle::new(played), log, promise, EFFORT).map(|_| ())
}

/// What a log is worth that differs from a good one from event number `first` on.
fn judge_from(first: usize, oracle: &Oracle<'_>, log: &[Logged]) -> Result<(), Violation> {
    check_from(first, oracle, log, Promise::AtCompletion, EFFORT).map(|_| ())
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

/// A flush of a line is the one that counts if none comes after it before the fence.
fn is_last_flush_of_line(log: &[Logged], number: usize) -> bool {
    !until_next_fence(log, number).any(|next| log[next].event == log[number].event)
}

/// A fence counts if it makes something certain that is acknowledged before the next one.
fn is_needed_fence(log: &[Logged], number: usize) -> bool {
    let cpu = log[number].cpu;
    let mut before = log[..number].iter().rev().filter(|logged| logged.cpu == cpu);
    let makes_certain = |logged: &Logged| match &logged.event {
        Event::Store { via, .. } => *via == Via::Stream,
        Event::FlushLine { is_ordered, .. } => !is_ordered,
        Event::Fence | Event::SyncBegins(_) | Event::SyncEnds | Event::Seen(_) => false,
    };
    let has_work = before.by_ref().take_while(|logged| logged.event != Event::Fence).any(makes_certain);
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
        let how = Play { engine, ..Play::on(LINES, writeback) };
        let played = plain(seed, how);
        let (oracle, log) = (Oracle::new(&played), &played.log);
        assert_eq!(judge(&played, log, Promise::AtCompletion), Ok(()), "seed={seed} {how:?}");
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
            let judged = judge_from(number, &oracle, &without(log, |lost| lost == number));
            let what = &log[number];
            assert_eq!(
                judged.is_err(),
                is_needed,
                "seed={seed} {how:?}: without {number} {what:?}: {judged:?}"
            );
        }
        assert!(needed_flushes >= 10, "seed={seed} {how:?}: {needed_flushes}");
        // Only batches pass fences; that of a batch that stores is not redundant, whatever the cache mode.
        let storing = batches(log).into_iter().filter(|batch| has_fence_work(&log[batch.clone()])).count();
        assert_eq!(needed_fences, storing, "seed={seed} {how:?}");
        assert!(needed_fences > 0 || !has_fence_work(log), "seed={seed} {how:?}");
    }
}

/// Of a batch so large that its first half is shown before the second is done, neither half can do without its fence.
#[test]
fn both_halves_of_a_large_batch_are_fenced() {
    const STEPS: usize = 6;
    for (seed, writeback) in [(31, true), (32, false)] {
        let how = Play::on(LINES, writeback);
        let played = play(&workload::crowded(seed, STEPS), how);
        let (oracle, log) = (Oracle::new(&played), &played.log);
        assert_eq!(judge(&played, log, Promise::AtCompletion), Ok(()), "{how:?}");
        assert_eq!(batches(log).len(), 2 * STEPS, "{how:?}: each batch is shown in two halves");
        let fences = numbers(log, |event| *event == Event::Fence);
        let needed: Vec<_> = fences.into_iter().filter(|number| is_needed_fence(log, *number)).collect();
        assert_eq!(needed.len(), 2 * STEPS, "{how:?}");
        for number in needed {
            let judged = judge_from(number, &oracle, &without(log, |lost| lost == number));
            assert!(judged.is_err(), "{how:?}: without {number}");
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
    let how = Play::on(LINES, true);
    let played = plain(SEED, how);
    let oracle = Oracle::new(&played);
    let mut moved = 0;
    for number in 1..played.log.len() {
        let is_fence = played.log[number - 1].event == Event::Fence;
        if !is_fence || !acknowledges(&played.log, number) || !is_needed_fence(&played.log, number - 1) {
            continue;
        }
        moved += 1;
        let mut log = played.log.clone();
        log.swap(number - 1, number);
        assert!(judge_from(number - 1, &oracle, &log).is_err(), "{number}");
    }
    assert!(moved >= 5, "{moved}");
}

/// An engine that does not flush the lines of heads and tails, or whose fence is none: even a driver that
/// flushes loses what was flushed.
#[test]
fn an_engine_that_forgets_breaks_every_promise() {
    for (engine, forgets) in
        engines().into_iter().flat_map(|engine| [(engine, Forgets::LineFlushes), (engine, Forgets::Fences)])
    {
        for (writeback, promise) in
            [(true, Promise::AtFlush), (true, Promise::AtCompletion), (false, Promise::AtCompletion)]
        {
            let how = Play { engine, forgets, ..Play::on(LINES, writeback) };
            let played = plain(SEED, how);
            let whole = plain(SEED, Play { forgets: Forgets::Nothing, ..how });
            assert_eq!(judge(&whole, &whole.log, promise), Ok(()));
            let is_needed = forgets == Forgets::LineFlushes || has_fence_work(&whole.log);
            assert_eq!(judge(&played, &played.log, promise).is_err(), is_needed, "{how:?} {promise:?}");
        }
    }
}

/// A flush on one ring does not stand for the fences of another: only its own CPU passes it. So without the
/// fences of batches what a driver has flushed may be lost.
#[test]
fn the_fence_of_a_flush_does_not_replace_that_of_another_rings_batch() {
    let letters = [workload::Letter::Whole, workload::Letter::FlushElsewhere];
    let how = Play::on(LINES, true);
    let played = play(&workload::small(&letters, 0), how);
    let mutant =
        without(&played.log, |lost| lost < played.log.len() / 2 && played.log[lost].event == Event::Fence);
    assert!(mutant.len() < played.log.len());
    let oracle = Oracle::new(&played);
    let all = Effort::All { at_most: 64 };
    assert!(check(&oracle, &played.log, Promise::AtFlush, all).is_ok());
    assert!(check(&oracle, &mutant, Promise::AtFlush, all).is_err());
}

/// The line that a cut falls into is flushed for each side of it, in whole lines.
#[test]
fn lines_that_are_stored_in_part_are_flushed() {
    let how = Play::on(LINES, true);
    let played = play(&workload::small(&[workload::Letter::Cut], 0), how);
    let flush = Event::FlushLine { at: LINE_BYTES, is_ordered: false };
    let flushed = numbers(&played.log, is_flush);
    assert!(
        flushed.len() == 2 && flushed.iter().all(|number| played.log[*number].event == flush),
        "{flushed:?}"
    );
}
