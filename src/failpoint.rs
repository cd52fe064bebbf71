//! Where a test can stop a ring dead, as a killed process would: whatever comes after the point does not happen.
//!
//! Outside of this crate's own tests there are no such points.

/// A step of a request's way, or of a disk's growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// A request is taken, and no byte is copied.
    #[cfg(test)]
    BeforeCopy,
    /// Half of its bytes are.
    #[cfg(test)]
    MidCopy,
    /// The requests of a batch are done, and not published.
    BeforeUsed,
    /// A word of the ring is about to be stored.
    RingStore,
    /// The batch is published, and the driver not called.
    AfterUsed,
    /// The driver wants to be called, and is not yet.
    BeforeCall,
    /// A disk's new part is mapped, and nobody knows that it is there.
    NewLength,
}

#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn reached(_point: Point) {}

/// A mistake that a test has made: a flush does not wait until what is before it is done.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn has_hasty_flushes() -> bool {
    false
}

#[cfg(test)]
pub(crate) use armed::{has_hasty_flushes, reached, stops_at, with_hasty_flushes};

#[cfg(test)]
mod armed {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use super::Point;

    thread_local! {
        /// The point where this thread stops, and how often it passes there before.
        static ARMED: Cell<Option<(Point, u32)>> = const { Cell::new(None) };
    }

    thread_local! {
        static HAS_HASTY_FLUSHES: Cell<bool> = const { Cell::new(false) };
    }

    pub(crate) fn has_hasty_flushes() -> bool {
        HAS_HASTY_FLUSHES.get()
    }

    /// Does something with the mistake of this name.
    pub(crate) fn with_hasty_flushes(act: impl FnOnce()) {
        HAS_HASTY_FLUSHES.set(true);
        act();
        HAS_HASTY_FLUSHES.set(false);
    }

    struct Stopped;

    pub(crate) fn reached(point: Point) {
        match ARMED.get() {
            Some((armed, 0)) if armed == point => {
                ARMED.set(None);
                resume_unwind(Box::new(Stopped));
            }
            Some((armed, left)) if armed == point => ARMED.set(Some((armed, left - 1))),
            _ => {}
        }
    }

    /// Does something until it reaches a point for the time after `passes`. `None` if it was stopped there.
    pub(crate) fn stops_at<T>(point: Point, passes: u32, act: impl FnOnce() -> T) -> Option<T> {
        ARMED.set(Some((point, passes)));
        let acted = catch_unwind(AssertUnwindSafe(act));
        ARMED.set(None);
        match acted {
            Ok(done) => Some(done),
            Err(panic) if panic.is::<Stopped>() => None,
            Err(panic) => resume_unwind(panic),
        }
    }
}
