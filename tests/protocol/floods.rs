//! Peers that do something noisy all the time: the log has a few lines of it, and all lines of others.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::{DISK_BYTES, assert_works, with_disks};
use crate::common::daemon::Daemon;
use crate::common::frontend::Session;
use crate::common::frontend::message::{SET_VRING_BASE, SET_VRING_NUM};
use crate::common::frontend::wire::{VERSION, Verdict, Wire};
use crate::common::{metrics, wait_for};

/// A ring that does not exist.
const NO_RING: [u8; 8] = [255, 255, 0, 0, 64, 0, 0, 0];

/// What a line of the log says, without its time, its level and its fields.
fn message(line: &str) -> String {
    line.split_whitespace().skip(2).take_while(|word| !word.contains('=')).collect::<Vec<_>>().join(" ")
}

/// Has `noise` made `times` times, and insists that no message has come more often than the limit of its cause admits.
///
/// Messages are counted apart: lines about something else may come meanwhile, such as the last ones of the daemon's start
/// ("copies: ...", "populated"), which follow when its sockets listen.
fn assert_few_lines(daemon: &Daemon, times: usize, noise: impl Fn()) {
    const LINES_PER_SECOND: usize = 5;
    let (before, start) = (daemon.log().lines().count(), Instant::now());
    for _ in 0..times {
        noise();
    }
    // What was done last is logged by another thread.
    crate::common::frontend::settle();
    // The daemon's seconds begin at other moments than ours: one is cut at either end.
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap() + 2;
    let most = seconds * LINES_PER_SECOND;
    assert!(most < times, "the machine is too slow for this test to show anything");
    let mut counts = BTreeMap::<_, usize>::new();
    for line in daemon.log().lines().skip(before) {
        *counts.entry(message(line)).or_default() += 1;
    }
    println!("{times} times in {:?}: {counts:?}", start.elapsed());
    assert!(counts.values().all(|count| *count <= most), "at most {most} of {times} times: {counts:?}");
}

#[test]
fn who_comes_and_goes_writes_few_lines() {
    let daemon = with_disks(&["", ""]).start();
    assert_few_lines(&daemon, 3000, || drop(UnixStream::connect(daemon.socket(0)).unwrap()));
    assert_few_lines(&daemon, 3000, || {
        let wire = Wire::connect(&daemon.socket(0));
        wire.send_bytes(&Wire::encode(1, VERSION, &[])[..7], &[]);
        wire.hang_up();
    });
    assert_few_lines(&daemon, 3000, || {
        let wire = Wire::connect(&daemon.socket(0));
        wire.send_bytes(&[0xff; 12], &[]);
        wire.hang_up();
    });
    // Another disk's lines are written all the same.
    let other = Session::connect(&daemon.socket(1));
    let of_other = |line: &str| line.contains("a front-end connected") && line.contains("\"disk1\"");
    wait_for("the other disk's front-end is logged", || daemon.log().lines().any(of_other).then_some(()));
    assert_works(&mut other.ring(0, 64), 0);
}

#[test]
fn one_kind_of_refusal_hides_no_other() {
    let daemon = with_disks(&[""]).with_metrics().start();
    let left_out = || metrics::read(&daemon.metrics_socket())["suppressed_log_lines_total{}"];
    let before = left_out();
    let noisy = Session::connect(&daemon.socket(0));
    assert_few_lines(&daemon, 3000, || {
        assert_eq!(noisy.wire.tell(SET_VRING_NUM, &NO_RING, &[]), Verdict::Nack);
    });
    assert_eq!(noisy.wire.tell(SET_VRING_BASE, &NO_RING, &[]), Verdict::Nack);
    daemon.wait_for_log("SET_VRING_BASE");
    let lines = daemon.log().lines().filter(|line| line.contains("SET_VRING_NUM")).count();
    // The last one is counted once it is answered.
    let is_counted = || (left_out() - before >= (2999 - lines) as f64).then_some(());
    wait_for(&format!("all but {lines} lines are counted"), is_counted);
    let told = |line: &str| line.contains("SET_VRING_NUM") && line.contains("suppressed=");
    wait_for("the first line of another second says how many were left out", || {
        assert_eq!(noisy.wire.tell(SET_VRING_NUM, &NO_RING, &[]), Verdict::Nack);
        daemon.log().lines().any(told).then_some(())
    });
}

#[test]
fn a_file_that_is_shrunk_and_closed_again_and_again_writes_few_lines() {
    let daemon = with_disks(&[""]).start();
    let file = |bytes| {
        let file = OpenOptions::new().write(true).open(daemon.image(0)).unwrap();
        file.set_len(bytes).unwrap();
    };
    assert_few_lines(&daemon, 3000, || file(DISK_BYTES / 2));
    file(DISK_BYTES);
}
