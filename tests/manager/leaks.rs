//! What the process has before and after many disks have come and gone: the same.

use std::time::Duration;

use vhost_user_pmem::server::Departure;

use super::common::at_rest;
use super::common::daemon::Place;
use super::common::frontend::Session;
use super::common::process::Process;
use super::{Host, assert_works};

/// Disks that come and go.
const DISKS: usize = 300;

/// What threads leave to the C library: stacks of them, and heaps, each with a guard.
const MARGIN_MAPPINGS: usize = 8;

/// Runs as a test of its own process: others have descriptors.
#[test]
#[ignore = "it counts the process's descriptors: see `nothing_is_left`"]
fn nothing_is_left_alone() {
    let host = Host::start(Place::Tmpfs);
    let manager = host.manager();
    let come_and_go = |number: usize| {
        let name = format!("disk{}", number % 7);
        manager.add(host.config(&name)).unwrap();
        if number.is_multiple_of(5) {
            let session = Session::connect(&host.socket(&name));
            assert_works(&mut session.ring(0, 64), 0);
            manager.remove(&name, Departure::Within(Duration::ZERO)).unwrap();
        } else {
            manager.remove(&name, Departure::Unused).unwrap();
        }
    };
    (0..20).for_each(come_and_go);
    let before = at_rest(Process(std::process::id()));
    (0..DISKS).for_each(come_and_go);
    let after = at_rest(Process(std::process::id()));
    println!("descriptors, threads, mappings: {before:?} before, {after:?} after {DISKS} disks");
    assert_eq!(before[..2], after[..2]);
    assert!(after[2] <= before[2] + MARGIN_MAPPINGS, "{before:?} {after:?}");
}

#[test]
fn nothing_is_left() {
    let program = std::env::current_exe().unwrap();
    let test = ["leaks::nothing_is_left_alone", "--exact", "--ignored", "--nocapture"];
    let output = std::process::Command::new(program).args(test).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    print!("{text}");
}
