//! Readers of metrics on one socket: a few at a time, each for a short time, and none waits for another.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use super::http::{self, Status};
use super::metrics;
use crate::limits::bounds::{MAX_HTTP_HEAD_BYTES, MAX_METRICS_READERS, METRICS_TIMEOUT};
use crate::log::{Cause, LogLimit};
use crate::server::Collector;
use crate::vhost_user::Listener;

/// Answers until `stop` is readable.
pub(super) fn answer(listener: &impl AsFd, collector: Collector, stop: &OwnedFd) {
    let log_limit = LogLimit::default();
    let mut readers = Vec::with_capacity(MAX_METRICS_READERS);
    while wait(listener, &readers, stop).is_ok() {
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => {
                make_room(&mut readers);
                readers.push(Reader::new(socket));
            }
            Err(Errno::WOULDBLOCK | Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                if let Some(suppressed) = log_limit.admit(Cause::Exhausted) {
                    let what = "cannot accept a reader of metrics; check the limits (ulimit -n)";
                    tracing::error!(%error, suppressed, "{what}");
                }
                std::thread::sleep(Listener::EXHAUSTED_PAUSE);
            }
        }
        // Whoever has asked by now is told the same.
        let mut numbers: Option<Rc<[u8]>> = None;
        let mut answer = || {
            let new = || http::answer(Status::Ok, &metrics::text(&collector.collect())).into();
            numbers.get_or_insert_with(new).clone()
        };
        readers.retain_mut(|reader| match reader.go_on(&mut answer) {
            Ok(is_done) => !is_done,
            Err(error) => {
                if let Some(suppressed) = log_limit.admit(Cause::HungUp) {
                    tracing::debug!(%error, suppressed, "a reader of metrics got no answer");
                }
                false
            }
        });
    }
}

/// The oldest one goes that has not asked yet, or if all have, the oldest.
fn make_room(readers: &mut Vec<Reader>) {
    if readers.len() >= MAX_METRICS_READERS {
        readers.remove(readers.iter().position(Reader::asks).unwrap_or(0));
    }
}

/// Waits until there is something to do. Fails when it is time to stop.
fn wait(listener: &impl AsFd, readers: &[Reader], stop: &OwnedFd) -> io::Result<()> {
    let mut polled = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
    polled.extend(readers.iter().map(|reader| PollFd::new(&reader.socket, reader.waits_for())));
    let first_deadline = readers.iter().map(|reader| reader.deadline).min();
    let left = first_deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut polled, left.as_ref()) {
        Err(error) if error != Errno::INTR => Err(error.into()),
        _ if polled.first().is_some_and(|stop| !stop.revents().is_empty()) => {
            Err(io::ErrorKind::Interrupted.into())
        }
        _ => Ok(()),
    }
}

/// A connection, and until when it must have its answer.
struct Reader {
    socket: OwnedFd,
    deadline: Instant,
    state: State,
}

enum State {
    /// What it has said so far.
    Asks(Vec<u8>),
    /// What it is told, and how much of that it has taken.
    Takes { answer: Rc<[u8]>, taken: usize },
}

impl Reader {
    fn new(socket: OwnedFd) -> Self {
        let state = State::Asks(Vec::with_capacity(MAX_HTTP_HEAD_BYTES));
        Self { socket, deadline: Instant::now() + METRICS_TIMEOUT, state }
    }

    const fn asks(&self) -> bool {
        matches!(self.state, State::Asks(_))
    }

    const fn waits_for(&self) -> PollFlags {
        if self.asks() { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Goes on for as long as it need not wait. Answers whether all is said.
    fn go_on(&mut self, numbers: &mut impl FnMut() -> Rc<[u8]>) -> io::Result<bool> {
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if let State::Asks(received) = &mut self.state {
            let answer = match receive(&self.socket, received)? {
                None => return Ok(false),
                Some(Status::Ok) => numbers(),
                Some(status) => http::answer(status, "the metrics are at /metrics, for GET\n").into(),
            };
            self.state = State::Takes { answer, taken: 0 };
        }
        let State::Takes { answer, taken } = &mut self.state else { return Ok(false) };
        while let Some(rest @ [_, ..]) = answer.get(*taken..) {
            match send(&self.socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => *taken = taken.saturating_add(sent),
                Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// Takes what is there, and says what is asked for once that is known.
fn receive(socket: &OwnedFd, received: &mut Vec<u8>) -> io::Result<Option<Status>> {
    loop {
        if let Some(status) = http::status_of(received) {
            return Ok(Some(status));
        }
        match recv(socket, spare_capacity(received), RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
    }
}
