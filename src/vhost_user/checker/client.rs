//! The daemon's side of the descriptor checker: it sends requests, and reads the answers.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{self, Timeout};
use rustix::process::Pid;

use super::packet::{Answer, CLOSE, IsAwaited, Received, Request, pair, send};
use super::spawner;
use super::turns::Turns;
use crate::limits::bounds::CHECKER_TIMEOUT;
use crate::sandbox::ThreadKind;
use crate::sandbox::process::{self, DiesWithParent};
use crate::vhost_user::descriptor::mounts;

/// The spawner's process and the checkers that it forks, for one disk of those that share them. They end when the last of
/// these is dropped, or when this process ends.
///
/// One request is at work at a time. Of the sessions of a disk only one waits for its turn among the disks, who have it in the
/// order in which they came: none waits for more than one request of each of the others.
#[derive(Debug)]
pub struct DescriptorChecker {
    of_disk: Mutex<()>,
    link: Arc<Turns<Link>>,
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
}

impl DescriptorChecker {
    /// Forks the spawner. To be called early: the spawner and its checkers keep a copy of the memory that is mapped by
    /// then.
    ///
    /// # Errors
    /// No process or descriptor is left.
    pub fn start() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { of_disk: Mutex::default(), link: Arc::new(Turns::new(Link::start()?)) }))
    }

    /// The same processes for another disk.
    #[must_use]
    pub fn for_disk(&self) -> Arc<Self> {
        Arc::new(Self { of_disk: Mutex::default(), link: self.link.clone() })
    }

    /// Has the checker receive up to `most` bytes that wait in `stream`, and the descriptors that come with them. `code` is
    /// the message's request number, if its header is known.
    pub(in crate::vhost_user) fn receive(
        &self,
        stream: &UnixStream,
        code: u32,
        most: usize,
    ) -> io::Result<Received> {
        let _of_disk = self.of_disk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut link = self.link.take();
        link.number = link.number.wrapping_add(1);
        let request = Request { number: link.number, code, most: u32::try_from(most).unwrap_or(u32::MAX) };
        let mut sent = request.send(&link.socket, stream.as_fd());
        if sent.as_ref().is_err_and(is_killed) {
            // Somebody has killed the spawner. A new one is forked late, so it keeps a copy of all memory of now.
            let number = link.number;
            *link = Link::start().map_err(gone)?;
            link.number = number;
            sent = request.send(&link.socket, stream.as_fd());
        }
        sent.map_err(gone)?;
        link.await_answer(link.number)
    }

    /// Hands a copy of the socket to the checker, closes it here, and has the checker close its copy, which may take long.
    /// If that is awaited, returns a pidfd of the process that has the copy until its end.
    pub(super) fn close<T: AsFd>(&self, socket: T, is_awaited: IsAwaited) -> Option<OwnedFd> {
        // Whoever closes for many disks does not wait for the sessions of one.
        let link = self.link.take();
        // If there is no checker any more, closing it here is all that can be done.
        let has_it = Request::close(is_awaited).send(&link.socket, socket.as_fd());
        drop(socket);
        let is_told = send(&link.socket, &Request::close(is_awaited).bytes(), &[]);
        if is_awaited == IsAwaited::No || has_it.is_err() || is_told.is_err() {
            return None;
        }
        link.await_answer(CLOSE).ok()?.files.pop()
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
        Ok(Self { socket, control, spawner, number: 0 })
    }

    /// Waits for the answer to the request of this number, which is the last one.
    fn await_answer(&self, number: u64) -> io::Result<Received> {
        let deadline = Instant::now() + CHECKER_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut waits = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut waits, Some(&Timespec::try_from(left).unwrap_or_default())) {
                Ok(0) => {
                    // Has the spawner kill this checker and fork another. Fails if the spawner is gone: the next request
                    // forks a new one.
                    let _ = (&self.control).write_all(&[0]);
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
            // An answer with another number is late: its request was given up.
            if answer.number == number {
                return answer.outcome;
            }
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
