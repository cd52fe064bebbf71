//! The process that forks checkers, one after the other. It never has a descriptor of a front-end itself.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::notice::{IsOver, Notice};
use super::packet::{Answer, Received};
use super::serve;
use crate::sandbox::ThreadKind;
use crate::sandbox::process::{self, DiesWithParent};
use crate::vhost_user::descriptor::mounts;

/// Pause before fork(2) is tried again, or after a checker that has died; twice as long each time that the next one dies, too.
const PAUSE: Duration = Duration::from_millis(10);

/// The longest pause: whoever waits for a checker gives up later.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why a checker serves no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// It closes what a disk's front-ends have sent.
    Retired(u64),
    Died,
    /// It did not answer; or the daemon is gone.
    Asked,
}

/// What the daemon wants of the spawner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    None,
    /// Another checker: the one that there is does not answer to what front-ends of this disk have sent.
    Replace(u64),
    /// The daemon is gone (the socket's other end is closed).
    End,
}

/// Forks a checker whenever the one before has retired, until the daemon is gone.
pub(super) fn run(orders: &OwnedFd, control: &UnixStream) {
    // Checkers at their end, each with its disk.
    let mut retired = Vec::new();
    let mut pause = PAUSE;
    loop {
        forget_ended(&mut retired);
        let Ok((noticed, notices)) = pipe_with(PipeFlags::CLOEXEC) else { return };
        let own = [orders.as_fd(), notices.as_fd()];
        let given: Vec<_> = own.into_iter().chain(mounts().map(|mounts| mounts.as_fd())).collect();
        let Ok(checker) = process::fork(Some(ThreadKind::Checker), &given, DiesWithParent::Yes, || {
            serve::serve(orders, &notices);
        }) else {
            if order(control, Some(PAUSE)) == Order::End {
                return;
            }
            continue;
        };
        drop(notices);
        match watch(&noticed, control, orders, &mut retired) {
            Reason::Retired(disk) => {
                retired.push((checker, disk));
                pause = PAUSE;
            }
            Reason::Asked => {
                process::kill(checker);
                match order(control, None) {
                    Order::End => return,
                    Order::Replace(disk) => retired.push((checker, disk)),
                    Order::None => {}
                }
            }
            Reason::Died => {
                // What kills them all, such as a lack of memory, is not to be made worse.
                if order(control, Some(pause)) == Order::End {
                    return;
                }
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Waits until a checker serves no more, and answers meanwhile how many are at their end.
fn watch(noticed: &OwnedFd, control: &UnixStream, orders: &OwnedFd, retired: &mut Vec<(Pid, u64)>) -> Reason {
    loop {
        let mut waits = [PollFd::new(noticed, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
        while poll(&mut waits, None).is_err() {}
        let [_, asked] = waits;
        if !asked.revents().is_empty() {
            return Reason::Asked;
        }
        match Notice::receive(noticed) {
            None => return Reason::Died,
            Some(Notice { is_over: IsOver::Yes, disk, .. }) => return Reason::Retired(disk),
            Some(Notice { is_over: IsOver::No, disk, number }) => {
                forget_ended(retired);
                let count = retired.iter().filter(|(_, of)| *of == disk).count();
                let outcome = Ok(Received::of(count.to_ne_bytes().to_vec(), Vec::new()));
                // Fails only when the daemon is gone.
                let _ = Answer { number, retires: false, outcome }.send(orders.as_fd());
            }
        }
    }
}

/// Those that are at their end still have something to close.
fn forget_ended(retired: &mut Vec<(Pid, u64)>) {
    while let Some(ended) = process::reap() {
        retired.retain(|(checker, _)| *checker != ended);
    }
}

/// What the daemon wants, if it wants anything by then.
fn order(control: &UnixStream, patience: Option<Duration>) -> Order {
    let mut asked = [PollFd::new(control, PollFlags::IN)];
    let patience = patience.map(|it| Timespec::try_from(it).unwrap_or_default());
    let mut bytes = [0; 8];
    match poll(&mut asked, patience.as_ref()) {
        Ok(0) | Err(_) => Order::None,
        Ok(_) => match rustix::io::read(control, &mut bytes) {
            Ok(1..) => Order::Replace(u64::from_ne_bytes(bytes)),
            _ => Order::End,
        },
    }
}
