//! How long requests take, as the server says it, against what whoever asked for them has measured.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::common::daemon::Daemon;
use crate::common::frontend::Session;
use crate::common::frontend::request::{OK, Request};
use crate::common::{metrics, pattern};
use crate::fuse::{Media, with_disks};

/// How many requests took no longer than each border, in nanoseconds, of one operation of a disk; the last one has all.
fn borders(daemon: &Daemon, disk: &str, operation: &str) -> BTreeMap<u64, u64> {
    let start = format!("request_seconds_bucket{{disk=\"{disk}\",operation=\"{operation}\",le=\"");
    let all = metrics::read(&daemon.metrics_socket());
    let of = |(name, count): (&String, &f64)| {
        let border = name.strip_prefix(&start)?.strip_suffix("\"}")?;
        let ns =
            if border == "+Inf" { u64::MAX } else { (border.parse::<f64>().unwrap() * 1e9).round() as u64 };
        Some((ns, *count as u64))
    };
    all.iter().filter_map(of).collect()
}

/// The border of the bucket that a time is in.
fn border_of(time: Duration) -> u64 {
    (time.as_nanos() as u64).next_power_of_two().max(256)
}

/// A read that hangs is in the bucket of the time that it has taken: not below how long the media hung, and not above what its
/// client has seen; nor are a write and a flush.
#[test]
fn the_histogram_is_within_a_bucket_of_what_a_client_measures() {
    const HANGS: Duration = Duration::from_millis(700);
    with_disks(Media::File, 0, |setup, server| {
        let daemon = setup.start();
        let session = Session::connect(&daemon.socket(0));
        let mut ring = session.ring(0, 64);
        for (operation, request) in [
            ("read", Request::read(4096, 4096)),
            ("write", Request::write(0, &pattern(1, 4096))),
            ("flush", Request::flush()),
        ] {
            if operation == "flush" {
                assert_eq!(ring.run(&Request::write(64, &pattern(2, 4096))).status, OK);
            } else {
                server.forget();
            }
            let before = borders(&daemon, "disk0", operation);
            server.hang();
            let asked = Instant::now();
            let head = ring.submit(&request);
            ring.notify();
            std::thread::sleep(HANGS);
            server.go_on();
            let used = ring.wait();
            let measured = asked.elapsed();
            assert_eq!((used.head, ring.answer(&request, used).status), (head, OK));
            let after = borders(&daemon, "disk0", operation);
            let new = |border: &u64| after[border] - before.get(border).unwrap_or(&0);
            assert_eq!(new(&u64::MAX), 1, "{operation}: {after:?}");
            let bucket = *after.keys().find(|border| new(border) == 1).unwrap();
            // Whether a write or a flush waits for this server is for the kernel to say.
            let least = if operation == "read" { HANGS * 9 / 10 } else { Duration::ZERO };
            let bounds = border_of(least)..=border_of(measured);
            assert!(bounds.contains(&bucket), "{operation}: {bucket} is not in {bounds:?}");
        }
        daemon.stop();
    });
}

/// Of a disk in memory some turns are timed and stand for all of them: about as many requests as there were, none slower than the
/// slowest that its client has seen.
#[test]
fn a_disk_in_memory_is_timed_in_part() {
    use crate::common::daemon::{Place, Setup};
    const REQUESTS: u64 = 2000;
    let daemon = Setup::new(Place::Tmpfs).disk("name=memory,size=1M").with_metrics().start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    let mut slowest = Duration::ZERO;
    for _ in 0..REQUESTS {
        let asked = Instant::now();
        assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
        slowest = slowest.max(asked.elapsed());
    }
    let counts = borders(&daemon, "memory", "read");
    let all = counts[&u64::MAX];
    assert!(all > 0 && all <= REQUESTS, "{counts:?}");
    assert_eq!(counts[&border_of(slowest).min(1 << 33)], all, "{counts:?}, {slowest:?}");
    drop((ring, session));
    assert_eq!(borders(&daemon, "memory", "read")[&u64::MAX], all, "they stay when their ring is gone");
    daemon.stop();
}

/// What is done in slices is timed each time.
#[test]
fn long_requests_in_memory_are_timed_each() {
    use crate::common::daemon::{Place, Setup};
    use crate::common::frontend::request::range;
    let daemon = Setup::new(Place::Tmpfs).disk("name=memory,size=16M").with_metrics().start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    for (operation, kind) in [("write_zeroes", 13), ("discard", 11)] {
        let payload = range(0, 8192, 0).to_vec();
        let request = Request { kind, sector: 0, payload, writable_bytes: 0 };
        let asked = Instant::now();
        assert_eq!(ring.run(&request).status, OK);
        let measured = asked.elapsed();
        let counts = borders(&daemon, "memory", operation);
        assert_eq!(
            (counts[&u64::MAX], counts[&border_of(measured).min(1 << 33)]),
            (1, 1),
            "{operation}: {counts:?}"
        );
    }
    daemon.stop();
}
