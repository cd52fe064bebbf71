//! The options of a disk, defined once.
//!
//! `--disk` and the configuration file take them by these names. Help, the manual page and the README show this table
//! (`vhost-user-pmem reference`), and tests check what is read against it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

pub(crate) use super::kind::{Kind, Part};
use crate::limits::bounds::{MAX_QUEUES, MAX_SEG_MAX, MAX_SLOW_MS, SERIAL_BYTES};
use crate::throttle::Measure;

/// In place of a default.
const REQUIRED: &str = "required";

/// An option of a disk, in the order in which help lists them.
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
    Overlay,
    OverlayMax,
    Template,
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
    Iops,
    IopsMax,
    IopsMaxLength,
    IopsRd,
    IopsRdMax,
    IopsRdMaxLength,
    IopsWr,
    IopsWrMax,
    IopsWrMaxLength,
    Bps,
    BpsMax,
    BpsMaxLength,
    BpsRd,
    BpsRdMax,
    BpsRdMaxLength,
    BpsWr,
    BpsWrMax,
    BpsWrMaxLength,
    ThrottleGroup,
    SlowMs,
}

/// What an option is. Its meaning and its default are sentences with marks of code; `{range}` is that of its kind, and
/// `{serial}` the length of a serial number.
#[derive(Debug)]
struct Definition {
    key: Key,
    name: &'static str,
    kind: Kind,
    /// The form of its value.
    form: &'static str,
    meaning: &'static str,
    default: &'static str,
    /// What the bare name means, where that is allowed.
    bare: Option<&'static str>,
    /// Whether it can be changed while the disk is served.
    is_changeable: bool,
}

const ON_OFF: &str = "on|off";

const fn row(
    key: Key,
    name: &'static str,
    kind: Kind,
    form: &'static str,
    meaning: &'static str,
    default: &'static str,
) -> Definition {
    Definition { key, name, kind, form, meaning, default, bare: None, is_changeable: false }
}

/// One that can be changed while the disk is served.
const fn changeable(row: Definition) -> Definition {
    Definition { is_changeable: true, ..row }
}

/// A switch that is off by default, and on by its bare name.
const fn switch(key: Key, name: &'static str, meaning: &'static str) -> Definition {
    Definition { bare: Some("on"), ..row(key, name, Kind::Switch, ON_OFF, meaning, "`off`") }
}

/// A limit. What the first of them says stands for all of them in tables for people.
const fn limit(key: Key, name: &'static str, measure: Measure, part: Part) -> Definition {
    let (form, meaning, default) = match (measure, part) {
        (Measure::Iops, Part::Average) => (
            "N",
            "Most operations a second. `iops-rd` and `iops-wr` limit reads or writes, `bps`, `bps-rd` and `bps-wr` bytes; each also \
             with `-max`, the rate of a burst, and `-max-length`, its seconds, as QEMU's `throttling.*`. `0` or `none`: no limit",
            "no limit",
        ),
        (Measure::IopsRead, Part::Average) => ("N", "Most reads a second", "no limit"),
        (Measure::IopsWrite, Part::Average) => ("N", "Most writes a second", "no limit"),
        (Measure::Bps, Part::Average) => ("SIZE", "Most bytes read and written a second", "no limit"),
        (Measure::BpsRead, Part::Average) => ("SIZE", "Most bytes read a second", "no limit"),
        (Measure::BpsWrite, Part::Average) => ("SIZE", "Most bytes written a second", "no limit"),
        (Measure::Bps | Measure::BpsRead | Measure::BpsWrite, Part::Max) => {
            ("SIZE", "The same in a burst", "what the average lets through in 0.1 s, at once")
        }
        (_, Part::Max) => ("N", "The same in a burst", "what the average lets through in 0.1 s, at once"),
        (_, Part::MaxLength) => ("SECONDS", "How long such a burst may last", "one second"),
    };
    Definition { is_changeable: true, ..row(key, name, Kind::Limit(measure, part), form, meaning, default) }
}

