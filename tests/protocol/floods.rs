//! Peers that do something noisy all the time: the log has a few lines of it, and all lines of others.

use std::fs::OpenOptions;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::{DISK_BYTES, assert_works, with_disks};
use crate::common::daemon::Daemon;
use crate::common::frontend::Session;
use crate::common::frontend::message::{SET_VRING_BASE, SET_VRING_NUM};
use crate::common::frontend::wire::{VERSION, Verdict, Wire};
use crate::common::wait_for;

/// A ring that does not exist.
const NO_RING: [u8; 8] = [255, 255, 0, 0, 64, 0, 0, 0];

/// Has `noise` made `times` times, and insists that the log has become longer by no more lines than these causes may
/// write.
fn assert_few_lines(daemon: &Daemon, causes: usize, times: usize, noise: impl Fn()) {
    const LINES_PER_SECOND: usize = 5;
    let (before, start) = (daemon.log().lines().count(), Instant::now());
    for _ in 0..times {
        noise();
    }
    // What was done last is logged by another thread.
    crate::common::frontend::settle();
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap() + 2;
    let most = causes * LINES_PER_SECOND * seconds;
    let lines = daemon.log().lines().count() - before;
    println!("{lines} lines, at most {most}, in {:?} for {times} times", start.elapsed());
    assert!(most < times, "the machine is too slow for this test to show anything");
    assert!(lines <= most, "{lines} lines of {times} times, at most {most}");
}

#[test]
fn who_comes_and_goes_writes_few_lines() {
    let daemon = with_disks(&["", ""]).start();
    assert_few_lines(&daemon, 4, 3000, || drop(UnixStream::connect(daemon.socket(0)).unwrap()));
    assert_few_lines(&daemon, 4, 3000, || {
        let wire = Wire::connect(&daemon.socket(0));
        wire.send_bytes(&Wire::encode(1, VERSION, &[])[..7], &[]);
        wire.hang_up();
    });
    assert_few_lines(&daemon, 4, 3000, || {
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
    let daemon = with_disks(&[""]).start();
    let noisy = Session::connect(&daemon.socket(0));
    assert_few_lines(&daemon, 1, 3000, || {
        assert_eq!(noisy.wire.tell(SET_VRING_NUM, &NO_RING, &[]), Verdict::Nack);
    });
    assert_eq!(noisy.wire.tell(SET_VRING_BASE, &NO_RING, &[]), Verdict::Nack);
    daemon.wait_for_log("SET_VRING_BASE");
    let told = |line: &str| line.contains("SET_VRING_NUM") && line.contains("suppressed=");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(noisy.wire.tell(SET_VRING_NUM, &NO_RING, &[]), Verdict::Nack);
    wait_for("it is said how many were left out", || daemon.log().lines().any(told).then_some(()));
}

#[test]
fn a_file_that_is_shrunk_and_closed_again_and_again_writes_few_lines() {
    let daemon = with_disks(&[""]).start();
    let file = |bytes| {
        let file = OpenOptions::new().write(true).open(daemon.image(0)).unwrap();
        file.set_len(bytes).unwrap();
    };
    assert_few_lines(&daemon, 2, 3000, || file(DISK_BYTES / 2));
    file(DISK_BYTES);
}
