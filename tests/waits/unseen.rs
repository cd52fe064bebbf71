//! What waits for media and is no request: a start of a queue, which looks at the configuration record; a look at the size; a
//! disk's removal.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::{Options, Session};
use crate::common::{MIB, metrics, pattern, wait_for};
use crate::fuse::{Media, with_disks};

const OTHER_BYTES: u64 = 4 * MIB;

/// The log and the metrics tell of it, and all others are served and grow.
#[test]
fn a_start_of_a_queue_and_a_look_at_the_size_are_seen_and_hold_up_no_other_disk() {
    with_disks(Media::File, 0, |setup, server| {
        let setup = setup.disk("");
        let other_file = File::create(setup.image(1)).unwrap();
        other_file.set_len(OTHER_BYTES).unwrap();
        drop(other_file);
        let mut daemon = setup.start();
        let mut session = Session::open(&daemon.socket(0), &crate::common::frontend::SPANS);
        session.negotiate(&Options::default());
        session.share_memory();
        server.hang();
        let session = Arc::new(session);
        let starts = Arc::clone(&session);
        // Its guest is not new: it has not read the configuration.
        let start = std::thread::spawn(move || drop(starts.ring(0, 64)));
        let oldest = || metrics::read(&daemon.metrics_socket())["oldest_request_seconds{disk=\"disk0\"}"];
        wait_for("the metric tells of it", || (oldest() > 0.0).then_some(()));
        for round in 1..3 {
            daemon.signal(libc::SIGHUP);
            rustix::fs::ftruncate(
                File::options().write(true).open(daemon.image(1)).unwrap(),
                OTHER_BYTES * (round + 1),
            )
            .unwrap();
            daemon.signal(libc::SIGHUP);
            let sectors = (OTHER_BYTES * (round + 1) / 512).to_le_bytes();
            let other = Session::connect(&daemon.socket(1));
            wait_for("the other disk has grown", || (other.config(0, 8).unwrap() == sectors).then_some(()));
            let bytes = pattern(round, 4096);
            assert_eq!(other.ring(0, 64).run(&Request::write(0, &bytes)).status, OK);
        }
        daemon.wait_for_log("the disk hangs: its media does not tell what it is asked for");
        drop(UnixStream::connect(daemon.socket(0)).unwrap());
        server.go_on();
        start.join().unwrap();
        wait_for("nothing waits", || (oldest() == 0.0).then_some(()));
        daemon.wait_for_log("the disk goes on: its media has answered");
        drop(session);
        daemon.assert_alive();
        daemon.stop();
    });
}
