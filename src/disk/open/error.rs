//! Why a path cannot be served as a disk.

use std::fmt;
use std::io;

use crate::disk::backing_path::BackingPath;
use crate::disk::failure::is_server_error;
use crate::disk::{Durability, FileKind, Holder};

/// What to do about a path that does not lead to a file or device.
pub(super) const PATH_REMEDY: &str = "correct path=, or repair what it leads to";

/// Why a path cannot be served as a disk. Nothing was changed, and nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing at the path, and nothing can be created there.
    #[error("{backing}: cannot {operation} it ({cause}); {remedy}")]
    Missing {
        /// Where.
        backing: BackingPath,
        /// "examine", "open" or "create".
        operation: &'static str,
        /// What is not there.
        cause: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// It is neither a file nor a device that can be a disk.
    #[error(
        "{backing}: cannot serve it (it is {what}; a disk is a regular file, a block device or device DAX); \
         give the path of one of these"
    )]
    NotRegular {
        /// Where.
        backing: BackingPath,
        /// What it is.
        what: FileKind,
    },
    /// A device that cannot be a disk as it is now.
    #[error("{backing}: cannot serve it ({cause}); {remedy}")]
    Unusable {
        /// Where.
        backing: BackingPath,
        /// What is wrong with it.
        cause: String,
        /// What to do.
        remedy: String,
    },
    /// A size that no disk can have.
    #[error("{backing}: cannot serve it ({cause}); {remedy}")]
    BadSize {
        /// Where.
        backing: BackingPath,
        /// Which size, and what is wrong with it.
        cause: String,
        /// What to do.
        remedy: String,
    },
    /// The file is smaller than what was asked for.
    #[error(
        "{backing}: cannot serve {size_bytes} bytes of it (the file has only {file_bytes} bytes); \
         lower size=, or make the file longer first"
    )]
    TooSmall {
        /// Where.
        backing: BackingPath,
        /// Bytes asked for.
        size_bytes: u64,
        /// Bytes that are there.
        file_bytes: u64,
    },
    /// The file's space cannot be allocated.
    #[error(
        "{backing}: cannot allocate its space (no space: {} needed, {}: {source}); {remedy}",
        ByteSize(*needed_bytes), Free(*free_bytes)
    )]
    NoSpace {
        /// Where.
        backing: BackingPath,
        /// Bytes to allocate.
        needed_bytes: u64,
        /// Bytes that were free; not every file system knows.
        free_bytes: Option<u64>,
        /// What to do.
        remedy: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// Another process has this file locked, and one of the two is to write.
    #[error(
        "{backing}: cannot lock it ({holder} already uses it); stop that one, serve it with readonly=on on both \
         sides, or use lock=wait on the destination of a migration"
    )]
    Locked {
        /// Where.
        backing: BackingPath,
        /// Who that is, as far as the kernel tells.
        holder: Holder,
    },
    /// A device that something else uses: a mount, another device upon it, another daemon.
    #[error(
        "{backing}: cannot open it for writing (the device is in use: mounted, part of another device, or served \
         already); unmount it, stop who uses it, or serve it with readonly=on"
    )]
    InUse {
        /// Where.
        backing: BackingPath,
    },
    /// Its durability is less than is required.
    #[error(
        "{backing}: cannot promise durability \"{}\" ({why}: it is \"{}\"); {}",
        required.word(), found.word(), durability_remedy(*required)
    )]
    NotDurable {
        /// Where.
        backing: BackingPath,
        /// The least that is required.
        required: Durability,
        /// What it is.
        found: Durability,
        /// Why it is not more.
        why: String,
    },
    /// The user, the file or the file system does not allow it.
    #[error("{backing}: cannot {operation} it ({source}); {remedy}")]
    Permission {
        /// Where.
        backing: BackingPath,
        /// What was tried.
        operation: &'static str,
        /// What to do.
        remedy: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// The system failed in another way.
    #[error("{backing}: cannot {operation} it ({source}); {remedy}")]
    Io {
        /// Where.
        backing: BackingPath,
        /// What was tried.
        operation: &'static str,
        /// What to do.
        remedy: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

impl OpenError {
    /// Sorts an error of the system into permissions and everything else.
    pub(in crate::disk) fn system(
        backing: &BackingPath,
        operation: &'static str,
        remedy: &'static str,
        source: io::Error,
    ) -> Self {
        let backing = backing.clone();
        let remedy = match source.raw_os_error() {
            Some(libc::EROFS) => "mount the file system for writing, or serve it with readonly=on",
            // `stat(2)` needs no right to the file itself.
            Some(libc::EACCES) if operation == "examine" => {
                "run as a user who may search all directories of its path, or allow that"
            }
            Some(libc::EACCES | libc::EPERM) if operation == "read" => "run as a user who may read it",
            Some(libc::EACCES | libc::EPERM) => {
                "run as a user who may read and write it, or serve it with readonly=on"
            }
            Some(libc::ETXTBSY) => "stop the program that runs from it",
            Some(code) if is_server_error(code) => {
                let remedy = "its file server does not answer: start it, or mount its file system anew";
                return Self::Io { backing, operation, remedy, source };
            }
            Some(libc::EDQUOT) => {
                let remedy = "raise the quota of its user, group or project, or free what counts against it";
                return Self::Io { backing, operation, remedy, source };
            }
            Some(libc::ENXIO | libc::ENODEV) if operation != "map" => {
                let remedy = "its device is gone or has no driver: bring it back";
                return Self::Io { backing, operation, remedy, source };
            }
            _ => return Self::Io { backing, operation, remedy, source },
        };
        Self::Permission { backing, operation, remedy, source }
    }
}

/// What to use for such durability.
const fn durability_remedy(required: Durability) -> &'static str {
    match required {
        Durability::Byte => {
            "use persistent memory whose persistence_domain is cpu_cache, or lower require-durable"
        }
        Durability::CacheLine => {
            "use device DAX, or a file on ext4, or on xfs made with -m reflink=0, mounted with -o dax on persistent \
             memory of this machine, or lower require-durable"
        }
        Durability::Page | Durability::Volatile => {
            "use a file on a disk or on persistent memory, or drop require-durable"
        }
    }
}

/// A number of bytes for people, with one decimal.
struct ByteSize(u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        for (unit, shift) in UNITS {
            let whole = self.0 >> shift;
            if whole != 0 {
                let tenths = ((u128::from(self.0) * 10) >> shift) % 10;
                return write!(f, "{whole}.{tenths} {unit}");
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

/// How much is free, in words.
struct Free(Option<u64>);

impl fmt::Display for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{} free", ByteSize(bytes)),
            None => f.write_str("free space unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn byte_sizes_read_well() {
        let cases = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536 << 10, "1.5 MiB"),
            ((10 << 30) - 1, "9.9 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ];
        for (bytes, words) in cases {
            assert_eq!(ByteSize(bytes).to_string(), words);
        }
    }

    #[test]
    fn permissions_are_told_from_other_errors() {
        let backing = BackingPath::of_disk("db0", Path::new("/a"));
        let error = |code| OpenError::system(&backing, "open", "remedy", io::Error::from_raw_os_error(code));
        for code in [libc::EROFS, libc::EACCES, libc::EPERM, libc::ETXTBSY] {
            assert!(matches!(error(code), OpenError::Permission { .. }), "{code}");
        }
        assert_eq!(
            error(libc::EIO).to_string(),
            "disk \"db0\": /a: cannot open it (Input/output error (os error 5)); remedy"
        );
    }

    #[test]
    fn what_is_not_durable_says_why_and_what_to_do() {
        let error = OpenError::NotDurable {
            backing: BackingPath::of_disk("db0", Path::new("/dev/shm/a")),
            required: Durability::Page,
            found: Durability::Volatile,
            why: "memory does not outlive the machine".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            "disk \"db0\": /dev/shm/a: cannot promise durability \"page\" (memory does not outlive the machine: \
             it is \"volatile\"); use a file on a disk or on persistent memory, or drop require-durable"
        );
    }

    #[test]
    fn a_lock_names_its_holder() {
        let locked = |pid, command: Option<&str>| {
            let holder = Holder { pid, command: command.map(str::to_owned) };
            OpenError::Locked { backing: BackingPath::of_path(Path::new("/a")), holder }.to_string()
        };
        assert!(locked(Some(1), None).starts_with("/a: cannot lock it (process 1 already uses it); stop"));
        assert!(locked(Some(1), Some("qemu-img")).contains("(process 1 (qemu-img) already uses"));
        assert!(locked(None, None).contains("(another process already uses"));
        assert!(
            locked(Some(std::process::id()), None).contains("(another disk of this process already uses")
        );
    }
}
