//! The keys of a `--disk`.

use crate::config::{BLOCK_SIZES, DEFAULT_QUEUES, MAX_QUEUES, MAX_SEG_MAX, SERIAL_BYTES};
use crate::virtio::blk::SEG_MAX;

/// In place of a default.
const REQUIRED: &str = "required";

/// A key, in the order in which help lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Path,
    Socket,
    Name,
    Size,
    Serial,
    ReadOnly,
    BlockSize,
    Queues,
    SegMax,
    Sparse,
    Lock,
    RequireDurable,
    Discard,
    DeepFlush,
    Cpus,
    Numa,
    Postcopy,
    SocketMode,
    SocketOwner,
    SocketGroup,
    AllowUid,
}

impl Key {
    pub(crate) const ALL: [Self; 21] = [
        Self::Path,
        Self::Socket,
        Self::Name,
        Self::Size,
        Self::Serial,
        Self::ReadOnly,
        Self::BlockSize,
        Self::Queues,
        Self::SegMax,
        Self::Sparse,
        Self::Lock,
        Self::RequireDurable,
        Self::Discard,
        Self::DeepFlush,
        Self::Cpus,
        Self::Numa,
        Self::Postcopy,
        Self::SocketMode,
        Self::SocketOwner,
        Self::SocketGroup,
        Self::AllowUid,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Socket => "socket",
            Self::Name => "name",
            Self::Size => "size",
            Self::Serial => "serial",
            Self::ReadOnly => "readonly",
            Self::BlockSize => "block-size",
            Self::Queues => "queues",
            Self::SegMax => "seg-max",
            Self::Sparse => "sparse",
            Self::Lock => "lock",
            Self::RequireDurable => "require-durable",
            Self::Discard => "discard",
            Self::DeepFlush => "deep-flush",
            Self::Cpus => "cpus",
            Self::Numa => "numa",
            Self::Postcopy => "postcopy",
            Self::SocketMode => "socket-mode",
            Self::SocketOwner => "socket-owner",
            Self::SocketGroup => "socket-group",
            Self::AllowUid => "allow-uid",
        }
    }

    /// The form of its value.
    pub(crate) const fn value(self) -> &'static str {
        match self {
            Self::Path => "FILE",
            Self::Socket => "SOCKET",
            Self::Name => "NAME",
            Self::Size => "SIZE",
            Self::Serial => "TEXT",
            Self::ReadOnly | Self::Sparse | Self::Postcopy => "on|off",
            Self::BlockSize => "512|4096",
            Self::Queues | Self::SegMax => "N",
            Self::Lock => "on|wait|off",
            Self::RequireDurable => "CLASS",
            Self::Discard => "auto|ignore|unmap",
            Self::DeepFlush => "auto|never|always",
            Self::Cpus => "LIST",
            Self::SocketMode => "MODE",
            Self::SocketOwner => "USER",
            Self::SocketGroup => "GROUP",
            Self::AllowUid => "USERS",
            Self::Numa => "auto|off",
        }
    }

    /// What it is for, in a sentence.
    pub(crate) fn meaning(self) -> String {
        let text = match self {
            Self::Path => "File or device whose bytes are the disk",
            Self::Socket => {
                "Unix socket to listen on. A stale one is replaced; one on which another process listens is not"
            }
            Self::Name => "Name of the disk in logs and errors",
            Self::Size => {
                "Bytes to serve, also with K, M, G, T or P (powers of 1024). A file that is missing or empty is made that long, \
                 and its space is allocated; a shorter file is refused"
            }
            Self::Serial => {
                return format!(
                    "Serial number that the guest sees: up to {SERIAL_BYTES} printable ASCII characters"
                );
            }
            Self::ReadOnly => "Open the file read-only and refuse writes",
            Self::BlockSize => "Logical block size in bytes",
            Self::Queues => {
                return format!(
                    "Queues offered, 1 to {MAX_QUEUES}; a queue costs something only once the guest starts it"
                );
            }
            Self::SegMax => {
                return format!(
                    "Most data segments in a request that drivers are told, 1 to {MAX_SEG_MAX}. A driver without indirect \
                     descriptors needs rings with two entries more; with smaller ones it stalls, and the log warns"
                );
            }
            Self::Sparse => "Leave holes in the file unallocated at the start",
            Self::Lock => {
                "If another process serves the file: `on` refuses to start, `wait` waits for it when the first queue starts (for \
                 the destination of a migration), `off` does not check (for file systems without locks)"
            }
            Self::RequireDurable => {
                "Refuse to start unless a write is safe after a flush (`page`, also without a value), as soon as it has \
                 completed (`cacheline`), or even before the CPU's caches are flushed (`byte`). `off` overrides \
                 `--require-durable`"
            }
            Self::Discard => {
                "Space that the guest discards: `ignore` keeps it, `unmap` gives it back, `auto` keeps it on DAX only"
            }
            Self::DeepFlush => "As `--deep-flush`, for this disk",
            Self::Cpus => "CPUs that the workers of this disk run on: `2-5`, or `2-5,,8`",
            Self::Numa => "`auto`: the workers of this disk run on the NUMA node of its backing",
            Self::Postcopy => {
                "Offer postcopy migration. Whoever connects to this disk is then trusted with all memory of the process, which \
                 must not serve another disk (exit code 2)"
            }
            Self::SocketMode => {
                "Permissions of the socket in octal, whatever the umask is; to connect is to write to it"
            }
            Self::SocketOwner => "User that the socket belongs to, by name or number",
            Self::SocketGroup => "Group that the socket belongs to, by name or number",
            Self::AllowUid => {
                "Users whose processes may connect, by name or number, whatever the permissions are: `107`, or \
                 `libvirt-qemu,,1000`"
            }
        };
        text.to_owned()
    }

    /// What holds without it.
    pub(crate) fn default(self) -> String {
        match self {
            Self::Path | Self::Socket => REQUIRED.to_owned(),
            Self::Name => "the file's name without extension, made unique".to_owned(),
            Self::Size => "the file's size; the disk grows with it".to_owned(),
            Self::Serial => "the name, or if it is too long, its start and a hash of it".to_owned(),
            Self::ReadOnly | Self::Sparse | Self::Postcopy => "`off`".to_owned(),
            Self::BlockSize => format!("a block device's own, else `{}`", BLOCK_SIZES[0]),
            Self::Queues => format!("`{DEFAULT_QUEUES}`"),
            Self::SegMax => format!("`{SEG_MAX}`"),
            Self::Lock => "`on`".to_owned(),
            Self::RequireDurable => "as `--require-durable`".to_owned(),
            Self::Discard => "`auto`".to_owned(),
            Self::DeepFlush => "as `--deep-flush`".to_owned(),
            Self::Cpus => "as `--cpus`".to_owned(),
            Self::Numa => "as `--numa`".to_owned(),
            Self::SocketMode => "`0660`".to_owned(),
            Self::SocketOwner => "whoever starts the daemon".to_owned(),
            Self::SocketGroup => {
                "the group of whoever starts the daemon, or of the folder (setgid)".to_owned()
            }
            Self::AllowUid => "everybody who may write to the socket".to_owned(),
        }
    }

    /// Both, for texts without marks.
    pub(crate) fn sentence(self) -> String {
        let (meaning, default) = (self.meaning(), self.default());
        let default =
            if default == REQUIRED { format!("({REQUIRED})") } else { format!("[default: {default}]") };
        format!("{meaning} {default}").replace('`', "")
    }

    /// What the bare key means, where that is allowed.
    pub(crate) const fn bare(self) -> Option<&'static str> {
        match self {
            Self::ReadOnly | Self::Sparse | Self::Postcopy => Some("on"),
            Self::RequireDurable => Some("page"),
            _ => None,
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }

    pub(crate) fn list() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}
