//! The thread that lets front-ends in, counts who is there, and takes everything down at the end.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::handshake::{Heard, Silent};
use crate::disk::Disk;
use crate::limits::bounds::{MAX_CONNECTIONS, MAX_FRONT_ENDS};
use crate::limits::budget::{Amounts, Share};
use crate::limits::thread;
use crate::log::Cause;
use crate::vhost_user::{
    ClosedByChecker, Connection, Hangup, Inherited, Session, SessionContext, SessionId, Stranger,
};
use crate::worker::Pool;

/// The event of [`Stopper`] and of sessions that end; doors have their numbers, and so have silent connections.
const WAKE: u64 = u64::MAX;

/// Pause after a front-end could not be let in for want of descriptors or threads.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Asks a server to stop; returns at once.
#[derive(Debug, Clone)]
pub struct Stopper {
    is_stopping: Arc<AtomicBool>,
    wake: Arc<EventFd>,
}

impl Stopper {
    /// Stops the server, as often as it is called.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        // Only a full counter can fail, and that wakes as well.
        let _ = self.wake.write(1);
    }
}

/// Where the front-ends of one disk come from.
#[derive(Debug)]
pub(super) struct Door<D: Disk> {
    pub(super) inlet: Inherited,
    pub(super) context: Arc<SessionContext<D>>,
}

impl<D: Disk> Door<D> {
    fn copy_of_listener(&self) -> Option<ClosedByChecker<OwnedFd>> {
        let Inherited::Listening(listener) = &self.inlet else { return None };
        ClosedByChecker::listener(listener.as_fd(), self.context.checker.clone()).ok()
    }
}

/// A front-end that is there.
#[derive(Debug)]
struct Guest {
    door: usize,
    /// Dropped when the session has dropped its own.
    stream: ClosedByChecker<UnixStream>,
    thread: JoinHandle<()>,
    /// It has said something: a whole message.
    has_spoken: Arc<AtomicBool>,
    /// It was hung up on, and its thread is about to end.
    is_leaving: bool,
}

/// A session that has ended, and whether its front-end had ever said anything.
#[derive(Debug)]
struct Ended {
    session: SessionId,
    has_spoken: bool,
}

#[derive(Debug)]
pub(super) struct Acceptor<D: Disk> {
    doors: Vec<Door<D>>,
    pool: Arc<Pool<D>>,
    exit_on_disconnect: bool,
    epoll: Epoll,
    stopper: Stopper,
    silent: Silent,
    guests: BTreeMap<SessionId, Guest>,
    next_session: SessionId,
    ended: (Sender<Ended>, Receiver<Ended>),
}

