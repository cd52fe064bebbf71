//! One `--disk`: a list of `key=value` as QEMU writes it, where `,,` is a comma inside a value.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::num::NonZeroU16;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::cli::size::{self, SizeError};
use crate::config::{BLOCK_SIZES, DiskConfig, MAX_QUEUES, Serial, SerialTooLong, SocketSource};
use crate::disk::{LockMode, UnknownLockMode};

/// A key, in the order in which help lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Path,
    Socket,
    Name,
    Size,
    Serial,
    ReadOnly,
    BlockSize,
    Queues,
    Sparse,
    Lock,
}

impl Key {
    pub(super) const ALL: [Self; 10] = [
        Self::Path,
        Self::Socket,
        Self::Name,
        Self::Size,
        Self::Serial,
        Self::ReadOnly,
        Self::BlockSize,
        Self::Queues,
        Self::Sparse,
        Self::Lock,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Socket => "socket",
            Self::Name => "name",
            Self::Size => "size",
            Self::Serial => "serial",
            Self::ReadOnly => "readonly",
            Self::BlockSize => "block-size",
            Self::Queues => "queues",
            Self::Sparse => "sparse",
            Self::Lock => "lock",
        }
    }

    /// What its value looks like.
    pub(super) const fn value(self) -> &'static str {
        match self {
            Self::Path => "FILE",
            Self::Socket => "SOCKET",
            Self::Name => "NAME",
            Self::Size => "SIZE",
            Self::Serial => "TEXT",
            Self::ReadOnly | Self::Sparse => "on|off",
            Self::BlockSize => "512|4096",
            Self::Queues => "N",
            Self::Lock => "on|wait|off",
        }
    }

    /// Lines for people, short enough to stand beside the key.
    pub(super) const fn meaning(self) -> &'static [&'static str] {
        match self {
            Self::Path => &["File whose bytes are the disk (required)"],
            Self::Socket => &["Unix socket to listen on (required); a stale one is replaced"],
            Self::Name => &["What logs and errors call it [default: the file name without extension]"],
            Self::Size => &[
                "Bytes to serve, also with K, M, G, T, P: a file that is missing or empty",
                "is made that long, a shorter one is refused [default: the file's size]",
            ],
            Self::Serial => &["Serial number for the guest, up to 20 bytes [default: from the name]"],
            Self::ReadOnly => &["Open the file for reading only and refuse writes [default: off]"],
            Self::BlockSize => &["Logical block size in bytes [default: 512]"],
            Self::Queues => &["Queues offered, 1 to 256 [default: 64]"],
            Self::Sparse => &["Leave holes of the file unallocated at the start [default: off]"],
            Self::Lock => &[
                "When another process serves the file: refuse to start, wait for it with",
                "the first queue, or do not look [default: on]",
            ],
        }
    }

    const fn is_switch(self) -> bool {
        matches!(self, Self::ReadOnly | Self::Sparse)
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }

    fn list() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

/// The keys as help shows them.
pub(super) fn help() -> String {
    let style = clap::builder::Styles::styled();
    let (header, literal) = (style.get_header(), style.get_literal());
    let mut text = format!("{header}Keys of --disk:{header:#}\n");
    for key in Key::ALL {
        let pad = 20_usize.saturating_sub(key.name().len() + key.value().len() + 1);
        for (number, line) in key.meaning().iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = match number {
                0 => {
                    writeln!(text, "  {literal}{}{literal:#}={}{:pad$}  {line}", key.name(), key.value(), "")
                }
                _ => writeln!(text, "  {:20}  {line}", ""),
            };
        }
    }
    text
}

/// What is wrong with a `--disk`.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskOptionError {
    #[error("--disk {option}: unknown key {key:?}{}; the keys are {}", suggest(key), Key::list())]
    UnknownKey { option: String, key: String },
    #[error("--disk {option}: {} is given twice; leave one of them out", key.name())]
    Twice { option: String, key: Key },
    #[error("--disk {option}: {} is missing; add {}={}", key.name(), key.name(), key.value())]
    Missing { option: String, key: Key },
    #[error("--disk {option}: {} has no value; write {}={}", key.name(), key.name(), key.value())]
    NoValue { option: String, key: Key },
    #[error(
        "--disk {option}: there is nothing between two commas or at an end; a comma in a value is \",,\""
    )]
    Empty { option: String },
    #[error("--disk {option}: {}={value}: {cause}", key.name())]
    Value { option: String, key: Key, value: String, cause: ValueError },
}

