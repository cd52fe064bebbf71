//! Requests that are slow are named, with what they wait for: once while they wait, and when they have ended.

use std::time::Duration;

use crate::common::daemon::Daemon;
use crate::common::frontend::Session;
use crate::common::frontend::request::{OK, Request};
use crate::common::{metrics, pattern, wait_for};
use crate::fuse::{Media, with_disks_of};

/// The lines that name slow requests of an operation which have ended, or have not.
fn lines(daemon: &Daemon, operation: &str, is_done: bool) -> Vec<String> {
    let log = daemon.log();
    let is_such = |line: &&str| {
        line.contains("a request is slow")
            && line.contains(&format!("operation=\"{operation}\""))
            && line.contains(&format!("done={is_done}"))
    };
    log.lines().filter(is_such).map(ToOwned::to_owned).collect()
}

#[test]
fn slow_requests_are_named_while_they_wait_and_when_they_have_ended() {
    for media in [Media::File, Media::Device] {
        with_disks_of(media, "slow-ms=300", 1, |setup, server| {
            let daemon = setup.start();
            let (session, other) = (Session::connect(&daemon.socket(0)), Session::connect(&daemon.socket(1)));
            let (mut ring, mut fine) = (session.ring(0, 64), other.ring(0, 64));
            assert_eq!(ring.run(&Request::flush()).status, OK);
            server.forget();
            server.hang();
            // The write waits for the read, and the flush for both.
            let requests =
                [Request::read(2048, 4096), Request::write(2048, &pattern(3, 4096)), Request::flush()];
            let heads = requests.each_ref().map(|request| ring.submit(request));
            ring.notify();
            for (operation, place, waits_for) in [
                ("read", "offset=1048576 bytes=4096", "media"),
                ("write", "offset=1048576 bytes=4096", "order"),
                ("flush", "offset=0 bytes=0", "order"),
            ] {
                let named = wait_for("it is named", || lines(&daemon, operation, false).pop());
                for part in ["disk=\"disk0\" ring=0", place, &format!("waited_for=\"{waits_for}\"")] {
                    assert!(named.contains(part), "{media:?}: {part}: {named}");
                }
            }
            assert_eq!(fine.run(&Request::write(0, &pattern(1, 4096))).status, OK);
            let slow = |disk| {
                metrics::read(&daemon.metrics_socket())
                    [&format!("slow_requests_total{{disk=\"disk{disk}\"}}")]
            };
            assert_eq!((slow(0), slow(1)), (3.0, 0.0), "{media:?}");
            // The log takes some lines a second.
            std::thread::sleep(Duration::from_millis(1100));
            server.go_on();
            for (request, head) in requests.iter().zip(heads) {
                let used = ring.wait();
                assert_eq!((used.head, ring.answer(request, used).status), (head, OK), "{media:?}");
            }
            for (operation, waited_for) in [("read", "media"), ("write", "order"), ("flush", "order")] {
                let named = wait_for("its end is named", || lines(&daemon, operation, true).pop());
                assert!(named.contains(&format!("waited_for=\"{waited_for}\"")), "{media:?}: {named}");
                assert_eq!(lines(&daemon, operation, false).len(), 1, "{media:?}: {operation}");
            }
            assert_eq!((slow(0), slow(1)), (3.0, 0.0), "{media:?}: each is counted once");
            drop((ring, session, fine, other));
            daemon.stop();
        });
    }
}
