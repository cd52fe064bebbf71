//! Front-ends that come, leave at any moment, and come again.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use super::{assert_works, daemon, with_disks};
use crate::common::frontend::load::Load;
use crate::common::frontend::message::{
    GET_CONFIG, GET_FEATURES, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_NUM,
};
use crate::common::frontend::request::Request;
use crate::common::frontend::wire::{HEADER_BYTES, NEED_REPLY, VERSION, Verdict, Wire};
use crate::common::frontend::{Options, SPANS, Session};
use crate::common::process::Process;
use crate::common::wait_for;

/// The message that announces a session's memory.
fn table_message(session: &Session) -> Vec<u8> {
    let payload: Vec<u8> = session.memory.table().into_iter().flat_map(u64::to_le_bytes).collect();
    Wire::encode(SET_MEM_TABLE, VERSION | NEED_REPLY, &payload)
}

/// Descriptors and threads of a daemon that nobody is connected to.
fn at_rest(process: Process) -> (usize, usize) {
    let now = || (process.fds(), process.threads());
    wait_for("the daemon comes to rest", || {
        let before = now();
        std::thread::sleep(Duration::from_millis(200));
        (now() == before).then_some(before)
    })
}

/// Waits until a daemon holds no more descriptors and threads than at an earlier time.
fn wait_for_rest(process: Process, (fds, threads): (usize, usize)) {
    wait_for("everything of the connections is gone", || {
        (process.fds() <= fds && process.threads() <= threads).then_some(())
    });
}

/// A whole visit: two rings, a few requests, and no farewell.
fn visit(socket: &Path, sector: u64) {
    let session = Session::connect(socket);
    let mut rings = [session.ring(0, 64), session.ring(1, 64)];
    for ring in &mut rings {
        assert_works(ring, sector);
        ring.submit(&Request::read(0, 4096));
        ring.kick.signal();
    }
}

#[test]
fn a_thousand_visits_leave_nothing_behind() {
    const MARGIN_BYTES: u64 = 1 << 20;
    let daemon = daemon("");
    let process = Process(daemon.pid());
    for round in 0..100 {
        visit(&daemon.socket(0), round % 8 * 8);
    }
    let before = at_rest(process);
    let resident = process.resident_bytes();
    for round in 0..1000 {
        visit(&daemon.socket(0), round % 8 * 8);
    }
    wait_for_rest(process, before);
    let grown = process.resident_bytes().saturating_sub(resident);
    let (fds, threads) = before;
    println!("{fds} fds, {threads} threads, {resident} bytes resident, {grown} more after 1000 visits");
    assert!(grown < MARGIN_BYTES, "{grown} bytes more are resident");
}

#[test]
fn hanging_up_in_the_middle_of_a_message_harms_nobody() {
    let daemon = with_disks(&["", ""]).start();
    let process = Process(daemon.pid());
    visit(&daemon.socket(0), 0);
    let bystander = Session::connect(&daemon.socket(1));
    let load = Load::start(bystander.ring(0, 64), 0);
    let before = at_rest(process);

    let addresses = Wire::encode(SET_VRING_ADDR, VERSION | NEED_REPLY, &[0; 40]);
    let config = Wire::encode(GET_CONFIG, VERSION, &[[0; 4].as_slice(), &[60, 0, 0, 0], &[0; 64]].concat());
    for length in 0..table_message(&Session::open(&daemon.socket(0), &SPANS)).len() {
        let session = Session::connect(&daemon.socket(0));
        let mut ring = session.ring(0, 64);
        assert_works(&mut ring, 0);
        ring.submit(&Request::read(0, 4096));
        ring.kick.signal();
        let fd = session.memory.fd();
        session.wire.send_bytes(&table_message(&session)[..length], &[fd, fd][..2.min(length)]);
    }
    for message in [addresses, config] {
        for length in 0..message.len() {
            let session = Session::connect(&daemon.socket(0));
            session.wire.send_bytes(&message[..length], &[]);
        }
    }
    wait_for_rest(process, before);
    load.wait_for_progress();
    assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
    load.stop();
}

