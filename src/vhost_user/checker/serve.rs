//! The checker's process: it receives descriptors, says what they are, and passes on those that are harmless.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{RecvFlags, sockopt};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use vhost::vhost_user::message::FrontendReq;

use super::packet::{self, Answer, Received, Request, pair};
use super::state_relay;
use super::unread::{hang_up, hang_up_on_nested, is_silenced};
use crate::limits::bounds::MAX_KEPT_DESCRIPTORS;
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

/// Serves requests until it has a descriptor that may block whoever closes it, or the daemon is gone. `retires` tells the
/// spawner to fork another. With `keeps` it goes on with up to [`MAX_KEPT_DESCRIPTORS`] of them, since too many processes
/// are still at their end.
pub(super) fn serve(orders: &OwnedFd, retires: &OwnedFd, keeps: bool) {
    let (mut kept, most_kept) = (0_usize, if keeps { MAX_KEPT_DESCRIPTORS } else { 0 });
    while let Some((request, stream)) = Request::receive(orders.as_fd()) {
        let Some(stream) = stream else { continue };
        if request.is_close() {
            // The second half of the request: the daemon has closed its copy by now. Fails only when the daemon is gone.
            let _ = Request::receive(orders.as_fd());
            kept = kept.saturating_add(1);
            let stream = ManuallyDrop::new(stream);
            // Ignored here and below: where the daemon is gone nobody needs an answer, and `receive` ends the loop.
            if request.is_awaited() {
                // Fails only when the daemon is gone.
                let _ =
                    Answer { number: request.number, outcome: closer(kept > most_kept) }.send(orders.as_fd());
            }
            if kept > most_kept {
                retire(retires);
                // A listener may be others' as well.
                if sockopt::socket_acceptconn(&*stream) == Ok(false) {
                    hang_up_on_nested(vec![stream]);
                }
                return;
            }
            continue;
        }
        let most = usize::try_from(request.most).unwrap_or(usize::MAX);
        let (outcome, rest, state) = match packet::receive(stream.as_fd(), most, RecvFlags::DONTWAIT) {
            Ok((bytes, files)) => {
                let Checked { received, rest, state } = check(request.code, bytes, files, keeps);
                (Ok(received), rest, state)
            }
            Err(error) => (Err(error), Vec::new(), None),
        };
        drop(stream);
        // Fails only when the daemon is gone.
        let _ = Answer { number: request.number, outcome }.send(orders.as_fd());
        kept = kept.saturating_add(rest.len());
        hang_up(&rest);
        if kept > most_kept || state.is_some() {
            // Requests from now on are for the next checker.
            retire(retires);
            hang_up_on_nested(rest);
            if let Some((file, relay)) = state {
                state_relay::transfer(&file, &relay);
                hang_up_on_nested(vec![file]);
            }
            return;
        }
    }
}

/// Has the spawner fork another checker.
fn retire(retires: &OwnedFd) {
    // Fails only when the spawner is gone.
    let _ = rustix::io::write(retires, &[0]);
}

/// A pidfd of this process, which closes at its end what it keeps; none if it goes on: nobody is to wait for it then.
fn closer(ends: bool) -> io::Result<Received> {
    let files = if ends { vec![pidfd_open(getpid(), PidfdFlags::empty())?] } else { Vec::new() };
    Ok(Received { bytes: Vec::new(), files, refused: Vec::new() })
}

fn check(code: u32, bytes: Vec<u8>, files: Vec<OwnedFd>, keeps: bool) -> Checked {
    let is_one = files.len() == 1;
    let is_state = FrontendReq::try_from(code) == Ok(FrontendReq::SET_DEVICE_STATE_FD);
    let received = Received { bytes, files: Vec::new(), refused: Vec::new() };
    let mut checked = Checked { received, rest: Vec::new(), state: None };
    for file in files {
        let kind = Kind::of(file.as_fd());
        let Checked { received, rest, state } = &mut checked;
        if is_state && is_one && kind.is_stream() {
            match relay(keeps) {
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

fn relay(keeps: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    if keeps {
        return Err(io::Error::other("too many descriptors of others do not close"));
    }
    pair()
}
