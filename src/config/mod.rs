//! The validated configuration: typed, with no strings left to parse.

#[cfg(feature = "daemon")]
pub(crate) mod disk_text;
#[cfg(feature = "daemon")]
pub(crate) mod file;
mod groups;
#[cfg(feature = "daemon")]
pub(crate) mod identity;
#[cfg(feature = "daemon")]
pub(crate) mod json;
#[cfg(feature = "daemon")]
pub(crate) mod keys;
#[cfg(feature = "daemon")]
mod kind;
#[cfg(feature = "daemon")]
pub(crate) mod options;
#[cfg(feature = "daemon")]
pub(crate) mod size;
mod template;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub(crate) use groups::check_groups;
pub use groups::{GroupDisagrees, Throttling, ThrottlingChanges};
pub use template::Template;

use crate::disk::{DeepFlush, DiscardPolicy, Durability, LockMode, OverlayOptions, Symlinks};
pub use crate::limits::bounds::{MAX_QUEUES, MAX_SEG_MAX, MAX_SLOW_MS, SERIAL_BYTES};
use crate::throttle::{LimitError, Limits};
use crate::vhost_user::{AllowedUsers, SocketAccess};
use crate::virtio::blk::SEG_MAX;
use crate::worker::Cpus;
use crate::worker::Polling;

/// Queues offered when nothing is said: QEMU refuses to start with fewer than it has vCPUs, and a queue
/// costs something only once it is started.
pub const DEFAULT_QUEUES: NonZeroU16 = NonZeroU16::new(64).unwrap();

/// Logical block sizes in bytes that can be offered.
pub const BLOCK_SIZES: [u32; 2] = [512, 4096];

/// What one process serves.
#[derive(Debug)]
pub struct ServerConfig {
    /// The disks; more may come later, by [`Manager`](crate::server::Manager).
    pub disks: Vec<DiskConfig>,
    /// Worker threads; by default one per CPU that they may run on. Disks whose workers run on other CPUs
    /// than those of other disks have as many of their own.
    pub workers: Option<NonZeroU16>,
    /// How long a worker without requests waits for the next one awake.
    pub polling: Polling,
    /// Stop the server when the first front-end has left.
    pub exit_on_disconnect: bool,
    /// How long the end waits for media; by default [`STOP_TIMEOUT`](crate::limits::bounds::STOP_TIMEOUT).
    pub stop_timeout: Option<Duration>,
    /// Once it is set, a start that is under way is given up. A signal to its thread, with a handler, interrupts the system call
    /// it may be in, after which it reads this.
    pub should_stop: Arc<AtomicBool>,
}

/// One disk and the socket it is served on.
#[derive(Debug)]
pub struct DiskConfig {
    /// How logs, errors and metrics call it.
    pub name: String,
    /// The backing.
    pub path: PathBuf,
    /// Where front-ends come from.
    pub socket: SocketSource,
    /// Create the file with this many bytes, or insist that it has at least as many.
    pub size_bytes: Option<u64>,
    /// The serial number, padded with zero bytes.
    pub serial: Serial,
    /// Refuse writes and open the backing for reading only.
    pub read_only: bool,
    /// Logical block size in bytes, 512 or 4096; by default that of a device, or the smaller one.
    pub block_bytes: Option<u32>,
    /// Queues offered.
    pub queues: NonZeroU16,
    /// Most data segments of a request that drivers are told, 1 to [`MAX_SEG_MAX`]: a driver without indirect descriptors
    /// needs a ring of two more.
    pub seg_max: u16,
    /// Requests that take longer than so many milliseconds, at most [`MAX_SLOW_MS`], are named by the log; `None`: none are.
    pub slow_ms: Option<NonZeroU16>,
    /// Do not allocate the file's space at start.
    pub sparse: bool,
    /// What guests write is private, and the backing is only read.
    pub overlay: Option<OverlayOptions>,
    /// Each front-end gets a private disk in memory of its own; only with such an overlay.
    pub template: Template,
    /// How the backing is protected from a second writer.
    pub lock: LockMode,
    /// The least that a completed and flushed write must be worth; the server does not start otherwise.
    pub require_durable: Option<Durability>,
    /// What becomes of space that the guest does not need.
    pub discard: DiscardPolicy,
    /// When FLUSH empties the memory controller's queues.
    pub deep_flush: DeepFlush,
    /// Where the workers of its queues run.
    pub cpus: CpuChoice,
    /// Offer postcopy migration. Whoever connects can then reach all memory of the process, for as long as it lives
    /// (`userfaultfd(2)`): such a disk is the only one of its process.
    pub postcopy: bool,
    /// The permissions of the socket, where it has a path.
    pub access: SocketAccess,
    /// Whose processes may connect, whatever the permissions are. Not asked of a connection that is there already.
    pub allowed_users: AllowedUsers,
    /// Whether the backing's path may lead through symbolic links.
    pub symlinks: Symlinks,
    /// What its guests may do, at most.
    pub limits: Limits,
    /// The disks that share these limits; they all say the same ones.
    pub throttle_group: Option<String>,
}

