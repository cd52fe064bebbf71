//! Several front-ends on one disk: one writer at a time, any number of readers.

use super::{assert_works, daemon, with_disks};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::{Options, Session, settle};
use crate::common::pattern;

/// Makes a read of the first sectors available; the ring must not do it yet.
fn submit_and_wait_in_vain(ring: &mut Ring) {
    ring.submit(&Request::read(0, 4096));
    ring.kick.signal();
    settle();
    assert_eq!(ring.used_index(), 0, "two front-ends write at once");
}

/// The read that was submitted is done now, and has seen `content`.
fn assert_has_read(ring: &mut Ring, content: &[u8]) {
    let used = ring.wait();
    let answer = ring.answer(&Request::read(0, 4096), used);
    assert_eq!(answer.status, OK);
    assert!(answer.data == content, "the second front-end sees old data");
}

#[test]
fn a_second_front_end_waits_until_the_first_has_stopped_its_rings() {
    let daemon = daemon("");
    for first in Session::of_each_kind(&daemon.socket(0)) {
        let mut rings = [first.ring(0, 64), first.ring(1, 64)];
        let second = Session::connect(&daemon.socket(0));
        assert_eq!(second.config(0, 60).unwrap(), first.config(0, 60).unwrap());
        let mut waiting = second.ring(0, 64);
        submit_and_wait_in_vain(&mut waiting);

        first.stop(&rings[0]);
        settle();
        assert_eq!(waiting.used_index(), 0, "a ring of the first one still runs");
        let content = pattern(42, 4096);
        assert_eq!(rings[1].run(&Request::write(0, &content)).status, OK);
        first.stop(&rings[1]);
        assert_has_read(&mut waiting, &content);
        assert_works(&mut waiting, 8);

        // Now it is the first one that waits.
        rings[0].reset();
        first.start(&rings[0], 0).unwrap();
        submit_and_wait_in_vain(&mut rings[0]);
        drop(second);
        assert_has_read(&mut rings[0], &content);
    }
}

#[test]
fn a_second_front_end_takes_over_when_the_first_dies() {
    let daemon = daemon("");
    for round in 0..10 {
        let options = Options { packed: round % 2 == 0, ..Options::default() };
        let first = Session::connect_with(&daemon.socket(0), &options);
        let mut ring = first.ring(0, 64);
        let content = pattern(round, 4096);
        assert_eq!(ring.run(&Request::write(0, &content)).status, OK);
        let second = Session::connect(&daemon.socket(0));
        let mut waiting = second.ring(0, 64);
        submit_and_wait_in_vain(&mut waiting);
        assert_works(&mut ring, 8);
        drop(first);
        assert_has_read(&mut waiting, &content);
    }
}

#[test]
fn a_paused_guest_keeps_its_disk() {
    let daemon = daemon("");
    let first = Session::connect(&daemon.socket(0));
    let mut ring = first.ring(0, 64);
    assert_works(&mut ring, 0);
    first.enable(&ring, false).unwrap();
    let second = Session::connect(&daemon.socket(0));
    let mut waiting = second.ring(0, 64);
    submit_and_wait_in_vain(&mut waiting);
    first.enable(&ring, true).unwrap();
    assert_works(&mut ring, 0);
    assert_eq!(waiting.used_index(), 0);
}

#[test]
fn front_ends_that_wait_can_stop_and_leave() {
    let daemon = daemon("");
    let first = Session::connect(&daemon.socket(0));
    let mut ring = first.ring(0, 64);
    let stopped = Session::connect(&daemon.socket(0));
    let mut stopped_ring = stopped.ring(0, 64);
    submit_and_wait_in_vain(&mut stopped_ring);
    assert_eq!(stopped.stop(&stopped_ring), 0);
    let gone = Session::connect(&daemon.socket(0));
    submit_and_wait_in_vain(&mut gone.ring(0, 64));
    drop(gone);
    let last = Session::connect(&daemon.socket(0));
    let mut waiting = last.ring(0, 64);
    submit_and_wait_in_vain(&mut waiting);
    assert_works(&mut ring, 0);

    let content = ring.run(&Request::read(0, 4096)).data;
    drop(first);
    assert_has_read(&mut waiting, &content);
    assert_eq!(stopped_ring.used_index(), 0, "a ring that was stopped runs");
}

#[test]
fn the_disk_passes_through_many_hands() {
    let daemon = daemon("");
    let mut waiting: Vec<(Session, Ring)> = Vec::new();
    for _ in 0..6 {
        let session = Session::connect(&daemon.socket(0));
        let ring = session.ring(0, 64);
        waiting.push((session, ring));
    }
    for (_, ring) in &mut waiting {
        ring.submit(&Request::read(0, 512));
        ring.kick.signal();
    }
    while !waiting.is_empty() {
        let running = crate::common::wait_for("one of them runs", || {
            waiting.iter().position(|(_, ring)| ring.used_index() > 0)
        });
        settle();
        let count = waiting.iter().filter(|(_, ring)| ring.used_index() > 0).count();
        assert_eq!(count, 1, "front-ends that run at once");
        let (session, mut ring) = waiting.swap_remove(running);
        ring.wait();
        assert_works(&mut ring, 0);
        if waiting.len().is_multiple_of(2) {
            session.stop(&ring);
        }
    }
}

#[test]
fn read_only_disks_serve_any_number_at_once() {
    let daemon = daemon("readonly=on");
    let sessions: Vec<Session> = (0..3).map(|_| Session::connect(&daemon.socket(0))).collect();
    let mut rings: Vec<Ring> = sessions.iter().map(|session| session.ring(0, 64)).collect();
    for _ in 0..3 {
        for ring in &mut rings {
            let answer = ring.run(&Request::read(0, 4096));
            assert_eq!((answer.status, answer.data), (OK, vec![0; 4096]));
        }
    }
}

/// Two daemons, one file, as on the two sides of a migration on one host: `lock=wait` waits with its first
/// ring, not with its start.
#[test]
fn a_daemon_that_waits_for_the_lock_takes_over_from_another_process() {
    for (source_lock, source_keeps_it) in [("lock=on", true), ("lock=wait", false)] {
        let source = daemon(source_lock);
        let destination = with_disks(&["lock=wait"]);
        std::fs::remove_file(destination.image(0)).unwrap();
        std::fs::hard_link(source.image(0), destination.image(0)).unwrap();
        let first = Session::connect(&source.socket(0));
        let mut ring = first.ring(0, 64);
        let content = pattern(9, 4096);
        assert_eq!(ring.run(&Request::write(0, &content)).status, OK);

        let destination = destination.start();
        let second = Session::connect(&destination.socket(0));
        assert_eq!(second.config(0, 60).unwrap(), first.config(0, 60).unwrap());
        let mut waiting = second.ring(0, 64);
        submit_and_wait_in_vain(&mut waiting);
        first.stop(&ring);
        if source_keeps_it {
            settle();
            assert_eq!(waiting.used_index(), 0, "lock=on holds the file as long as the daemon lives");
            source.stop();
        }
        assert_has_read(&mut waiting, &content);
        assert_works(&mut waiting, 8);
    }
}
