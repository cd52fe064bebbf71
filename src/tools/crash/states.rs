//! No state breaks a promise, in small histories and in long ones.

use super::check::{Checked, Effort, Violation, check};
use super::media::{Class, Media};
use super::oracle::{Oracle, Promise};
use super::runner::{Kind, Pace, Play, Played, play};
use super::workload::{self, History, Letter, Request, Style};
use crate::copy::recording::Event;
use crate::copy::{Engine, LineFlush, Stores};
use crate::limits::bounds::MAX_SLICE_BYTES;

/// States of one moment of a small history: no more than these are ever met.
const MOST_STATES: usize = 4096;

/// The engines that differ in what the media sees of them, of those that this CPU has, by their numbers:
/// non-temporal or ordinary stores, flushes that are ordered by a fence or by themselves.
pub(super) fn engines() -> Vec<usize> {
    let mut kinds = Vec::new();
    let mut numbers = Vec::new();
    for (number, engine) in Engine::available().iter().enumerate() {
        let kind = (engine.stores() == Stores::Portable, engine.line_flush() == LineFlush::Clflush);
        if !kinds.contains(&kind) {
            kinds.push(kind);
            numbers.push(number);
        }
    }
    assert!(numbers.len() >= 2, "{kinds:?}");
    numbers
}

/// The disk whose durability is that of the cache line.
pub(super) const LINES: Kind = Kind::Mapped(Class::Lines);

/// The disks whose flushes take a system call.
pub(super) const SYNCED: [Kind; 4] =
    [Kind::Mapped(Class::Pages), Kind::Mapped(Class::Queues), Kind::File, Kind::Device];

/// The best engine on every disk in both cache modes; the others on media of the cache line's class.
pub(super) fn ways() -> Vec<Play> {
    let others = engines().into_iter().enumerate().skip(1);
    let others = others.map(|(place, engine)| Play { engine, ..Play::on(LINES, place % 2 == 0) });
    let kinds = SYNCED.into_iter().chain([LINES]);
    kinds.flat_map(|kind| [Play::on(kind, false), Play::on(kind, true)]).chain(others).collect()
}

/// The strongest promise that is made. On media of the cache line's class a write is safe once it is
/// acknowledged, whatever the cache mode.
pub(super) const fn promise_of(how: Play) -> Promise {
    match how.kind.class() {
        Class::Pages | Class::Queues if how.writeback => Promise::AtFlush,
        Class::Lines | Class::Pages | Class::Queues | Class::Shared => Promise::AtCompletion,
    }
}

/// Every store was recorded: played once more they make what a reader found on the real mapping.
fn assert_complete(played: &Played) {
    let mut media = Media::new(played.class, &played.before);
    played.log.iter().for_each(|logged| media.apply(logged));
    assert!(media.visible() == played.after, "the log is not what happened");
}

fn every_small_history(alphabet: &[Letter], letters: usize, mut each: impl FnMut(&[Letter], u32)) {
    let count = alphabet.len();
    for number in 0..count.pow(letters as u32) {
        let word: Vec<Letter> =
            (0..letters).map(|at| alphabet[number / count.pow(at as u32) % count]).collect();
        (0..1 << (letters - 1)).for_each(|joins| each(&word, joins));
    }
}

/// All states of a history.
fn check_all(history: &History, how: Play) -> Result<Checked, Violation> {
    let played = play(history, how);
    assert_complete(&played);
    check(&Oracle::new(&played), &played.log, promise_of(how), Effort::All { at_most: MOST_STATES })
}

