//! What a worker does with a ring.

use super::any_ring::AnyRing;
use crate::disk::Disk;

/// A ring, and what is done with it.
#[derive(Debug)]
pub(super) struct Slot<D: Disk> {
    pub(super) ring: AnyRing<D>,
    pub(super) state: State,
}

/// What the worker does with a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Waits for its driver's kick.
    Armed,
    /// Polls it. How many checks for kicks there were since it had something to do.
    Polled { idle_checks: u8 },
    /// Waits for a flush that it has asked for.
    Held,
    /// Waits until a limit lets it go on. It is counted as armed.
    Throttled,
    /// Nothing: its driver broke it.
    Broken,
    /// Nothing more: it is given back as soon as no request of it is under way.
    Leaving,
}

impl State {
    /// Of a ring that its turn has left held.
    #[cold]
    pub(super) fn of_held<D: Disk>(ring: &AnyRing<D>) -> Self {
        if ring.held_until().is_some() { Self::Throttled } else { Self::Held }
    }

    /// Of a ring that need not be polled.
    pub(super) fn at_rest<D: Disk>(ring: &AnyRing<D>) -> Self {
        if ring.held_until().is_some() { Self::Throttled } else { Self::Armed }
    }

    pub(super) const fn is_armed(self) -> bool {
        matches!(self, Self::Armed | Self::Throttled)
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::Polled { .. } => "polled",
            Self::Held => "held",
            Self::Throttled => "throttled",
            Self::Broken => "broken",
            Self::Leaving => "leaving",
        }
    }
}
