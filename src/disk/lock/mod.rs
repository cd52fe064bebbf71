//! One writer at a time: locks on the backing that other processes respect.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

use self::holder::Holder;
use crate::disk::backing_path::BackingPath;
use crate::limits::bounds::ENDED_HOLDER_TIMEOUT;

pub(in crate::disk) mod holder;
mod image_lock;

/// When the backing is locked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LockMode {
    /// When it is opened.
    #[default]
    On,
    /// When its first ring starts: for the destination of a migration. At once where it is only read: readers wait for
    /// nobody, and hand over to nobody.
    Wait,
    /// Never: for file systems without locks.
    Off,
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Wait => "wait",
            Self::Off => "off",
        })
    }
}

/// A word that is no [`LockMode`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a lock mode; use on, wait or off")]
pub struct UnknownLockMode(pub String);

impl FromStr for LockMode {
    type Err = UnknownLockMode;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "on" => Ok(Self::On),
            "wait" => Ok(Self::Wait),
            "off" => Ok(Self::Off),
            _ => Err(UnknownLockMode(word.to_owned())),
        }
    }
}

/// After such a pause a lock whose process has ended is tried again.
const ENDED_HOLDER_PAUSE: Duration = Duration::from_millis(10);

/// The lock of a disk's backing could not be taken or given back.
#[derive(Debug, thiserror::Error)]
#[error("{backing}: cannot {operation} it ({source}); {REMEDY}")]
pub struct LockError {
    backing: BackingPath,
    operation: &'static str,
    source: io::Error,
}

/// What to do where the file system cannot lock.
pub(in crate::disk) const REMEDY: &str =
    "if its file system has no locks, make sure that nobody else serves it and use lock=off";

/// A backing's open file, shared by its disk and its lock; whoever drops it last unlocks it.
///
/// Closing it is not enough: a child of this process that is between fork and exec has it open, too.
#[derive(Debug)]
pub struct BackingFile(File);

impl From<File> for BackingFile {
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl Deref for BackingFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl AsFd for BackingFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for BackingFile {
    fn drop(&mut self) {
        // Best effort: a file system without locks has nothing to unlock.
        let _ = image_lock::release(&self.0);
        let _ = flock(&self.0, FlockOperation::NonBlockingUnlock);
    }
}

/// The locks of a backing: its `flock(2)`, exclusive for a disk that is written, shared for one that is only read, and
/// with the same meaning those that QEMU knows (`image_lock`). Either both are held or none.
///
/// This value shares the open file with the [`Disk`](crate::disk::Disk) opened together with it: once taken, the
/// lock lasts until [`release`](Self::release), or until both are dropped. It belongs to the open file
/// description, so that two disks of one process exclude each other as well.
#[derive(Debug)]
pub struct FileLock {
    /// None where there is nothing to lock.
    file: Option<Arc<BackingFile>>,
    backing: BackingPath,
    mode: LockMode,
    read_only: bool,
    /// Whether the locks were taken, and not given back.
    is_held: AtomicBool,
}

impl FileLock {
    /// Of `file`; nothing is taken yet.
    pub(in crate::disk) fn new(
        file: Arc<BackingFile>,
        backing: &BackingPath,
        mode: LockMode,
        read_only: bool,
    ) -> Self {
        if mode != LockMode::Off && !image_lock::is_supported(&file) {
            tracing::warn!("{backing}: its file system has no locks that QEMU could see");
        }
        // Who has it is asked when it cannot be opened any more.
        let _ = holder::locks();
        let is_held = AtomicBool::new(false);
        Self { file: Some(file), backing: backing.clone(), mode, read_only, is_held }
    }

    /// Takes what the mode says is taken when the disk is opened; `false` when somebody else has it. One who has ended is
    /// waited for, since a process that was killed is to be replaced at once: [`ENDED_HOLDER_TIMEOUT`] at the most.
    ///
    /// # Errors
    /// The file system cannot lock; [`REMEDY`] says what to do.
    pub(in crate::disk) fn acquire_when_opened(&self) -> io::Result<bool> {
        let is_due = self.mode == LockMode::On || (self.mode == LockMode::Wait && self.read_only);
        let started = Instant::now();
        while is_due && !self.try_both()? {
            let Some(holder) = self.holder().filter(|holder| holder.pid.is_some()) else {
                // Given back since it was tried, or who has it cannot be learnt.
                std::thread::sleep(ENDED_HOLDER_PAUSE);
                return self.try_both();
            };
            if !holder.has_ended() || started.elapsed() >= ENDED_HOLDER_TIMEOUT {
                return Ok(false);
            }
            std::thread::sleep(ENDED_HOLDER_PAUSE);
        }
        Ok(true)
    }