impl<D: Disk> Acceptor<D> {
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(doors: Vec<Door<D>>, pool: Arc<Pool<D>>, exit_on_disconnect: bool) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), EpollEvent::new(EventSet::IN, WAKE))?;
        for (number, door) in (0..).zip(&doors) {
            if let Inherited::Listening(listener) = &door.inlet {
                let event = EpollEvent::new(EventSet::IN, number);
                epoll.ctl(ControlOperation::Add, listener.as_fd().as_raw_fd(), event)?;
            }
        }
        let stopper = Stopper { is_stopping: Arc::default(), wake };
        let (silent, guests) = (Silent::default(), BTreeMap::new());
        Ok(Self {
            doors,
            pool,
            exit_on_disconnect,
            epoll,
            stopper,
            silent,
            guests,
            next_session: 0,
            ended: channel(),
        })
    }

    pub(super) fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Lets front-ends in until it is told to stop, then takes everything down.
    pub(super) fn run(mut self) {
        self.greet_connected();
        let mut events = [EpollEvent::default(); 16];
        while !self.stopper.is_stopping.load(Ordering::Acquire) {
            // Only EINTR can fail here.
            let count = self.epoll.wait(-1, &mut events).unwrap_or(0);
            for event in events.iter().take(count) {
                match event.data() {
                    WAKE => drop(self.stopper.wake.read()),
                    number => match usize::try_from(number) {
                        Ok(door) if door < self.doors.len() => self.accept(door),
                        _ => self.hear(event),
                    },
                }
            }
            self.reap();
        }
        self.take_down();
    }

    /// Front-ends whose connection was inherited are there from the start.
    fn greet_connected(&mut self) {
        for number in 0..self.doors.len() {
            let Some(Door { inlet: Inherited::Connected(stream), .. }) = self.doors.get(number) else {
                continue;
            };
            match stream.try_clone() {
                Ok(stream) => self.let_in(number, stream),
                Err(error) => tracing::error!(%error, "cannot serve the inherited connection"),
            }
        }
    }

    fn accept(&mut self, number: usize) {
        let Some(Door { inlet: Inherited::Listening(listener), .. }) = self.doors.get(number) else { return };
        match listener.accept() {
            Ok(stream) => match listener.check(&stream) {
                Ok(()) => self.let_in(number, stream),
                Err(stranger) => self.refuse(number, stream, stranger),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => match self.silent.hang_up_on_oldest(&self.epoll, None) {
                // Who waits for its turn is still there.
                Some(door) => self.made_room(door),
                None => self.exhausted(number, &error),
            },
        }
    }

    /// It may have sent something already: that is dropped as anything is that a front-end has sent.
    fn refuse(&self, number: usize, stream: UnixStream, stranger: Stranger) {
        let Some(Door { context, .. }) = self.doors.get(number) else { return };
        context.front_ends.count_refused();
        if let Some(suppressed) = context.log_limit.admit(Cause::Refused) {
            let disk = &context.device.identity().name;
            tracing::warn!(disk, %stranger, suppressed, "a connection is refused");
        }
        drop(ClosedByChecker::connection(stream, context.checker.clone()));
    }

    /// A front-end has come. Its session begins with the first message.
    fn let_in(&mut self, number: usize, stream: UnixStream) {
        let Some(door) = self.doors.get(number) else { return };
        let stream = match ClosedByChecker::connection(stream, door.context.checker.clone()) {
            Ok(stream) => stream,
            Err(error) => return self.exhausted(number, &error),
        };
        let of_door = self.guests.values().filter(|guest| guest.door == number && !guest.is_leaving);
        let is_full = of_door.count() + self.silent.count(number) >= MAX_FRONT_ENDS;
        if is_full {
            if !self.make_room(number) {
                return self.turn_away(number);
            }
            self.made_room(number);
        }
        if let Err(error) = self.silent.add(&self.epoll, number, stream) {
            self.exhausted(number, &error);
        }
    }

    /// Hangs up on the oldest connection that has said nothing, or on the oldest that has not finished what it says.
    fn make_room(&mut self, number: usize) -> bool {
        if self.silent.hang_up_on_oldest(&self.epoll, Some(number)).is_some() {
            return true;
        }
        if self.guests.values().filter(|guest| guest.door == number).count() >= MAX_CONNECTIONS {
            return false;
        }
        let has_not_spoken = |guest: &&mut Guest| {
            guest.door == number && !guest.is_leaving && !guest.has_spoken.load(Ordering::Acquire)
        };
        let Some(guest) = self.guests.values_mut().find(has_not_spoken) else { return false };
        guest.is_leaving = true;
        guest.stream.shut_down();
        true
    }

    fn turn_away(&self, number: usize) {
        let Some(Door { context, .. }) = self.doors.get(number) else { return };
        if let Some(suppressed) = context.log_limit.admit(Cause::NoRoom) {
            let (disk, most) = (&context.device.identity().name, MAX_FRONT_ENDS);
            tracing::warn!(disk, most, suppressed, "a front-end is turned away: too many are connected");
        }
    }

    fn made_room(&self, number: usize) {
        let Some(Door { context, .. }) = self.doors.get(number) else { return };
        if let Some(suppressed) = context.log_limit.admit(Cause::MadeRoom) {
            let disk = &context.device.identity().name;
            tracing::warn!(
                disk,
                suppressed,
                "a connection that has said nothing is closed: its place is needed"
            );
        }
    }

    /// A silent connection has said something, or was closed.
    fn hear(&mut self, event: &EpollEvent) {
        match self.silent.look(&self.epoll, event) {
            Heard::Nothing => {}
            Heard::Header(door, stream) => self.begin(door, stream),
            Heard::End(door) => self.has_left(door, false),
        }
    }

    fn begin(&mut self, number: usize, stream: ClosedByChecker<UnixStream>) {
        let Some(door) = self.doors.get(number) else { return };
        let share = match door.context.budget.take(Amounts::SESSION) {
            Ok(share) => share,
            Err(error) => {
                if let Some(suppressed) = door.context.log_limit.admit(Cause::NoRoom) {
                    let disk = &door.context.device.identity().name;
                    tracing::warn!(disk, %error, suppressed, "a front-end is turned away");
                }
                return;
            }
        };
        let id = self.next_session;
        self.next_session = self.next_session.wrapping_add(1);
        if let Some(suppressed) = door.context.log_limit.admit(Cause::Connected) {
            let disk = &door.context.device.identity().name;
            tracing::info!(disk, session = id, suppressed, "a front-end connected");
        }
        let (context, has_spoken) = (door.context.clone(), Arc::default());
        match self.start_session(id, context, &stream, share, Arc::clone(&has_spoken)) {
            Ok(thread) => {
                let guest = Guest { door: number, stream, thread, has_spoken, is_leaving: false };
                self.guests.insert(id, guest);
            }
            Err(error) => self.exhausted(number, &error),
        }
    }

    fn start_session(
        &self,
        id: SessionId,
        context: Arc<SessionContext<D>>,
        stream: &ClosedByChecker<UnixStream>,
        share: Share,
        has_spoken: Arc<AtomicBool>,
    ) -> io::Result<JoinHandle<()>> {
        let session = Session::new(id, context.clone(), Some(stream.try_clone()?), share);
        let mut connection = Connection::new(stream.try_clone()?, session, has_spoken);
        let (ended, wake) = (self.ended.0.clone(), self.stopper.wake.clone());
        thread::spawn(format!("session-{id}"), move || {
            let hangup = connection.serve();
            connection.close();
            farewell(id, &context, &hangup);
            // The acceptor may be gone already: then it does not need to be told.
            let _ = ended.send(Ended { session: id, has_spoken: connection.has_spoken() });
            let _ = wake.write(1);
        })
    }

    /// Looks after sessions that have ended. With nobody left to come, or told to after the first, stops.
    fn reap(&mut self) {
        while let Ok(Ended { session, has_spoken }) = self.ended.1.try_recv() {
            let Some(Guest { door, thread, stream, .. }) = self.guests.remove(&session) else { continue };
            // It ends right after it has told us.
            let _ = thread.join();
            drop(stream);
            self.has_left(door, has_spoken);
        }
    }

    /// Stops the server if nobody is left to come, or if it is to end with the first front-end.
    fn has_left(&self, door: usize, has_spoken: bool) {
        let is_inherited = |door: &Door<D>| matches!(door.inlet, Inherited::Connected(_));
        let nobody_comes = self.doors.get(door).is_some_and(is_inherited)
            && self.guests.is_empty()
            && self.silent.is_empty()
            && self.doors.iter().all(is_inherited);
        if nobody_comes || self.exit_on_disconnect && has_spoken {
            self.stopper.stop();
        }
    }

    fn exhausted(&self, number: usize, error: &io::Error) {
        let Some(Door { context, .. }) = self.doors.get(number) else { return };
        if let Some(suppressed) = context.log_limit.admit(Cause::Exhausted) {
            let disk = &context.device.identity().name;
            tracing::error!(disk, %error, suppressed, "cannot let a front-end in; check the limits (ulimit -n, -u)");
        }
        std::thread::sleep(EXHAUSTED_PAUSE);
    }

    fn take_down(self) {
        let Self { doors, pool, guests, silent, .. } = self;
        let contexts: Vec<_> = doors.iter().map(|door| door.context.clone()).collect();
        let copies: Vec<_> = doors.iter().filter_map(Door::copy_of_listener).collect();
        // No new front-ends; the sockets' paths disappear. Whoever comes back when it is hung up on is refused.
        drop(doors);
        ClosedByChecker::close_all(copies);
        drop(silent);
        for guest in guests.values() {
            guest.stream.shut_down();
        }
        for Guest { stream, thread, .. } in guests.into_values() {
            let _ = thread.join();
            drop(stream);
        }
        pool.stop();
        for context in contexts {
            if let Err(error) = context.device.disk().flush() {
                tracing::error!(disk = context.device.identity().name, %error, "the last flush failed");
            }
        }
    }
}

fn farewell<D: Disk>(session: SessionId, context: &SessionContext<D>, hangup: &Hangup) {
    let disk = &context.device.identity().name;
    let limit = &context.log_limit;
    let totals = *context.totals.lock().unwrap_or_else(PoisonError::into_inner);
    match hangup {
        Hangup::Left => {
            if let Some(suppressed) = limit.admit(Cause::Left) {
                tracing::info!(disk, session, suppressed, "the front-end left");
            }
        }
        hangup => {
            if let Some(suppressed) = limit.admit(Cause::HungUp) {
                tracing::warn!(disk, session, reason = %hangup, suppressed, "hung up on the front-end");
            }
        }
    }
    let Some(suppressed) = limit.admit(Cause::Served) else { return };
    tracing::info!(
        disk,
        reads = totals.reads,
        read_bytes = totals.read_bytes,
        writes = totals.writes,
        written_bytes = totals.written_bytes,
        zeroed_bytes = totals.zeroed_bytes,
        media_written_bytes = totals.media_written_bytes,
        flushes = totals.flushes,
        others = totals.others,
        failures = totals.failures,
        broken_rings = totals.broken_rings,
        suppressed,
        "served so far"
    );
}
