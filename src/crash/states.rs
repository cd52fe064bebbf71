//! No state breaks a promise, in small histories and in long ones.

use super::check::{Checked, Effort, Violation, check};
use super::history::{self, Letter, Request};
use super::media::Media;
use super::oracle::{Oracle, Promise};
use super::scene::{Play, Played, play};
use crate::copy::recording::{Event, Forgets};
use crate::copy::{Engine, LineFlush, Stores};

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

/// Cache mode, and whether a flush of the disk passes a fence.
pub(super) type Mode = (bool, bool);

/// The best engine in every mode, each other one with as many and with as few fences as there may be.
pub(super) fn ways() -> Vec<(usize, Mode)> {
    const MODES: [Mode; 3] = [(true, true), (false, false), (false, true)];
    let modes = |place| if place == 0 { &MODES[..] } else { &MODES[..2] };
    let each = engines().into_iter().enumerate();
    each.flat_map(|(place, engine)| modes(place).iter().map(move |mode| (engine, *mode))).collect()
}

/// Every store was recorded: played once more they make what a reader found on the real mapping.
fn assert_complete(played: &Played) {
    let mut media = Media::new(&played.before);
    played.log.iter().for_each(|logged| media.apply(logged));
    assert!(media.visible() == played.after, "the log is not what happened");
}

fn every_small_history(letters: usize, mut each: impl FnMut(&[Letter], u32)) {
    let count = Letter::ALL.len();
    for number in 0..count.pow(letters as u32) {
        let word: Vec<Letter> =
            (0..letters).map(|at| Letter::ALL[number / count.pow(at as u32) % count]).collect();
        (0..1 << (letters - 1)).for_each(|joins| each(&word, joins));
    }
}

/// On this media a write is safe once it is acknowledged, whatever the cache mode, which is the stronger of
/// the two promises: each state that it allows is allowed by the other.
#[test]
fn every_state_of_every_small_history_keeps_the_promise() {
    let (engines, mut total) = (engines(), Checked::default());
    for letters in 1..=3 {
        // The best engine for all of them, the others for those of up to two letters.
        let engines = if letters == 3 { &engines[..1] } else { &engines[..] };
        every_small_history(letters, |word, joins| {
            let history = history::small(word, joins);
            for (engine, writeback) in engines.iter().flat_map(|engine| [(*engine, true), (*engine, false)]) {
                let how = Play { engine, writeback, flush_fences: true, forgets: Forgets::Nothing };
                let played = play(&history, how);
                assert_complete(&played);
                let effort = Effort::All { at_most: MOST_STATES };
                let checked = check(&Oracle::new(&played), &played.log, Promise::AtCompletion, effort);
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

#[test]
fn random_states_of_long_histories_keep_the_promise() {
    for (seed, (engine, (writeback, flush_fences))) in (1..).zip(ways()) {
        let how = Play { engine, writeback, flush_fences, forgets: Forgets::Nothing };
        let played = play(&history::random(seed, 40, false), how);
        assert_complete(&played);
        let oracle = Oracle::new(&played);
        let check = |states| {
            check(&oracle, &played.log, Promise::AtCompletion, Effort::Sample { seed, states })
                .unwrap_or_else(|violation| panic!("seed={seed} {how:?}: {violation:?}"))
        };
        // A few more than are wanted: all states of a moment are made where these are fewer.
        let moments = check(1).random_states;
        let checked = check(12_000 / moments);
        assert!(checked.random_states >= 10_000, "seed={seed} {how:?}: {checked:?}");
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
        let steps = vec![history::Step { ring: 0, requests: vec![request] }];
        let history = history::History { before: vec![1; 1024], steps };
        let how = Play { engine: 0, writeback: false, flush_fences: true, forgets: Forgets::Nothing };
        let played = play(&history, how);
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
            let mut media = Media::new(&played.before);
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
    let how = Play { engine: 0, writeback: true, flush_fences: true, forgets: Forgets::Nothing };
    let played = play(&history::small(&[Letter::Whole], 0), how);
    let check = |played: &Played| {
        check(&Oracle::new(played), &played.log, Promise::AtCompletion, Effort::All { at_most: 8 })
    };
    assert!(check(&played).is_ok());
    let fence = played.log.iter().position(|logged| logged.event == Event::Fence).unwrap();
    let with = |at: usize, event: Event| {
        let mut log = played.log.clone();
        log.insert(at, crate::copy::recording::Logged { cpu: 0, event });
        Played { log, before: played.before.clone(), requests: played.requests.clone(), after: vec![] }
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
