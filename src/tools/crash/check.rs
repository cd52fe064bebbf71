//! Crash states, made one by one and held against the oracle.

use super::media::{Media, Unit};
use super::oracle::{Expected, Oracle, Promise, times};
use super::workload::Random;
use crate::copy::recording::{Event, Logged};

/// Which crash points are explored, and how many crash states at each.
#[derive(Debug, Clone, Copy)]
pub(super) enum Exploration {
    /// Every crash point, and all states of each, of which there must not be more than so many.
    Exhaustive { at_most: usize },
    /// Crash points before each fence, after each change of a ring, and some between: so many random states of each, or
    /// all, if they are fewer; and a few that contain every value of every unit.
    Sampled { seed: u64, states: usize },
}

/// What was explored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Coverage {
    pub(super) crash_points: usize,
    /// Those with more than one state.
    pub(super) ambiguous_points: usize,
    pub(super) states: usize,
    /// States made by drawing the value of each unit.
    pub(super) random_states: usize,
}

/// A crash state that breaks a promise.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// The crash comes after so many events.
    pub(super) after: usize,
    /// Offset of the bytes in question.
    pub(super) at: usize,
    pub(super) found: Unit,
}

/// Explores the crash states that a log allows.
pub(super) fn check(
    oracle: &Oracle<'_>,
    log: &[Logged],
    promise: Promise,
    exploration: Exploration,
) -> Result<Coverage, Violation> {
    check_from(0, oracle, log, promise, exploration)
}

/// As [`check`], at the crash points after the first so many events.
pub(super) fn check_from(
    first: usize,
    oracle: &Oracle<'_>,
    log: &[Logged],
    promise: Promise,
    exploration: Exploration,
) -> Result<Coverage, Violation> {
    let times = times(oracle.trace, log, promise);
    let mut media = Media::new(oracle.trace.class, &oracle.trace.before);
    let seed = match exploration {
        Exploration::Exhaustive { .. } => 0,
        Exploration::Sampled { seed, .. } => seed,
    };
    // Two generators, so that the crash points are the same however many states are made at each.
    let (mut random, mut points) = (Random::new(seed), Random::new(!seed));
    let mut checked = Coverage::default();
    for after in 0..=log.len() {
        if after > 0 {
            media.apply(&log[after - 1]);
        }
        let is_wanted = match exploration {
            Exploration::Exhaustive { .. } => true,
            Exploration::Sampled { .. } => is_telling(log, after) || points.below(64) == 0,
        };
        if is_wanted && after >= first {
            let mut point = CrashPoint { expected: oracle.after(after, &times), after, media: &media };
            point.check(exploration, &mut random, &mut checked)?;
        }
    }
    Ok(checked)
}

/// Crash points that tell most: the most units are ambiguous before a fence or the end of a sync, and the most is promised
/// after an acknowledgement.
fn is_telling(log: &[Logged], after: usize) -> bool {
    let decides = |next: &Logged| matches!(next.event, Event::Fence | Event::SyncEnds);
    let is_before_fence = log.get(after).is_none_or(decides);
    let last = after.checked_sub(1).and_then(|last| log.get(last));
    is_before_fence || last.is_some_and(|last| matches!(last.event, Event::Seen(_)))
}

/// A moment at which the power fails.
struct CrashPoint<'a> {
    expected: Expected<'a>,
    after: usize,
    media: &'a Media,
}

impl CrashPoint<'_> {
    fn check(
        &mut self,
        exploration: Exploration,
        random: &mut Random,
        checked: &mut Coverage,
    ) -> Result<(), Violation> {
        let mut image = self.media.persisted().to_vec();
        let ambiguous = self.media.ambiguous();
        checked.crash_points += 1;
        checked.ambiguous_points += usize::from(!ambiguous.is_empty());
        // The other units are the same in all states.
        let mut is_ambiguous = vec![false; image.len()];
        ambiguous.iter().for_each(|(unit, _)| is_ambiguous[*unit] = true);
        for (unit, value) in image.iter().enumerate().filter(|(unit, _)| !is_ambiguous[*unit]) {
            self.unit(unit, *value)?;
        }
        let all = ambiguous.iter().try_fold(1_usize, |all, (_, values)| all.checked_mul(values.len()));
        match exploration {
            Exploration::Exhaustive { at_most } => {
                assert!(all.is_some_and(|all| all <= at_most), "{all:?} states are too many to make all");
            }
            Exploration::Sampled { states, .. } if all.is_none_or(|all| all > states) => {
                let most = ambiguous.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
                for turn in 0..most {
                    self.state(&mut image, &ambiguous, |values| turn % values, checked)?;
                }
                for _ in 0..states {
                    self.state(&mut image, &ambiguous, |values| random.below(values), checked)?;
                }
                checked.random_states += states;
                return Ok(());
            }
            Exploration::Sampled { .. } => {}
        }
        for number in 0..all.unwrap_or(0) {
            let mut rest = number;
            let digit = |values| {
                let digit = rest % values;
                rest /= values;
                digit
            };
            self.state(&mut image, &ambiguous, digit, checked)?;
        }
        Ok(())
    }

    /// Makes one state, and checks it.
    fn state(
        &self,
        image: &mut [Unit],
        ambiguous: &[(usize, Vec<Unit>)],
        mut choose: impl FnMut(usize) -> usize,
        checked: &mut Coverage,
    ) -> Result<(), Violation> {
        for (unit, values) in ambiguous {
            image[*unit] = values[choose(values.len())];
        }
        checked.states += 1;
        ambiguous.iter().try_for_each(|(unit, _)| self.unit(*unit, image[*unit]))
    }

    fn unit(&self, unit: usize, found: Unit) -> Result<(), Violation> {
        match self.expected.allows(unit, found) {
            true => Ok(()),
            false => Err(Violation { after: self.after, at: unit * found.len(), found }),
        }
    }
}
