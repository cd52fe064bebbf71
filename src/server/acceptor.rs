//! The thread that accepts connections, begins sessions, joins those that have ended, and takes everything down at the end.
//! Disks come and go by [`Command`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::commands::{Closing, Command, DiskListener};
use super::disks::DiskNumber;
use super::error::GivenUp;
use super::farewell;
use super::handshake::{FIRST_HANDSHAKE, Handshakes, Progress};
use super::stopper::Stopper;
use super::take_down::{Leaving, take_down};
use crate::disk::Disk;
use crate::limits::bounds::MAX_RETIRED_CHECKERS;
use crate::limits::budget::Charge;
use crate::limits::thread;
use crate::log::{Cause, kinds};
use crate::sandbox::ThreadKind;
use crate::vhost_user::{
    ClosedByChecker, Connection, DiskSocket, Listener, Session, SessionContext, SessionId, Stage, Stranger,
};
use crate::worker::Pool;

/// The event of [`Stopper`], of [`Command`] and of sessions that end; listeners have the numbers of their disks, connections
/// before their first message those from 2⁶³ on.
const WAKE: u64 = u64::MAX;

/// How often it is looked whether disks may be let in to again.
const CLOGGED_PAUSE_MS: i32 = 100;

/// A front-end whose session has begun.
#[derive(Debug)]
struct FrontEnd {
    /// The disk that it is connected to.
    listener: DiskNumber,
    /// Dropped after the session's own copies.
    stream: ClosedByChecker<UnixStream>,
    thread: JoinHandle<()>,
    stage: Arc<Stage>,
    /// It was hung up on, and its thread is about to end.
    is_leaving: bool,
}

impl FrontEnd {
    /// Nothing that it has sent and that is not read yet is done.
    fn hang_up(&mut self) {
        self.is_leaving = true;
        self.stage.end();
        self.stream.shut_down();
    }
}

/// A session that has ended, and whether its front-end had ever sent a whole message.
#[derive(Debug)]
struct Ended {
    session: SessionId,
    has_sent_message: bool,
}

#[derive(Debug)]
pub(super) struct Acceptor<D: Disk> {
    listeners: BTreeMap<DiskNumber, DiskListener<D>>,
    /// Disks that nobody is let in to any more, and who is to be told when their last front-end has left.
    closed: BTreeMap<DiskNumber, Sender<Closing>>,
    pool: Arc<Pool<D>>,
    exit_on_disconnect: bool,
    stop_timeout: Duration,
    epoll: Epoll,
    stopper: Stopper,
    handshakes: Handshakes,
    /// Disks that nobody is let in to before something of what their front-ends have sent is closed.
    clogged: Vec<DiskNumber>,
    front_ends: BTreeMap<SessionId, FrontEnd>,
    next_session: SessionId,
    ended: (Sender<Ended>, Receiver<Ended>),
    commands: Receiver<Command<D>>,
}

