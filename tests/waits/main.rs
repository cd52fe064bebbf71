//! Media that make one wait: a file of a FUSE server that has stopped, and a block device over such a file. What hangs costs its
//! own disk: others that the same worker serves go on, and so do their messages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod control;
mod direct;
mod ends;
mod fuse;
#[allow(dead_code)]
#[path = "../control/http.rs"]
mod http;
mod latency;
mod memory;
mod other_kernel;
mod others;
mod slow;
mod table;
mod unseen;

use std::time::{Duration, Instant};

use common::SECTOR_BYTES;
use common::daemon::Daemon;
use common::frontend::load::Load;
use common::frontend::request::{OK, Request};
use common::frontend::ring::Ring;
use common::frontend::{Session, settle};
use common::{metrics, pattern, wait_for};
use fuse::{BYTES, LOCAL_BYTES, Media, contents, with_disks};
use others::{Neighbour, say_everything};

/// Sectors of the requests that hang, one each.
const HUNG: std::ops::Range<u64> = 0..16;

/// Where on the disk: far apart, so that none is read ahead for another.
fn place(number: u64) -> u64 {
    number * 2048 + 8
}

/// Submits writes and reads in turn, of which none can be done. Returns them with their heads.
fn submit_to_hung(ring: &mut Ring) -> Vec<(Request, u16)> {
    let submitted = HUNG.map(|number| {
        let request = match number % 2 {
            0 => Request::write(place(number), &pattern(number, 4096)),
            _ => Request::read(place(number), 4096),
        };
        let head = ring.submit(&request);
        (request, head)
    });
    let submitted = submitted.collect();
    ring.notify();
    submitted
}

/// They are answered in the ring's order, and well.
fn take_answers(ring: &mut Ring, submitted: Vec<(Request, u16)>) {
    let all = contents();
    for (request, head) in submitted {
        let used = ring.wait();
        assert_eq!(used.head, head, "in the ring's order");
        let answer = ring.answer(&request, used);
        assert_eq!(answer.status, OK);
        if request.payload.is_empty() {
            let at = request.sector as usize * SECTOR_BYTES;
            assert!(answer.data == all[at..at + 4096], "sector {}", request.sector);
        }
    }
}

fn a_hung_disk_costs_itself(media: Media) {
    with_disks(media, 1, |setup, server| {
        let mut daemon = setup.start();
        for session in Session::of_each_kind(&daemon.socket(0)) {
            let mut hung = session.ring(0, 64);
            assert_eq!(hung.run(&Request::write(1000, &pattern(9, 4096))).status, OK);
            assert_eq!(hung.run(&Request::flush()).status, OK);
            server.hang();
            let submitted = submit_to_hung(&mut hung);
            // The worker has both rings, and both kinds of messages are answered.
            for other in Session::of_each_kind(&daemon.socket(1)) {
                let load = Load::start(other.ring(0, 64), 0);
                load.wait_for_progress();
                let ring = load.stop();
                other.stop(&ring.vring());
            }
            let another = Session::connect(&daemon.socket(0));
            assert_eq!(another.config(0, 8).unwrap(), (BYTES / 512).to_le_bytes());
            assert_eq!(hung.next_used(), None, "nothing of the hung disk is done");
            let metrics = metrics::read(&daemon.metrics_socket());
            let of = |name: &str, disk: u8| metrics[&format!("{name}{{disk=\"disk{disk}\"}}")];
            // What has been read before is in the page cache of a file.
            assert!((8.0..=16.0).contains(&of("requests_in_flight", 0)), "{metrics:?}");
            assert_eq!((of("requests_in_flight", 1), of("oldest_request_seconds", 1)), (0.0, 0.0));
            assert!(of("oldest_request_seconds", 0) > 0.0);
            daemon.assert_alive();
            server.go_on();
            take_answers(&mut hung, submitted);
            assert_eq!(hung.run(&Request::flush()).status, OK);
            for number in HUNG.filter(|number| number % 2 == 0) {
                assert!(hung.run(&Request::read(place(number), 4096)).data == pattern(number, 4096));
            }
        }
        daemon.stop();
    });
}

#[test]
fn a_hung_file_costs_its_own_disk() {
    a_hung_disk_costs_itself(Media::File);
}

#[test]
fn a_hung_device_costs_its_own_disk() {
    a_hung_disk_costs_itself(Media::Device);
}

/// How many threads of the daemon's are workers: more than there are where one was relieved.
/// A limit lets a queue go on when it is time, also while all else that its worker has waits for media.
#[test]
fn a_limited_disk_goes_on_while_another_hangs() {
    with_disks(Media::File, 0, |setup, server| {
        let daemon = setup.disk("size=4M,iops=10").start();
        let (hanging, session) = (Session::connect(&daemon.socket(0)), Session::connect(&daemon.socket(1)));
        let (mut hung, mut limited) = (hanging.ring(0, 64), session.ring(0, 64));
        server.hang();
        // Two at once, and then one each 100 ms.
        let reads: Vec<_> = (0..20).map(|number| limited.submit(&Request::read(number * 8, 512))).collect();
        limited.notify();
        // Meanwhile its worker gets what waits for media. Nobody kicks again, or asks it for anything.
        let submitted = submit_to_hung(&mut hung);
        for head in reads {
            assert_eq!(limited.wait().head, head);
        }
        assert_eq!(hung.next_used(), None, "nothing of the hung disk is done");
        server.go_on();
        take_answers(&mut hung, submitted);
        daemon.stop();
    });
}

