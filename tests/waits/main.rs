//! Media that make one wait: a file of a FUSE server that has stopped, and a block device over such a file. What hangs costs its
//! own disk: others that the same worker serves go on, and so do their messages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;
mod fuse;
mod others;
mod table;

use common::SECTOR_BYTES;
use common::frontend::Session;
use common::frontend::load::Load;
use common::frontend::request::{OK, Request};
use common::frontend::ring::Ring;
use common::{metrics, pattern};
use fuse::{BYTES, Media, contents, with_disks};

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

/// The log says which disk hangs and with what; SIGTERM ends the daemon all the same, and what was acknowledged stays.
#[test]
fn the_end_gives_up_what_hangs_and_names_it() {
    with_disks(Media::File, 1, |setup, server| {
        let mut daemon = setup.start();
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