#[test]
fn every_state_of_every_small_history_keeps_the_promise() {
    use Letter::{Cut, Discard, Flush, FlushElsewhere, Long, Unmap, Whole, Zero};
    const ALL: [Letter; 8] = [Whole, Cut, Long, Zero, Unmap, Discard, Flush, FlushElsewhere];
    let (engines, mut total) = (engines(), Checked::default());
    for letters in 1..=3 {
        // The best engine and what differs most for long ones; everything for those of up to two.
        let (engines, alphabet) = match letters {
            3 => (&engines[..1], &[Whole, Cut, Unmap, Discard, Flush][..]),
            _ => (&engines[..], &ALL[..]),
        };
        every_small_history(alphabet, letters, |word, joins| {
            let history = workload::small(word, joins);
            let modes = [(true, true), (false, false)];
            for (engine, (writeback, unmaps)) in
                engines.iter().flat_map(|engine| modes.map(|mode| (*engine, mode)))
            {
                let how = Play { engine, unmaps, ..Play::on(LINES, writeback) };
                let checked = check_all(&history, how);
                let checked = checked.unwrap_or_else(|violation| {
                    panic!("{word:?} joins={joins} {how:?}: {violation:?}");
                });
                total.undecided_moments += checked.undecided_moments;
                total.states += checked.states;
            }
        });
    }
    assert!(total.undecided_moments > 10_000 && total.states > 100_000, "{total:?}");
}

/// A write that is done in slices is one request: it is acknowledged when the last one is safe, whatever comes before and
/// behind it in its batch.
#[test]
fn every_state_of_a_sliced_write_keeps_the_promise() {
    const SLICE: usize = MAX_SLICE_BYTES as usize;
    let before = vec![0; SLICE + 1024];
    let write = |range: std::ops::Range<usize>, cuts: &[usize], changes: &[usize]| {
        let mut data = vec![0; range.len()];
        changes.iter().for_each(|at| data[at - range.start..at - range.start + 8].fill(7));
        Request::Write { at: range.start, data, cuts: [cuts, &[range.len()]].concat() }
    };
    // Over the end of a slice, with buffers that meet before it, at it, and inside of eight bytes behind it.
    let edges = [512, SLICE - 8, SLICE, SLICE + 1016];
    let sliced = [
        write(512..SLICE + 1024, &[], &edges),
        write(512..SLICE + 1024, &[100, SLICE - 512, SLICE - 412], &edges),
    ];
    let small = || write(0..512, &[], &[0]);
    let mut total = Checked::default();
    for (long, how) in sliced.iter().flat_map(|long| ways().into_iter().map(move |how| (long, how))) {
        for requests in [
            vec![long.clone()],
            vec![small(), long.clone(), small()],
            vec![long.clone(), Request::Flush],
            vec![Request::Flush, long.clone(), long.clone()],
        ] {
            let steps = vec![workload::Step { ring: 0, requests }];
            let history = History { before: before.clone(), bad_at: None, steps };
            let checked = check_all(&history, how).unwrap_or_else(|violation| {
                panic!("{how:?} {:?}: {violation:?}", history.steps);
            });
            total.undecided_moments += checked.undecided_moments;
            total.states += checked.states;
        }
    }
    assert!(total.undecided_moments > 500 && total.states > 3000, "{total:?}");
}

