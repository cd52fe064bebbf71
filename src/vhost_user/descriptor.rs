//! The kind of a descriptor that a front-end hands over: found out before it is used, by calls that cannot block.
//!
//! A file may be anything: one of another user's FUSE mount is read, polled and even closed by asking his program, which may
//! never answer. So only what the kernel knows by itself is asked here: whether calls that are for one kind only take it,
//! the name it has in `/proc/self/fd`, its type as far as it is known (`AT_STATX_DONT_SYNC`), and what is mounted where it
//! lies.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType as Type, OFlags, Statx, StatxFlags, statx};
use rustix::net::{AddressFamily, sockopt};
use vhost::vhost_user::message::FrontendReq;

use crate::disk::KeptFile;
use crate::worker::{is_eventfd, link};

/// File systems that only the kernel implements. The others may depend on a program (FUSE), or on another machine (NFS).
const LOCAL: [&str; 13] = [
    "bcachefs",
    "btrfs",
    "devtmpfs",
    "erofs",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hugetlbfs",
    "ramfs",
    "tmpfs",
    "xfs",
    "zfs",
];

/// Longest name of a file that is shown in the log.
const MOST_LETTERS: usize = 128;

/// What a descriptor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Event,
    /// A Unix socket of any type.
    Socket,
    Pipe,
    /// A file in memory, or of a local file system.
    File,
    /// A device-DAX node.
    DeviceDax,
    /// Anything else, which is taken for no purpose: a description.
    Other(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Event => "an eventfd",
            Self::Socket => "a Unix socket",
            Self::Pipe => "a pipe",
            Self::File => "a file",
            Self::DeviceDax => "a device-DAX node",
            Self::Other(what) => what,
        })
    }
}

impl Kind {
    /// What it is.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Self {
        if rustix::fs::fcntl_getfl(fd).map_or(true, |flags| flags.contains(OFlags::PATH)) {
            return Self::named(fd, "opened as a path only");
        }
        if let Ok(family) = sockopt::socket_domain(fd) {
            return match family {
                AddressFamily::UNIX => Self::Socket,
                _ => Self::Other("a socket that is no Unix socket".into()),
            };
        }
        // Only files in memory have seals: of tmpfs, of hugetlbfs, memfds.
        if rustix::fs::fcntl_get_seals(fd).is_ok() {
            return Self::File;
        }
        if is_eventfd(fd) {
            return Self::Event;
        }
        // F_GETPIPE_SZ would tell as well, but may block: it takes the pipe's lock, which a reader may hold.
        if link(fd).is_ok_and(|name| name.starts_with(b"pipe:[")) {
            return Self::Pipe;
        }
        let wanted = StatxFlags::TYPE | StatxFlags::MNT_ID;
        let Ok(status) = statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, wanted) else {
            return Self::named(fd, "of which nothing is known");
        };
        match Type::from_raw_mode(status.stx_mode.into()) {
            Type::RegularFile => Self::of_regular(fd, &status),
            Type::Fifo => Self::Pipe,
            Type::CharacterDevice if is_device_dax(&status) => Self::DeviceDax,
            Type::CharacterDevice => Self::named(fd, "a character device"),
            Type::BlockDevice => Self::named(fd, "a block device"),
            Type::Directory => Self::named(fd, "a folder"),
            _ => Self::named(fd, "not a file"),
        }
    }

    fn of_regular(fd: BorrowedFd<'_>, status: &Statx) -> Self {
        let mounts = mounts().and_then(|mounts| mounts.text().ok()).unwrap_or_default();
        let device = format!("{}:{}", status.stx_dev_major, status.stx_dev_minor);
        match file_system(&mounts, status.stx_mnt_id, &device) {
            Some(name) if LOCAL.contains(&name) => Self::File,
            Some(name) => Self::named(fd, &format!("on {name}, which others can make wait or fail")),
            None => Self::named(fd, "on a file system that is not mounted here"),
        }
    }

    /// Anything else, with the name that the kernel has for it.
    fn named(fd: BorrowedFd<'_>, what: &str) -> Self {
        let name = link(fd).unwrap_or_default();
        let name = String::from_utf8_lossy(&name);
        let shown: String = name.escape_debug().take(MOST_LETTERS).collect();
        Self::Other(format!("{shown} ({what})"))
    }

    /// Whether no call on it can block, close(2) included. A pipe is not harmless: closing it takes the pipe's lock, which a
    /// reader holds while its own memory is being fetched (userfaultfd).
    pub(super) const fn is_harmless(&self) -> bool {
        matches!(self, Self::Event | Self::Socket | Self::File | Self::DeviceDax)
    }

    /// Whether a device's state may go through it.
    pub(super) const fn is_stream(&self) -> bool {
        matches!(self, Self::Pipe | Self::Socket | Self::File)
    }
}