/// What is wrong with a value.
#[derive(Debug, thiserror::Error)]
pub(super) enum ValueError {
    #[error("it is not UTF-8 text")]
    NotText,
    #[error("write on or off")]
    NotASwitch,
    #[error("write 512 or 4096")]
    NotABlockSize,
    #[error("write a whole number from 1 to {MAX_QUEUES}")]
    NotAQueueCount,
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error("{0}; shorten it")]
    Serial(#[from] SerialTooLong),
    #[error("a serial number is made of printable ASCII characters only")]
    SerialNotAscii,
    #[error(transparent)]
    Lock(#[from] UnknownLockMode),
}

/// The nearest key, where one is near.
fn suggest(unknown: &str) -> String {
    let unknown = unknown.to_ascii_lowercase();
    Key::ALL
        .into_iter()
        .map(|key| (strsim::normalized_damerau_levenshtein(&unknown, key.name()), key))
        .filter(|(likeness, _)| *likeness >= 0.5)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, key)| format!(" (did you mean {:?}?)", key.name()))
        .unwrap_or_default()
}

/// A `--disk` whose keys and values make sense by themselves.
#[derive(Debug)]
pub(super) struct DiskOption {
    name: Option<String>,
    path: PathBuf,
    socket: PathBuf,
    size_bytes: Option<u64>,
    serial: Option<Serial>,
    read_only: bool,
    block_bytes: Option<u32>,
    queues: Option<NonZeroU16>,
    sparse: bool,
    lock: Option<LockMode>,
}

impl DiskOption {
    /// Reads the argument of one `--disk`.
    pub(super) fn parse(text: &OsStr) -> Result<Self, DiskOptionError> {
        let mut values = Values::parse(text)?;
        Ok(Self {
            path: values.required(Key::Path)?,
            socket: values.required(Key::Socket)?,
            name: values.take(Key::Name, |value| Ok(value.to_owned()))?,
            size_bytes: values.take(Key::Size, |value| Ok(size::parse(value)?))?,
            serial: values.take(Key::Serial, serial)?,
            read_only: values.take(Key::ReadOnly, switch)?.unwrap_or(false),
            block_bytes: values.take(Key::BlockSize, block_size)?,
            queues: values.take(Key::Queues, queues)?,
            sparse: values.take(Key::Sparse, switch)?.unwrap_or(false),
            lock: values.take(Key::Lock, |value| Ok(value.parse()?))?,
        })
    }

    fn into_config(self, name: String) -> DiskConfig {
        let mut config = DiskConfig::new(name, self.path, SocketSource::Path(self.socket));
        config.size_bytes = self.size_bytes;
        config.serial = self.serial.unwrap_or(config.serial);
        config.read_only = self.read_only;
        config.block_bytes = self.block_bytes.unwrap_or(config.block_bytes);
        config.queues = self.queues.unwrap_or(config.queues);
        config.sparse = self.sparse;
        config.lock = self.lock.unwrap_or(config.lock);
        config
    }
}

/// Gives every disk without a name one of its own: that of its file, with a number where it is taken.
pub(super) fn into_configs(options: Vec<DiskOption>) -> Vec<DiskConfig> {
    let mut taken: HashSet<String> = options.iter().filter_map(|option| option.name.clone()).collect();
    options
        .into_iter()
        .map(|mut option| {
            let name = option.name.take().unwrap_or_else(|| free_name(&option.path, &taken));
            taken.insert(name.clone());
            option.into_config(name)
        })
        .collect()
}

fn free_name(path: &Path, taken: &HashSet<String>) -> String {
    let stem = default_name(path);
    let mut name = stem.clone();
    let mut number = 2_u32;
    while taken.contains(&name) {
        name = format!("{stem}-{number}");
        number = number.saturating_add(1);
    }
    name
}

/// What a disk is called when nobody says: the file's name without its extension.
pub(super) fn default_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name: String = stem.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    if name.is_empty() { "disk".to_owned() } else { name }
}

