//! What the front-end of a disk knows of its configuration, kept while the daemon is away.
//!
//! A front-end that comes back does not read the configuration again, and does not repeat that its guest has switched to
//! write-through (QEMU 10). To have it read what has not changed is not harmless: its guest logs a new size, and is shown
//! a cache mode that it has not chosen. So what it knows is kept beside the disk, as an attribute of the file. A guest that
//! only reads has nothing written to the media: the attribute waits until it has written as well. Until then a
//! daemon that is killed is forgotten, and the front-end is told to read the configuration anew.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};

use super::session::{Session, State};
use super::vring::Vring;
use crate::disk::{Disk, Durability};
use crate::log::Cause;

/// The attribute: of files, and of devices, which have none for users.
const NAMES: [&str; 2] = ["user.vhost-user-pmem", "trusted.vhost-user-pmem"];

/// Longer than any value of ours.
const MAX_BYTES: usize = 64;

/// What a front-end knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Size of the disk in sectors; 0 where that is not known.
    pub capacity_sectors: u64,
    /// The cache mode that its guest has chosen, if it has.
    pub writeback: Option<bool>,
}

/// What the front-end whose rings ran last knows, if that is known.
#[derive(Debug, Default)]
pub struct Memo {
    /// Whose attribute it is; none for as long as this process lives only.
    path: Option<PathBuf>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    known: Option<Known>,
    /// What the attribute says.
    stored: Option<Known>,
    /// The media is written to anyway, or there is none.
    may_store: bool,
}

impl Memo {
    /// What an earlier process has left at the file or device of this path.
    pub fn of(path: Option<PathBuf>, durability: Durability) -> Self {
        let known = path.as_deref().and_then(read);
        let may_store = durability == Durability::Volatile;
        Self { path, kept: Mutex::new(Kept { known, stored: known, may_store }) }
    }

    /// What is known.
    pub fn known(&self) -> Option<Known> {
        self.lock().known
    }

    /// As [`known`](Self::known), with what another process has left meanwhile: a guest may come from there.
    fn look(&self) -> Option<Known> {
        let mut kept = self.lock();
        if let Some(left) = self.path.as_deref().and_then(read) {
            (kept.known, kept.stored) = (Some(left), Some(left));
        }
        kept.known
    }

    /// Changes it. Where it cannot be kept, a later process asks for nothing: it has the front-end read anew.
    pub fn note(&self, change: impl FnOnce(Option<Known>) -> Option<Known>) {
        let mut kept = self.lock();
        kept.known = change(kept.known);
        self.store(&mut kept);
    }

    /// The guest has changed what is on the media, or has said how that is to be done: what is known may be kept there.
    pub fn media_is_written(&self) {
        let mut kept = self.lock();
        kept.may_store = true;
        self.store(&mut kept);
    }

