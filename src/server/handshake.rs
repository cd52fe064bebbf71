//! Connections before their first message. Each costs a descriptor and no thread, and may be closed in favour of a new one.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::io::ioctl_fionread;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::disks::DiskNumber;
use crate::limits::bounds::MESSAGE_TIMEOUT;
use crate::vhost_user::{ClosedByChecker, HEADER_BYTES};

/// The first number of a connection in its events; listeners have lower ones.
pub(super) const FIRST_HANDSHAKE: u64 = 1 << 63;

/// A connection that is waited for, and the listener it came through.
#[derive(Debug)]
struct Waiting {
    listener: DiskNumber,
    stream: ClosedByChecker<UnixStream>,
}

/// All such connections, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    waiting: BTreeMap<u64, Waiting>,
    came: u64,
    /// Those that have begun a header, and when, in this order.
    begun: VecDeque<(u64, Instant)>,
}

/// How far a connection has come.
#[derive(Debug)]
pub(super) enum Progress {
    /// No whole header yet.
    Incomplete,
    /// The header of a message is there, from a front-end that came through this listener.
    Header(DiskNumber, ClosedByChecker<UnixStream>),
    /// It was closed; it had come through this listener.
    Closed(DiskNumber),
}

impl Handshakes {
    /// Waits for a connection's first header; its events have a number of its own.
    ///
    /// # Errors
    /// No room in the kernel.
    pub(super) fn add(
        &mut self,
        epoll: &Epoll,
        listener: DiskNumber,
        stream: ClosedByChecker<UnixStream>,
    ) -> io::Result<()> {
        let number = FIRST_HANDSHAKE + self.came;
        // Edge-triggered: one event for each piece that comes, not a busy loop while half a header waits.
        let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let socket = stream.socket()?.as_raw_fd();
        epoll.ctl(ControlOperation::Add, socket, EpollEvent::new(events, number))?;
        self.came += 1;
        self.waiting.insert(number, Waiting { listener, stream });
        Ok(())
    }

    /// How many have come through a listener.
    pub(super) fn count(&self, listener: DiskNumber) -> usize {
        self.waiting.values().filter(|it| it.listener == listener).count()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How far the connection has come that an event is about.
    pub(super) fn progress(&mut self, epoll: &Epoll, event: &EpollEvent) -> Progress {
        let number = event.data();
        let Some(Waiting { stream, .. }) = self.waiting.get(&number) else { return Progress::Incomplete };
        let bytes = stream.socket().and_then(|socket| Ok(ioctl_fionread(socket)?));
        let is_header = bytes.is_ok_and(|bytes| bytes >= HEADER_BYTES as u64);
        let ends = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        let is_end = event.event_set().intersects(ends);
        if !is_header && !is_end {
            if self.begun.iter().all(|(it, _)| *it != number) {
                self.begun.push_back((number, Instant::now()));
            }
            return Progress::Incomplete;
        }
        match self.take(epoll, number) {
            Some(Waiting { listener, stream }) if is_header => Progress::Header(listener, stream),
            Some(Waiting { listener, .. }) => Progress::Closed(listener),
            None => Progress::Incomplete,
        }
    }

    /// How long, in milliseconds, nobody can be late with the rest of a header; -1 is for ever.
    pub(super) fn limit_ms(&self) -> i32 {
        let Some((_, since)) = self.begun.front() else { return -1 };
        // Rounded up: it is late then.
        let left_ms = MESSAGE_TIMEOUT.saturating_sub(since.elapsed()).as_millis().saturating_add(1);
        i32::try_from(left_ms).unwrap_or(i32::MAX)
    }

    /// Hangs up on a connection that has begun a header and not completed it in time; returns of which listener. What it has
    /// sent can be a descriptor that keeps it alive, whoever has made it.
    pub(super) fn hang_up_on_late(&mut self, epoll: &Epoll) -> Option<DiskNumber> {
        let (number, since) = *self.begun.front()?;
        if since.elapsed() < MESSAGE_TIMEOUT {
            return None;
        }
        self.take(epoll, number).map(|it| it.listener)
    }

    /// Hangs up on the oldest connection of this listener, or of any; returns of which.
    pub(super) fn hang_up_on_oldest(
        &mut self,
        epoll: &Epoll,
        listener: Option<DiskNumber>,
    ) -> Option<DiskNumber> {
        let mut candidates =
            self.waiting.iter().filter(|(_, it)| listener.is_none_or(|listener| it.listener == listener));
        let number = *candidates.next()?.0;
        self.take(epoll, number).map(|it| it.listener)
    }

    fn take(&mut self, epoll: &Epoll, number: u64) -> Option<Waiting> {
        self.begun.retain(|(it, _)| *it != number);
        let waiting = self.waiting.remove(&number)?;
        // To close it would not be enough: an inherited connection has another descriptor.
        if let Ok(socket) = waiting.stream.socket() {
            // Fails only if it is not there.
            let _ = epoll.ctl(ControlOperation::Delete, socket.as_raw_fd(), EpollEvent::default());
        }
        Some(waiting)
    }
}
