//! The keys of a `--disk`, and how help shows them.

use std::fmt::Write;

/// A key, in the order in which help lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::cli) enum Key {
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
    pub(in crate::cli) const ALL: [Self; 21] = [
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

    pub(in crate::cli) const fn name(self) -> &'static str {
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

    /// What its value looks like.
    pub(in crate::cli) const fn value(self) -> &'static str {
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

    /// Lines for people, short enough to stand beside the key.
    pub(in crate::cli) const fn meaning(self) -> &'static [&'static str] {
        match self {
            Self::Path => &["File whose bytes are the disk (required)"],
            Self::Socket => &["Unix socket to listen on (required); a stale one is replaced"],
            Self::Name => &["What logs and errors call it [default: the file name without extension]"],
            Self::Size => &[
                "Bytes to serve, also with K, M, G, T, P: a file that is missing or empty",
                "is made that long, a shorter one is refused [default: the file's size, with which",
                "the disk grows]",
            ],
            Self::Serial => &["Serial number for the guest, up to 20 bytes [default: from the name]"],
            Self::ReadOnly => &["Open the file for reading only and refuse writes [default: off]"],
            Self::BlockSize => &["Logical block size in bytes [default: a block device's own, else 512]"],
            Self::Queues => &["Queues offered, 1 to 256 [default: 64]"],
            Self::SegMax => {
                &["Most data segments of a request that drivers are told, 1 to 1022 [default: 126]"]
            }
            Self::Sparse => &["Leave holes of the file unallocated at the start [default: off]"],
            Self::Lock => &[
                "When another process serves the file: refuse to start, wait for it with",
                "the first queue, or do not look [default: on]",
            ],
            Self::RequireDurable => &[
                "As --require-durable, for this disk: page (also without =CLASS), cacheline,",
                "byte, or off",
            ],
            Self::Discard => &[
                "Space the guest no longer needs: keep it, or give it back; auto keeps it on",
                "DAX only [default: auto]",
            ],
            Self::DeepFlush => &["As --deep-flush, for this disk"],
            Self::Cpus => &["As --cpus, for this disk: 2-5, or 2-5,,8"],
            Self::Numa => &["As --numa, for this disk"],
            Self::Postcopy => &[
                "Offer postcopy migration: whoever connects is trusted with all memory of this",
                "process, which serves no other disk [default: off]",
            ],
            Self::SocketMode => &["Permissions of the socket, octal, whatever the umask is [default: 0660]"],
            Self::SocketOwner => {
                &["User that the socket belongs to, name or number [default: who starts it]"]
            }
            Self::SocketGroup => &["Its group, name or number [default: that of who starts it]"],
            Self::AllowUid => &[
                "Only processes of these users may connect, whatever the permissions are:",
                "names or numbers, as 107 or libvirt-qemu,,1000",
            ],
        }
    }

    /// What the bare key means, where that is allowed.
    pub(super) const fn bare(self) -> Option<&'static str> {
        match self {
            Self::ReadOnly | Self::Sparse | Self::Postcopy => Some("on"),
            Self::RequireDurable => Some("page"),
            _ => None,
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }

    pub(super) fn list() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

/// The keys as help shows them.
pub(in crate::cli) fn help() -> String {
    let style = clap::builder::Styles::styled();
    let (header, literal) = (style.get_header(), style.get_literal());
    let mut text = format!("{header}Keys of --disk:{header:#}\n");
    for key in Key::ALL {
        let pad = 25_usize.saturating_sub(key.name().len() + key.value().len() + 1);
        for (number, line) in key.meaning().iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = match number {
                0 => {
                    writeln!(text, "  {literal}{}{literal:#}={}{:pad$}  {line}", key.name(), key.value(), "")
                }
                _ => writeln!(text, "  {:25}  {line}", ""),
            };
        }
    }
    text
}