    /// Of a disk that is no file: there is nothing to lock.
    pub fn none() -> Self {
        let (backing, is_held) = (BackingPath::of_path(Path::new("")), AtomicBool::new(false));
        Self { file: None, backing, mode: LockMode::Off, read_only: false, is_held }
    }

    /// When it is taken.
    pub const fn mode(&self) -> LockMode {
        self.mode
    }

    /// Takes the lock without waiting; `false` when somebody else has it. Taking it twice is taking it once.
    /// With [`LockMode::Off`] there is nothing to take, and the answer is `true`.
    ///
    /// Call it before the disk's first ring starts.
    ///
    /// # Errors
    /// [`LockError`] when the file system cannot lock.
    pub fn try_acquire(&self) -> Result<bool, LockError> {
        match self.mode {
            LockMode::Off => Ok(true),
            LockMode::On | LockMode::Wait => self.try_both().map_err(|source| self.error("lock", source)),
        }
    }

    /// Gives the lock back with [`LockMode::Wait`], so that the destination of a migration can have it.
    /// [`LockMode::On`] keeps it: a guest that reboots stops its rings too, and nobody may slip in then.
    ///
    /// Call it when the disk's last ring has stopped and nothing of it is written any more.
    ///
    /// # Errors
    /// [`LockError`] when the file system fails to.
    pub fn release(&self) -> Result<(), LockError> {
        if self.mode == LockMode::Wait && !self.read_only { self.end() } else { Ok(()) }
    }

    /// Gives the lock back whatever its mode: nothing of the disk is written by this process any more.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub fn end(&self) -> Result<(), LockError> {
        match &self.file {
            Some(file) if self.mode != LockMode::Off => {
                if self.is_held.swap(false, Ordering::AcqRel) {
                    // First those that a waiter takes last. What fails here is given back when the file is closed.
                    let _ = image_lock::release(file);
                }
                unlock(file).map_err(|source| self.error("unlock", source))
            }
            _ => Ok(()),
        }
    }

    /// Who has the lock, where that can be learnt.
    pub fn holder(&self) -> Option<Holder> {
        Holder::of(&self.file.as_ref()?.metadata().ok()?)
    }

    fn try_both(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(true) };
        if self.is_held.load(Ordering::Acquire) {
            return Ok(true);
        }
        // First that which settles who of two of us is first: the other kind can refuse both.
        if !try_flock(file, self.read_only)? {
            return Ok(false);
        }
        let acquired = match image_lock::try_acquire(file, self.read_only) {
            Err(error) if image_lock::is_unsupported(&error) => Ok(true),
            acquired => acquired,
        };
        match acquired {
            Ok(true) => self.is_held.store(true, Ordering::Release),
            _ => unlock(file)?,
        }
        acquired
    }

    fn error(&self, operation: &'static str, source: io::Error) -> LockError {
        LockError { backing: self.backing.clone(), operation, source }
    }
}