/// A stream has no borders: whoever reads it must not rely on a message coming at once.
#[test]
fn messages_may_come_in_pieces() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    let in_pieces = |message: &[u8], cuts: &[usize], fds: &[BorrowedFd<'_>]| {
        let (mut start, mut fds) = (0, fds);
        for &end in cuts.iter().chain([&message.len()]) {
            assert!(session.wire.send_bytes(&message[start..end], fds), "closed after {start} bytes");
            (start, fds) = (end, &[]);
            std::thread::sleep(Duration::from_millis(5));
        }
        let answer = session.wire.receive();
        answer.unwrap_or_else(|| panic!("closed after a message in pieces of {cuts:?}"))
    };
    let size = Wire::encode(SET_VRING_NUM, VERSION | NEED_REPLY, &[1, 0, 0, 0, 64, 0, 0, 0]);
    for cut in 1..size.len() {
        assert_eq!(in_pieces(&size, &[cut], &[]).value(), 0, "cut after {cut} bytes");
    }
    let every_byte: Vec<usize> = (1..size.len()).collect();
    assert_eq!(in_pieces(&size, &every_byte, &[]).value(), 0);
    let table = table_message(&session);
    let fd = session.memory.fd();
    for cut in [HEADER_BYTES, HEADER_BYTES + 1, HEADER_BYTES + 8, HEADER_BYTES + 40, table.len() - 1] {
        assert_eq!(in_pieces(&table, &[cut], &[fd, fd]).value(), 0, "cut after {cut} bytes");
        assert_works(&mut ring, 0);
    }
}

/// Requests and their answers keep their order if several are sent at once.
#[test]
fn messages_may_be_sent_without_waiting_for_answers() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let size = Wire::encode(SET_VRING_NUM, VERSION | NEED_REPLY, &[1, 0, 0, 0, 64, 0, 0, 0]);
    let bad_size = Wire::encode(SET_VRING_NUM, VERSION | NEED_REPLY, &[1, 0, 0, 0, 63, 0, 0, 0]);
    let features = Wire::encode(GET_FEATURES, VERSION, &[]);
    let unanswered = Wire::encode(SET_VRING_NUM, VERSION, &[1, 0, 0, 0, 32, 0, 0, 0]);
    let burst = [&size, &unanswered, &bad_size, &features, &unanswered, &size].map(Vec::as_slice).concat();
    session.wire.send_bytes(&burst.repeat(20), &[]);
    for _ in 0..20 {
        let answers: Vec<(u32, u64)> = (0..4)
            .map(|_| session.wire.receive().unwrap())
            .map(|answer| (answer.code, answer.value().min(2)))
            .collect();
        let expected = [(SET_VRING_NUM, 0), (SET_VRING_NUM, 1), (GET_FEATURES, 2), (SET_VRING_NUM, 0)];
        assert_eq!(answers, expected);
    }
    assert_works(&mut session.ring(0, 64), 0);
}

/// Descriptors belong to the message they came with, not to the one before it.
#[test]
fn messages_with_and_without_descriptors_may_follow_each_other_at_once() {
    const SET_VRING_BASE: u32 = 10;
    const SET_VRING_CALL: u32 = 13;
    const SET_VRING_ERR: u32 = 14;
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let event = crate::common::frontend::event_fd::event();
    let files = [crate::common::frontend::fd_of(&event)];
    let size: &[u8] = &[1, 0, 0, 0, 64, 0, 0, 0];
    let index: &[u8] = &[1, 0, 0, 0, 0, 0, 0, 0];
    let messages = [
        (SET_VRING_NUM, size, &[][..]),
        (SET_VRING_CALL, index, &files),
        (SET_VRING_BASE, index, &[]),
        (SET_VRING_ERR, index, &files),
        (SET_VRING_CALL, index, &files),
    ];
    for round in 0..100 {
        for (code, payload, fds) in messages {
            session.wire.send(code, VERSION | NEED_REPLY, payload, fds);
        }
        for (code, ..) in messages {
            let answer = session.wire.receive().unwrap();
            assert_eq!((answer.code, answer.value()), (code, 0), "round {round}");
        }
    }
    assert_works(&mut session.ring(0, 64), 0);
}

