//! No wake-up is lost between a driver and a device, on either side: publish, arm and park of both kinds of rings under loom.

use vhost_user_pmem_proofs::check::{holds, is_found};
use vhost_user_pmem_proofs::virtio;

/// Preemptions in one execution: more are not looked for. Every mistake is found with two.
const PREEMPTIONS: usize = 2;

/// Shapes and loads of one kind, for a module with the ring's code.
macro_rules! runs {
    ($variant:ident, $kind:ident, $then:expr) => {{
        use virtio::$variant::{driver::Shape, queue::RingKind, wakeups};
        for event_idx in [false, true] {
            for (chains, slots, at_once) in [(2, 1, 1), (2, 1, 2), (2, 2, 1)] {
                let shape = Shape { kind: RingKind::$kind, size: 2, event_idx, start: u16::MAX };
                let load = wakeups::Load { chains, slots, at_once };
                let name = format!("{shape:?}, {load:?}");
                $then(name, Box::new(move || wakeups::run(shape, load, PREEMPTIONS)));
            }
        }
    }};
}

type Run = Box<dyn FnOnce() -> Result<usize, String>>;

macro_rules! mistakes {
    ($kind:ident, $($variant:ident),*) => {$({
        let mut all = Vec::new();
        runs!($variant, $kind, |_: String, run: Run| all.push(run));
        is_found(stringify!($variant), all);
    })*};
}

#[test]
fn no_wake_up_of_a_split_ring_is_lost() {
    runs!(as_it_is, Split, |name: String, run: Run| holds(&name, run));
}

#[test]
fn no_wake_up_of_a_packed_ring_is_lost() {
    runs!(as_it_is, Packed, |name: String, run: Run| holds(&name, run));
}

#[test]
fn mistakes_in_a_split_ring_are_found() {
    mistakes!(
        Split,
        split_publish_without_fence,
        split_arm_without_fence,
        split_arm_without_another_look,
        split_used_index_relaxed,
        split_available_index_relaxed,
        split_event_one_late
    );
}

#[test]
fn mistakes_in_a_packed_ring_are_found() {
    mistakes!(
        Packed,
        packed_publish_without_fence,
        packed_arm_without_fence,
        packed_arm_without_another_look,
        packed_slots_relaxed
    );
}
