//! A process that keeps attributes of devices for a daemon that has given up its privileges. `trusted.` attributes take
//! CAP_SYS_ADMIN: this process has that and no other capability, and can make no system call that it could be misused for.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::retry_on_intr;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use rustix::process::Pid;

use super::raw::{MAX_BYTES, read, write};
use crate::sandbox::ThreadKind;
use crate::sandbox::process::{self, DiesWithParent};

/// Bytes before the value: the number of the file, and what is asked.
const HEAD_BYTES: usize = 5;

/// What is asked of the keeper. There is one answer to each: whether it could be done, and what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Order {
    Read,
    Write,
    Remove,
}

/// The running process. It ends when this is dropped, or when this process ends.
#[derive(Debug)]
pub(super) struct Keeper {
    /// None while it is dropped. Whoever holds it has asked and not been answered yet.
    socket: Mutex<Option<OwnedFd>>,
    process: Pid,
}

impl Keeper {
    /// Of these files, by their places in the list.
    ///
    /// # Errors
    /// No process or descriptor is left.
    pub(super) fn start(files: &[OwnedFd]) -> io::Result<Self> {
        let (socket, orders) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let given: Vec<_> = files.iter().chain([&orders]).map(|it| it.as_fd()).collect();
        let kind = Some(ThreadKind::AttributeKeeper);
        let process = process::fork(kind, &given, DiesWithParent::No, || serve(&orders, files))?;
        Ok(Self { socket: Mutex::new(Some(socket)), process })
    }

    pub(super) fn read(&self, file: u32) -> Option<Vec<u8>> {
        self.ask(file, Order::Read, &[])
    }

    pub(super) fn write(&self, file: u32, value: Option<&[u8]>) -> bool {
        let order = if value.is_some() { Order::Write } else { Order::Remove };
        self.ask(file, order, value.unwrap_or_default()).is_some()
    }

    fn ask(&self, file: u32, order: Order, value: &[u8]) -> Option<Vec<u8>> {
        let packet = [&file.to_ne_bytes()[..], &[order as u8], value].concat();
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = socket.as_ref()?;
        retry_on_intr(|| send(socket, &packet, SendFlags::NOSIGNAL)).ok()?;
        let answer = receive(socket.as_fd())?;
        answer.split_first().filter(|(is_done, _)| **is_done != 0).map(|(_, value)| value.to_vec())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It is another user's where this process has become another: it is not killed, but sees that nobody asks any more.
        self.socket.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        process::wait(self.process);
    }
}

/// The process.
fn serve(orders: &OwnedFd, files: &[OwnedFd]) {
    while let Some(packet) = receive(orders.as_fd()) {
        let answer = match answer(&packet, files) {
            Some(value) => [&[1], &value[..]].concat(),
            None => vec![0],
        };
        if retry_on_intr(|| send(orders, &answer, SendFlags::NOSIGNAL)).is_err() {
            return;
        }
    }
}

fn answer(packet: &[u8], files: &[OwnedFd]) -> Option<Vec<u8>> {
    let (file, order) = packet.split_first_chunk::<4>()?;
    let file = files.get(usize::try_from(u32::from_ne_bytes(*file)).ok()?)?;
    let (order, value) = order.split_first()?;
    let is_done = match *order {
        it if it == Order::Read as u8 => return read(file),
        it if it == Order::Write as u8 => write(file, Some(value)),
        it if it == Order::Remove as u8 => write(file, None),
        _ => false,
    };
    is_done.then(Vec::new)
}

/// None once the other side is gone.
fn receive(socket: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let mut bytes = [0; HEAD_BYTES + MAX_BYTES];
    let len = retry_on_intr(|| rustix::io::read(socket, &mut bytes)).ok()?;
    bytes.get(..len).filter(|it| !it.is_empty()).map(<[u8]>::to_vec)
}
