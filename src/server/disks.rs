//! The disks that are served now. Whoever deals with all of them looks here each time, and keeps none of them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::file_watches::FileWatch;
use super::open::DiskSummary;
use super::rescan::Rescan;
use crate::config::{ConfigError, SocketSource, Throttling};
use crate::disk::Disk;
use crate::vhost_user::SessionContext;
use crate::virtio::blk::RingCounters;

/// A disk's number: no other disk of the server ever has it.
pub(super) type DiskNumber = u64;

/// A disk that is served.
#[derive(Debug)]
pub(super) struct Served<D: Disk> {
    pub(super) number: DiskNumber,
    pub(super) context: Arc<SessionContext<D>>,
    /// None where somebody else has opened it.
    pub(super) summary: Option<DiskSummary>,
    /// Ended when it is removed.
    pub(super) watch: Option<FileWatch>,
    /// The highest that were seen by whoever collects them.
    pub(super) seen: Mutex<RingCounters>,
    /// Its size is read again.
    pub(super) rescan: Rescan,
    /// Its name and socket are its own until its file is closed.
    pub(super) claim: Claim,
    /// Its media had not answered for long when that was last looked at.
    pub(super) hangs: AtomicBool,
    is_leaving: AtomicBool,
    /// What limits it.
    pub(super) throttling: Mutex<Throttling>,
}

impl<D: Disk> Served<D> {
    pub(super) fn name(&self) -> &str {
        &self.context.device.identity().name
    }

    /// What it is limited to.
    pub(super) fn throttling(&self) -> Throttling {
        self.lock_throttling().clone()
    }

    pub(super) fn lock_throttling(&self) -> MutexGuard<'_, Throttling> {
        self.throttling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has asked its media for longest and has no answer to: requests aside.
    pub(super) fn waits_for(&self) -> Option<(&'static str, Instant)> {
        let record = self.context.config_record.as_ref().and_then(|record| record.asked_since());
        let waits = [("configuration record", record), ("size", self.rescan.since())];
        waits.into_iter().filter_map(|(what, since)| Some((what, since?))).min_by_key(|(_, since)| *since)
    }

    /// It is about to be removed: nothing is begun with it any more.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// Holes are left as they are.
    pub(super) fn is_sparse(&self) -> bool {
        self.summary.as_ref().is_none_or(|summary| summary.sparse)
    }

    /// It is to be removed. False if somebody else has said so already.
    pub(super) fn leaves(&self) -> bool {
        !self.is_leaving.swap(true, Ordering::AcqRel)
    }

    /// It is not removed after all.
    pub(super) fn stays(&self) {
        self.is_leaving.store(false, Ordering::Release);
    }
}

/// All of them, in the order in which they came.
#[derive(Debug)]
pub(super) struct Disks<D: Disk> {
    served: Mutex<Vec<Arc<Served<D>>>>,
    claims: Arc<Claims>,
    next: AtomicU64,
    /// Held by who changes limits.
    pub(super) throttling: Mutex<()>,
}

impl<D: Disk> Default for Disks<D> {
    fn default() -> Self {
        Self {
            served: Mutex::default(),
            claims: Arc::default(),
            next: AtomicU64::new(0),
            throttling: Mutex::default(),
        }
    }
}

impl<D: Disk> Disks<D> {
    /// The disks of now. They stay open for as long as this is kept: not while one waits.
    pub(super) fn all(&self) -> Vec<Arc<Served<D>>> {
        self.lock().clone()
    }

    /// The disk of this name.
    pub(super) fn named(&self, name: &str) -> Option<Arc<Served<D>>> {
        self.lock().iter().find(|disk| disk.name() == name).cloned()
    }