    fn store(&self, kept: &mut Kept) {
        if !kept.may_store || kept.known == kept.stored {
            return;
        }
        if let Some(path) = &self.path {
            write(path, kept.known);
        }
        kept.stored = kept.known;
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk> Session<D> {
    /// Before the first ring of a front-end: what its guest has chosen goes on to hold, if the guest is not new. It is not
    /// where the front-end comes back, or has got it from another one (a migration), which has read the configuration as
    /// that of a new guest.
    pub(super) fn recall_cache_mode(&self, state: &State<D>) {
        let has_read = self.config_notifier.has_read();
        if state.has_loaded_mode || has_read && state.vrings.iter().all(Vring::is_at_start) {
            return;
        }
        let known = self.context.memo.as_ref().and_then(Memo::look);
        if known.and_then(|known| known.writeback) == Some(false) {
            if has_read && self.cache.show_writeback(false) {
                self.config_notifier.mark_stale();
            }
            self.cache.set_writeback(false);
        }
    }

    /// A ring runs: its front-end is told to read the configuration, if that is not what it knows.
    pub(super) fn ring_runs(&self) {
        let known = || self.context.memo.as_ref().and_then(Memo::known);
        let is_known = || known().is_some_and(|known| known.capacity_sectors == self.capacity_sectors());
        let told = self.config_notifier.ring_started(is_known);
        self.note(self.log_notified(told));
    }

    /// The configuration is another than it was.
    pub(super) fn config_changed(&self) {
        if self.log_notified(self.config_notifier.config_changed()) {
            self.note(true);
        }
    }

    /// What a front-end whose rings run knows from now on: its guest's choice, and the size if it has been told.
    pub(super) fn note(&self, is_told: bool) {
        let Some(memo) = &self.context.memo else { return };
        let (capacity_sectors, chosen) = (self.capacity_sectors(), self.cache.chosen());
        memo.note(|before| {
            let before = before.unwrap_or(Known { capacity_sectors: 0, writeback: None });
            let capacity_sectors = if is_told { capacity_sectors } else { before.capacity_sectors };
            Some(Known { capacity_sectors, writeback: chosen.or(before.writeback) })
        });
    }

    pub(super) fn media_is_written(&self) {
        if let Some(memo) = &self.context.memo {
            memo.media_is_written();
        }
    }

    fn capacity_sectors(&self) -> u64 {
        self.context.device.config_space(true).limits.capacity_sectors
    }

    fn log_notified(&self, told: std::io::Result<bool>) -> bool {
        if let Err(error) = &told
            && let Some(suppressed) = self.context.log_limit.admit(Cause::Channel)
        {
            let (disk, session) = (self.disk(), self.id());
            tracing::warn!(disk, session, %error, suppressed, "cannot announce the configuration");
        }
        told.unwrap_or(false)
    }
}

fn read(path: &Path) -> Option<Known> {
    NAMES.iter().find_map(|name| {
        let mut bytes = [0; MAX_BYTES];
        let len = getxattr(path, *name, &mut bytes).ok()?;
        parse(std::str::from_utf8(bytes.get(..len)?).ok()?)
    })
}

fn write(path: &Path, known: Option<Known>) {
    // What is not so any more is worse than nothing.
    NAMES.iter().for_each(|name| _ = removexattr(path, *name));
    let Some(known) = known else { return };
    let text = text(known);
    let set = |name: &&str| setxattr(path, *name, text.as_bytes(), XattrFlags::empty()).is_ok();
    if !NAMES.iter().any(set) {
        tracing::debug!(path = %path.display(), "what the front-end knows cannot be kept as an attribute");
    }
}

fn text(known: Known) -> String {
    let mode = match known.writeback {
        None => "unknown",
        Some(true) => "writeback",
        Some(false) => "writethrough",
    };
    format!("{} {mode}", known.capacity_sectors)
}

fn parse(text: &str) -> Option<Known> {
    let (sectors, mode) = text.split_once(' ')?;
    let writeback = match mode {
        "unknown" => None,
        "writeback" => Some(true),
        "writethrough" => Some(false),
        _ => return None,
    };
    Some(Known { capacity_sectors: sectors.parse().ok()?, writeback })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for writeback in [None, Some(true), Some(false)] {
            for capacity_sectors in [0, 1, u64::MAX] {
                let known = Known { capacity_sectors, writeback };
                assert_eq!(parse(&text(known)), Some(known));
                assert!(text(known).len() <= MAX_BYTES);
            }
        }
        for text in ["", "1", "1 ", " writeback", "x writeback", "1 writeback "] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    #[allow(clippy::print_stderr, reason = "whoever runs the tests is told what is skipped")]
    fn it_outlives_who_wrote_it() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = folder.path().join("disk.img");
        std::fs::write(&file, "").unwrap();
        if setxattr(&file, "user.test", b"", XattrFlags::empty()).is_err() {
            eprintln!("skipped: no attributes in /dev/shm");
            return;
        }
        let known = Known { capacity_sectors: 7, writeback: Some(false) };
        let memo = |durability| Memo::of(Some(file.clone()), durability);
        assert_eq!(memo(Durability::Volatile).known(), None);
        memo(Durability::Volatile).note(|_| Some(known));
        assert_eq!(memo(Durability::Page).known(), Some(known));
        memo(Durability::Page).note(|_| None);
        let last = memo(Durability::CacheLine);
        assert_eq!(last.known(), Some(known), "media is not written to for it alone");
        last.note(|_| None);
        last.media_is_written();
        assert_eq!(memo(Durability::Page).known(), None);
    }
}
