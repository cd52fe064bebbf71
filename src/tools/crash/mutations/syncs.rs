//! The same for what takes a system call: a sync that is missing, too narrow, or counted too early.

use super::super::check::{Effort, Violation, check};
use super::super::oracle::{Oracle, Promise};
use super::super::runner::{Mistake, Pace, Play, play};
use super::super::states::{LINES, SYNCED, promise_of};
use super::super::workload::{self, Letter, Style};
use super::{acknowledges, judge, judge_from, numbers, without};
use crate::copy::recording::{Event, Forgets, Logged, Synced, Via};

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
        let how = Play::on(kind, false);
        // Space is rarely given back.
        let steps = if kind == LINES { 60 } else { 10 };
        let played = play(&workload::random(seed, steps, Style::Plain), how);
        let (oracle, log) = (Oracle::new(&played), &played.log);
        assert_eq!(judge(&played, log, Promise::AtCompletion), Ok(()), "seed={seed} {how:?}");
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
            let judged = judge_from(begin, &oracle, &mutant);
            assert!(judged.is_err(), "seed={seed} {how:?}: without {begin} {:?}", log[begin]);
        }
    }
    assert!(ranges >= 5 && layouts >= 2 && queues >= 5, "{ranges} {layouts} {queues}");
}

/// Without any sync, or any fence before one, nothing is kept. (What the kernel copies needs no fence.)
#[test]
fn forgotten_syncs_and_fences_break_every_promise() {
    for (kind, forgets) in
        SYNCED.into_iter().flat_map(|kind| [(kind, Forgets::Syncs), (kind, Forgets::Fences)])
    {
        for writeback in [false, true] {
            let how = Play { forgets, ..Play::on(kind, writeback) };
            let played = play(&workload::random(31, 20, Style::Plain), how);
            let is_needed = forgets == Forgets::Syncs || !kind.is_written_by_kernel();
            assert_eq!(judge(&played, &played.log, promise_of(how)).is_err(), is_needed, "{how:?}");
        }
    }
}

/// A sync may begin, and be over, in the midst of a batch: only the fence that each write passes before it
/// calls itself finished makes such a sync cover it. That of the batch comes too late.
#[test]
fn the_fence_of_a_batch_does_not_replace_those_of_its_writes() {
    for kind in SYNCED.into_iter().filter(|kind| !kind.is_written_by_kernel()) {
        let is_noticed = |seed| {
            let how = Play { pace: Pace::Random(seed), ..Play::on(kind, false) };
            let played = play(&workload::random(seed, 40, Style::Plain), how);
            assert_eq!(judge(&played, &played.log, Promise::AtCompletion), Ok(()), "seed={seed} {how:?}");
            let log = &played.log;
            let is_lost = |number: usize| {
                let is_of_batch = number + 1 == log.len() || !matches!(log[number + 1].event, Event::Fence);
                log[number].event == Event::Fence && !is_of_batch
            };
            judge(&played, &without(log, is_lost), Promise::AtCompletion).is_err()
        };
        assert!((1..60).any(is_noticed), "{kind:?}");
    }
}

/// The end of a sync counts, not its beginning.
#[test]
fn an_acknowledgement_before_the_end_of_its_sync_is_noticed() {
    for kind in SYNCED {
        let played = play(&workload::random(41, 10, Style::Plain), Play::on(kind, false));
        let (oracle, log) = (Oracle::new(&played), &played.log);
        let mut moved = 0;
        for begin in numbers(log, is_sync).into_iter().filter(|begin| has_work(log, *begin)) {
            let end = end_of(log, begin);
            if acknowledges(log, end + 1) {
                let mut log = log.clone();
                log.swap(end, end + 1);
                moved += 1;
                assert!(judge_from(end, &oracle, &log).is_err(), "{kind:?} {end}");
            }
        }
        assert!(moved >= 3, "{kind:?}: {moved}");
    }
}

fn play_all(letters: &[Letter], how: Play) -> Result<(), Violation> {
    let played = play(&workload::small(letters, 0), how);
    check(&Oracle::new(&played), &played.log, promise_of(how), Effort::All { at_most: 64 }).map(|_| ())
}

/// What goes wrong only when something happens while a sync runs.
#[test]
fn mistakes_about_syncs_that_run_are_noticed() {
    use Letter::{Flush, FlushElsewhere, Whole, WholeElsewhere};
    let cases = [
        (Mistake::CleanAfterSync, &[Whole, Flush, WholeElsewhere, FlushElsewhere][..], [0, 1, 9]),
        (Mistake::AnswerDuringSync, &[Whole, Flush, FlushElsewhere][..], [0, 1, 0]),
    ];
    for kind in SYNCED {
        for (mistake, letters, turns) in cases {
            let right = Play { pace: Pace::Steps(turns), ..Play::on(kind, true) };
            assert_eq!(play_all(letters, right), Ok(()), "{right:?}");
            let wrong = Play { mistake: Some(mistake), ..right };
            assert!(play_all(letters, wrong).is_err(), "{wrong:?}");
            let in_turn = Play { pace: Pace::AtOnce, ..wrong };
            assert_eq!(play_all(letters, in_turn), Ok(()), "one after the other all is well: {in_turn:?}");
        }
    }
}