#[test]
fn a_front_end_that_says_half_a_message_holds_nobody_up() {
    let daemon = with_disks(&["", ""]).start();
    let stalled: Vec<Wire> = [0, 1, 4, 8, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, HEADER_BYTES + 7]
        .into_iter()
        .map(|length| {
            let wire = Wire::connect(&daemon.socket(0));
            let message = Wire::encode(SET_VRING_NUM, VERSION, &[0; 8]);
            wire.send_bytes(&message[..length], &[]);
            wire
        })
        .collect();
    assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
    assert_works(&mut Session::connect(&daemon.socket(1)).ring(0, 64), 0);
    // The daemon can be stopped all the same.
    daemon.stop();
    drop(stalled);
}

/// Found by somebody who tried to break it: what a connection has sent before its first header is whole can hold its own end.
#[test]
fn a_first_message_that_is_not_completed_ends_its_connection() {
    let daemon = daemon("");
    let silent = Wire::connect(&daemon.socket(0));
    let begun = [1, HEADER_BYTES - 1, HEADER_BYTES + 1].map(|length| {
        let wire = Wire::connect(&daemon.socket(0));
        wire.send_bytes(&Wire::encode(SET_VRING_NUM, VERSION, &[0; 8])[..length], &[]);
        wire
    });
    for wire in begun {
        assert!(wire.receive().is_none(), "it is waited for, and then hung up on");
    }
    assert!(silent.ask(GET_FEATURES, &[], &[]).is_some(), "who has begun nothing may take the time");
}

#[test]
fn many_front_ends_may_be_connected_at_once() {
    let daemon = daemon("");
    let process = Process(daemon.pid());
    visit(&daemon.socket(0), 0);
    let before = at_rest(process);
    let sessions: Vec<Session> = (0..8).map(|_| Session::connect(&daemon.socket(0))).collect();
    let silent: Vec<Wire> = (0..8).map(|_| Wire::connect(&daemon.socket(0))).collect();
    for session in &sessions {
        assert_eq!(session.config(0, 60).unwrap().len(), 60);
    }
    let mut ring = sessions[5].ring(0, 64);
    assert_works(&mut ring, 0);
    // There is an end to it, so that nobody can use up the process.
    let crowd: Vec<Wire> = (0..100).map(|_| Wire::connect(&daemon.socket(0))).collect();
    let turned_away = crowd.iter().filter(|wire| wire.ask(GET_FEATURES, &[], &[]).is_none()).count();
    println!("{turned_away} of 100 more are turned away");
    assert!(turned_away > 0 && process.threads() < before.1 + 80);
    assert_works(&mut ring, 0);
    drop((sessions, silent, crowd));
    wait_for_rest(process, before);
    assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
}

/// A reply that nobody reads must not hold a thread for ever: hanging up ends the session.
#[test]
fn a_front_end_that_reads_no_answers_can_leave() {
    let daemon = daemon("");
    let process = Process(daemon.pid());
    visit(&daemon.socket(0), 0);
    let before = at_rest(process);
    let wire = Wire::connect(&daemon.socket(0));
    let questions = Wire::encode(GET_FEATURES, VERSION, &[]).repeat(1000);
    for _ in 0..10 {
        wire.send_bytes(&questions, &[]);
    }
    assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
    drop(wire);
    wait_for_rest(process, before);
}

#[test]
fn stopping_the_daemon_while_rings_are_busy_drains_them() {
    let daemon = daemon("");
    let session = Session::connect_with(&daemon.socket(0), &Options::default());
    let mut ring = session.ring(0, 1024);
    let bytes = crate::common::pattern(7, 4096);
    for sector in 0..ring.slots() as u64 {
        ring.submit(&Request::write(sector * 8, &bytes));
    }
    ring.kick.signal();
    let image = daemon.image(0);
    let setup = daemon.stop();
    // Whatever was taken was finished, and what was finished is in the file.
    let done = usize::from(ring.used_index());
    let file = std::fs::read(&image).unwrap();
    assert!(file[..done * 4096].chunks(4096).all(|chunk| chunk == bytes));
    for slot in 0..ring.slots() {
        let status = ring.memory.read(ring.buffers(slot).status, 1)[0];
        let expected = if slot < done { 0 } else { crate::common::frontend::ring::NO_STATUS };
        assert_eq!(status, expected, "request {slot} of {done} done");
    }
    drop(setup);
    assert_eq!(session.wire.tell(SET_VRING_NUM, &[0; 8], &[]), Verdict::Closed);
}