impl DiskConfig {
    /// Whether the backing is not written to.
    pub const fn only_reads(&self) -> bool {
        self.read_only || self.overlay.is_some()
    }
}

/// Where workers run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CpuChoice {
    /// Wherever the process may.
    #[default]
    Any,
    /// On these CPUs.
    Set(Cpus),
    /// On the CPUs of the NUMA node that the backing belongs to, if Linux knows it.
    NearBacking,
}

/// Where front-ends come from.
#[derive(Debug)]
pub enum SocketSource {
    /// A path to listen on; a stale socket there is replaced.
    Path(PathBuf),
    /// An inherited descriptor: a listening socket, or one that is already connected.
    Fd(OwnedFd),
}

/// A disk's serial number as the guest reads it: up to 20 bytes, zero-padded, not terminated when full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Serial([u8; SERIAL_BYTES]);

/// A configuration that contradicts itself or leaves the limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is nothing to serve, and nothing may come.
    #[error("no disk is given; describe one, or let some be added later (--control)")]
    NoDisk,
    /// A name that logs cannot show.
    #[error("disk {name:?}: the name is empty or has control characters; use letters, digits, - and _")]
    BadName {
        /// The name.
        name: String,
    },
    /// Two disks with one name.
    #[error("disk {name:?}: two disks have this name; give each its own with name=")]
    SameName {
        /// The name.
        name: String,
    },
    /// Two disks on one socket.
    #[error(
        "disk {second:?}: its socket {} is already that of disk {first:?}; a socket serves one disk, give \
         each its own with socket=",
        path.display()
    )]
    SameSocket {
        /// The disk that has it.
        first: String,
        /// The disk that wants it too.
        second: String,
        /// The socket.
        path: PathBuf,
    },
    /// A block size that is not offered.
    #[error("disk {disk:?}: a logical block cannot have {block_bytes} bytes; it has 512 or 4096")]
    BlockSize {
        /// The disk's name.
        disk: String,
        /// What was asked for.
        block_bytes: u32,
    },
    /// Its front-end could reach the memory of other disks and of their guests.
    #[error(
        "disk {disk:?}: with postcopy=on its front-end can reach all memory of this process, which serves {others} \
         more: serve this disk from a process of its own, or without postcopy=on"
    )]
    PostcopyBeside {
        /// The disk's name.
        disk: String,
        /// How many other disks there are.
        others: usize,
    },
    /// No segment, or more than a request may have.
    #[error(
        "disk {disk:?}: {seg_max} data segments cannot be announced; at least 1 and at most {MAX_SEG_MAX} can"
    )]
    SegMax {
        /// The disk's name.
        disk: String,
        /// What was asked for.
        seg_max: u16,
    },
    /// Limits that make no sense.
    #[error("disk {disk:?}: {error}")]
    Limits {
        /// The disk's name.
        disk: String,
        /// Why.
        error: LimitError,
    },
    /// A group has one set of limits.
    #[error(transparent)]
    GroupDisagrees(#[from] GroupDisagrees),
    /// More queues than can be offered.
    #[error("disk {disk:?}: {queues} queues are too many; at most {MAX_QUEUES} can be offered")]
    TooManyQueues {
        /// The disk's name.
        disk: String,
        /// What was asked for.
        queues: u16,
    },
}

impl ServerConfig {
    /// Checks for contradictions that the configuration alone shows.
    ///
    /// # Errors
    /// The first [`ConfigError`] in the order of the disks.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_postcopy(self.disks.iter().map(|disk| (disk.name.as_str(), disk.postcopy)))?;
        check_groups(
            self.disks.iter().map(|disk| (&*disk.name, disk.throttle_group.as_deref(), &disk.limits)),
        )?;
        // As there may be thousands of disks, each is not compared with each.
        let (mut names, mut sockets) = (HashSet::new(), HashMap::new());
        for disk in &self.disks {
            disk.check()?;
            if !names.insert(&disk.name) {
                return Err(ConfigError::SameName { name: disk.name.clone() });
            }
            let Some(path) = disk.socket.path() else { continue };
            if let Some(first) = sockets.insert(path, &disk.name) {
                let (first, second) = (first.clone(), disk.name.clone());
                return Err(ConfigError::SameSocket { first, second, path: path.to_owned() });
            }
        }
        Ok(())
    }
}

