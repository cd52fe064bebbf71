//! The process that forks checkers, one after the other. It never has a descriptor of a front-end itself.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::serve;
use crate::limits::bounds::MAX_RETIRED_CHECKERS;
use crate::sandbox::ThreadKind;
use crate::sandbox::process::{self, DiesWithParent};
use crate::vhost_user::descriptor::mounts;

/// Pause before fork(2) is tried again, or after a checker that has died; twice as long each time that the next one dies, too.
const PAUSE: Duration = Duration::from_millis(10);

/// The longest pause: whoever waits for a checker gives up later.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Forks a checker whenever the one before has retired, until the daemon is gone.
pub(super) fn run(orders: &OwnedFd, control: &UnixStream) {
    let (mut made, mut ended) = (0_usize, 0_usize);
    let mut pause = PAUSE;
    loop {
        ended = ended.saturating_add(process::reap());
        let keeps = made.saturating_sub(ended) >= MAX_RETIRED_CHECKERS;
        let Ok((retired, retires)) = pipe_with(PipeFlags::CLOEXEC) else { return };
        let own = [orders.as_fd(), retires.as_fd()];
        let given: Vec<_> = own.into_iter().chain(mounts().map(|mounts| mounts.as_fd())).collect();
        let Ok(checker) = process::fork(Some(ThreadKind::Checker), &given, DiesWithParent::Yes, || {
            serve::serve(orders, &retires, keeps)
        }) else {
            if is_over(control, Some(PAUSE)) {
                return;
            }
            continue;
        };
        made = made.saturating_add(1);
        drop(retires);
        let mut waits = [PollFd::new(&retired, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
        while poll(&mut waits, None).is_err() {}
        let [_, asked] = waits;
        if !asked.revents().is_empty() {
            process::kill(checker);
            if is_over(control, None) {
                return;
            }
        } else if has_retired(&retired) {
            pause = PAUSE;
        } else {
            // It has died. What kills them all, such as a lack of memory, is not to be made worse.
            if is_over(control, Some(pause)) {
                return;
            }
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }
}

/// Whether the checker that has the other end has said that it retires.
fn has_retired(retired: &OwnedFd) -> bool {
    matches!(rustix::io::read(retired, &mut [0_u8]), Ok(1..))
}

/// Whether the daemon is gone (the socket's other end is closed). A byte from it asks for another checker.
fn is_over(control: &UnixStream, patience: Option<Duration>) -> bool {
    let mut asked = [PollFd::new(control, PollFlags::IN)];
    let patience = patience.map(|it| Timespec::try_from(it).unwrap_or_default());
    match poll(&mut asked, patience.as_ref()) {
        Ok(0) | Err(_) => false,
        Ok(_) => !matches!(rustix::io::read(control, &mut [0_u8; 64]), Ok(1..)),
    }
}
