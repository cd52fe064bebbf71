//! A worker's mailbox: no command, no kick and no end of a flush is lost, whether it sleeps or polls.

use std::time::Duration;

use vhost_user_pmem_proofs::check::{holds, is_found};
use vhost_user_pmem_proofs::worker;

/// Preemptions in one execution: more are not looked for. Every mistake is found with two.
const PREEMPTIONS: usize = 2;

type Run = Box<dyn FnOnce() -> Result<usize, String>>;

macro_rules! runs {
    ($variant:ident) => {{
        use worker::$variant::model::{driven, held};
        use worker::$variant::poll::Polling;
        const POLLS: Polling = Polling::UpTo(Duration::from_micros(50));
        let runs: [(&str, Run); 6] = [
            ("one that sleeps, a ring given back", Box::new(|| driven(Polling::Never, 1, 1, PREEMPTIONS))),
            ("one that sleeps, two requests", Box::new(|| driven(Polling::Never, 2, 0, PREEMPTIONS))),
            ("one that sleeps, a flush", Box::new(|| held(Polling::Never, PREEMPTIONS))),
            ("one that polls, a ring given back", Box::new(|| driven(POLLS, 1, 1, PREEMPTIONS))),
            ("one that polls, two requests", Box::new(|| driven(POLLS, 2, 0, PREEMPTIONS))),
            ("one that polls, a flush", Box::new(|| held(POLLS, PREEMPTIONS))),
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
fn nothing_is_lost_that_a_worker_is_told() {
    runs!(as_it_is).into_iter().for_each(|(name, run)| holds(name, run));
}

#[test]
fn mistakes_are_found() {
    mistakes!(
        woken_before_the_flag,
        flag_cleared_behind_the_mailbox,
        woken_before_the_command,
        armed_without_another_look,
        held_ring_forgotten
    );
}
