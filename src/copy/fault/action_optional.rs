//! Pages that the kernel reports as bad before anybody has touched them (`BUS_MCEERR_AO`, "action optional"), on their
//! way from the signal handler to a thread that listens.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{
    MachineCheckMemoryCorruptionKillPolicy, set_machine_check_memory_corruption_kill_policy,
};

/// Most addresses that wait to be fetched. Further ones are dropped: their pages are found bad when they are touched.
const MAX_PENDING: usize = 64;

/// Each holds an address, or 0 when it is free.
static PENDING: [AtomicUsize; MAX_PENDING] = [const { AtomicUsize::new(0) }; MAX_PENDING];

/// Written to with each address that is recorded; never read.
static EVENT: OnceLock<OwnedFd> = OnceLock::new();

/// Makes the calling thread the one of this process that hears of bad pages before they are touched. What it
/// gets is an eventfd that all listeners share: watch it edge-triggered, never read it, and [`fetch`] the
/// addresses. What was announced before is not told again.
///
/// There should be such a thread wherever persistent memory is mapped. Linux takes a page of it that has gone bad
/// out of the page tables of those processes only that have asked to be told (`PR_MCE_KILL_EARLY`): in any other
/// each load from it is another machine check.
///
/// # Errors
/// No descriptor is left, or `prctl` is forbidden.
pub fn listen() -> io::Result<BorrowedFd<'static>> {
    let event = match EVENT.get() {
        Some(event) => event,
        None => {
            let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
            EVENT.get_or_init(|| event)
        }
    };
    set_machine_check_memory_corruption_kill_policy(Some(MachineCheckMemoryCorruptionKillPolicy::Early))?;
    Ok(event.as_fd())
}

/// Fetches the addresses in this range whose pages the kernel has said to be bad. Each is told once.
pub fn fetch(range: &Range<usize>) -> Vec<usize> {
    let fetched = PENDING.iter().filter_map(|note| {
        let address = note.load(Ordering::Acquire);
        let is_ours = address != 0 && range.contains(&address);
        let taken = is_ours.then(|| note.compare_exchange(address, 0, Ordering::Relaxed, Ordering::Relaxed));
        taken?.ok()
    });
    fetched.collect()
}

/// Records an address. Called by the signal handler.
pub(super) fn record(address: usize) {
    let take =
        |note: &&AtomicUsize| note.compare_exchange(0, address, Ordering::Release, Ordering::Relaxed).is_ok();
    let (Some(_), Some(event)) = (PENDING.iter().find(take), EVENT.get()) else { return };
    let one = 1_u64.to_ne_bytes();
    // SAFETY: F2: the place of this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: F2: read, to be put back.
    let before = unsafe { *errno };
    // SAFETY: F2: eight bytes that live until the call returns; it may be called in a handler (signal-safety(7)).
    unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    // SAFETY: F2: put back.
    unsafe { *errno = before };
}

#[cfg(test)]
mod tests {
    use rustix::process::machine_check_memory_corruption_kill_policy;

    use super::super::{WatchedRange, install};
    use super::*;
    use crate::copy::testing::announce_bad_page;

    /// The threads of a process that do not listen are told nothing, and the one that does is by whoever hears it.
    #[test]
    fn who_listens_hears_of_bad_pages_of_the_media_once() {
        install().unwrap();
        let before = machine_check_memory_corruption_kill_policy().unwrap();
        assert_eq!(before, MachineCheckMemoryCorruptionKillPolicy::Default);
        // Never dereferenced.
        let media = std::ptr::without_provenance_mut::<u8>(0x7fff_eeee_0000_0000);
        let watched = WatchedRange::media(media, 0x3000).unwrap();
        let (start, end) = (media.addr(), media.addr() + 0x3000);
        let told = std::thread::spawn(move || {
            let event = listen().unwrap();
            let policy = machine_check_memory_corruption_kill_policy().unwrap();
            assert_eq!(policy, MachineCheckMemoryCorruptionKillPolicy::Early);
            announce_bad_page(start + 0x1000);
            announce_bad_page(start + 0x2fff);
            let mut watched = [rustix::event::PollFd::new(&event, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut watched, None).unwrap()
        });
        assert_eq!(told.join().unwrap(), 1);
        assert!(fetch(&(start..start + 0x1000)).is_empty(), "not there");
        assert_eq!(fetch(&(start..end)), [start + 0x1000, start + 0x2fff]);
        assert!(fetch(&(start..end)).is_empty(), "told already");
        for _ in 0..2 * MAX_PENDING {
            announce_bad_page(start + 1);
        }
        assert!(fetch(&(start..end)).len() <= MAX_PENDING);
        announce_bad_page(start + 2);
        assert_eq!(fetch(&(start..end)), [start + 2], "there is room again");
        drop(watched);
    }
}
