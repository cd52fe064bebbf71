//! Driver and device, each a thread: neither sleeps while there is something for it to do, whatever the processors do.

use std::sync::Arc;

use super::driver::{Device, Driver, Guest, Queue, Shape};
use super::queue::{PackedQueue, RingKind, SplitQueue, Virtqueue as _};
use crate::check::explore;
use crate::sync::Event;

/// Chains that a driver sends: so many descriptors each, so many at once.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub chains: u16,
    pub slots: u16,
    pub at_once: u16,
}

/// All executions, or what went wrong.
pub fn run(shape: Shape, load: Load, preemptions: usize) -> Result<usize, String> {
    match shape.kind {
        RingKind::Split => run_queue::<SplitQueue>(shape, load, preemptions),
        RingKind::Packed => run_queue::<PackedQueue>(shape, load, preemptions),
    }
}

fn run_queue<Q: Queue>(shape: Shape, load: Load, preemptions: usize) -> Result<usize, String> {
    let guest = Guest::new(shape);
    explore(preemptions, move || {
        guest.begin();
        let (kick, call) = (Arc::new(Event::new()), Arc::new(Event::new()));
        let device = Device::<Q>::start(&guest);
        let (kicked, calls) = (kick.clone(), call.clone());
        let serving = loom::thread::Builder::new()
            .stack_size(1 << 15)
            .spawn(move || serve(device, load, &kicked, &calls))
            .unwrap();
        drive(Driver::new(&guest), load, &kick, &call);
        serving.join().unwrap();
        crate::guest::end();
    })
}

/// As `worker/run.rs` does, which never polls here: it serves, and arms and sleeps when there is nothing.
fn serve<Q: Queue>(mut device: Device<Q>, load: Load, kick: &Event, call: &Event) {
    let mut done = 0;
    while done < load.chains {
        device.queue.park_kicks();
        while done < load.chains
            && let Some((slots, _, completion)) = device.take(u32::from(done) + 1).unwrap()
        {
            assert_eq!(slots, load.slots, "a chain that is not the driver's");
            device.queue.complete(completion);
            done += 1;
        }
        if device.queue.publish() {
            call.signal();
        }
        if done < load.chains && !device.queue.arm_kicks() {
            kick.wait();
        }
    }
}

/// As Linux does: it sends, and is called when the first of what is under way is back.
fn drive(mut driver: Driver, load: Load, kick: &Event, call: &Event) {
    driver.park_calls();
    let mut sent = 0;
    while sent < load.chains {
        for _ in 0..load.at_once {
            driver.offer(load.slots);
            sent += 1;
            if driver.kick_is_wanted() {
                kick.signal();
            }
        }
        while !driver.under_way.is_empty() {
            if driver.reap().unwrap() {
                continue;
            }
            if !driver.want_call(0) {
                call.wait();
            }
            driver.park_calls();
        }
    }
}
