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

use crate::budget::{Amounts, Share};
use crate::disk::Disk;
use crate::log_limit::Cause;
use crate::thread;
use crate::vhost_user::{ClosedApart, Connection, Hangup, Inherited, Session, SessionContext, SessionId};
use crate::worker::Pool;

/// Front-ends of one disk at the same time; a migration needs two.
const MAX_SESSIONS: usize = 16;

/// The event of [`Stopper`] and of sessions that end; doors have their numbers.
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
    fn copy_of_listener(&self) -> Option<ClosedApart<OwnedFd>> {
        let Inherited::Listening(listener) = &self.inlet else { return None };
        ClosedApart::listener(listener.as_fd(), self.context.helper.clone()).ok()
    }
}

/// A front-end that is there.
#[derive(Debug)]
struct Guest {
    door: usize,
    /// Dropped when the session has dropped its own.
    stream: ClosedApart<UnixStream>,
    thread: JoinHandle<()>,
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
        let guests = BTreeMap::new();
        Ok(Self {
            doors,
            pool,
            exit_on_disconnect,
            epoll,
            stopper,
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
                    number => self.accept(usize::try_from(number).unwrap_or(usize::MAX)),
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
            Ok(stream) => self.let_in(number, stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.exhausted(number, &error),
        }
    }

    fn let_in(&mut self, number: usize, stream: UnixStream) {
        let Some(door) = self.doors.get(number) else { return };
        let stream = match ClosedApart::connection(stream, door.context.helper.clone()) {
            Ok(stream) => stream,
            Err(error) => return self.exhausted(number, &error),
        };
        let disk = &door.context.device.identity().name;
        if self.guests.values().filter(|guest| guest.door == number).count() >= MAX_SESSIONS {
            if let Some(suppressed) = door.context.log_limit.admit(Cause::NoRoom) {
                let most = MAX_SESSIONS;
                tracing::warn!(disk, most, suppressed, "a front-end is turned away: too many are connected");
            }
            return;
        }
        let share = match door.context.budget.take(Amounts::SESSION) {
            Ok(share) => share,
            Err(error) => {
                if let Some(suppressed) = door.context.log_limit.admit(Cause::NoRoom) {
                    tracing::warn!(disk, %error, suppressed, "a front-end is turned away");
                }
                return;
            }
        };
        let id = self.next_session;
        self.next_session = self.next_session.wrapping_add(1);
        if let Some(suppressed) = door.context.log_limit.admit(Cause::Connected) {
            tracing::info!(disk, session = id, suppressed, "a front-end connected");
        }
        let context = door.context.clone();
        match self.start_session(id, context, &stream, share) {
            Ok(thread) => drop(self.guests.insert(id, Guest { door: number, stream, thread })),
            Err(error) => self.exhausted(number, &error),
        }
    }

    fn start_session(
        &self,
        id: SessionId,
        context: Arc<SessionContext<D>>,
        stream: &ClosedApart<UnixStream>,
        share: Share,
    ) -> io::Result<JoinHandle<()>> {
        let session = Session::new(id, context.clone(), Some(stream.try_clone()?), share);
        let mut connection = Connection::new(stream.try_clone()?, session);
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
            let Some(Guest { door, thread, stream }) = self.guests.remove(&session) else { continue };
            // It ends right after it has told us.
            let _ = thread.join();
            drop(stream);
            let was_inherited =
                self.doors.get(door).is_some_and(|door| matches!(door.inlet, Inherited::Connected(_)));
            let nobody_comes = was_inherited
                && self.guests.is_empty()
                && self.doors.iter().all(|door| matches!(door.inlet, Inherited::Connected(_)));
            if nobody_comes || self.exit_on_disconnect && has_spoken {
                self.stopper.stop();
            }
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
        let Self { doors, pool, guests, .. } = self;
        let contexts: Vec<_> = doors.iter().map(|door| door.context.clone()).collect();
        let copies: Vec<_> = doors.iter().filter_map(Door::copy_of_listener).collect();
        // No new front-ends; the sockets' paths disappear.
        drop(doors);
        drop(copies);
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
