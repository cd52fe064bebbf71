//! The states of a disk after a crash, made one by one and held against what may be expected.

use super::media::{Media, Unit};
use super::oracle::{Expected, Oracle, Promise, times};
use super::workload::Random;
use crate::copy::recording::{Event, Logged};

/// At which moments, and how many states at each.
#[derive(Debug, Clone, Copy)]
pub(super) enum Effort {
    /// At every moment, all states, of which there must not be more than so many.
    All { at_most: usize },
    /// Before each fence, after each change of a ring, and at some moments between: so many random states, or
    /// all, if they are fewer; and a few that contain every value of every unit.
    Sample { seed: u64, states: usize },
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) moments: usize,
    /// Those with more than one state.
    pub(super) undecided_moments: usize,
    pub(super) states: usize,
    /// Made by drawing each unit.
    pub(super) random_states: usize,
}

/// A state that breaks a promise.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// The crash comes after so many events.
    pub(super) after: usize,
    /// Offset of the bytes in question.
    pub(super) at: usize,
    pub(super) found: Unit,
}

/// Looks at the states that a log allows.
pub(super) fn check(
    oracle: &Oracle<'_>,
    log: &[Logged],
    promise: Promise,
    effort: Effort,
) -> Result<Checked, Violation> {
    check_from(0, oracle, log, promise, effort)
}

/// As [`check`], at the moments after the first so many events.
pub(super) fn check_from(
    first: usize,
    oracle: &Oracle<'_>,
    log: &[Logged],
    promise: Promise,
    effort: Effort,
) -> Result<Checked, Violation> {
    let times = times(oracle.played, log, promise);
    let mut media = Media::new(oracle.played.class, &oracle.played.before);
    let seed = match effort {
        Effort::All { .. } => 0,
        Effort::Sample { seed, .. } => seed,
    };
    // Two, so that the moments are the same however many states are made at each.
    let (mut random, mut moments) = (Random::new(seed), Random::new(!seed));
    let mut checked = Checked::default();
    for after in 0..=log.len() {
        if after > 0 {
            media.apply(&log[after - 1]);
        }
        let is_wanted = match effort {
            Effort::All { .. } => true,
            Effort::Sample { .. } => is_telling(log, after) || moments.below(64) == 0,
        };
        if is_wanted && after >= first {
            let mut moment = Moment { expected: oracle.after(after, &times), after, media: &media };
            moment.check(effort, &mut random, &mut checked)?;
        }
    }
    Ok(checked)
}

/// Most is undecided before a fence, or the end of a sync; most is promised after an acknowledgement.
fn is_telling(log: &[Logged], after: usize) -> bool {
    let decides = |next: &Logged| matches!(next.event, Event::Fence | Event::SyncEnds);
    let is_before_fence = log.get(after).is_none_or(decides);
    let last = after.checked_sub(1).and_then(|last| log.get(last));
    is_before_fence || last.is_some_and(|last| matches!(last.event, Event::Seen(_)))
}

/// A moment at which the power fails.
struct Moment<'a> {
    expected: Expected<'a>,
    after: usize,
    media: &'a Media,
}

impl Moment<'_> {
    fn check(&mut self, effort: Effort, random: &mut Random, checked: &mut Checked) -> Result<(), Violation> {
        let mut image = self.media.certain().to_vec();
        let free = self.media.free();
        checked.moments += 1;
        checked.undecided_moments += usize::from(!free.is_empty());
        // Units that are decided are the same in all states.
        let mut is_free = vec![false; image.len()];
        free.iter().for_each(|(unit, _)| is_free[*unit] = true);
        for (unit, value) in image.iter().enumerate().filter(|(unit, _)| !is_free[*unit]) {
            self.unit(unit, *value)?;
        }
        let all = free.iter().try_fold(1_usize, |all, (_, values)| all.checked_mul(values.len()));
        match effort {
            Effort::All { at_most } => {
                assert!(all.is_some_and(|all| all <= at_most), "{all:?} states are too many to make all");
            }
            Effort::Sample { states, .. } if all.is_none_or(|all| all > states) => {
                let most = free.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
                for turn in 0..most {
                    self.state(&mut image, &free, |values| turn % values, checked)?;
                }
                for _ in 0..states {
                    self.state(&mut image, &free, |values| random.below(values), checked)?;
                }
                checked.random_states += states;
                return Ok(());
            }
            Effort::Sample { .. } => {}
        }
        for number in 0..all.unwrap_or(0) {
            let mut rest = number;
            let digit = |values| {
                let digit = rest % values;
                rest /= values;
                digit
            };
            self.state(&mut image, &free, digit, checked)?;
        }
        Ok(())
    }

    /// Makes one state, and looks at it.
    fn state(
        &self,
        image: &mut [Unit],
        free: &[(usize, Vec<Unit>)],
        mut choose: impl FnMut(usize) -> usize,
        checked: &mut Checked,
    ) -> Result<(), Violation> {
        for (unit, values) in free {
            image[*unit] = values[choose(values.len())];
        }
        checked.states += 1;
        free.iter().try_for_each(|(unit, _)| self.unit(*unit, image[*unit]))
    }

    fn unit(&self, unit: usize, found: Unit) -> Result<(), Violation> {
        match self.expected.allows(unit, found) {
            true => Ok(()),
            false => Err(Violation { after: self.after, at: unit * found.len(), found }),
        }
    }
}
