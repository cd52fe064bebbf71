//! Rings that a limit holds: until when their worker sleeps for them, and which goes on first.

use std::time::Instant;

use super::state::{Slot, State};
use crate::disk::Disk;

/// Whether there may be some, and which of them goes on first next time.
#[derive(Debug, Default)]
pub(super) struct Throttled {
    has_some: bool,
    first: usize,
}

impl Throttled {
    /// A ring is in this state from now on.
    pub(super) fn note(&mut self, state: State) {
        self.has_some |= state == State::Throttled;
    }

    pub(super) const fn has_some(&self) -> bool {
        self.has_some
    }

    /// How long to sleep: until the first may go on, in whole milliseconds. For ever if there is none.
    pub(super) fn timeout_ms<D: Disk>(&self, slots: &[Option<Slot<D>>]) -> i32 {
        if !self.has_some {
            return -1;
        }
        let throttled = slots.iter().flatten().filter(|slot| slot.state == State::Throttled);
        let Some(until) = throttled.filter_map(|slot| slot.ring.held_until()).min() else { return -1 };
        let nanos = until.saturating_duration_since(Instant::now()).as_nanos();
        i32::try_from(nanos.div_ceil(1_000_000)).unwrap_or(i32::MAX)
    }

    /// Those that may go on by now are polled: another one first each time, as what is left over is the first one's. They are
    /// armed no more.
    #[cold]
    #[inline(never)]
    pub(super) fn resume<D: Disk>(
        &mut self,
        slots: &mut [Option<Slot<D>>],
        polled: &mut Vec<usize>,
        armed: &mut usize,
    ) {
        let (now, count) = (Instant::now(), slots.len());
        self.has_some = false;
        let first = self.first.checked_rem(count).unwrap_or(0);
        self.first = first.wrapping_add(1);
        for number in (first..count).chain(0..first) {
            let Some(slot) = slots.get_mut(number).and_then(Option::as_mut) else { continue };
            if slot.state != State::Throttled {
                continue;
            }
            match slot.ring.held_until() {
                Some(until) if until > now => self.has_some = true,
                _ => {
                    slot.ring.resume();
                    slot.state = State::Polled { idle_checks: 0 };
                    polled.push(number);
                    *armed = armed.saturating_sub(1);
                }
            }
        }
    }
}
