//! What the daemon has before and after many disks have come and gone: the same.

use std::time::Duration;

use super::common::at_rest;
use super::common::daemon::Place;
use super::common::frontend::Session;
use super::common::frontend::load::Load;
use super::common::process::Process;
use super::{Host, setup};

/// Long enough for a thousand disks on a busy machine.
const LIFETIME: Duration = Duration::from_secs(3600);

/// What threads leave to the C library: up to 40 MiB of stacks of 2 MiB, each with a guard, and some heaps.
const MARGIN_MAPPINGS: usize = 48;

/// `CONTROL_DISKS` says how many (ci/soak).
#[test]
fn nothing_is_left_of_many_disks() {
    let count = std::env::var("CONTROL_DISKS").map_or(100, |count| count.parse().unwrap());
    let host = Host::start(setup(Place::Tmpfs).lifetime(LIFETIME));
    let process = Process(host.daemon.pid());
    let session = Session::connect(&host.daemon.socket(0));
    let load = Load::start(session.ring(0, 64), 0);
    let come_and_go = |count: usize| {
        (0..count).for_each(|number| assert_eq!(host.add(&format!("d{number}")).status, 201));
        assert_eq!(host.names().len(), count + 1);
        (0..count).for_each(|number| assert_eq!(host.remove(&format!("d{number}"), "").status, 204));
    };
    come_and_go(count);
    let before = at_rest(process);
    come_and_go(count);
    let after = at_rest(process);
    println!("descriptors, threads, mappings: {before:?} before, {after:?} after {count} disks");
    load.stop();
    assert_eq!(before[..2], after[..2]);
    assert!(after[2] <= before[2] + MARGIN_MAPPINGS, "{before:?} {after:?}");
}