impl<D: Disk> Acceptor<D> {
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(
        pool: Arc<Pool<D>>,
        exit_on_disconnect: bool,
        stop_timeout: Duration,
        commands: Receiver<Command<D>>,
    ) -> io::Result<Self> {
        let stopper = Stopper::new()?;
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, stopper.event().as_raw_fd(), EpollEvent::new(EventSet::IN, WAKE))?;
        let (handshakes, front_ends) = (Handshakes::default(), BTreeMap::new());
        Ok(Self {
            listeners: BTreeMap::new(),
            closed: BTreeMap::new(),
            pool,
            exit_on_disconnect,
            stop_timeout,
            epoll,
            stopper,
            handshakes,
            clogged: Vec::new(),
            front_ends,
            next_session: 0,
            ended: channel(),
            commands,
        })
    }

    /// Lets front-ends of one more disk in.
    ///
    /// # Errors
    /// No room in the kernel; nobody is let in then.
    pub(super) fn add(&mut self, number: DiskNumber, listener: DiskListener<D>) -> io::Result<()> {
        if let DiskSocket::Listening(socket) = &listener.socket {
            let event = EpollEvent::new(EventSet::IN, number);
            self.epoll.ctl(ControlOperation::Add, socket.as_fd().as_raw_fd(), event)?;
        }
        self.listeners.insert(number, listener);
        Ok(())
    }

    pub(super) fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Lets front-ends in until it is told to stop, then takes everything down.
    ///
    /// # Errors
    /// [`GivenUp`]: not everything.
    pub(super) fn run(mut self) -> Result<(), GivenUp> {
        self.serve_connected();
        let mut events = [EpollEvent::default(); 16];
        while !self.stopper.is_stopping() {
            // Only EINTR can fail here.
            let count = self.epoll.wait(self.limit_ms(), &mut events).unwrap_or(0);
            std::mem::take(&mut self.clogged).into_iter().for_each(|number| self.let_in_again(number));
            while let Some(listener) = self.handshakes.hang_up_on_late(&self.epoll) {
                self.closed(listener, farewell::given_up);
                self.has_left(listener, false);
            }
            for event in events.iter().take(count) {
                match event.data() {
                    WAKE => self.stopper.rest(),
                    number if number < FIRST_HANDSHAKE => self.accept(number),
                    _ => self.handshake(event),
                }
            }
            self.obey();
            self.reap();
        }
        self.take_down()
    }

    /// How long there is nothing to do, in milliseconds; -1 is for ever.
    fn limit_ms(&self) -> i32 {
        match self.handshakes.limit_ms() {
            limit_ms if self.clogged.is_empty() => limit_ms,
            -1 => CLOGGED_PAUSE_MS,
            limit_ms => limit_ms.min(CLOGGED_PAUSE_MS),
        }
    }

    /// Too much that a disk's front-ends have sent cannot be closed: who connects waits in the kernel.
    fn let_nobody_in(&mut self, number: DiskNumber) {
        let Some(DiskListener { socket: DiskSocket::Listening(socket), context }) =
            self.listeners.get(&number)
        else {
            return;
        };
        if let Some(suppressed) = context.log_limit.admit(Cause::NoRoom) {
            let (disk, most) = (&context.device.identity().name, MAX_RETIRED_CHECKERS);
            tracing::warn!(
                disk,
                most,
                suppressed,
                "nobody is let in for now: too many processes cannot close what front-ends have sent; end whoever makes them wait"
            );
        }
        let (delete, fd) = (ControlOperation::Delete, socket.as_fd().as_raw_fd());
        // Fails only if it is not there.
        let _ = self.epoll.ctl(delete, fd, EpollEvent::default());
        self.clogged.push(number);
    }

    /// Ends that, if something of it is closed.
    fn let_in_again(&mut self, number: DiskNumber) {
        let Some(DiskListener { socket: DiskSocket::Listening(socket), context }) =
            self.listeners.get(&number)
        else {
            return;
        };
        let (add, fd) = (ControlOperation::Add, socket.as_fd().as_raw_fd());
        if context.checker.is_full()
            || self.epoll.ctl(add, fd, EpollEvent::new(EventSet::IN, number)).is_err()
        {
            self.clogged.push(number);
        }
    }

    /// Front-ends whose connection was inherited are there from the start.
    fn serve_connected(&mut self) {
        let numbers: Vec<_> = self.listeners.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.serve_if_connected(number));
    }

    fn serve_if_connected(&mut self, number: DiskNumber) {
        let Some(DiskListener { socket: DiskSocket::Connected(stream), .. }) = self.listeners.get(&number)
        else {
            return;
        };
        match stream.try_clone() {
            Ok(stream) => self.let_in(number, stream),
            Err(error) => tracing::error!(%error, "cannot serve the inherited connection"),
        }
    }

    /// Does what it was asked for.
    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Add { number, listener, answer } => {
                    let added = self.add(number, listener);
                    if added.is_ok() {
                        self.serve_if_connected(number);
                    }
                    // Who asked has given up otherwise.
                    let _ = answer.send(added);
                }
                Command::Close { numbers, only_unused, answer } => {
                    let connected = |number: &DiskNumber| (*number, self.count(*number));
                    let used = numbers.iter().map(connected).find(|(_, count)| *count != 0);
                    match used.filter(|_| only_unused) {
                        Some((number, count)) => drop(answer.send(Closing::Refused(number, count))),
                        None => numbers.into_iter().for_each(|number| self.close(number, answer.clone())),
                    }
                }
                Command::HangUp { number, answer } => drop(answer.send(self.hang_up(number))),
            }
        }
    }

    /// Nobody is let in to a disk any more.
    fn close(&mut self, number: DiskNumber, answer: Sender<Closing>) {
        let Some(listener) = self.listeners.remove(&number) else { return };
        if let DiskSocket::Listening(socket) = &listener.socket {
            let (delete, fd) = (ControlOperation::Delete, socket.as_fd().as_raw_fd());
            // Fails only if it is not there.
            let _ = self.epoll.ctl(delete, fd, EpollEvent::default());
        }
        let copy = listener.copy_of_socket();
        // Its path first, so that whoever connects from now on is refused.
        drop(listener);
        while self.handshakes.hang_up_on_oldest(&self.epoll, Some(number)).is_some() {}
        drop(answer.send(Closing::Closed(copy)));
        self.closed.insert(number, answer);
        self.tell_if_left(number);
    }

    /// Hangs up on all front-ends of a disk; returns on how many.
    fn hang_up(&mut self, number: DiskNumber) -> usize {
        let count = self.count(number);
        while self.handshakes.hang_up_on_oldest(&self.epoll, Some(number)).is_some() {}
        let of_disk = self.front_ends.values_mut().filter(|it| it.listener == number);
        of_disk.for_each(FrontEnd::hang_up);
        count
    }

    /// How many are connected to a disk.
    fn count(&self, number: DiskNumber) -> usize {
        let is_there = |front_end: &&FrontEnd| front_end.listener == number && !front_end.is_leaving;
        self.front_ends.values().filter(is_there).count() + self.handshakes.count(number)
    }

    /// A disk that is closed has nobody any more.
    fn tell_if_left(&mut self, number: DiskNumber) {
        if self.front_ends.values().all(|front_end| front_end.listener != number)
            && let Some(answer) = self.closed.remove(&number)
        {
            drop(answer.send(Closing::Left));
        }
    }

    fn accept(&mut self, number: DiskNumber) {
        let Some(DiskListener { socket: DiskSocket::Listening(socket), context }) =
            self.listeners.get(&number)
        else {
            return;
        };
        if context.checker.is_full() {
            return self.let_nobody_in(number);
        }
        match socket.accept() {
            Ok(stream) => match socket.check(&stream) {
                Ok(()) => self.let_in(number, stream),
                Err(stranger) => self.refuse(number, stream, stranger),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => match self.handshakes.hang_up_on_oldest(&self.epoll, None) {
                // A descriptor is free now; the connection that waits to be accepted makes epoll return again.
                Some(listener) => self.closed(listener, farewell::made_room),
                None => self.exhausted(number, &error),
            },
        }
    }

    /// Closes the connection of a user who may not connect. What it may have sent is closed by the checker, as always.
    fn refuse(&self, number: DiskNumber, stream: UnixStream, stranger: Stranger) {
        let Some(DiskListener { context, .. }) = self.listeners.get(&number) else { return };
        context.front_ends.count_refused();
        if let Some(suppressed) = context.log_limit.admit(Cause::Refused) {
            let disk = &context.device.identity().name;
            tracing::warn!(name: kinds::FRONT_END_REFUSED, disk, %stranger, suppressed, "a connection is refused");
        }
        drop(ClosedByChecker::connection(stream, context.checker.clone()));
    }

    /// A front-end has come. Its session begins with the first message.
    fn let_in(&mut self, number: DiskNumber, stream: UnixStream) {
        let Some(listener) = self.listeners.get(&number) else { return };
        let stream = match ClosedByChecker::connection(stream, listener.context.checker.clone()) {
            Ok(stream) => stream,
            Err(error) => return self.exhausted(number, &error),
        };
        if self.count(number) >= listener.context.most_front_ends() {
            if !self.make_room(number) {
                return self.closed(number, farewell::turned_away);
            }
            self.closed(number, farewell::made_room);
        }
        if let Err(error) = self.handshakes.add(&self.epoll, number, stream) {
            self.exhausted(number, &error);
        }
    }

    /// Hangs up on the oldest connection before its first message, or on the oldest whose first message is not whole.
    fn make_room(&mut self, number: DiskNumber) -> bool {
        if self.handshakes.hang_up_on_oldest(&self.epoll, Some(number)).is_some() {
            return true;
        }
        if self.front_ends.values().filter(|front_end| front_end.listener == number).count()
            >= 2 * self.listeners.get(&number).map_or(0, |listener| listener.context.most_front_ends())
        {
            return false;
        }
        let has_sent_nothing = |front_end: &&mut FrontEnd| {
            front_end.listener == number && !front_end.is_leaving && !front_end.stage.has_sent_message()
        };
        let Some(front_end) = self.front_ends.values_mut().find(has_sent_nothing) else { return false };
        front_end.hang_up();
        true
    }

    /// Says, and counts, that a connection is closed, or not let in.
    fn closed(&self, number: DiskNumber, say: impl FnOnce(&SessionContext<D>)) {
        if let Some(DiskListener { context, .. }) = self.listeners.get(&number) {
            say(context);
        }
    }

    /// A connection before its first message has sent something, or was closed.
    fn handshake(&mut self, event: &EpollEvent) {
        match self.handshakes.progress(&self.epoll, event) {
            Progress::Incomplete => {}
            Progress::Header(listener, stream) => self.begin_session(listener, stream),
            Progress::Closed(listener) => self.has_left(listener, false),
        }
    }

    fn begin_session(&mut self, number: DiskNumber, stream: ClosedByChecker<UnixStream>) {
        let Some(listener) = self.listeners.get(&number) else { return };
        let charge = match listener.context.budget.charge(listener.context.session_amounts()) {
            Ok(charge) => charge,
            Err(error) => return farewell::no_budget(&listener.context, &error),
        };
        let id = self.next_session;
        self.next_session = self.next_session.wrapping_add(1);
        if let Some(suppressed) = listener.context.log_limit.admit(Cause::Connected) {
            let disk = &listener.context.device.identity().name;
            tracing::info!(name: kinds::FRONT_END_CAME, disk, session = id, suppressed, "a front-end connected");
        }
        let (context, stage) = (listener.context.clone(), Arc::<Stage>::default());
        match self.start_session(id, context, &stream, charge, Arc::clone(&stage)) {
            Ok(thread) => {
                let front_end = FrontEnd { listener: number, stream, thread, stage, is_leaving: false };
                self.front_ends.insert(id, front_end);
            }
            Err(error) => self.exhausted(number, &error),
        }
    }

    fn start_session(
        &self,
        id: SessionId,
        context: Arc<SessionContext<D>>,
        stream: &ClosedByChecker<UnixStream>,
        charge: Charge,
        stage: Arc<Stage>,
    ) -> io::Result<JoinHandle<()>> {
        let context = context.of_session(id)?;
        let session = Session::new(id, context.clone(), Some(stream.try_clone()?), charge);
        let mut connection = Connection::new(stream.try_clone()?, session, Arc::clone(&stage));
        let (ended, stopper) = (self.ended.0.clone(), self.stopper.clone());
        thread::spawn(ThreadKind::Session, format!("session-{id}"), move || {
            let hangup = connection.serve();
            connection.close();
            farewell::left(id, &context, &hangup);
            // Fails when the acceptor has ended already: it joins this thread then.
            let _ = ended.send(Ended { session: id, has_sent_message: stage.has_sent_message() });
            stopper.wake();
        })
    }

    /// Joins the threads of sessions that have ended.
    fn reap(&mut self) {
        while let Ok(Ended { session, has_sent_message }) = self.ended.1.try_recv() {
            let Some(FrontEnd { listener, thread, stream, .. }) = self.front_ends.remove(&session) else {
                continue;
            };
            // It ends right after it has told us, when its rings are back.
            let _ = thread.join();
            drop(stream);
            self.tell_if_left(listener);
            self.has_left(listener, has_sent_message);
        }
    }

    /// Stops the server if nobody is left to come, or if it is to end with the first front-end.
    fn has_left(&self, listener: DiskNumber, has_sent_message: bool) {
        let is_inherited = |it: &DiskListener<D>| matches!(it.socket, DiskSocket::Connected(_));
        let nobody_comes = self.listeners.get(&listener).is_some_and(is_inherited)
            && self.front_ends.is_empty()
            && self.handshakes.is_empty()
            && self.listeners.values().all(is_inherited);
        let is_served = self.listeners.contains_key(&listener);
        if nobody_comes || self.exit_on_disconnect && has_sent_message && is_served {
            self.stopper.stop();
        }
    }

    fn exhausted(&self, number: DiskNumber, error: &io::Error) {
        let Some(DiskListener { context, .. }) = self.listeners.get(&number) else { return };
        if let Some(suppressed) = context.log_limit.admit(Cause::Exhausted) {
            let disk = &context.device.identity().name;
            tracing::error!(disk, %error, suppressed, "cannot accept a front-end; check the limits (ulimit -n, -u)");
        }
        std::thread::sleep(Listener::EXHAUSTED_PAUSE);
    }

    /// Steps 1 to 5 of the stop (see the module `server`).
    fn take_down(self) -> Result<(), GivenUp> {
        let Self { listeners, pool, front_ends, handshakes, stop_timeout, .. } = self;
        // Before anything is waited for: no session begins another message.
        front_ends.values().for_each(|front_end| front_end.stage.end());
        let contexts: Vec<_> =
            listeners.iter().map(|(number, listener)| (*number, listener.context.clone())).collect();
        let copies: Vec<_> = listeners.values().filter_map(DiskListener::copy_of_socket).collect();
        // 1: first, so that a front-end which connects again when it is hung up on is refused.
        drop(listeners);
        ClosedByChecker::close_all(copies);
        // 2: dropping them hangs up.
        drop(handshakes);
        // 3: all are told before any is waited for.
        for front_end in front_ends.values() {
            front_end.stream.shut_down();
        }
        let leaving = front_ends.into_values().map(|FrontEnd { listener, stream, thread, .. }| Leaving {
            disk: listener,
            thread,
            stream,
        });
        // 4
        take_down(&contexts, leaving.collect(), stop_timeout)?;
        // 5: they have no rings any more.
        pool.stop();
        Ok(())
    }
}
