//! What cannot be closed of one disk's front-ends costs that disk's processes, up to their bound; others' go on.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::net::SendFlags;

use super::fuse::with_stopped_file;
use super::linger::send_with;
use super::state::{Direction, begin, check};
use super::{bystander, connect};
use crate::common::daemon::Daemon;
use crate::common::frontend::Session;
use crate::common::frontend::handover::{self, Outcome};
use crate::common::frontend::message::{GET_FEATURES, SET_VRING_CALL};
use crate::common::frontend::request::Request;
use crate::common::frontend::wire::{VERSION, Wire};
use crate::common::process::Process;
use crate::common::{metrics, wait_for};

/// Of one disk, that close what its front-ends have sent.
const MOST: usize = 64;

/// Front-ends of that disk.
const CONNECTIONS: usize = 8;

/// Descriptors with a message.
const DESCRIPTORS: usize = 8;

/// As a message has it. Nothing is closed here that has to do with the file: that would wait.
type Way = fn(&Session, BorrowedFd<'_>) -> bool;

fn send(session: &Session, fds: &[BorrowedFd<'_>]) -> bool {
    session.wire.ask(SET_VRING_CALL, &[0; 8], fds).is_some()
}

/// Many at once.
fn many(session: &Session, file: BorrowedFd<'_>) -> bool {
    send(session, &[file; DESCRIPTORS])
}

/// In a socket that waits in another one.
fn nested(session: &Session, file: BorrowedFd<'_>) -> bool {
    let nest = |inner: BorrowedFd<'_>| {
        let (socket, peer) = UnixStream::pair().unwrap();
        send_with(&peer, inner, SendFlags::empty()).unwrap();
        std::mem::forget(peer);
        socket
    };
    let inner = nest(file);
    let outer = nest(inner.as_fd());
    let is_answered = send(session, &[outer.as_fd()]);
    std::mem::forget((inner, outer));
    is_answered
}

/// Sends messages with descriptors until the connection is hung up on; returns how many were answered.
fn flood(session: &Session, file: BorrowedFd<'_>, way: Way) -> usize {
    let answered = (0..=MOST).take_while(|_| way(session, file)).count();
    assert!(answered <= MOST, "there is no bound");
    answered
}

/// Besides the spawner and the checker that serves.
fn processes(daemon: &Daemon) -> usize {
    Process(daemon.pid()).descendants().len().saturating_sub(2)
}

/// The other disk: its state is saved and loaded, and front-ends come and go.
fn assert_other_goes_on(daemon: &Daemon) {
    for _ in 0..3 {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let source = handover::connect(&daemon.socket(1));
        assert_eq!(begin(&source, Direction::Save, writer.as_fd()), Outcome::Taken);
        drop(writer);
        assert!(check(&source), "it is saved");
        let mut state = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut state).unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let target = handover::connect(&daemon.socket(1));
        assert_eq!(begin(&target, Direction::Load, reader.as_fd()), Outcome::Taken);
        std::io::Write::write_all(&mut writer, &state).unwrap();
        drop(writer);
        assert!(check(&target), "it is loaded");
    }
}

/// `leave` leaves more than there may be processes for.
fn assert_costs_one_disk_only(daemon: Daemon, fail: impl FnOnce(), leave: impl FnOnce(&Daemon) -> usize) {
    let (_bystander, load) = bystander(&daemon);
    let connections = leave(&daemon);
    assert_other_goes_on(&daemon);
    let late = Wire::connect(&daemon.socket(0));
    daemon.wait_for_log("nobody is let in for now");
    load.wait_for_progress();
    assert_other_goes_on(&daemon);
    // Those of the other disk have ended, and are forgotten when processes are counted, as one waits to be let in.
    let is_bounded = || (MOST..=MOST + connections).contains(&processes(&daemon));
    wait_for("there are as many processes as there may be", || is_bounded().then_some(()));
    fail();
    assert!(late.ask(GET_FEATURES, &[], &[]).is_some(), "who has waited is let in");
    drop(late);
    // What has ended is forgotten when it is counted, and when another one is begun.
    wait_for("all have ended", || {
        // Postcopy or not: it is a whole front-end.
        let session = connect(&daemon);
        let (_reader, writer) = std::io::pipe().unwrap();
        assert_eq!(begin(&session, Direction::Save, writer.as_fd()), Outcome::Taken);
        drop(session);
        Session::connect(&daemon.socket(0)).ring(0, 64).run(&Request::read(0, 512));
        (processes(&daemon) <= 1).then_some(())
    });
    load.stop();
    daemon.stop();
}

/// By several front-ends, with one message after the other.
fn with_messages(daemon: &Daemon, file: &File, way: Way) -> usize {
    let sessions: Vec<_> = (0..CONNECTIONS).map(|_| connect(daemon)).collect();
    let answered = std::thread::scope(|scope| {
        let floods: Vec<_> =
            sessions.iter().map(|session| scope.spawn(|| flood(session, file.as_fd(), way))).collect();
        assert_other_goes_on(daemon);
        floods.into_iter().map(|it| it.join().unwrap()).sum::<usize>()
    });
    assert_eq!(answered, MOST, "one process for each");
    let refusals = metrics::read(&daemon.metrics_socket())["budget_refusals_total{disk=\"disk0\"}"];
    assert!(refusals >= 1.0, "{refusals}");
    daemon.wait_for_log("64 processes have not been able to close what front-ends of this disk have sent");
    CONNECTIONS
}

#[test]
fn descriptors_of_messages() {
    with_stopped_file(|daemon, stopped| {
        assert_costs_one_disk_only(
            daemon,
            || stopped.fail(),
            |daemon| with_messages(daemon, stopped.file(), many),
        );
    });
}

#[test]
fn descriptors_in_sockets_of_messages() {
    with_stopped_file(|daemon, stopped| {
        assert_costs_one_disk_only(
            daemon,
            || stopped.fail(),
            |daemon| with_messages(daemon, stopped.file(), nested),
        );
    });
}

/// Connections that are closed with descriptors in them that nobody has received.
#[test]
fn descriptors_that_nobody_receives() {
    with_stopped_file(|daemon, stopped| {
        assert_costs_one_disk_only(
            daemon,
            || stopped.fail(),
            |daemon| {
                // The last ones wait to be let in.
                for _ in 0..MOST + CONNECTIONS {
                    let socket = UnixStream::connect(daemon.socket(0)).unwrap();
                    send_with(&socket, stopped.file().as_fd(), SendFlags::empty()).unwrap();
                }
                wait_for("they are closed", || (processes(daemon) >= MOST).then_some(()));
                CONNECTIONS
            },
        );
    });
}

/// SIGTERM, and exit code 0.
#[test]
fn the_end_does_not_wait_for_them() {
    with_stopped_file(|daemon, stopped| {
        let sessions: Vec<_> = (0..CONNECTIONS).map(|_| connect(&daemon)).collect();
        let file = stopped.file().as_fd();
        let count = sessions.iter().cycle().take(MOST).filter(|session| many(session, file)).count();
        assert_eq!(count, MOST);
        // It waits when the end comes.
        assert!(sessions[0].wire.send(SET_VRING_CALL, VERSION, &[0; 8], &[file]));
        daemon.stop();
    });
}
