//! No flush is answered before what was written earlier is on the media: when none is needed, when several run at once, when
//! one fails, and on the flusher's thread.

use vhost_user_pmem_proofs::check::{holds, is_found};
use vhost_user_pmem_proofs::disk;

/// Preemptions in one execution: more are not looked for. Every mistake is found with two.
const PREEMPTIONS: usize = 2;

type Run = Box<dyn FnOnce() -> Result<usize, String>>;

macro_rules! runs {
    ($variant:ident) => {{
        use disk::$variant::model::{answered_at_once, flusher, lost_pages};
        let runs: [(&str, Run); 6] = [
            ("two flushes of each of two writers", Box::new(|| answered_at_once(2, PREEMPTIONS))),
            ("lost pages", Box::new(|| lost_pages(PREEMPTIONS))),
            ("the flusher: a ring, two flushes", Box::new(|| flusher(1, 2, false, PREEMPTIONS))),
            ("the flusher: two rings", Box::new(|| flusher(2, 1, false, PREEMPTIONS))),
            ("the flusher: a ring, lost pages", Box::new(|| flusher(1, 2, true, PREEMPTIONS))),
            ("the flusher: two rings, lost pages", Box::new(|| flusher(2, 1, true, PREEMPTIONS))),
        ];
        runs
    }};
}

macro_rules! mistakes {
    ($($variant:ident),*) => {$(
        is_found(stringify!($variant), runs!($variant).into_iter().map(|(_, run)| run));
    )*};
}

#[test]
fn a_flush_is_answered_by_a_sync_that_began_after_its_writes() {
    runs!(as_it_is).into_iter().for_each(|(name, run)| holds(name, run));
}

#[test]
fn mistakes_are_found() {
    mistakes!(
        wrote_without_fence,
        sync_without_fence,
        cleared_after_the_sync,
        in_flight_looked_at_first,
        other_outcome_not_awaited,
        covers_what_came_during_the_sync,
        wakes_before_it_is_finished,
        failure_noted_too_late
    );
}