/// Where a flush takes a system call everything depends on what is done while one runs: each place where the
/// flusher may be after each batch.
#[test]
fn every_pace_of_the_flusher_keeps_the_promise() {
    use Letter::{Discard, Flush, FlushElsewhere, Unmap, Whole, WholeElsewhere};
    let mut total = Checked::default();
    let mut check = |word: &[Letter], joins, how: Play| {
        let checked = check_all(&workload::small(word, joins), how);
        let checked = checked.unwrap_or_else(|violation| {
            panic!("{word:?} joins={joins} {how:?}: {violation:?}");
        });
        total.undecided_moments += checked.undecided_moments;
        total.states += checked.states;
    };
    let ways: Vec<Play> =
        SYNCED.into_iter().flat_map(|kind| [Play::on(kind, true), Play::on(kind, false)]).collect();
    let alphabet = [Whole, WholeElsewhere, Unmap, Discard, Flush, FlushElsewhere];
    every_small_history(&alphabet, 2, |word, joins| {
        for (how, turns) in ways.iter().flat_map(|how| (0..3).map(move |turns| (how, turns))) {
            check(word, joins, Play { pace: Pace::Steps([turns, 0, 0]), ..*how });
        }
    });
    // A batch is one letter here, and the first one is a write, since before it there is nothing to flush.
    every_small_history(&[Whole, WholeElsewhere, Flush, FlushElsewhere], 3, |word, joins| {
        if joins != 0 || matches!(word[0], Flush | FlushElsewhere) {
            return;
        }
        for turns in (0..3).flat_map(|first| (0..3).map(move |second| [first, second, 0])) {
            ways.iter().take(4).for_each(|how| check(word, 0, Play { pace: Pace::Steps(turns), ..*how }));
        }
    });
    assert!(total.undecided_moments > 10_000 && total.states > 50_000, "{total:?}");
}

/// A sync that begins and ends between any two events of a batch: the write before it or after it is not half
/// counted.
#[test]
fn a_whole_sync_between_any_two_events_keeps_the_promise() {
    use Letter::{Flush, FlushElsewhere, Whole, WholeElsewhere};
    // The first flush waits for its turn while the other ring writes and flushes in one batch.
    let history = workload::small(&[Whole, Flush, WholeElsewhere, FlushElsewhere], 0b101);
    for (kind, writeback) in SYNCED.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let of = |events| Play { pace: Pace::Between(events), ..Play::on(kind, writeback) };
        // More events than that are none of these rings.
        for how in (0..40).map(of) {
            check_all(&history, how).unwrap_or_else(|violation| panic!("{how:?}: {violation:?}"));
        }
    }
}

#[test]
fn random_states_of_long_histories_keep_the_promise() {
    for (seed, how) in (1..).zip(ways()) {
        let unmaps = seed % 3 != 0;
        let how = Play { unmaps, pace: Pace::Random(seed), ..how };
        let style =
            if !how.kind.is_written_by_kernel() && seed % 2 == 0 { Style::Mending } else { Style::Any };
        // Up to a sync all that was written since the last one is undecided: these states are large.
        let steps = if how.kind == LINES { 40 } else { 20 };
        let played = play(&workload::random(seed, steps, style), how);
        assert_complete(&played);
        let oracle = Oracle::new(&played);
        let check = |states| {
            check(&oracle, &played.log, promise_of(how), Effort::Sample { seed, states })
                .unwrap_or_else(|violation| panic!("seed={seed} {how:?}: {violation:?}"))
        };
        // A few more than are wanted: all states of a moment are made where these are fewer.
        let mut states = 12_000 / check(1).random_states;
        while check(states).random_states < 10_000 {
            states += states / 2;
        }
    }
}

/// Files of an XFS that can share blocks were once taken for media of the cache line's class: what was acknowledged, and
/// even what was flushed, is lost there. Synced as pages are, it is kept.
#[test]
fn a_map_sync_that_is_not_kept_for_shared_blocks_takes_syncs() {
    let judge = |seed, how: Play, class, promise| {
        let played = Played { class, ..play(&workload::random(seed, 20, Style::Any), how) };
        check(&Oracle::new(&played), &played.log, promise, Effort::Sample { seed, states: 10 }).map(|_| ())
    };
    for (seed, writeback) in (51..).zip([true, false]) {
        let lines = Play::on(LINES, writeback);
        assert_eq!(judge(seed, lines, Class::Lines, Promise::AtCompletion), Ok(()));
        for promise in [Promise::AtCompletion, Promise::AtFlush] {
            let lost = judge(seed, lines, Class::Shared, promise);
            assert!(lost.is_err(), "writeback={writeback}: {promise:?} is kept without any sync");
        }
        let pages = Play::on(Kind::Mapped(Class::Pages), writeback);
        assert_eq!(judge(seed, pages, Class::Shared, promise_of(pages)), Ok(()), "writeback={writeback}");
    }
}