/// The values of an option, which is known by its text in errors.
struct Values {
    option: String,
    items: Vec<(Key, OsString)>,
}

impl Values {
    fn parse(text: &OsStr) -> Result<Self, DiskOptionError> {
        let mut values = Self { option: text.to_string_lossy().into_owned(), items: Vec::new() };
        for item in split_at_commas(text.as_bytes()) {
            values.add(&item)?;
        }
        Ok(values)
    }

    fn add(&mut self, item: &[u8]) -> Result<(), DiskOptionError> {
        let option = self.option.clone();
        if item.is_empty() {
            return Err(DiskOptionError::Empty { option });
        }
        let mut parts = item.splitn(2, |byte| *byte == b'=');
        let name = String::from_utf8_lossy(parts.next().unwrap_or_default());
        let Some(key) = Key::named(&name) else {
            return Err(DiskOptionError::UnknownKey { option, key: name.into_owned() });
        };
        if self.items.iter().any(|(before, _)| *before == key) {
            return Err(DiskOptionError::Twice { option, key });
        }
        let value = match parts.next() {
            Some(value) if !value.is_empty() => OsString::from_vec(value.to_vec()),
            None if key.is_switch() => OsString::from("on"),
            _ => return Err(DiskOptionError::NoValue { option, key }),
        };
        self.items.push((key, value));
        Ok(())
    }

    fn get(&mut self, key: Key) -> Option<OsString> {
        let place = self.items.iter().position(|(present, _)| *present == key)?;
        Some(self.items.swap_remove(place).1)
    }

    fn required(&mut self, key: Key) -> Result<PathBuf, DiskOptionError> {
        let missing = DiskOptionError::Missing { option: self.option.clone(), key };
        self.get(key).map(PathBuf::from).ok_or(missing)
    }

    fn take<T>(
        &mut self,
        key: Key,
        read: impl FnOnce(&str) -> Result<T, ValueError>,
    ) -> Result<Option<T>, DiskOptionError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.to_str().ok_or(ValueError::NotText).and_then(read).map(Some).map_err(|cause| {
            let value = value.to_string_lossy().into_owned();
            DiskOptionError::Value { option: self.option.clone(), key, value, cause }
        })
    }
}

/// Cuts at single commas and makes one of each pair.
fn split_at_commas(text: &[u8]) -> Vec<Vec<u8>> {
    let mut items = Vec::new();
    let mut item = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' if bytes.next_if_eq(&b',').is_none() => items.push(std::mem::take(&mut item)),
            byte => item.push(byte),
        }
    }
    items.push(item);
    items
}

fn switch(text: &str) -> Result<bool, ValueError> {
    match text {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err(ValueError::NotASwitch),
    }
}

fn block_size(text: &str) -> Result<u32, ValueError> {
    text.parse().ok().filter(|bytes| BLOCK_SIZES.contains(bytes)).ok_or(ValueError::NotABlockSize)
}

fn queues(text: &str) -> Result<NonZeroU16, ValueError> {
    let number = text.parse().ok().filter(|number: &NonZeroU16| number.get() <= MAX_QUEUES);
    number.ok_or(ValueError::NotAQueueCount)
}

