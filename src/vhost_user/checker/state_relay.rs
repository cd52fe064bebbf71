//! Reads or writes a device's state through the front-end's descriptor, which may block for ever: in a checker that does
//! nothing else any more, on behalf of the daemon.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, Shutdown, sockopt};

use super::packet;
use super::unread::is_silenced;
use crate::limits::bounds::STATE_TRANSFER_TIMEOUT;
use crate::vhost_user::device_state::STATE_BYTES;

/// The daemon's orders: to write the state that follows, or to read one to its end.
pub(in crate::vhost_user) const SAVE: u8 = b's';
pub(in crate::vhost_user) const LOAD: u8 = b'l';

/// Of an order: nothing, once it is about to be carried out. Then the state that was read, or nothing after a write. Or why
/// that failed.
#[derive(Debug)]
pub(in crate::vhost_user) struct StateAnswer(pub(in crate::vhost_user) io::Result<Vec<u8>>);

impl StateAnswer {
    fn send(&self, to: &OwnedFd) {
        let (error, bytes) = match &self.0 {
            Ok(bytes) => (0, bytes.as_slice()),
            Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), &[][..]),
        };
        // Fails when the daemon has given the transfer up.
        let _ = packet::send(to, &[&error.to_ne_bytes(), bytes].concat(), &[]);
    }

    /// The answer, if it has come by now.
    ///
    /// # Errors
    /// None has come, or none will: the process has ended.
    pub(in crate::vhost_user) fn receive(from: &OwnedFd) -> io::Result<Self> {
        let (bytes, _) = packet::receive(from.as_fd(), 2 * STATE_BYTES, RecvFlags::DONTWAIT)?;
        let Some((error, bytes)) = bytes.split_first_chunk() else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        Ok(Self(match i32::from_ne_bytes(*error) {
            0 => Ok(bytes.to_owned()),
            error => Err(io::Error::from_raw_os_error(error)),
        }))
    }
}

/// What the state goes through.
struct Way<'a> {
    file: &'a OwnedFd,
    /// To the daemon.
    relay: &'a OwnedFd,
    /// When it is given up, whether there is a daemon that waits for it or not.
    deadline: Instant,
}

/// Does what the daemon orders through `relay`. It may block for ever in `file`; the process is killed with the spawner then.
pub(super) fn transfer(file: &OwnedFd, relay: &OwnedFd) {
    let Ok((order, _)) = packet::receive(relay.as_fd(), 2 * STATE_BYTES, RecvFlags::empty()) else { return };
    let way = Way { file, relay, deadline: Instant::now() + STATE_TRANSFER_TIMEOUT };
    let Some((&what, state)) = order.split_first() else { return };
    let prepared = way.prepare(what);
    let may_begin = prepared.is_ok();
    StateAnswer(prepared.map(|()| Vec::new())).send(relay);
    if may_begin {
        let outcome = if what == SAVE { way.save(state).map(|()| Vec::new()) } else { way.load() };
        StateAnswer(outcome).send(relay);
    }
}

impl Way<'_> {
    /// Of a socket, only the direction is left that is used. If it is the front-end's end of its own connection, or of another's,
    /// it ends that: the connection would last as long as the transfer.
    ///
    /// # Errors
    /// Something waits in a socket that is to be written to, or it is no stream.
    fn prepare(&self, order: u8) -> io::Result<()> {
        if sockopt::socket_domain(self.file) != Ok(AddressFamily::UNIX) {
            return Ok(());
        }
        match order {
            SAVE if is_silenced(self.file) => Ok(()),
            LOAD => Ok(rustix::net::shutdown(self.file, Shutdown::Write)?),
            _ => Err(Errno::BUSY.into()),
        }
    }

    fn save(&self, mut left: &[u8]) -> io::Result<()> {
        while !left.is_empty() {
            self.await_ready(PollFlags::OUT)?;
            match rustix::io::write(self.file, left) {
                Ok(0) => return Err(Errno::NOSPC.into()),
                Ok(count) => left = left.get(count..).unwrap_or_default(),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads to the end, or one byte more than a state has: longer ones are refused.
    fn load(&self) -> io::Result<Vec<u8>> {
        let mut state = Vec::new();
        let mut part = [0; STATE_BYTES];
        while state.len() <= STATE_BYTES {
            self.await_ready(PollFlags::IN)?;
            match rustix::io::read(self.file, &mut part[..]) {
                Ok(0) => break,
                Ok(count) => state.extend_from_slice(part.get(..count).unwrap_or_default()),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        state.truncate(STATE_BYTES + 1);
        Ok(state)
    }

    /// Waits until something can be read or written, or has gone wrong, which the attempt will tell.
    fn await_ready(&self, what: PollFlags) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let mut both = [PollFd::new(self.file, what), PollFd::new(self.relay, PollFlags::IN)];
        if poll(&mut both, Some(&Timespec::try_from(left).unwrap_or_default()))? == 0 {
            return Err(Errno::TIMEDOUT.into());
        }
        let [_, given_up] = both;
        // The daemon sends nothing after its order: it has closed the relay.
        if given_up.revents().is_empty() { Ok(()) } else { Err(Errno::CANCELED.into()) }
    }
}