fn try_flock(file: &File, read_only: bool) -> io::Result<bool> {
    let operation = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    match retry_on_intr(|| flock(file, operation)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn unlock(file: &File) -> io::Result<()> {
    Ok(retry_on_intr(|| flock(file, FlockOperation::NonBlockingUnlock))?)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// None where somebody else has what is due when a disk is opened.
    fn lock(path: &Path, mode: LockMode, read_only: bool) -> Option<FileLock> {
        let file = File::options().read(true).write(!read_only).open(path).unwrap();
        let backing = BackingPath::of_disk("db0", path);
        let lock = FileLock::new(Arc::new(file.into()), &backing, mode, read_only);
        lock.acquire_when_opened().unwrap().then_some(lock)
    }

    #[test]
    fn modes_are_words() {
        for mode in [LockMode::On, LockMode::Wait, LockMode::Off] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        let error = "true".parse::<LockMode>().unwrap_err();
        assert_eq!(error.to_string(), "`true` is not a lock mode; use on, wait or off");
        assert_eq!(LockMode::default(), LockMode::On);
    }

    #[test]
    fn one_writer_or_many_readers_also_within_a_process() {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let writer = lock(file.path(), LockMode::On, false).unwrap();
        for read_only in [false, true] {
            assert!(lock(file.path(), LockMode::On, read_only).is_none());
        }
        assert_eq!(writer.holder().unwrap().pid, Some(std::process::id()));
        drop(writer);
        let readers = [true, true].map(|read_only| lock(file.path(), LockMode::On, read_only).unwrap());
        assert!(lock(file.path(), LockMode::On, false).is_none());
        drop(readers);
        lock(file.path(), LockMode::On, false).unwrap();
    }

    #[test]
    fn a_waiting_lock_is_handed_over() {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let source = lock(file.path(), LockMode::Wait, false).unwrap();
        let destination = lock(file.path(), LockMode::Wait, false).unwrap();
        assert!(source.try_acquire().unwrap());
        assert!(source.try_acquire().unwrap(), "it has it");
        assert!(!destination.try_acquire().unwrap());
        destination.release().unwrap();
        assert!(!destination.try_acquire().unwrap(), "one cannot release what another has");
        source.release().unwrap();
        assert!(destination.try_acquire().unwrap());
        assert!(!source.try_acquire().unwrap());
        destination.release().unwrap();
        assert!(source.try_acquire().unwrap());
    }

    #[test]
    fn a_lock_that_is_on_is_kept_while_rings_are_stopped() {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let writer = lock(file.path(), LockMode::On, false).unwrap();
        writer.release().unwrap();
        assert!(lock(file.path(), LockMode::On, false).is_none());
    }

    /// flock(1) locks the open file that it inherits, and ends: the lock stays while sleep(1) has that file, as a killed
    /// process's does while somebody has its memory.
    #[test]
    fn a_lock_of_a_process_that_has_ended_is_waited_for() {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let lock_for = |seconds: &str| {
            let script = format!("flock --exclusive --nonblock 0 && echo && exec sleep {seconds}");
            let mut command = Command::new("sh");
            let mut child = command
                .args(["-c", &script])
                .stdin(file.reopen().unwrap())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            child
        };
        let mut child = lock_for("0.2");
        drop(lock(file.path(), LockMode::On, false).unwrap());
        child.wait().unwrap();
        let mut child = lock_for("60");
        let started = Instant::now();
        assert!(lock(file.path(), LockMode::On, false).is_none());
        assert!(started.elapsed() >= ENDED_HOLDER_TIMEOUT, "it was not waited for");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn off_takes_nothing() {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let writer = lock(file.path(), LockMode::On, false).unwrap();
        let unlocked = lock(file.path(), LockMode::Off, false).unwrap();
        assert!(unlocked.try_acquire().unwrap());
        unlocked.release().unwrap();
        assert!(writer.try_acquire().unwrap());
        drop(writer);
        let _taken = lock(file.path(), LockMode::On, false).unwrap();
        assert_eq!(unlocked.mode(), LockMode::Off);
        let none = FileLock::none();
        assert!(none.try_acquire().unwrap());
        none.release().unwrap();
        assert_eq!(none.holder(), None);
    }

    #[test]
    fn the_lock_lasts_until_the_disk_is_dropped() {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let writer = lock(file.path(), LockMode::On, false).unwrap();
        let disk = writer.file.clone();
        drop(writer);
        assert!(lock(file.path(), LockMode::On, false).is_none());
        drop(disk);
        lock(file.path(), LockMode::On, false).unwrap();
    }

    /// As a child does that has not come to its exec yet.
    #[test]
    fn another_descriptor_does_not_keep_the_lock() {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let writer = lock(file.path(), LockMode::On, false).unwrap();
        let _inherited = writer.file.as_ref().unwrap().try_clone().unwrap();
        drop(writer);
        lock(file.path(), LockMode::On, false).unwrap();
    }

    #[test]
    fn a_lock_error_says_what_to_do() {
        let error = LockError {
            backing: BackingPath::of_disk("db0", Path::new("/mnt/a")),
            operation: "lock",
            source: Errno::NOLCK.into(),
        };
        assert_eq!(
            error.to_string(),
            "disk \"db0\": /mnt/a: cannot lock it (No locks available (os error 37)); if its file system has \
             no locks, make sure that nobody else serves it and use lock=off"
        );
    }
}