/// What a write of one sector leaves when the power fails before it is acknowledged: one state of each kind.
///
/// A disk promises whole sectors; persistent media only units of 8 bytes, and where the buffers of a guest
/// meet inside of such a unit not even these. Who needs more puts a layer with whole sectors (BTT) on top.
#[test]
fn a_raw_write_may_tear_inside_a_sector_and_at_odd_buffers_inside_of_eight_bytes() {
    let tears = |cuts: &[usize]| {
        let request = Request::Write { at: 0, data: vec![2; 512], cuts: cuts.to_vec() };
        let steps = vec![workload::Step { ring: 0, requests: vec![request] }];
        let history = History { before: vec![1; 1024], bad_at: None, steps };
        let played = play(&history, Play::on(LINES, false));
        check(
            &Oracle::new(&played),
            &played.log,
            Promise::AtCompletion,
            Effort::Sample { seed: 3, states: 100 },
        )
        .unwrap();
        let fence = played.log.iter().position(|logged| logged.event == Event::Fence).unwrap();
        let (mut sector_tears, mut unit_tears) = (false, false);
        for after in 0..fence {
            let mut media = Media::new(played.class, &played.before);
            played.log[..=after].iter().for_each(|logged| media.apply(logged));
            // The state in which the first free unit is new, and all others are old.
            let free = media.free();
            let Some((unit, values)) = free.first() else { continue };
            let mut image = media.certain().to_vec();
            image[*unit] = values[1];
            let sector = &image.as_flattened()[..512];
            sector_tears |= sector.contains(&1) && sector.contains(&2);
            unit_tears |= free
                .iter()
                .flat_map(|(_, values)| values)
                .any(|value| value.contains(&1) && value.contains(&2));
        }
        (sector_tears, unit_tears)
    };
    assert_eq!(tears(&[512]), (true, false));
    assert_eq!(tears(&[104, 512]), (true, false));
    assert_eq!(tears(&[100, 512]), (true, true));
}

/// The checker sees what is wrong: bytes of nobody, a write that is gone, one that was never asked for.
#[test]
fn a_state_that_nobody_asked_for_is_a_violation() {
    let how = Play::on(LINES, true);
    let played = play(&workload::small(&[Letter::Whole], 0), how);
    let check = |played: &Played| {
        check(&Oracle::new(played), &played.log, Promise::AtCompletion, Effort::All { at_most: 8 })
    };
    assert!(check(&played).is_ok());
    let fence = played.log.iter().position(|logged| logged.event == Event::Fence).unwrap();
    let with = |at: usize, event: Event| {
        let mut log = played.log.clone();
        log.insert(at, crate::copy::recording::Logged { cpu: 0, event });
        Played { log, ..played.clone() }
    };
    let store = |at| Event::Store { at, bytes: vec![9], via: crate::copy::recording::Via::Stream };
    let outside = Violation { after: fence + 1, at: 512, found: [9, 0, 0, 0, 0, 0, 0, 0] };
    assert_eq!(check(&with(fence, store(512))), Err(outside));
    let torn = Violation { after: fence + 1, at: 0, found: [9, 1, 1, 1, 1, 1, 1, 1] };
    assert_eq!(check(&with(fence, store(0))), Err(torn));
    // Before it was offered.
    let Event::Store { bytes, .. } = played
        .log
        .iter()
        .find_map(|logged| match &logged.event {
            store @ Event::Store { .. } => Some(store.clone()),
            _ => None,
        })
        .unwrap()
    else {
        unreachable!()
    };
    let early = Event::Store { at: 0, bytes, via: crate::copy::recording::Via::Stream };
    let premature = Violation { after: 1, at: 0, found: [1; 8] };
    assert_eq!(check(&with(0, early)), Err(premature));
}
