//! What a checker tells the spawner: one piece of a pipe each.

use std::os::fd::OwnedFd;

use rustix::io::retry_on_intr;

use super::packet::{Request, take};

/// Whether a checker has served its last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IsOver {
    No,
    Yes,
}

/// What a checker tells the spawner.
#[derive(Debug, Clone, Copy)]
pub(super) struct Notice {
    /// Another checker is needed; or else, the daemon asks how many of the disk's are at their end.
    pub(super) is_over: IsOver,
    pub(super) disk: u64,
    /// Of the request that is to be answered.
    pub(super) number: u64,
}

impl Notice {
    const BYTES: usize = 17;

    pub(super) const fn of(Request { disk, number, .. }: Request, is_over: IsOver) -> Self {
        Self { is_over, disk, number }
    }

    /// In one piece: it is shorter than what a pipe takes at once.
    pub(super) fn send(self, to: &OwnedFd) {
        let Self { is_over, disk, number } = self;
        let bytes = [&[u8::from(is_over == IsOver::Yes)][..], &disk.to_ne_bytes(), &number.to_ne_bytes()];
        // Fails only when the spawner is gone.
        let _ = rustix::io::write(to, &bytes.concat());
    }

    /// None if the checker has died.
    pub(super) fn receive(from: &OwnedFd) -> Option<Self> {
        let mut bytes = [0; Self::BYTES];
        let count = retry_on_intr(|| rustix::io::read(from, &mut bytes[..])).ok()?;
        let mut rest = bytes.get(..count)?;
        let is_over = if take(&mut rest)? == [0] { IsOver::No } else { IsOver::Yes };
        let (disk, number) = (take(&mut rest)?, take(&mut rest)?);
        Some(Self { is_over, disk: u64::from_ne_bytes(disk), number: u64::from_ne_bytes(number) })
    }
}
