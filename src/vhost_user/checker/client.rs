//! The daemon's side of the descriptor checker: it sends requests, and reads the answers.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{self, Timeout};
use rustix::process::Pid;

use super::packet::{Answer, Received, Request, What, pair};
use super::share::Share;
use super::spawner;
use super::turns::Turns;
use crate::limits::bounds::{CHECKER_TIMEOUT, RETIRED_CHECKERS_TIMEOUT};
use crate::sandbox::ThreadKind;
use crate::sandbox::process::{self, DiesWithParent};
use crate::vhost_user::descriptor::mounts;

/// How often it is looked whether there is room again.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// Whether the daemon waits until a socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IsAwaited {
    No,
    Yes,
}

/// The spawner's process and the checkers that it forks, for one disk of those that share them. They end when the last of
/// these is dropped, or when this process ends.
///
/// One request is at work at a time. Of the sessions of a disk only one waits for its turn among the disks, who have it in the
/// order in which they came: none waits for more than one request of each of the others.
#[derive(Debug)]
pub struct DescriptorChecker {
    of_disk: Mutex<()>,
    link: Arc<Turns<Link>>,
    share: Arc<Share>,
}

#[derive(Debug)]
struct Link {
    /// To the checker: whichever process has that part now reads from the other end.
    socket: OwnedFd,
    /// To the spawner, which ends when it is closed.
    control: UnixStream,
    spawner: Pid,
    /// The number of the last request.
    number: u64,
    /// Whose processes are being counted, by the number of the request.
    counted: BTreeMap<u64, Arc<Share>>,
    /// How many disks have come.
    disks: u64,
}

impl DescriptorChecker {
    /// Forks the spawner. To be called early: the spawner and its checkers keep a copy of the memory that is mapped by
    /// then.
    ///
    /// # Errors
    /// No process or descriptor is left.
    pub fn start() -> io::Result<Arc<Self>> {
        Ok(Self::with(Arc::new(Turns::new(Link::start()?)), 0))
    }

    /// The same processes for another disk.
    #[must_use]
    pub fn for_disk(&self) -> Arc<Self> {
        let mut link = self.link.take();
        link.disks = link.disks.wrapping_add(1);
        Self::with(self.link.clone(), link.disks)
    }

    fn with(link: Arc<Turns<Link>>, disk: u64) -> Arc<Self> {
        Arc::new(Self { of_disk: Mutex::default(), link, share: Arc::new(Share::of(disk)) })
    }

    /// Whether nothing more is to be taken of the disk's front-ends: too many processes still close what they have sent before.
    /// Does not wait for them.
    #[must_use]
    pub fn is_full(&self) -> bool {
        if !self.share.may_be_too_many() {
            return false;
        }
        let mut link = self.link.take();
        link.hear();
        if self.share.may_be_too_many() && self.share.is_to_be_counted() {
            // Fails only where there are no processes any more, which the next message finds out.
            let _ = link.ask(&self.share, What::Count, 0, 0, None);
        }
        self.share.is_full()
    }

    /// How often messages were not taken as that lasted too long.
    pub fn refusals(&self) -> u64 {
        self.share.refusals()
    }

    /// Has the checker receive up to `most` bytes that wait in `stream`, and the descriptors that come with them. `code` is
    /// the message's request number, if its header is known.
    pub(in crate::vhost_user) fn receive(
        &self,
        stream: &UnixStream,
        code: u32,
        most: usize,
    ) -> io::Result<Received> {
        let _of_disk = self.await_room(stream)?;
        let mut link = self.link.take();
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let number = link.ask(&self.share, What::Receive, code, most, Some(stream.as_fd())).map_err(gone)?;
        link.await_answer(number, &self.share)
    }

    /// Waits until what the disk's front-ends have sent is closed, but for what may be left. From then on it is the caller's turn
    /// among the disk's sessions.
    fn await_room(&self, stream: &UnixStream) -> io::Result<MutexGuard<'_, ()>> {
        let deadline = Instant::now() + RETIRED_CHECKERS_TIMEOUT;
        loop {
            let of_disk = self.of_disk.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.is_full() {
                return Ok(of_disk);
            }
            drop(of_disk);
            if Instant::now() >= deadline {
                return Err(self.share.refuse());
            }
            // Both that it has left, and that it is hung up on.
            let mut end = [PollFd::new(stream, PollFlags::RDHUP)];
            if poll(&mut end, Some(&Timespec::try_from(ROOM_PAUSE).unwrap_or_default())) == Ok(1) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }

    /// Hands a copy of the socket to the checker, closes it here, and has the checker close its copy, which may take long.
    /// If that is awaited, returns a pidfd of the process that has the copy until its end.
    pub(super) fn close<T: AsFd>(&self, socket: T, is_awaited: IsAwaited) -> Option<OwnedFd> {
        // Whoever closes for many disks does not wait for the sessions of one.
        let mut link = self.link.take();
        link.hear();
        let what = if is_awaited == IsAwaited::Yes { What::CloseAwaited } else { What::Close };
        // If there is no checker any more, closing it here is all that can be done.
        let has_it = link.ask(&self.share, what, 0, 0, Some(socket.as_fd()));
        drop(socket);
        let is_told = link.ask(&self.share, what, 0, 0, None);
        let (Ok(number), Ok(_)) = (has_it, is_told) else { return None };
        self.share.add();
        if is_awaited == IsAwaited::No {
            return None;
        }
        link.await_answer(number, &self.share).ok()?.files.pop()
    }
}

impl Link {
    fn start() -> io::Result<Self> {
        let (socket, orders) = pair()?;
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(CHECKER_TIMEOUT))?;
        let (control, controlled) = UnixStream::pair()?;
        let own = [orders.as_fd(), controlled.as_fd()];
        let given: Vec<_> = own.into_iter().chain(mounts().map(|mounts| mounts.as_fd())).collect();
        let spawner = process::fork(Some(ThreadKind::Spawner), &given, DiesWithParent::No, || {
            spawner::run(&orders, &controlled)
        })?;
        Ok(Self { socket, control, spawner, number: 0, counted: BTreeMap::new(), disks: 0 })
    }

    /// Sends a request; returns its number.
    fn ask(
        &mut self,
        share: &Arc<Share>,
        what: What,
        code: u32,
        most: u32,
        socket: Option<BorrowedFd<'_>>,
    ) -> io::Result<u64> {
        self.number = self.number.wrapping_add(1);
        let request = Request { number: self.number, disk: share.disk(), what, code, most };
        let mut sent = request.send(&self.socket, socket);
        if what == What::Receive && sent.as_ref().is_err_and(is_killed) {
            // Somebody has killed the spawner. A new one is forked late, so it keeps a copy of all memory of now.
            let mut anew = Self::start()?;
            (anew.number, anew.disks) = (self.number, self.disks);
            *self = anew;
            sent = request.send(&self.socket, socket);
        }
        sent?;
        if what == What::Count {
            self.counted.retain(|_, other| !Arc::ptr_eq(other, share));
            self.counted.insert(request.number, share.clone());
        }
        Ok(request.number)
    }

    /// Takes what has been answered by now.
    fn hear(&mut self) {
        while let Ok(answer) = Answer::receive(&self.socket) {
            self.note(&answer);
        }
    }

    /// An answer that nobody waits for: how many processes a disk has, or to a request that was given up.
    fn note(&mut self, Answer { number, outcome, .. }: &Answer) {
        let Some(share) = self.counted.remove(number) else { return };
        let count = outcome.as_ref().ok().and_then(|it| it.bytes.as_slice().try_into().ok());
        share.count(count.map(usize::from_ne_bytes));
    }

    /// Waits for the answer to the request of this number, which is the last one.
    fn await_answer(&mut self, number: u64, share: &Share) -> io::Result<Received> {
        let deadline = Instant::now() + CHECKER_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut waits = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut waits, Some(&Timespec::try_from(left).unwrap_or_default())) {
                Ok(0) => {
                    // Has the spawner kill this checker and fork another. Fails if the spawner is gone: the next request
                    // forks a new one.
                    let _ = (&self.control).write_all(&share.disk().to_ne_bytes());
                    share.add();
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "descriptors were not checked in time",
                    ));
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let answer = Answer::receive(&self.socket).map_err(gone)?;
            if answer.number == number {
                if answer.retires {
                    share.add();
                }
                return answer.outcome;
            }
            self.note(&answer);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It ends then. It is not killed: whoever may kill it may kill others, too.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        process::wait_for(self.spawner, CHECKER_TIMEOUT);
    }
}

/// Whether the error says that no process has the other end any more.
fn is_killed(error: &io::Error) -> bool {
    use io::ErrorKind as E;
    matches!(error.kind(), E::BrokenPipe | E::ConnectionReset | E::ConnectionRefused | E::NotConnected)
}

fn gone(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("the descriptor checker: {error}"))
}