fn workers(daemon: &Daemon) -> usize {
    let names = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
    };
    names.map(name).filter(|name| name.starts_with("worker-")).count()
}

/// Where a local file is written to.
fn local_place(number: u64) -> u64 {
    number * 8 % (LOCAL_BYTES / 512)
}

/// Writes to a local file whose media hangs, until a write does. Returns how many there were, and the last one with its head.
fn write_until_one_hangs(hung: &mut Ring) -> (u64, (Request, u16)) {
    let (mut number, since) = (1, Instant::now());
    loop {
        assert!(since.elapsed() < Duration::from_secs(60), "writes do not hang");
        let write = Request::write(local_place(number), &pattern(number, 4096));
        let head = hung.submit(&write);
        hung.notify();
        number += 1;
        let asked = Instant::now();
        let used = std::iter::repeat_with(|| {
            settle();
            hung.next_used()
        })
        .find(|used| used.is_some() || asked.elapsed() > Duration::from_secs(2));
        match used.flatten() {
            Some(used) => assert_eq!(hung.answer(&write, used).status, OK),
            None => break (number, (write, head)),
        }
    }
}

/// What writes a file of a local file system is the worker itself, as most often that takes no time. Once the journal waits for the
/// device, so does a write.
#[test]
fn a_hung_local_file_costs_its_own_disk() {
    with_disks(Media::Local, 2, |setup, server| {
        let daemon = setup.start();
        let neighbour = Neighbour::start(&daemon);
        let session = Session::connect(&daemon.socket(0));
        let mut hung = session.ring(0, 64);
        assert_eq!(hung.run(&Request::write(0, &pattern(9, 4096))).status, OK);
        assert_eq!(hung.run(&Request::flush()).status, OK);
        let before = neighbour.wait_for_progress();
        server.hang();
        let (number, submitted) = write_until_one_hangs(&mut hung);
        let (requests, messages) = (neighbour.wait_for_progress(), say_everything(&daemon));
        eprintln!(
            "{number} writes until one hung, {} workers; others' requests {requests:?} (before: {before:?}), messages up to {messages:?}",
            workers(&daemon)
        );
        let metrics = metrics::read(&daemon.metrics_socket());
        assert!(metrics["requests_in_flight{disk=\"disk0\"}"] >= 1.0, "{metrics:?}");
        assert!(metrics["oldest_request_seconds{disk=\"disk0\"}"] >= 1.0, "{metrics:?}");
        server.go_on();
        let (write, head) = submitted;
        let used = hung.wait();
        assert_eq!((used.head, hung.answer(&write, used).status), (head, OK));
        assert_eq!(hung.run(&Request::flush()).status, OK);
        for number in number.saturating_sub(3)..number {
            assert!(hung.run(&Request::read(local_place(number), 4096)).data == pattern(number, 4096));
        }
        wait_for("the relieved thread has ended", || (workers(&daemon) == 1).then_some(()));
        neighbour.stop();
        drop((session, hung));
        daemon.stop();
    });
}

/// The log says which disk hangs and with what; SIGTERM ends the daemon all the same, and what was acknowledged stays.
#[test]
fn the_end_gives_up_what_hangs_and_names_it() {
    with_disks(Media::File, 1, |setup, server| {
        let mut daemon = setup.arg("--stop-timeout=2").start();
        daemon.wait_for_log("storage=fuse");
        daemon.wait_for_log("(FUSE, ");
        let (session, other) = (Session::connect(&daemon.socket(0)), Session::connect(&daemon.socket(1)));
        let (mut hung, mut fine) = (session.ring(0, 64), other.ring(0, 64));
        let acknowledged = pattern(9, 4096);
        assert_eq!(hung.run(&Request::write(1000, &acknowledged)).status, OK);
        assert_eq!(hung.run(&Request::flush()).status, OK);
        server.hang();
        submit_to_hung(&mut hung);
        daemon.wait_for_log("the disk hangs: its media does not answer");
        assert_eq!(fine.run(&Request::write(0, &acknowledged)).status, OK);
        daemon.signal(libc::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(15));
        daemon.wait_for_log(r#"disk "disk0": "#);
        let log = daemon.log();
        let hangs = log.lines().find(|line| line.contains("the disk hangs")).unwrap();
        assert!(hangs.contains("operation=\"write\"") && hangs.contains("offset=4096"), "{hangs}");
        let given_up = log.lines().find(|line| line.contains("--stop-timeout")).unwrap();
        assert!(given_up.contains("the oldest a write of 4096 bytes at offset 4096"), "{given_up}");
        assert!(!given_up.contains("disk1"), "{given_up}");
        assert_eq!(std::fs::read(daemon.image(1)).unwrap()[..4096], acknowledged, "the other disk");
        server.go_on();
        let image = std::fs::read(&server.image).unwrap();
        assert_eq!(image[1000 * SECTOR_BYTES..][..4096], acknowledged, "what was acknowledged is there");
    });
}