const TABLE: [Definition; 44] = [
    row(Key::Path, "path", Kind::Path, "FILE", "File or device whose bytes are the disk", REQUIRED),
    row(
        Key::Socket,
        "socket",
        Kind::Path,
        "SOCKET",
        "Unix socket to listen on. A stale one is replaced; one on which another process listens is not",
        REQUIRED,
    ),
    row(
        Key::Name,
        "name",
        Kind::Text,
        "NAME",
        "Name of the disk in logs and errors",
        "the file's name without extension, made unique",
    ),
    changeable(row(
        Key::Size,
        "size",
        Kind::Bytes,
        "SIZE",
        "Bytes to serve, also with K, M, G, T or P (powers of 1024). A file that is missing or empty is made that long, and \
             its space is allocated; a shorter file is refused",
        "the file's size; the disk grows with it",
    )),
    row(
        Key::Serial,
        "serial",
        Kind::Text,
        "TEXT",
        "Serial number that the guest sees: up to {serial} printable ASCII characters",
        "the name, or if it is too long, its start and a hash of it",
    ),
    switch(Key::ReadOnly, "readonly", "Open the file read-only and refuse writes"),
    row(
        Key::BlockSize,
        "block-size",
        Kind::OneOf(&super::BLOCK_SIZES),
        "512|4096",
        "Logical block size in bytes",
        "a block device's own, else `512`",
    ),
    row(
        Key::Queues,
        "queues",
        Kind::Number { min: 1, max: MAX_QUEUES },
        "N",
        "Queues offered, {range}; a queue costs something only once the guest starts it",
        "`64`",
    ),
    row(
        Key::SegMax,
        "seg-max",
        Kind::Number { min: 1, max: MAX_SEG_MAX },
        "N",
        "Most data segments in a request that drivers are told, {range}. A driver without indirect descriptors needs rings \
         with two entries more; with smaller ones it stalls, and the log warns",
        "`126`",
    ),
    switch(Key::Sparse, "sparse", "Leave holes in the file unallocated at the start"),
    row(
        Key::Overlay,
        "overlay",
        Kind::WordOrPath(&["memory", "off"]),
        "memory|FILE|off",
        "A private disk over the file, which is only read and may be the base of many. What the guest writes is, page by page, in \
         memory of the daemon until the disk ends (`memory`), or in a sparse file of its own, which is made if there is none, and stays",
        "`off`",
    ),
    row(
        Key::OverlayMax,
        "overlay-max",
        Kind::Bytes,
        "SIZE",
        "Most memory, or space of its file, that what is written may take; a write that needs more fails",
        "the size of the disk; of a file, what its file system has",
    ),
    row(
        Key::Template,
        "template",
        Kind::Word(&["off", "on", "same-serial"]),
        "off|on|same-serial",
        "With `overlay=memory`: each front-end that connects gets a private disk of its own, which ends when it leaves. Its serial \
         number has `-` and a number behind it, or is the same for all (`same-serial`). Limits hold for all of them together",
        "`off`",
    ),
    row(
        Key::Lock,
        "lock",
        Kind::Word(&["on", "wait", "off"]),
        "on|wait|off",
        "If another process serves the file: `on` refuses to start, `wait` waits for it when the first queue starts (for the \
         destination of a migration), `off` does not check (for file systems without locks)",
        "`on`",
    ),
    Definition {
        bare: Some("page"),
        ..row(
            Key::RequireDurable,
            "require-durable",
            Kind::Word(&["page", "cacheline", "byte", "off"]),
            "CLASS",
            "Refuse to start unless a write is safe after a flush (`page`, also without a value), as soon as it has completed \
             (`cacheline`), or even before the CPU's caches are flushed (`byte`). `off` overrides `--require-durable`",
            "as `--require-durable`",
        )
    },
    row(
        Key::Discard,
        "discard",
        Kind::Word(&["auto", "ignore", "unmap"]),
        "auto|ignore|unmap",
        "Space that the guest discards: `ignore` keeps it, `unmap` gives it back, `auto` keeps it on DAX only",
        "`auto`",
    ),
    row(
        Key::DeepFlush,
        "deep-flush",
        Kind::Word(&["auto", "never", "always"]),
        "auto|never|always",
        "As `--deep-flush`, for this disk",
        "as `--deep-flush`",
    ),
    row(
        Key::Cpus,
        "cpus",
        Kind::List,
        "LIST",
        "CPUs that the workers of this disk run on: `2-5`, or `2-5,,8`",
        "as `--cpus`",
    ),
    row(
        Key::Numa,
        "numa",
        Kind::Word(&["auto", "off"]),
        "auto|off",
        "`auto`: the workers of this disk run on the NUMA node of its backing",
        "as `--numa`",
    ),
    switch(
        Key::Postcopy,
        "postcopy",
        "Offer postcopy migration. Whoever connects to this disk is then trusted with all memory of the process, which must not \
         serve another disk (exit code 2)",
    ),
    row(
        Key::SocketMode,
        "socket-mode",
        Kind::Mode,
        "MODE",
        "Permissions of the socket in octal, whatever the umask is; to connect is to write to it",
        "`0660`",
    ),
    row(
        Key::SocketOwner,
        "socket-owner",
        Kind::Identity,
        "USER",
        "User that the socket belongs to, by name or number",
        "whoever starts the daemon",
    ),
    row(
        Key::SocketGroup,
        "socket-group",
        Kind::Identity,
        "GROUP",
        "Group that the socket belongs to, by name or number",
        "the group of whoever starts the daemon, or of the folder (setgid)",
    ),
    row(
        Key::AllowUid,
        "allow-uid",
        Kind::List,
        "USERS",
        "Users whose processes may connect, by name or number, whatever the permissions are: `107`, or `libvirt-qemu,,1000`",
        "everybody who may write to the socket",
    ),
    limit(Key::Iops, "iops", Measure::Iops, Part::Average),
    limit(Key::IopsMax, "iops-max", Measure::Iops, Part::Max),
    limit(Key::IopsMaxLength, "iops-max-length", Measure::Iops, Part::MaxLength),
    limit(Key::IopsRd, "iops-rd", Measure::IopsRead, Part::Average),
    limit(Key::IopsRdMax, "iops-rd-max", Measure::IopsRead, Part::Max),
    limit(Key::IopsRdMaxLength, "iops-rd-max-length", Measure::IopsRead, Part::MaxLength),
    limit(Key::IopsWr, "iops-wr", Measure::IopsWrite, Part::Average),
    limit(Key::IopsWrMax, "iops-wr-max", Measure::IopsWrite, Part::Max),
    limit(Key::IopsWrMaxLength, "iops-wr-max-length", Measure::IopsWrite, Part::MaxLength),
    limit(Key::Bps, "bps", Measure::Bps, Part::Average),
    limit(Key::BpsMax, "bps-max", Measure::Bps, Part::Max),
    limit(Key::BpsMaxLength, "bps-max-length", Measure::Bps, Part::MaxLength),
    limit(Key::BpsRd, "bps-rd", Measure::BpsRead, Part::Average),
    limit(Key::BpsRdMax, "bps-rd-max", Measure::BpsRead, Part::Max),
    limit(Key::BpsRdMaxLength, "bps-rd-max-length", Measure::BpsRead, Part::MaxLength),
    limit(Key::BpsWr, "bps-wr", Measure::BpsWrite, Part::Average),
    limit(Key::BpsWrMax, "bps-wr-max", Measure::BpsWrite, Part::Max),
    limit(Key::BpsWrMaxLength, "bps-wr-max-length", Measure::BpsWrite, Part::MaxLength),
    changeable(row(
        Key::ThrottleGroup,
        "throttle-group",
        Kind::Text,
        "NAME",
        "Disks of one group share its limits, which each of them says, and all say alike; a change of one is one of all",
        "the limits are its own",
    )),
    changeable(row(
        Key::SlowMs,
        "slow-ms",
        Kind::Number { min: 0, max: MAX_SLOW_MS },
        "N",
        "Requests that take longer than so many milliseconds, {range}, are named by the log and an event, also before they \
             have ended. `0`: none are",
        "`0`",
    )),
];

