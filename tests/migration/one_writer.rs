//! Several front-ends on one read-write disk, under load: one runs, the others wait for it to stop or to die.
//!
//! Each puts its own mark on the disk as often as it is its turn, and insists that nobody else's comes between.
//! The daemon checks that itself, too: a ring that starts beside another front-end's fails its debug assertion.

use std::path::{Path, PathBuf};

use crate::common::Random;
use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::load::Load;
use crate::common::frontend::memory::Span;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::{Options, Session};
use crate::common::pattern;

const DISK_BYTES: u64 = 16 << 20;

/// Turns of each front-end.
const TURNS: u64 = 8;

/// Two disks of one file, each in a daemon of its own.
fn two_daemons() -> [Daemon; 2] {
    let setups = [(); 2].map(|()| Setup::new(Place::Tmpfs).disk("lock=wait"));
    std::fs::File::create(setups[0].image(0)).unwrap().set_len(DISK_BYTES).unwrap();
    std::fs::hard_link(setups[0].image(0), setups[1].image(0)).unwrap();
    setups.map(Setup::start)
}

fn connect(socket: &Path, packed: bool) -> Session {
    let spans = vec![Span { guest_start: 1 << 20, bytes: 16 << 20 }];
    Session::connect_with(socket, &Options { spans, packed, ..Options::default() })
}

fn mark(author: u64) -> Vec<u8> {
    pattern(author, 4096)
}

/// Waits for its turn with rings of either kind, uses the disk alone, and goes without much ceremony.
fn take_a_turn(socket: &Path, author: u64, random: &mut Random) {
    let session = connect(socket, random.one_in(2));
    let (mut ring, other) = (session.ring(0, 64), session.ring(1, 64));
    // The first answer comes when it is this one's turn.
    let first = ring.run(&Request::read(0, 4096));
    assert_eq!(first.status, OK);
    let before = ring.run(&Request::read(0, 4096)).data;
    assert!(before == first.data, "{author}: the one before still writes");
    for repeat in 0..20 {
        let mine = mark(author << 8 | repeat);
        assert_eq!(ring.run(&Request::write(0, &mine)).status, OK);
        for _ in 0..4 {
            let read = ring.run(&Request::read(0, 4096)).data;
            assert!(read == mine, "{author}: two front-ends write at once");
        }
    }
    leave(&session, ring, &other, author, random);
}

/// Stops as it should, pauses before, or dies with writes under way.
fn leave(session: &Session, mut ring: Ring, other: &Ring, author: u64, random: &mut Random) {
    match random.below(4) {
        0 => {
            session.stop(&ring);
            session.stop(other);
        }
        1 => {
            session.enable(&ring, false).unwrap();
            session.enable(&ring, true).unwrap();
            assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
            session.stop(other);
        }
        _ => {
            for repeat in 0..ring.slots() as u64 {
                ring.submit(&Request::write(0, &mark(author << 8 | repeat | 0x80)));
            }
            ring.kick.signal();
        }
    }
}

/// All at once, until each has had its turns.
fn contend(sockets: &[PathBuf]) {
    std::thread::scope(|scope| {
        for (number, socket) in (1..).zip(sockets) {
            scope.spawn(move || {
                let mut random = Random::new(number);
                for turn in 0..TURNS {
                    take_a_turn(socket, number << 8 | turn, &mut random);
                }
            });
        }
    });
}

#[test]
fn front_ends_of_one_daemon_never_run_at_once() {
    let setup = Setup::new(Place::Tmpfs).disk("size=16M");
    let mut daemon = setup.start();
    let sockets = [(); 4].map(|()| daemon.socket(0));
    contend(&sockets);
    daemon.assert_alive();
    assert!(!daemon.log().contains("bug in the daemon"));
}

#[test]
fn front_ends_of_two_daemons_never_run_at_once() {
    let mut daemons = two_daemons();
    let sockets = [0, 1, 0, 1].map(|daemon: usize| daemons[daemon].socket(0));
    contend(&sockets);
    for daemon in &mut daemons {
        daemon.assert_alive();
        assert!(!daemon.log().contains("bug in the daemon"));
    }
}

#[test]
fn the_second_daemon_takes_over_when_the_first_is_killed_under_load() {
    for packed in [false, true] {
        let [first, second] = two_daemons();
        let session = connect(&first.socket(0), packed);
        let mut busy = session.ring(0, 64);
        let last = mark(7);
        assert_eq!(busy.run(&Request::write(4096, &last)).status, OK);
        let other = connect(&second.socket(0), packed);
        let mut waiting = other.ring(0, 64);
        waiting.submit(&Request::read(4096, 4096));
        waiting.kick.signal();
        for _ in 0..200 {
            assert_eq!(busy.run(&Request::write(0, &mark(8))).status, OK);
            assert_eq!(waiting.used_index(), 0, "both run");
        }
        for _ in 0..busy.slots() {
            busy.submit(&Request::write(0, &mark(9)));
        }
        busy.kick.signal();
        first.kill();
        let used = waiting.wait();
        let answer = waiting.answer(&Request::read(4096, 4096), used);
        assert!(answer.status == OK && answer.data == last, "what was acknowledged is not there");
        Load::start(waiting, 0).stop();
    }
}