/// A disk with postcopy is alone in its process. Takes the names of the disks, and whether they offer it.
pub(crate) fn check_postcopy<'a>(
    disks: impl ExactSizeIterator<Item = (&'a str, bool)>,
) -> Result<(), ConfigError> {
    let others = disks.len().saturating_sub(1);
    match disks.into_iter().find(|(_, postcopy)| *postcopy && others != 0) {
        Some((disk, _)) => Err(ConfigError::PostcopyBeside { disk: disk.to_owned(), others }),
        None => Ok(()),
    }
}

impl DiskConfig {
    /// A disk called `name`, with `path` as its backing, and the default for everything else: read-write,
    /// 512-byte blocks, 64 queues, a serial number made of the name, locked.
    pub fn new(name: String, path: PathBuf, socket: SocketSource) -> Self {
        Self {
            serial: Serial::from_name(&name),
            name,
            path,
            socket,
            size_bytes: None,
            read_only: false,
            block_bytes: None,
            queues: DEFAULT_QUEUES,
            seg_max: SEG_MAX,
            slow_ms: None,
            sparse: false,
            overlay: None,
            template: Template::Off,
            lock: LockMode::On,
            require_durable: None,
            discard: DiscardPolicy::Auto,
            deep_flush: DeepFlush::Auto,
            cpus: CpuChoice::Any,
            postcopy: false,
            access: SocketAccess::default(),
            allowed_users: AllowedUsers::default(),
            symlinks: Symlinks::Follow,
            limits: Limits::default(),
            throttle_group: None,
        }
    }

    /// What its guests are limited to.
    pub fn throttling(&self) -> Throttling {
        Throttling { group: self.throttle_group.clone(), limits: self.limits }
    }

    /// Checks for contradictions of this disk alone.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return Err(ConfigError::BadName { name: self.name.clone() });
        }
        if let Some(block_bytes) = self.block_bytes.filter(|bytes| !BLOCK_SIZES.contains(bytes)) {
            return Err(ConfigError::BlockSize { disk: self.name.clone(), block_bytes });
        }
        if !(1..=MAX_SEG_MAX).contains(&self.seg_max) {
            return Err(ConfigError::SegMax { disk: self.name.clone(), seg_max: self.seg_max });
        }
        if let Err(error) = self.limits.check() {
            return Err(ConfigError::Limits { disk: self.name.clone(), error });
        }
        if self.queues.get() > MAX_QUEUES {
            return Err(ConfigError::TooManyQueues { disk: self.name.clone(), queues: self.queues.get() });
        }
        Ok(())
    }
}

impl SocketSource {
    /// The path to listen on; none for an inherited descriptor.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Fd(_) => None,
        }
    }
}

/// A serial number longer than the field in the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a serial number has at most {SERIAL_BYTES} bytes, this one has {0}")]
pub struct SerialTooLong(pub usize);

impl Serial {
    /// The bytes of `text`, zero-padded.
    ///
    /// # Errors
    /// [`SerialTooLong`] when it does not fit.
    pub fn new(text: &str) -> Result<Self, SerialTooLong> {
        let mut bytes = [0; SERIAL_BYTES];
        let field = bytes.get_mut(..text.len()).ok_or(SerialTooLong(text.len()))?;
        field.copy_from_slice(text.as_bytes());
        Ok(Self(bytes))
    }

    /// A serial number that is the same at every start: `name`, if it fits and consists of visible ASCII characters.
    /// Otherwise its first 11 characters, with `_` for what is not visible ASCII, `-`, and the 32-bit FNV-1a hash of
    /// the name in hexadecimal: names that differ anywhere have serial numbers that differ.
    pub fn from_name(name: &str) -> Self {
        let is_visible = |c: &char| c.is_ascii_graphic();
        if name.chars().all(|c| is_visible(&c))
            && let Ok(serial) = Self::new(name)
        {
            return serial;
        }
        let start = name.chars().take(SERIAL_BYTES - 9).map(|c| if is_visible(&c) { c } else { '_' });
        let text = format!("{}-{:08x}", start.collect::<String>(), fnv1a(name.as_bytes()));
        let mut bytes = [0; SERIAL_BYTES];
        bytes.iter_mut().zip(text.bytes()).for_each(|(byte, of_text)| *byte = of_text);
        Self(bytes)
    }

    /// The field as it is given to the guest.
    pub const fn as_bytes(&self) -> &[u8; SERIAL_BYTES] {
        &self.0
    }
}

