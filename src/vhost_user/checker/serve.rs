//! The checker's process: it receives descriptors, says what they are, and passes on those that are harmless.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{RecvFlags, sockopt};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use vhost::vhost_user::message::FrontendReq;

use super::notice::{IsOver, Notice};
use super::packet::{self, Answer, Received, Request, What, pair};
use super::state_relay;
use super::unread::{hang_up, hang_up_on_nested, is_silenced};
use crate::vhost_user::descriptor::Kind;

/// What was received, and what is to be done with descriptors that are not passed on.
#[derive(Debug)]
struct Checked {
    received: Received,
    /// Closed by the kernel when this process ends: to close them earlier might block while the daemon waits for an answer.
    rest: Vec<ManuallyDrop<OwnedFd>>,
    /// A device's state is to be read from or written to the first, the front-end's; the second leads to the daemon.
    state: Option<(ManuallyDrop<OwnedFd>, OwnedFd)>,
}

/// Serves requests until it has a descriptor that may block whoever closes it, or the daemon is gone. `notices` go to the
/// spawner.
pub(super) fn serve(orders: &OwnedFd, notices: &OwnedFd) {
    while let Some((request, stream)) = Request::receive(orders.as_fd()) {
        let is_over = match (request.what, stream) {
            (What::Receive, Some(stream)) => receive(&request, stream, orders, notices),
            (What::Close | What::CloseAwaited, Some(socket)) => {
                close(&request, socket, orders, notices);
                IsOver::Yes
            }
            (What::Count, _) => {
                Notice::of(request, IsOver::No).send(notices);
                IsOver::No
            }
            (_, None) => IsOver::No,
        };
        if is_over == IsOver::Yes {
            return;
        }
    }
}

/// Receives what waits in a stream. Whether descriptors came with it that are not passed on: requests from now on are for the
/// next checker then, and this one ends.
fn receive(request: &Request, stream: OwnedFd, orders: &OwnedFd, notices: &OwnedFd) -> IsOver {
    let most = usize::try_from(request.most).unwrap_or(usize::MAX);
    let (outcome, rest, state) = match packet::receive(stream.as_fd(), most, RecvFlags::DONTWAIT) {
        Ok((bytes, files)) => {
            let Checked { received, rest, state } = check(request.code, bytes, files);
            (Ok(received), rest, state)
        }
        Err(error) => (Err(error), Vec::new(), None),
    };
    drop(stream);
    let retires = !rest.is_empty() || state.is_some();
    // Fails only when the daemon is gone: then nobody needs an answer, and the next request ends the loop.
    let _ = Answer { number: request.number, retires, outcome }.send(orders.as_fd());
    if !retires {
        return IsOver::No;
    }
    hang_up(&rest);
    Notice::of(*request, IsOver::Yes).send(notices);
    hang_up_on_nested(rest);
    if let Some((file, relay)) = state {
        state_relay::transfer(&file, &relay);
        hang_up_on_nested(vec![file]);
    }
    IsOver::Yes
}

/// Closes a socket, at the end of this process.
fn close(request: &Request, socket: OwnedFd, orders: &OwnedFd, notices: &OwnedFd) {
    // The second half of the request: the daemon has closed its copy by now. Fails only when the daemon is gone.
    let _ = Request::receive(orders.as_fd());
    let socket = ManuallyDrop::new(socket);
    if request.what == What::CloseAwaited {
        let process = pidfd_open(getpid(), PidfdFlags::empty()).map_err(io::Error::from);
        let outcome = process.map(|process| Received::of(Vec::new(), vec![process]));
        // As above.
        let _ = Answer { number: request.number, retires: true, outcome }.send(orders.as_fd());
    }
    Notice::of(*request, IsOver::Yes).send(notices);
    // A listener may be others' as well.
    if sockopt::socket_acceptconn(&*socket) == Ok(false) {
        hang_up_on_nested(vec![socket]);
    }
}

fn check(code: u32, bytes: Vec<u8>, files: Vec<OwnedFd>) -> Checked {
    let is_one = files.len() == 1;
    let is_state = FrontendReq::try_from(code) == Ok(FrontendReq::SET_DEVICE_STATE_FD);
    let received = Received::of(bytes, Vec::new());
    let mut checked = Checked { received, rest: Vec::new(), state: None };
    for file in files {
        let kind = Kind::of(file.as_fd());
        let Checked { received, rest, state } = &mut checked;
        if is_state && is_one && kind.is_stream() {
            match pair() {
                Ok((relay, passed)) => {
                    received.files.push(passed);
                    *state = Some((ManuallyDrop::new(file), relay));
                }
                Err(error) => {
                    received.refused.push(Kind::Other(format!("{kind} that cannot be used now: {error}")));
                    rest.push(ManuallyDrop::new(file));
                }
            }
        } else if kind == Kind::Socket && !is_silenced(&file) {
            received
                .refused
                .push(Kind::Other(format!("{kind} that is no stream, or in which something waits")));
            rest.push(ManuallyDrop::new(file));
        } else if kind.is_harmless() {
            received.files.push(file);
        } else {
            received.refused.push(kind);
            rest.push(ManuallyDrop::new(file));
        }
    }
    checked
}
