//! Connections that have said nothing yet. Each costs a descriptor, and no thread; who comes may have its place.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

use rustix::io::ioctl_fionread;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::vhost_user::{ClosedByChecker, HEADER_BYTES};

/// The first number of a connection in its events; doors have lower ones.
const FIRST: u64 = 1 << 32;

/// A connection that is waited for, and the door it came through.
#[derive(Debug)]
struct Waiting {
    door: usize,
    stream: ClosedByChecker<UnixStream>,
}

/// All of them, by the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Silent {
    waiting: BTreeMap<u64, Waiting>,
    came: u64,
}

/// What has become of one.
#[derive(Debug)]
pub(super) enum Heard {
    /// No whole header yet.
    Nothing,
    /// The header of a message is there, from a front-end that came through this door.
    Header(usize, ClosedByChecker<UnixStream>),
    /// It was closed; it had come through this door.
    End(usize),
}

impl Silent {
    /// Waits for what a connection has to say; its events have a number of its own.
    ///
    /// # Errors
    /// No room in the kernel.
    pub(super) fn add(
        &mut self,
        epoll: &Epoll,
        door: usize,
        stream: ClosedByChecker<UnixStream>,
    ) -> io::Result<()> {
        let number = FIRST + self.came;
        // Once for each piece that comes: half a header must not be looked at all the time.
        let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let socket = stream.socket()?.as_raw_fd();
        epoll.ctl(ControlOperation::Add, socket, EpollEvent::new(events, number))?;
        self.came += 1;
        self.waiting.insert(number, Waiting { door, stream });
        Ok(())
    }

    /// How many have come through a door.
    pub(super) fn count(&self, door: usize) -> usize {
        self.waiting.values().filter(|it| it.door == door).count()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Looks what an event means.
    pub(super) fn look(&mut self, epoll: &Epoll, event: &EpollEvent) -> Heard {
        let number = event.data();
        let Some(Waiting { stream, .. }) = self.waiting.get(&number) else { return Heard::Nothing };
        let bytes = stream.socket().and_then(|socket| Ok(ioctl_fionread(socket)?));
        let is_header = bytes.is_ok_and(|bytes| bytes >= HEADER_BYTES as u64);
        let ends = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        let is_end = event.event_set().intersects(ends);
        if !is_header && !is_end {
            return Heard::Nothing;
        }
        match self.take(epoll, number) {
            Some(Waiting { door, stream }) if is_header => Heard::Header(door, stream),
            Some(Waiting { door, .. }) => Heard::End(door),
            None => Heard::Nothing,
        }
    }

    /// Hangs up on the oldest that came through this door, or through any; answers through which.
    pub(super) fn hang_up_on_oldest(&mut self, epoll: &Epoll, door: Option<usize>) -> Option<usize> {
        let mut candidates = self.waiting.iter().filter(|(_, it)| door.is_none_or(|door| it.door == door));
        let number = *candidates.next()?.0;
        self.take(epoll, number).map(|it| it.door)
    }

    fn take(&mut self, epoll: &Epoll, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        // Not by closing it: one that was inherited has another descriptor.
        if let Ok(socket) = waiting.stream.socket() {
            let _ = epoll.ctl(ControlOperation::Delete, socket.as_raw_fd(), EpollEvent::default());
        }
        Some(waiting)
    }
}
