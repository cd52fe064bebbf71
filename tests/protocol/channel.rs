//! Messages from the back-end (`SET_BACKEND_REQ_FD`): the configuration may have changed.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::{assert_works, daemon};
use crate::common::frontend::message::SET_BACKEND_REQ_FD;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::wire::{Message, VERSION, Verdict, Wire};
use crate::common::frontend::{Options, Session, settle};

/// The back-end asks the front-end to read the configuration again, and does not wait until it has.
pub(super) const CONFIG_CHANGE: Message = Message { code: 2, flags: VERSION, payload: Vec::new() };

/// A session with a channel, and the front-end's end of it.
pub(super) fn with_channel(socket: &Path) -> (Session, Wire) {
    let session = Session::connect(socket);
    let (ours, theirs) = UnixStream::pair().unwrap();
    session.ask(|control| control.set_backend_request_fd(&theirs)).unwrap();
    (session, Wire::new(ours))
}

#[test]
fn a_front_end_that_has_not_read_the_configuration_is_told_to() {
    // Of one that serves several, it is not known which one comes back.
    let daemon = daemon("readonly=on");
    for _ in 0..3 {
        let (session, channel) = with_channel(&daemon.socket(0));
        settle();
        assert!(channel.is_silent(), "nothing runs yet");
        let mut ring = session.ring(0, 64);
        assert_eq!(channel.receive(), Some(CONFIG_CHANGE));
        assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
        let base = session.stop(&ring);
        session.start(&ring, base).unwrap();
        assert_eq!(session.ring(1, 64).run(&Request::read(0, 4096)).status, OK);
        settle();
        assert!(channel.is_silent(), "once is enough");
    }
}

#[test]
fn a_front_end_that_has_read_the_configuration_is_not_disturbed() {
    let daemon = daemon("");
    let (session, channel) = with_channel(&daemon.socket(0));
    session.config(0, 60).unwrap();
    assert_works(&mut session.ring(0, 64), 0);
    settle();
    assert!(channel.is_silent());
}

#[test]
fn a_front_end_without_a_channel_is_served_as_well() {
    let daemon = daemon("");
    assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
    let protocol = VhostUserProtocolFeatures::all() - VhostUserProtocolFeatures::BACKEND_REQ;
    let options = Options { protocol, ..Options::default() };
    let session = Session::connect_with(&daemon.socket(0), &options);
    let (ours, theirs) = UnixStream::pair().unwrap();
    session.wire.tell(SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
    assert_works(&mut session.ring(0, 64), 0);
    settle();
    // Closed by the back-end, or silent.
    drop(theirs);
    let channel = Wire::new(ours);
    assert!(channel.is_silent() || channel.receive().is_none(), "a channel that was not negotiated is used");
}

#[test]
fn a_channel_that_nobody_reads_holds_nothing_up() {
    let daemon = daemon("");
    let (closed, channel) = with_channel(&daemon.socket(0));
    drop(channel);
    assert_works(&mut closed.ring(0, 64), 0);
    drop(closed);

    let session = Session::connect(&daemon.socket(0));
    let (_ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    while (&theirs).write(&[0; 4096]).is_ok() {}
    while (&theirs).write(&[0]).is_ok() {}
    theirs.set_nonblocking(false).unwrap();
    session.ask(|control| control.set_backend_request_fd(&theirs)).unwrap();
    assert_works(&mut session.ring(0, 64), 0);
}

#[test]
fn a_channel_must_be_one_stream_socket() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    let (one, other) = UnixStream::pair().unwrap();
    let datagrams = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for fds in [vec![], vec![file.as_fd()], vec![datagrams.as_fd()], vec![one.as_fd(), other.as_fd()]] {
        assert_eq!(session.wire.tell(SET_BACKEND_REQ_FD, &[], &fds), Verdict::Nack, "{fds:?}");
        assert_works(&mut ring, 0);
    }
    assert_eq!(session.wire.tell(SET_BACKEND_REQ_FD, &[], &[one.as_fd()]), Verdict::Ack);
}
