//! Whose turn it is with a disk: nobody waits for one, and what is slow with one disk holds up no other.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::problem::{Code, Problem};
use crate::server::RemoveError;

/// What somebody does with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    Add,
    Grow,
    Limit,
    Remove,
    /// Adds, grows or removes it.
    Reload,
}

impl Doing {
    /// Whether it may begin while the other is under way. What grows may be limited and removed: its media may hang.
    const fn goes_with(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Grow | Self::Limit | Self::Remove, Self::Grow) | (Self::Grow, Self::Limit)
        )
    }

    const fn what(self) -> &'static str {
        match self {
            Self::Add => "it is being added",
            Self::Grow => "its size is being changed",
            Self::Limit => "its limits are being changed",
            Self::Remove => "it is being removed",
            Self::Reload => "the configuration that has changed for it is being applied",
        }
    }
}

/// The disks that somebody does something with.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<Vec<(String, Doing)>>);

/// A turn with some disks, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    disks: Vec<String>,
    doing: Doing,
}

impl Turns {
    /// A turn with one disk, which need not be there.
    ///
    /// # Errors
    /// Somebody else has it.
    pub(super) fn take(&self, disk: &str, doing: Doing) -> Result<Turn<'_>, Problem> {
        self.take_all(vec![disk.to_owned()], doing)
    }

    /// A turn with several, or with none of them.
    ///
    /// # Errors
    /// Somebody else has one of them.
    pub(super) fn take_all(&self, disks: Vec<String>, doing: Doing) -> Result<Turn<'_>, Problem> {
        let mut taken = self.lock();
        let in_the_way = taken.iter().find(|(disk, other)| disks.contains(disk) && !doing.goes_with(*other));
        match in_the_way {
            Some((disk, Doing::Remove)) if doing == Doing::Remove => {
                Err(RemoveError::Leaving(disk.clone()).into())
            }
            Some((disk, other)) => {
                let text = format!("disk {disk:?}: {}; ask again when that is done", other.what());
                Err(Problem::new(Code::Busy, text))
            }
            None => {
                taken.extend(disks.iter().map(|disk| (disk.clone(), doing)));
                drop(taken);
                Ok(Turn { turns: self, disks, doing })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Doing)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Goes on with these disks only.
    pub(super) fn keep(&mut self, is_kept: impl Fn(&str) -> bool) {
        let (kept, others) = std::mem::take(&mut self.disks).into_iter().partition(|disk| is_kept(disk));
        self.disks = kept;
        self.end(&others);
    }

    fn end(&self, disks: &[String]) {
        let mut taken = self.turns.lock();
        for disk in disks {
            let place = taken.iter().position(|(other, doing)| other == disk && *doing == self.doing);
            place.map(|place| taken.swap_remove(place));
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.end(&self.disks);
    }
}
