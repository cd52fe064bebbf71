//! No state breaks a promise, in small workloads and in long ones.

use super::check::{Coverage, Exploration, Violation, check};
use super::media::{Class, Media};
use super::oracle::{Oracle, Promise};
use super::runner::{DiskKind, RunConfig, Schedule, Trace, run};
use super::workload::{self, Op, Request, Workload, WorkloadKind};
use crate::copy::recording::Event;
use crate::copy::{Engine, LineFlush, Stores};
use crate::limits::bounds::MAX_SLICE_BYTES;

/// No crash point of a small workload has more states.
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
pub(super) const LINES: DiskKind = DiskKind::Mapped(Class::Lines);

/// The disks whose flushes take a system call.
pub(super) const SYNCED: [DiskKind; 4] =
    [DiskKind::Mapped(Class::Pages), DiskKind::Mapped(Class::Queues), DiskKind::File, DiskKind::Device];

/// The best engine on every disk in both cache modes; the others on media of the cache line's class.
pub(super) fn configurations() -> Vec<RunConfig> {
    let others = engines().into_iter().enumerate().skip(1);
    let others = others.map(|(place, engine)| RunConfig { engine, ..RunConfig::on(LINES, place % 2 == 0) });
    let kinds = SYNCED.into_iter().chain([LINES]);
    kinds.flat_map(|kind| [RunConfig::on(kind, false), RunConfig::on(kind, true)]).chain(others).collect()
}

/// The strongest promise that is made. On media of the cache line's class a write is safe once it is
/// acknowledged, whatever the cache mode.
pub(super) const fn promise_of(config: RunConfig) -> Promise {
    match config.kind.class() {
        Class::Pages | Class::Queues if config.writeback => Promise::AtFlush,
        Class::Lines | Class::Pages | Class::Queues | Class::Shared => Promise::AtCompletion,
    }
}

/// Every store was recorded: applied once more they make what a reader found on the real disk.
pub(super) fn assert_complete(trace: &Trace) {
    let mut media = Media::new(trace.class, &trace.before);
    trace.log.iter().for_each(|logged| media.apply(logged));
    assert!(media.visible() == trace.after, "the log is not what happened");
}

/// Every sequence of `length` operations, and every way to divide it into batches (bounded black-box crash testing, as
/// CrashMonkey's ACE does it).
fn every_small_workload(alphabet: &[Op], length: usize, mut each: impl FnMut(&[Op], u32)) {
    let count = alphabet.len();
    for number in 0..count.pow(length as u32) {
        let ops: Vec<Op> = (0..length).map(|at| alphabet[number / count.pow(at as u32) % count]).collect();
        (0..1 << (length - 1)).for_each(|joins| each(&ops, joins));
    }
}

/// All states of a workload.
fn check_all(workload: &Workload, config: RunConfig) -> Result<Coverage, Violation> {
    let trace = run(workload, config);
    assert_complete(&trace);
    check(
        &Oracle::new(&trace),
        &trace.log,
        promise_of(config),
        Exploration::Exhaustive { at_most: MOST_STATES },
    )
}