fn serial(text: &str) -> Result<Serial, ValueError> {
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(ValueError::SerialNotAscii);
    }
    Ok(Serial::new(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskOption, DiskOptionError> {
        DiskOption::parse(OsStr::new(text))
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn every_key_reaches_the_configuration() {
        let option = parse(
            "path=/a.img,socket=/a.sock,name=db,size=1M,serial=S1,readonly=yes,block-size=4096,queues=3,\
             sparse=true,lock=wait",
        );
        let disk = into_configs(vec![option.unwrap()]).remove(0);
        assert_eq!((disk.name.as_str(), disk.path), ("db", "/a.img".into()));
        assert_eq!(disk.socket.path(), Some(Path::new("/a.sock")));
        assert_eq!((disk.size_bytes, disk.block_bytes, disk.queues.get()), (Some(1 << 20), 4096, 3));
        assert_eq!(disk.serial, Serial::new("S1").unwrap());
        assert!(disk.read_only && disk.sparse);
        assert!(matches!(disk.lock, LockMode::Wait));
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let disk = into_configs(vec![parse("socket=/a.sock,path=/pm/db0.img").unwrap()]).remove(0);
        assert_eq!((disk.name.as_str(), disk.size_bytes), ("db0", None));
        assert_eq!((disk.block_bytes, disk.queues.get()), (512, 64));
        assert_eq!(disk.serial, Serial::new("db0").unwrap());
        assert!(!disk.read_only && !disk.sparse);
        assert!(matches!(disk.lock, LockMode::On));
    }

    #[test]
    fn a_pair_of_commas_is_a_comma() {
        for (text, path, socket) in [
            ("path=a,,b,socket=s", "a,b", "s"),
            ("path=a,,,socket=s", "a,", "s"),
            ("path=,,,,a,socket=s,,", ",,a", "s,"),
            ("path=a=b,socket=s", "a=b", "s"),
        ] {
            let option = parse(text).unwrap();
            assert_eq!((option.path, option.socket), (path.into(), socket.into()), "{text}");
        }
    }

    #[test]
    fn a_path_needs_no_utf8() {
        let text = OsStr::from_bytes(b"path=/\xff,socket=/s,name=db");
        assert_eq!(DiskOption::parse(text).unwrap().path.as_os_str().as_bytes(), b"/\xff");
        let text = OsStr::from_bytes(b"path=/a,socket=/s,name=\xff");
        assert!(DiskOption::parse(text).unwrap_err().to_string().ends_with("it is not UTF-8 text"));
    }

    #[test]
    fn switches_are_on_by_their_bare_name() {
        for (text, on) in [("", false), (",readonly", true), (",readonly=on", true), (",readonly=no", false)]
        {
            assert_eq!(parse(&format!("path=a,socket=s{text}")).unwrap().read_only, on, "{text}");
        }
    }

    #[test]
    fn errors_say_what_and_what_to_do() {
        for (rest, message) in [
            (",readonly=maybe", "readonly=maybe: write on or off"),
            (",block-size=1000", "block-size=1000: write 512 or 4096"),
            (",queues=0", "queues=0: write a whole number from 1 to 256"),
            (",queues=257", "queues=257: write a whole number from 1 to 256"),
            (",serial=123456789012345678901", "at most 20 bytes, this one has 21; shorten it"),
            (",serial=grün", "printable ASCII characters only"),
            (",lock=yes", "lock=yes: `yes` is not a lock mode; use on, wait or off"),
            (",size=1X", "is not a size; write bytes, or a whole number with K, M, G, T or P"),
            (",size", "size has no value; write size=SIZE"),
            (",name=", "name has no value; write name=NAME"),
            (",path=b", "path is given twice; leave one of them out"),
            (",", "nothing between two commas or at an end"),
        ] {
            let text = error(&format!("path=a,socket=s{rest}"));
            assert!(text.starts_with(&format!("--disk path=a,socket=s{rest}: ")), "{text}");
            assert!(text.contains(message), "{text}");
        }
        assert!(error("path=a").ends_with("socket is missing; add socket=SOCKET"));
        assert!(error("socket=a").ends_with("path is missing; add path=FILE"));
    }

    #[test]
    fn an_unknown_key_gets_the_nearest_one() {
        for (key, nearest) in [
            ("sokcet", "socket"),
            ("read-only", "readonly"),
            ("blocksize", "block-size"),
            ("num-queues", "queues"),
            ("Path", "path"),
            ("locks", "lock"),
        ] {
            let text = error(&format!("{key}=x"));
            let expected =
                format!("unknown key {key:?} (did you mean {nearest:?}?); the keys are path, socket,");
            assert!(text.contains(&expected), "{text}");
        }
        assert!(error("colour=red").contains("unknown key \"colour\"; the keys are path, socket, name,"));
    }

    #[test]
    fn names_are_made_unique() {
        let options = ["path=/x/db.img", "path=/y/db.img", "path=/z,name=db-2", "path=/v/db.raw"]
            .map(|text| parse(&format!("{text},socket=s")).unwrap());
        let names: Vec<_> = into_configs(options.into()).into_iter().map(|disk| disk.name).collect();
        assert_eq!(names, ["db", "db-3", "db-2", "db-4"]);
        assert_eq!(default_name(Path::new("/")), "disk");
    }
}