    /// Adds one.
    pub(super) fn add(
        &self,
        context: Arc<SessionContext<D>>,
        summary: Option<DiskSummary>,
        watch: Option<FileWatch>,
        claim: Claim,
    ) -> Arc<Served<D>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let [hangs, is_leaving] = [const { AtomicBool::new(false) }; 2];
        let (seen, rescan, throttling) = (Mutex::default(), Rescan::default(), Mutex::default());
        let served = Arc::new(Served {
            number,
            context,
            summary,
            watch,
            seen,
            rescan,
            claim,
            hangs,
            is_leaving,
            throttling,
        });
        self.lock().push(served.clone());
        served
    }

    /// Removes one.
    pub(super) fn remove(&self, number: DiskNumber) {
        self.lock().retain(|disk| disk.number != number);
    }

    /// Keeps a name and a socket for a disk that is about to come.
    ///
    /// # Errors
    /// [`ConfigError`]: another disk has one of them, or cannot be beside it.
    pub(super) fn claim(
        &self,
        name: &str,
        socket: Option<PathBuf>,
        postcopy: bool,
    ) -> Result<Claim, ConfigError> {
        Claim::new(&self.claims, name, socket, postcopy)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Served<D>>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What belongs to one disk alone: of disks that are served, about to come, or not quite gone.
#[derive(Debug, Default)]
struct Claims(Mutex<Claimed>);

#[derive(Debug, Default)]
struct Claimed {
    /// By their names; whether a disk is to be alone (postcopy).
    names: HashMap<String, bool>,
    /// The names of the disks that they belong to.
    sockets: HashMap<PathBuf, String>,
}

/// Given up when it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Arc<Claims>,
    name: String,
    socket: Option<PathBuf>,
}

impl Claim {
    fn new(
        claims: &Arc<Claims>,
        name: &str,
        socket: Option<PathBuf>,
        is_alone: bool,
    ) -> Result<Self, ConfigError> {
        let mut claimed = claims.lock();
        let name = name.to_owned();
        if claimed.names.contains_key(&name) {
            return Err(ConfigError::SameName { name });
        }
        if let Some((path, first)) = socket.as_ref().and_then(|path| claimed.sockets.get_key_value(path)) {
            return Err(ConfigError::SameSocket { first: first.clone(), second: name, path: path.clone() });
        }
        let others = claimed.names.len();
        let alone = claimed.names.iter().find(|(_, is_alone)| **is_alone).map(|(name, _)| name);
        if let Some(alone) = alone.or_else(|| (is_alone && others != 0).then_some(&name)) {
            return Err(ConfigError::PostcopyBeside { disk: alone.clone(), others });
        }
        claimed.names.insert(name.clone(), is_alone);
        if let Some(path) = &socket {
            claimed.sockets.insert(path.clone(), name.clone());
        }
        drop(claimed);
        Ok(Self { claims: claims.clone(), name, socket })
    }
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, Claimed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = self.claims.lock();
        claimed.names.remove(&self.name);
        if let Some(path) = &self.socket {
            claimed.sockets.remove(path);
        }
    }
}

/// The path of a socket, to be claimed.
pub(super) fn path_of(socket: &SocketSource) -> Option<PathBuf> {
    socket.path().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(claims: &Arc<Claims>, name: &str, socket: &str, postcopy: bool) -> Result<Claim, ConfigError> {
        Claim::new(claims, name, Some(socket.into()), postcopy)
    }

    #[test]
    fn a_name_and_a_socket_are_kept_until_their_disk_is_gone() {
        let claims = Arc::default();
        let a = claim(&claims, "a", "/a", false).unwrap();
        let same_name = claim(&claims, "a", "/b", false).unwrap_err();
        assert_eq!(same_name, ConfigError::SameName { name: "a".into() });
        let same_socket = claim(&claims, "b", "/a", false).unwrap_err();
        assert_eq!(
            same_socket,
            ConfigError::SameSocket { first: "a".into(), second: "b".into(), path: "/a".into() }
        );
        let inherited = ["c", "d"].map(|name| Claim::new(&claims, name, None, false).unwrap());
        drop((a, inherited));
        assert!(claim(&claims, "a", "/a", false).is_ok());
    }

    #[test]
    fn a_disk_with_postcopy_stays_alone() {
        let claims = Arc::default();
        let alone = claim(&claims, "p", "/p", true).unwrap();
        let beside = ConfigError::PostcopyBeside { disk: "p".into(), others: 1 };
        assert_eq!(claim(&claims, "a", "/a", false).unwrap_err(), beside);
        drop(alone);
        let _other = claim(&claims, "a", "/a", false).unwrap();
        assert_eq!(claim(&claims, "p", "/p", true).unwrap_err(), beside);
    }
}