#[test]
fn every_state_of_every_small_history_keeps_the_promise() {
    use Op::{Cut, Discard, Flush, FlushElsewhere, Long, Unmap, Whole, Zero};
    const ALL: [Op; 8] = [Whole, Cut, Long, Zero, Unmap, Discard, Flush, FlushElsewhere];
    let (engines, mut total) = (engines(), Coverage::default());
    for length in 1..=3 {
        // The best engine and what differs most for long ones; everything for those of up to two.
        let (engines, alphabet) = match length {
            3 => (&engines[..1], &[Whole, Cut, Unmap, Discard, Flush][..]),
            _ => (&engines[..], &ALL[..]),
        };
        every_small_workload(alphabet, length, |ops, joins| {
            let workload = workload::small(ops, joins);
            let modes = [(true, true), (false, false)];
            for (engine, (writeback, unmaps)) in
                engines.iter().flat_map(|engine| modes.map(|mode| (*engine, mode)))
            {
                let config = RunConfig { engine, unmaps, ..RunConfig::on(LINES, writeback) };
                let checked = check_all(&workload, config);
                let checked = checked.unwrap_or_else(|violation| {
                    panic!("{ops:?} joins={joins} {config:?}: {violation:?}");
                });
                total.ambiguous_points += checked.ambiguous_points;
                total.states += checked.states;
            }
        });
    }
    assert!(total.ambiguous_points > 10_000 && total.states > 100_000, "{total:?}");
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
    let mut total = Coverage::default();
    for (long, config) in
        sliced.iter().flat_map(|long| configurations().into_iter().map(move |config| (long, config)))
    {
        for requests in [
            vec![long.clone()],
            vec![small(), long.clone(), small()],
            vec![long.clone(), Request::Flush],
            vec![Request::Flush, long.clone(), long.clone()],
        ] {
            let batches = vec![workload::Batch { ring: 0, requests }];
            let workload = Workload { before: before.clone(), bad_at: None, batches };
            let checked = check_all(&workload, config).unwrap_or_else(|violation| {
                panic!("{config:?} {:?}: {violation:?}", workload.batches);
            });
            total.ambiguous_points += checked.ambiguous_points;
            total.states += checked.states;
        }
    }
    assert!(total.ambiguous_points > 500 && total.states > 3000, "{total:?}");
}

/// Where a flush takes a system call everything depends on what is done while one runs: the flusher is let go to each
/// preemption point after each batch.
#[test]
fn every_schedule_of_the_flusher_keeps_the_promise() {
    use Op::{Discard, Flush, FlushElsewhere, Unmap, Whole, WholeElsewhere};
    let mut total = Coverage::default();
    let mut check = |ops: &[Op], joins, config: RunConfig| {
        let checked = check_all(&workload::small(ops, joins), config);
        let checked = checked.unwrap_or_else(|violation| {
            panic!("{ops:?} joins={joins} {config:?}: {violation:?}");
        });
        total.ambiguous_points += checked.ambiguous_points;
        total.states += checked.states;
    };
    let configs: Vec<RunConfig> =
        SYNCED.into_iter().flat_map(|kind| [RunConfig::on(kind, true), RunConfig::on(kind, false)]).collect();
    let alphabet = [Whole, WholeElsewhere, Unmap, Discard, Flush, FlushElsewhere];
    every_small_workload(&alphabet, 2, |ops, joins| {
        for (config, turns) in configs.iter().flat_map(|config| (0..3).map(move |turns| (config, turns))) {
            check(ops, joins, RunConfig { schedule: Schedule::AfterBatches([turns, 0, 0]), ..*config });
        }
    });
    // Each batch is one operation here, and the first one is a write, since before it there is nothing to flush.
    every_small_workload(&[Whole, WholeElsewhere, Flush, FlushElsewhere], 3, |ops, joins| {
        if joins != 0 || matches!(ops[0], Flush | FlushElsewhere) {
            return;
        }
        for turns in (0..3).flat_map(|first| (0..3).map(move |second| [first, second, 0])) {
            configs.iter().take(4).for_each(|config| {
                check(ops, 0, RunConfig { schedule: Schedule::AfterBatches(turns), ..*config })
            });
        }
    });
    assert!(total.ambiguous_points > 10_000 && total.states > 50_000, "{total:?}");
}

/// A sync that begins and ends between any two events of a batch: the write before it or after it is not half
/// counted.
#[test]
fn a_whole_sync_between_any_two_events_keeps_the_promise() {
    use Op::{Flush, FlushElsewhere, Whole, WholeElsewhere};
    // The first flush waits for its turn while the other ring writes and flushes in one batch.
    let workload = workload::small(&[Whole, Flush, WholeElsewhere, FlushElsewhere], 0b101);
    for (kind, writeback) in SYNCED.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let of =
            |events| RunConfig { schedule: Schedule::AfterEvents(events), ..RunConfig::on(kind, writeback) };
        // More events than that are none of these rings.
        for config in (0..40).map(of) {
            check_all(&workload, config).unwrap_or_else(|violation| panic!("{config:?}: {violation:?}"));
        }
    }
}

