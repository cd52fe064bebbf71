//! What is sent and never read is dropped with the socket that it was sent through: a TCP socket that is to wait for its peer
//! when it is closed (`SO_LINGER`) must have nobody of the daemon wait.

use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sockopt};

use super::{bystander, connect, two_disks, with_own_table};
use crate::common::frontend::Session;
use crate::common::frontend::handover::{Outcome, hand_over};
use crate::common::frontend::message::SET_VRING_CALL;
use crate::common::frontend::request::Request;
use crate::common::frontend::settle;

/// Longer than any test.
const LINGER: Duration = Duration::from_secs(600);

/// A socket with unsent bytes, which its peer does not read; and that.
fn lingering() -> (TcpStream, TcpListener, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while rustix::io::write(&socket, &[0; 65536]).is_ok() {}
    sockopt::set_socket_linger(&socket, Some(LINGER)).unwrap();
    (socket, listener, peer)
}

/// Sends a byte and a descriptor.
pub(super) fn send_with(to: impl AsFd, fd: BorrowedFd<'_>, flags: SendFlags) -> rustix::io::Result<usize> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    rustix::net::sendmsg(to, &[std::io::IoSlice::new(&[0])], &mut control, flags | SendFlags::NOSIGNAL)
}

/// The daemon may have closed its own already: then we are the last, and wait.
fn drop_elsewhere(tcp: TcpStream) {
    std::thread::spawn(move || drop(tcp));
}

/// Behind what is hung up on; in the middle of a message; and as a byte out of band, which a read skips.
#[test]
fn a_connection_in_which_one_is_left_holds_up_neither_others_nor_the_end() {
    with_own_table(leave_one_in_a_connection);
}

fn leave_one_in_a_connection() {
    let garbage = [0xff; 12];
    let half = [1, 0, 0, 0];
    for (before, flags) in
        [(&garbage[..], SendFlags::empty()), (&half, SendFlags::empty()), (&half, SendFlags::OOB)]
    {
        let daemon = two_disks();
        let (_bystander, load) = bystander(&daemon);
        let socket = UnixStream::connect(daemon.socket(0)).unwrap();
        rustix::net::send(&socket, before, SendFlags::empty()).unwrap();
        let (tcp, _listener, _peer) = lingering();
        if send_with(&socket, tcp.as_fd(), flags).is_err() {
            // It has been hung up on already, and this would wait for itself.
            sockopt::set_socket_linger(&tcp, None).unwrap();
        }
        drop_elsewhere(tcp);
        settle();
        drop(socket);
        let session = Session::connect(&daemon.socket(0));
        session.ring(0, 64).run(&Request::read(0, 512));
        load.wait_for_progress();
        load.stop();
        drop(session);
        daemon.stop();
    }
}

/// The same for a socket that is handed over: nothing can be sent to us there.
#[test]
fn a_call_in_which_one_waits_is_refused() {
    with_own_table(leave_one_in_a_call);
}

fn leave_one_in_a_call() {
    let daemon = two_disks();
    let (call, peer) = UnixStream::pair().unwrap();
    let session = connect(&daemon);
    assert_eq!(hand_over(&session, SET_VRING_CALL, call.as_fd()), Outcome::Taken);
    assert!(rustix::net::send(&peer, &[0], SendFlags::NOSIGNAL).is_err(), "nobody would read it");
    let (call, peer) = UnixStream::pair().unwrap();
    let (tcp, _listener, _peer) = lingering();
    send_with(&peer, tcp.as_fd(), SendFlags::empty()).unwrap();
    drop_elsewhere(tcp);
    assert_eq!(hand_over(&session, SET_VRING_CALL, call.as_fd()), Outcome::Refused);
    daemon.wait_for_log("or in which something waits");
    // Here we would be the last to close it. A process that ends does not wait.
    std::mem::forget((call, peer));
    session.config(0, 8).unwrap();
    drop(session);
    daemon.stop();
}
