//! Front-ends that hand over the other end of their own connection, in all ways there are, and end: what we hold of theirs must not
//! keep their connections, and so the places of their disk.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};

use super::fuse::with_stopped_file;
use super::linger::send_with;
use super::state::{Direction, begin};
use super::{bystander, connect, two_disks};
use crate::common::daemon::Daemon;
use crate::common::frontend::Session;
use crate::common::frontend::handover::{self, Outcome};
use crate::common::frontend::message::{
    GET_FEATURES, SET_BACKEND_REQ_FD, SET_DEVICE_STATE_FD, SET_VRING_CALL, SET_VRING_ERR, SET_VRING_NUM,
};
use crate::common::frontend::request::Request;
use crate::common::frontend::wire::{VERSION, Wire};
use crate::common::wait_for;

/// Front-ends of one disk at the same time.
const PLACES: usize = 16;

/// The client's end of a connection.
fn own_end(session: &Session) -> BorrowedFd<'_> {
    session.wire.socket().as_fd()
}

/// `SET_DEVICE_STATE_FD`, whatever becomes of it.
fn transfer(session: &Session, direction: Direction, fd: BorrowedFd<'_>) {
    session.wire.send(SET_DEVICE_STATE_FD, VERSION, &u64::to_le_bytes(direction as u64), &[fd]);
}

/// All places of the first disk are taken in this way, by front-ends that have ended when it returns; others have them then.
fn assert_places_come_back(take: impl FnOnce(&Path)) {
    let daemon = two_disks();
    assert_places_come_back_at(&daemon, take);
    daemon.stop();
}

fn assert_places_come_back_at(daemon: &Daemon, take: impl FnOnce(&Path)) {
    let (_bystander, load) = bystander(daemon);
    take(&daemon.socket(0));
    wait_for("there is a place again", || {
        Wire::connect(&daemon.socket(0)).ask(GET_FEATURES, &[], &[]).is_some().then_some(())
    });
    wait_for("all places are free", || {
        let all: Vec<_> = (0..PLACES).map(|_| Wire::connect(&daemon.socket(0))).collect();
        all.iter().all(|wire| wire.ask(GET_FEATURES, &[], &[]).is_some()).then_some(())
    });
    let session = wait_for("they have left", || {
        Wire::connect(&daemon.socket(0)).ask(GET_FEATURES, &[], &[])?;
        Some(Session::connect(&daemon.socket(0)))
    });
    session.ring(0, 64).run(&Request::read(0, 512));
    load.wait_for_progress();
    load.stop();
}

/// Each of as many front-ends as there are places does this and ends.
fn each(one: impl Fn(&Session)) -> impl FnOnce(&Path) {
    move |socket| {
        let all: Vec<_> = (0..PLACES).map(|_| handover::connect(socket)).collect();
        all.iter().for_each(one);
    }
}

#[test]
fn as_a_call_an_error_descriptor_or_a_channel() {
    for (code, payload) in
        [(SET_VRING_CALL, &[0; 8][..]), (SET_VRING_ERR, &[0; 8]), (SET_BACKEND_REQ_FD, &[])]
    {
        assert_places_come_back(each(|session| {
            session.wire.send(code, VERSION, payload, &[own_end(session)]);
        }));
    }
}

/// Of another front-end each, so that all keep each other.
#[test]
fn as_an_error_descriptor_of_another_front_end() {
    assert_places_come_back(|socket| {
        let all: Vec<_> = (0..PLACES).map(|_| handover::connect(socket)).collect();
        for (session, next) in all.iter().zip(all.iter().cycle().skip(1)) {
            session.wire.send(SET_VRING_ERR, VERSION, &[0; 8], &[own_end(next)]);
        }
    });
}

#[test]
fn as_what_a_state_is_read_from() {
    assert_places_come_back(each(|session| transfer(session, Direction::Load, own_end(session))));
}

#[test]
fn in_a_full_socket_that_a_state_is_written_to() {
    assert_places_come_back(each(|session| {
        let (full, peer) = UnixStream::pair().unwrap();
        while rustix::net::send(&full, &[0; 4096], SendFlags::DONTWAIT).is_ok() {}
        while rustix::net::send(&full, &[0], SendFlags::DONTWAIT).is_ok() {}
        for fd in [own_end(session), peer.as_fd()] {
            send_with(&peer, fd, SendFlags::empty()).unwrap();
        }
        transfer(session, Direction::Save, full.as_fd());
    }));
}

/// It is refused before anything is written, and nobody can write to it any more where it is taken.
#[test]
fn what_a_state_is_written_to_has_nothing_in_it() {
    let daemon = two_disks();
    let session = connect(&daemon);
    let (socket, peer) = UnixStream::pair().unwrap();
    rustix::net::send(&peer, &[0], SendFlags::empty()).unwrap();
    assert_eq!(begin(&session, Direction::Save, socket.as_fd()), Outcome::Refused);
    daemon.wait_for_log("is no stream, or something waits in it");
    let (socket, peer) = UnixStream::pair().unwrap();
    assert_eq!(begin(&session, Direction::Save, socket.as_fd()), Outcome::Taken);
    assert!(rustix::net::send(&peer, &[0], SendFlags::NOSIGNAL).is_err(), "nobody would read it");
    session.config(0, 8).unwrap();
    drop(session);
    daemon.stop();
}

/// The session waits until somebody takes its answers, and does not come to the message with its own end.
#[test]
fn behind_questions_whose_answers_nobody_takes() {
    assert_places_come_back(each(|session| {
        let questions = Wire::encode(GET_FEATURES, VERSION, &[]).repeat(1000);
        session.wire.send_bytes(&questions, &[]);
        session.wire.send(SET_VRING_CALL, VERSION, &[0; 8], &[own_end(session)]);
    }));
}

/// Whoever closes the first of a message's descriptors waits for ever: the others are at their end all the same.
#[test]
fn beside_what_never_closes() {
    let hidden: [fn(&Session) -> Vec<OwnedFd>; 3] = [
        // Its own end, in which an answer waits.
        |session| vec![own_end(session).try_clone_to_owned().unwrap()],
        // In another socket.
        |session| {
            let kinds = [SocketType::STREAM, SocketType::SEQPACKET, SocketType::DGRAM];
            let nested = |kind| {
                let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
                send_with(&pair.1, own_end(session), SendFlags::empty()).unwrap();
                pair.0
            };
            kinds.map(nested).into()
        },
        // In a connection that nobody has accepted.
        |session| {
            let folder = tempfile::tempdir_in("/dev/shm").unwrap();
            let path = folder.path().join("socket");
            let listener = UnixListener::bind(&path).unwrap();
            send_with(UnixStream::connect(&path).unwrap(), own_end(session), SendFlags::empty()).unwrap();
            vec![listener.into()]
        },
    ];
    with_stopped_file(|daemon, stopped| {
        for hide in hidden {
            assert_places_come_back_at(&daemon, |socket| {
                let all: Vec<_> = (0..PLACES).map(|_| handover::connect(socket)).collect();
                for session in &all {
                    assert!(session.wire.send(GET_FEATURES, VERSION, &[], &[]));
                    wait_for("an answer waits", || (!session.wire.is_silent()).then_some(()));
                    let others = hide(session);
                    let files = [stopped.file().as_fd()].into_iter().chain(others.iter().map(AsFd::as_fd));
                    let files: Vec<_> = files.collect();
                    assert!(session.wire.send(SET_VRING_NUM, VERSION, &[0; 8], &files));
                }
            });
        }
        daemon.stop();
    });
}