/// The 32-bit FNV-1a hash (draft-eastlake-fnv), which never changes, as that of the standard library may.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, socket: &str) -> DiskConfig {
        DiskConfig::new(name.into(), "/x".into(), SocketSource::Path(socket.into()))
    }

    fn check(disks: Vec<DiskConfig>) -> Result<(), ConfigError> {
        let polling = Polling::default();
        let should_stop = Arc::default();
        ServerConfig {
            disks,
            workers: None,
            polling,
            exit_on_disconnect: false,
            stop_timeout: None,
            should_stop,
        }
        .check()
    }

    #[test]
    fn two_disks_differ_in_name_and_socket() {
        assert_eq!(check(vec![disk("a", "/a"), disk("b", "/b")]), Ok(()));
        assert_eq!(
            check(vec![disk("a", "/a"), disk("a", "/b")]),
            Err(ConfigError::SameName { name: "a".into() })
        );
        assert_eq!(
            check(vec![disk("a", "/s"), disk("b", "/s")]),
            Err(ConfigError::SameSocket { first: "a".into(), second: "b".into(), path: "/s".into() })
        );
    }

    #[test]
    fn limits_are_kept() {
        assert_eq!(check(vec![]), Ok(()), "they may come later");
        assert_eq!(check(vec![disk("a\n", "/a")]), Err(ConfigError::BadName { name: "a\n".into() }));
        let mut odd = disk("a", "/a");
        odd.block_bytes = Some(1024);
        assert_eq!(check(vec![odd]), Err(ConfigError::BlockSize { disk: "a".into(), block_bytes: 1024 }));
        for seg_max in [0, MAX_SEG_MAX + 1] {
            let odd = DiskConfig { seg_max, ..disk("a", "/a") };
            assert_eq!(check(vec![odd]), Err(ConfigError::SegMax { disk: "a".into(), seg_max }));
        }
        let mut many = disk("a", "/a");
        many.queues = NonZeroU16::new(MAX_QUEUES + 1).unwrap();
        assert_eq!(check(vec![many]), Err(ConfigError::TooManyQueues { disk: "a".into(), queues: 257 }));
    }

    #[test]
    fn a_disk_with_postcopy_is_alone() {
        let postcopy = || DiskConfig { postcopy: true, ..disk("a", "/a") };
        assert_eq!(check(vec![postcopy()]), Ok(()));
        let beside = Err(ConfigError::PostcopyBeside { disk: "a".into(), others: 1 });
        assert_eq!(check(vec![postcopy(), disk("b", "/b")]), beside);
        assert_eq!(check(vec![disk("b", "/b"), postcopy()]), beside);
    }

    #[test]
    fn a_serial_has_at_most_20_bytes() {
        let full = "12345678901234567890";
        assert_eq!(Serial::new(full).unwrap().as_bytes(), full.as_bytes());
        assert_eq!(Serial::new("123456789012345678901"), Err(SerialTooLong(21)));
        assert_eq!(Serial::new("db0").unwrap().as_bytes(), b"db0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_name_becomes_the_same_serial_every_time() {
        assert_eq!(Serial::from_name("db0"), Serial::new("db0").unwrap());
        let full = "a-name-of-20-letters";
        assert_eq!(Serial::from_name(full), Serial::new(full).unwrap());
        // Those that were given once are never changed.
        assert_eq!(
            Serial::from_name("a-name-longer-than-twenty"),
            Serial::new("a-name-long-7420ebe0").unwrap()
        );
        assert_eq!(Serial::from_name("grün"), Serial::new("gr_n-6058a537").unwrap());
    }

    #[test]
    fn the_hash_is_that_of_its_authors() {
        for (text, hash) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            assert_eq!(fnv1a(text.as_bytes()), hash, "{text:?}");
        }
    }

    #[test]
    fn names_that_differ_anywhere_have_serials_that_differ() {
        let long = "production-database-of-the-north";
        let names = [
            format!("{long}-1"),
            format!("{long}-2"),
            long.into(),
            "grün".into(),
            "grän".into(),
            "gr_n".into(),
            "a b".into(),
            "a_b".into(),
            "データベースの主たるディスク一号".into(),
            "データベースの主たるディスク二号".into(),
        ];
        let serials: HashSet<_> = names.iter().map(|name| Serial::from_name(name)).collect();
        assert_eq!(serials.len(), names.len());
        let is_visible =
            |serial: &Serial| serial.as_bytes().iter().all(|byte| *byte == 0 || byte.is_ascii_graphic());
        assert!(serials.iter().all(is_visible));
    }
}