#[test]
fn random_states_of_long_histories_keep_the_promise() {
    for (seed, config) in (1..).zip(configurations()) {
        let unmaps = seed % 3 != 0;
        let config = RunConfig { unmaps, schedule: Schedule::Random(seed), ..config };
        let style = if !config.kind.is_written_by_kernel() && seed % 2 == 0 {
            WorkloadKind::MendsBadPage
        } else {
            WorkloadKind::Any
        };
        // Up to a sync all that was written since the last one is ambiguous: these states are large.
        let batches = if config.kind == LINES { 40 } else { 20 };
        let trace = run(&workload::random(seed, batches, style), config);
        assert_complete(&trace);
        let oracle = Oracle::new(&trace);
        let check = |states| {
            check(&oracle, &trace.log, promise_of(config), Exploration::Sampled { seed, states })
                .unwrap_or_else(|violation| panic!("seed={seed} {config:?}: {violation:?}"))
        };
        // A few more than are wanted: all states of a crash point are made where these are fewer.
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
    let check_log = |seed, config: RunConfig, class, promise| {
        let trace = Trace { class, ..run(&workload::random(seed, 20, WorkloadKind::Any), config) };
        check(&Oracle::new(&trace), &trace.log, promise, Exploration::Sampled { seed, states: 10 })
            .map(|_| ())
    };
    for (seed, writeback) in (51..).zip([true, false]) {
        let lines = RunConfig::on(LINES, writeback);
        assert_eq!(check_log(seed, lines, Class::Lines, Promise::AtCompletion), Ok(()));
        for promise in [Promise::AtCompletion, Promise::AtFlush] {
            let lost = check_log(seed, lines, Class::Shared, promise);
            assert!(lost.is_err(), "writeback={writeback}: {promise:?} is kept without any sync");
        }
        let pages = RunConfig::on(DiskKind::Mapped(Class::Pages), writeback);
        assert_eq!(check_log(seed, pages, Class::Shared, promise_of(pages)), Ok(()), "writeback={writeback}");
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
        let batches = vec![workload::Batch { ring: 0, requests: vec![request] }];
        let workload = Workload { before: vec![1; 1024], bad_at: None, batches };
        let trace = run(&workload, RunConfig::on(LINES, false));
        check(
            &Oracle::new(&trace),
            &trace.log,
            Promise::AtCompletion,
            Exploration::Sampled { seed: 3, states: 100 },
        )
        .unwrap();
        let fence = trace.log.iter().position(|logged| logged.event == Event::Fence).unwrap();
        let (mut sector_tears, mut unit_tears) = (false, false);
        for after in 0..fence {
            let mut media = Media::new(trace.class, &trace.before);
            trace.log[..=after].iter().for_each(|logged| media.apply(logged));
            // The state in which the first ambiguous unit is new, and all others are old.
            let ambiguous = media.ambiguous();
            let Some((unit, values)) = ambiguous.first() else { continue };
            let mut image = media.persisted().to_vec();
            image[*unit] = values[1];
            let sector = &image.as_flattened()[..512];
            sector_tears |= sector.contains(&1) && sector.contains(&2);
            unit_tears |= ambiguous
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
    let config = RunConfig::on(LINES, true);
    let trace = run(&workload::small(&[Op::Whole], 0), config);
    let check = |trace: &Trace| {
        check(&Oracle::new(trace), &trace.log, Promise::AtCompletion, Exploration::Exhaustive { at_most: 8 })
    };
    assert!(check(&trace).is_ok());
    let fence = trace.log.iter().position(|logged| logged.event == Event::Fence).unwrap();
    let with = |at: usize, event: Event| {
        let mut log = trace.log.clone();
        log.insert(at, crate::copy::recording::Logged { cpu: 0, event });
        Trace { log, ..trace.clone() }
    };
    let store = |at| Event::Store { at, bytes: vec![9], via: crate::copy::recording::Via::Stream };
    let outside = Violation { after: fence + 1, at: 512, found: [9, 0, 0, 0, 0, 0, 0, 0] };
    assert_eq!(check(&with(fence, store(512))), Err(outside));
    let torn = Violation { after: fence + 1, at: 0, found: [9, 1, 1, 1, 1, 1, 1, 1] };
    assert_eq!(check(&with(fence, store(0))), Err(torn));
    // Before it was offered.
    let Event::Store { bytes, .. } = trace
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