impl Key {
    /// In the order of the table.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.key)
    }

    /// Those that tables for people have a row for.
    pub(crate) fn listed() -> impl Iterator<Item = Self> {
        let is_listed = |key: &Self| !matches!(key.kind(), Kind::Limit(..)) || *key == Self::Iops;
        Self::all().filter(is_listed)
    }

    /// What limits a disk: all its limits, and its group.
    pub(crate) fn limits() -> impl Iterator<Item = Self> {
        Self::all().filter(|key| matches!(key.kind(), Kind::Limit(..)) || *key == Self::ThrottleGroup)
    }

    /// What can be changed of a disk besides its size.
    pub(crate) fn tunable() -> impl Iterator<Item = Self> {
        Self::limits().chain([Self::SlowMs])
    }

    /// The one that says this of a limit.
    pub(crate) fn of_limit(measure: Measure, part: Part) -> Option<Self> {
        Self::all().find(|key| key.kind() == Kind::Limit(measure, part))
    }

    const fn definition(self) -> &'static Definition {
        // A test checks that the rows stand in the order of the keys.
        #[allow(clippy::indexing_slicing)]
        &TABLE[self as usize]
    }

    pub(crate) const fn name(self) -> &'static str {
        self.definition().name
    }

    pub(crate) const fn kind(self) -> Kind {
        self.definition().kind
    }

    /// The form of its value.
    pub(crate) const fn form(self) -> &'static str {
        self.definition().form
    }

    /// What it is for, in a sentence.
    pub(crate) fn meaning(self) -> String {
        let text = self.definition().meaning.replace("{serial}", &SERIAL_BYTES.to_string());
        match self.kind() {
            Kind::Number { min, max } => text.replace("{range}", &format!("{min} to {max}")),
            _ => text,
        }
    }

    /// What holds without it.
    pub(crate) const fn default(self) -> &'static str {
        self.definition().default
    }

    /// Whether each disk says it.
    pub(crate) fn is_required(self) -> bool {
        self.default() == REQUIRED
    }

    /// Both, for texts without marks.
    pub(crate) fn sentence(self) -> String {
        let (meaning, default) = (self.meaning(), self.default());
        let changes = if self.is_changeable() { "; can be changed while it is served" } else { "" };
        let default = match self.is_required() {
            true => format!("({REQUIRED}{changes})"),
            false => format!("[default: {default}{changes}]"),
        };
        format!("{meaning} {default}").replace('`', "")
    }

    /// What the bare key means, where that is allowed.
    pub(crate) const fn bare(self) -> Option<&'static str> {
        self.definition().bare
    }

    /// Whether it can be changed while the disk is served.
    pub(crate) const fn is_changeable(self) -> bool {
        self.definition().is_changeable
    }

    /// What a value may be, in words, where it is not plain text of the command line.
    pub(crate) fn wanted(self) -> String {
        match self.kind() {
            Kind::Path | Kind::Text => format!("text, such as {:?}", self.form()),
            Kind::Bytes => "a number of bytes, or text such as \"20G\"".to_owned(),
            Kind::Limit(..) => "a whole number, or \"none\"".to_owned(),
            Kind::Switch => "true or false".to_owned(),
            Kind::Number { min, max } => format!("a whole number from {min} to {max}"),
            Kind::OneOf(numbers) => numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
            Kind::Word(words) | Kind::WordOrPath(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
                let or_path = if matches!(self.kind(), Kind::Word(_)) { "" } else { ", or a path" };
                format!("one of {}{or_path}", words.join(", "))
            }
            Kind::Mode => "permissions in octal, such as \"0660\"".to_owned(),
            Kind::Identity => "a name in quotes, or a number".to_owned(),
            Kind::List => "an array, or text such as \"2-5\"".to_owned(),
        }
    }

    /// Whether such a value of it is a path.
    pub(crate) fn is_path(self, value: &OsStr) -> bool {
        match self.kind() {
            Kind::Path => !value.is_empty(),
            Kind::WordOrPath(_) => value.as_bytes().contains(&b'/'),
            _ => false,
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::all().find(|key| key.name() == name)
    }

    pub(crate) fn list() -> String {
        Self::all().map(Self::name).collect::<Vec<_>>().join(", ")
    }
}

/// The nearest of some names, where one is near.
pub(crate) fn nearest<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let unknown = unknown.to_ascii_lowercase();
    names
        .map(|name| (strsim::normalized_damerau_levenshtein(&unknown, name), name))
        .filter(|(likeness, _)| *likeness >= 0.5)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// The same, as errors ask for it.
pub(crate) fn suggestion<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> String {
    nearest(unknown, names).map(|name| format!(" (did you mean {name:?}?)")).unwrap_or_default()
}
