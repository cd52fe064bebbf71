//! Who has a file locked.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::OnceLock;

use crate::disk::kept_file::KeptFile;

/// Who has a file locked, as far as the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process; none where it is hidden from this user, on another machine, or in another container.
    pub pid: Option<u32>,
    /// The name of its program, at most 15 characters.
    pub command: Option<String>,
}

impl Holder {
    /// Who has this file locked; none where nobody has, or where that cannot be learnt.
    pub(in crate::disk) fn of(metadata: &Metadata) -> Option<Self> {
        let locks = locks()?.text().ok()?;
        let found = LockOwner::in_locks(&locks, metadata.dev(), metadata.ino());
        match found {
            LockOwner::Process(pid) => Some(Self::process(pid)),
            LockOwner::Unknown => Some(process_with_lock(metadata).map_or(Self::unknown(), Self::process)),
            // The numbers of devices there are not those of `stat(2)` on every file system (btrfs).
            LockOwner::Possible => process_with_lock(metadata).map(Self::process),
            LockOwner::Nobody => None,
        }
    }

    pub(in crate::disk) const fn unknown() -> Self {
        Self { pid: None, command: None }
    }

    /// Whether it is a process that has ended, and has the lock only until the kernel has closed its files.
    pub(super) fn has_ended(&self) -> bool {
        self.pid.is_some_and(|pid| match fs::read_to_string(format!("/proc/{pid}/stat")) {
            // The state follows the name, which may have any characters: a zombie, or dead.
            Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['Z', 'X'])),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        })
    }

    fn process(pid: u32) -> Self {
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        Self { pid: Some(pid), command: command.map(|it| it.trim_end().to_owned()) }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, &self.command) {
            (Some(pid), _) if pid == std::process::id() => f.write_str("another disk of this process"),
            (Some(pid), Some(command)) => write!(f, "process {pid} ({command})"),
            (Some(pid), None) => write!(f, "process {pid}"),
            (None, _) => f.write_str("another process"),
        }
    }
}

/// The kernel's list of locks, opened by who asks first: when a disk is opened.
pub(super) fn locks() -> Option<&'static KeptFile> {
    static LOCKS: OnceLock<Option<KeptFile>> = OnceLock::new();
    LOCKS.get_or_init(|| KeptFile::open("/proc/locks").ok()).as_ref()
}

/// What `/proc/locks` says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LockOwner {
    Process(u32),
    /// A lock of an open file description: it belongs to no process.
    Unknown,
    /// A file with this number, perhaps of another file system.
    Possible,
    Nobody,
}

impl LockOwner {
    /// Reads lines like `3: FLOCK  ADVISORY  WRITE 4711 fe:00:131074 0 EOF` and `4: OFDLCK ADVISORY  READ -1 fe:00:131074 100
    /// 101`. Who waits for a lock has `->` before the kind.
    fn in_locks(locks: &str, dev: u64, ino: u64) -> Self {
        let file = format!("{:02x}:{:02x}:{ino}", rustix::fs::major(dev), rustix::fs::minor(dev));
        let inode = format!(":{ino}");
        let mut found = Self::Nobody;
        for line in locks.lines() {
            let mut words = line.split_ascii_whitespace().skip(1);
            let is_lock = matches!(words.next(), Some("FLOCK" | "POSIX" | "OFDLCK"));
            let (Some(pid), Some(of)) = (words.nth(2), words.next()) else { continue };
            match pid.parse() {
                _ if !is_lock => {}
                Ok(pid) if of == file => return Self::Process(pid),
                Err(_) if of == file => found = Self::Unknown,
                _ if of.ends_with(&inode) && found == Self::Nobody => found = Self::Possible,
                _ => {}
            }
        }
        found
    }
}

/// The process whose open file has a lock on this one, if this user may see it.
fn process_with_lock(metadata: &Metadata) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| has_lock(Path::new(&format!("/proc/{pid}")), metadata))
}

fn has_lock(process: &Path, metadata: &Metadata) -> bool {
    let Ok(files) = fs::read_dir(process.join("fdinfo")) else { return false };
    let inode = format!(":{} ", metadata.ino());
    files.flatten().any(|file| {
        let info = fs::read_to_string(file.path()).unwrap_or_default();
        // Only files with such a lock are asked for their inode: `stat` of a file whose server is gone may take for ever.
        let has_such = info.lines().any(|line| line.starts_with("lock:") && line.contains(&inode));
        let is_same = |it: Metadata| (it.dev(), it.ino()) == (metadata.dev(), metadata.ino());
        has_such && fs::metadata(process.join("fd").join(file.file_name())).is_ok_and(is_same)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_by_device_and_inode() {
        let locks = "1: LEASE  ADVISORY  WRITE 1 fe:00:7 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4711 fe:00:7 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 12 fe:00:8 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 13 fe:01:8 0 EOF\n\
                     4: OFDLCK ADVISORY  READ -1 fe:00:9 100 101\n\
                     5: POSIX  ADVISORY  WRITE 77 fe:00:9 0 EOF\n\
                     6: OFDLCK ADVISORY  READ -1 fe:00:10 100 101\n\
                     7: junk";
        let found = |minor, ino| LockOwner::in_locks(locks, rustix::fs::makedev(0xfe, minor), ino);
        assert_eq!(found(0, 7), LockOwner::Process(4711));
        assert_eq!(found(1, 8), LockOwner::Process(13));
        assert_eq!(found(0, 9), LockOwner::Process(77));
        assert_eq!(found(0, 10), LockOwner::Unknown);
        assert_eq!(found(0, 8), LockOwner::Possible, "as btrfs calls it");
        assert_eq!(found(0, 1), LockOwner::Nobody);
    }
}
