//! Rings of up to four slots, both kinds, with and without event indices, flushes held: every history of a few chains.

use std::time::Instant;

use vhost_user_pmem_proofs::check::is_found;
use vhost_user_pmem_proofs::virtio;

type Run = Box<dyn FnOnce() -> Result<usize, String>>;

/// Each shape of one kind: its name, and what visits it with so many chains.
macro_rules! runs {
    ($variant:ident, $kind:ident, $sizes:expr, $chains:expr) => {{
        use virtio::$variant::{driver::Shape, histories, queue::RingKind};
        let mut runs: Vec<(String, Box<dyn FnOnce() -> Result<histories::Visited, String>>)> = Vec::new();
        for size in $sizes {
            for event_idx in [false, true] {
                let shape = Shape { kind: RingKind::$kind, size, event_idx, start: u16::MAX - 2 };
                let chains = $chains(size);
                let name =
                    format!("{:?}, {size} slots, event index {event_idx}, {chains} chains", shape.kind);
                runs.push((name, Box::new(move || histories::visit(shape, chains))));
            }
        }
        runs
    }};
}

macro_rules! hold {
    ($runs:expr) => {
        for (name, run) in $runs {
            let start = Instant::now();
            let visited = run().unwrap_or_else(|error| panic!("{name}: {error}"));
            let (states, steps) = (visited.states, visited.steps);
            println!(
                "holds: {name}: {states} states, {steps} steps in {:.1} s",
                start.elapsed().as_secs_f64()
            );
            assert!(states > 100, "{name}: that is not all of them");
        }
    };
}

macro_rules! mistakes {
    ($kind:ident, $sizes:expr, $($variant:ident),*) => {$({
        let runs = runs!($variant, $kind, $sizes, chains).into_iter();
        is_found(stringify!($variant), runs.map(|(_, run)| -> Run { Box::new(|| run().map(|visited| visited.states)) }));
    })*};
}

/// Chains of one history, each of one to three descriptors: so many that the ring is passed more than once, and of a packed one
/// twice, after which its wrap counter is as at first. `PROOFS_MORE` is added to them (`ci/soak`).
fn chains(size: u16) -> u16 {
    let more: u16 = std::env::var("PROOFS_MORE").map_or(0, |more| more.parse().unwrap());
    more + match size {
        1 => 8,
        2 => 6,
        3 => 5,
        _ => 4,
    }
}

#[test]
fn split_rings_keep_their_promises_in_every_history() {
    hold!(runs!(as_it_is, Split, [1, 2, 4], chains));
}

#[test]
fn packed_rings_keep_their_promises_in_every_history() {
    hold!(runs!(as_it_is, Packed, [1, 2, 3, 4], chains));
}

#[test]
fn mistakes_in_a_split_ring_are_found() {
    mistakes!(
        Split,
        [1, 2, 4],
        split_arm_without_another_look,
        split_event_one_late,
        split_completions_in_one_slot
    );
}

#[test]
fn mistakes_in_a_packed_ring_are_found() {
    mistakes!(
        Packed,
        [1, 2, 3, 4],
        packed_arm_without_another_look,
        packed_event_of_the_wrong_pass,
        packed_marks_of_the_wrong_pass,
        packed_slots_stay_taken
    );
}