/// What is mounted where, opened by who asks first: before there is a front-end, and a child of this process has it, too.
pub(super) fn mounts() -> Option<&'static KeptFile> {
    static MOUNTS: OnceLock<Option<KeptFile>> = OnceLock::new();
    MOUNTS.get_or_init(|| KeptFile::open("/proc/self/mountinfo").ok()).as_ref()
}

/// The type of the file system of a mount; or, where the mount is none of ours, of one that has the same device.
fn file_system<'a>(mounts: &'a str, mount: u64, device: &str) -> Option<&'a str> {
    let is_mount = |line: &&str| line.split(' ').next().and_then(|id| id.parse().ok()) == Some(mount);
    let has_device = |line: &&str| line.split(' ').nth(2) == Some(device);
    let line = mounts.lines().find(is_mount).or_else(|| mounts.lines().find(has_device))?;
    let (_, after) = line.split_once(" - ")?;
    after.split(' ').next()
}

fn is_device_dax(status: &Statx) -> bool {
    let class = format!("/sys/dev/char/{}:{}/subsystem", status.stx_rdev_major, status.stx_rdev_minor);
    std::fs::read_link(class).is_ok_and(|class| class.ends_with("dax"))
}

/// The kinds of descriptor that a message accepts.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// What it is for.
    what: &'static str,
    kinds: &'static [Kind],
    /// The kinds in words.
    words: &'static str,
}

/// For signalling an event.
const SIGNALLED: (&[Kind], &str) = (&[Kind::Event, Kind::Socket], "an eventfd or a Unix socket");

/// For mapping: what stays there as long as it is mapped.
const MEMORY: (&[Kind], &str) = (
    &[Kind::File, Kind::DeviceDax],
    "a memfd, a file on tmpfs, hugetlbfs or a local file system, or device DAX",
);

/// For a stream of bytes.
const STREAM: (&[Kind], &str) = (
    &[Kind::Pipe, Kind::Socket, Kind::File],
    "a pipe, a Unix socket, or a file in memory or on a local file system",
);

const fn taken(request: FrontendReq) -> Option<Taken> {
    use FrontendReq as R;
    let (what, (kinds, words)): (_, (&[Kind], _)) = match request {
        R::SET_VRING_KICK => ("the kick", (&[Kind::Event], "an eventfd")),
        R::SET_VRING_CALL => ("the call", SIGNALLED),
        R::SET_VRING_ERR => ("the error descriptor", SIGNALLED),
        R::SET_LOG_BASE => ("the dirty log", MEMORY),
        R::SET_MEM_TABLE | R::ADD_MEM_REG => ("guest memory", MEMORY),
        R::SET_DEVICE_STATE_FD => ("the device's state", STREAM),
        R::SET_BACKEND_REQ_FD => ("the back-end's channel", (&[Kind::Socket], "a Unix socket")),
        _ => return None,
    };
    Some(Taken { what, kinds, words })
}

/// Why a message's descriptor of this kind is refused, if it is.
pub(super) fn refusal(request: FrontendReq, kind: &Kind) -> Option<String> {
    match taken(request) {
        Some(Taken { what, kinds, words }) if !kinds.contains(kind) => {
            Some(format!("{what} is {kind}; {words} is taken"))
        }
        None if !kind.is_harmless() => Some(format!("comes with {kind}")),
        _ => None,
    }
}
