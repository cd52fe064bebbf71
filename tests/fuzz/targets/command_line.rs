//! The command line: whatever is written, it is taken as it was meant, or refused with a reason.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use vhost_user_pmem::cli::{configuration_of, disk_keys, serve_options};
use vhost_user_pmem::config::SocketSource;
use vhost_user_pmem::vhost_user::AllowedUsers;

use crate::common::guarded::found;

/// A key of a disk, of all that there are; or one that there is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(&'static str);

const NO_KEY: &str = "Größe";

impl<'a> Arbitrary<'a> for Key {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        // What each disk has is said apart.
        static KEYS: LazyLock<Vec<&str>> = LazyLock::new(|| {
            let keys = disk_keys().into_iter().filter(|key| !["path", "socket"].contains(key));
            keys.chain([NO_KEY]).collect()
        });
        // As many bytes as of an enumeration: so inputs that were found before say the same.
        let place = (u64::from(u.arbitrary::<u32>()?) * KEYS.len() as u64) >> 32;
        Ok(Self(KEYS[place as usize]))
    }

    fn size_hint(depth: usize) -> (usize, Option<usize>) {
        u32::size_hint(depth)
    }
}

impl Key {
    pub(super) const fn name(self) -> &'static str {
        self.0
    }
}

#[derive(Debug, Arbitrary)]
enum Value {
    On,
    Off,
    Auto,
    Number(u64),
    Size(u32, u8),
    Range(u16, u16),
    Mode(u16),
    Word(u8),
    Words(u8, u8),
    Text(Vec<u8>),
}

/// What one option or another takes.
pub(super) fn word_at(number: u8) -> &'static str {
    const WORDS: [&str; 24] = [
        "root",
        "nobody",
        "yes",
        "no",
        "wait",
        "page",
        "cacheline",
        "byte",
        "ignore",
        "unmap",
        "never",
        "always",
        "busy",
        "require",
        "privileges",
        "landlock",
        "seccomp",
        "rlimits",
        "debug",
        "warn",
        "json",
        "text",
        "0x1",
        "-1",
    ];
    WORDS[usize::from(number) % WORDS.len()]
}

impl Value {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::On => b"on".to_vec(),
            Self::Off => b"off".to_vec(),
            Self::Auto => b"auto".to_vec(),
            Self::Number(number) => number.to_string().into_bytes(),
            Self::Size(number, unit) => {
                let units = ["", "K", "M", "G", "T", "P", "E", "KiB", "kb", "%"];
                format!("{number}{}", units[usize::from(*unit) % units.len()]).into_bytes()
            }
            Self::Range(first, last) => format!("{first}-{last},{last}").into_bytes(),
            Self::Mode(mode) => format!("{mode:o}").into_bytes(),
            Self::Word(word) => word_at(*word).into(),
            Self::Words(first, second) => format!("{},{}", word_at(*first), word_at(*second)).into_bytes(),
            Self::Text(text) => text.clone(),
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Disk {
    path: Vec<u8>,
    socket: Vec<u8>,
    values: Vec<(Key, Value)>,
    /// Put in somewhere, after everything else.
    noise: Option<(u8, Vec<u8>)>,
}

#[derive(Debug, Arbitrary)]
struct Input {
    disks: Vec<Disk>,
    options: Vec<(u8, Value)>,
    words: Vec<Vec<u8>>,
}

/// A comma inside a value is written twice.
pub(super) fn escaped(value: &[u8]) -> Vec<u8> {
    value.iter().flat_map(|byte| if *byte == b',' { vec![b','; 2] } else { vec![*byte] }).collect()
}

impl Disk {
    fn text(&self) -> OsString {
        let pair = |key: &str, value: &[u8]| [key.as_bytes(), b"=", &escaped(value)].concat();
        let mut parts = vec![pair("path", &self.path), pair("socket", &self.socket)];
        parts.extend(self.values.iter().take(20).map(|(key, value)| pair(key.name(), &value.bytes())));
        let mut text = parts.join(&b","[..]);
        if let Some((at, noise)) = &self.noise {
            let at = usize::from(*at) % (text.len() + 1);
            text.splice(at..at, noise.iter().copied());
        }
        OsString::from_vec(text)
    }
}

/// Reads a command line.
pub fn run(data: &[u8]) {
    // Files of others are none of a fuzzer's business.
    static OPTIONS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let options = serve_options().into_iter().filter(|option| option != "config");
        options.map(|option| format!("--{option}")).collect()
    });
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let mut args: Vec<OsString> = vec!["vhost-user-pmem".into(), "serve".into()];
    for disk in input.disks.iter().take(4) {
        args.extend(["--disk".into(), disk.text()]);
    }
    for (option, value) in input.options.iter().take(4) {
        args.push(OPTIONS[usize::from(*option) % OPTIONS.len()].clone().into());
        args.push(OsString::from_vec(value.bytes()));
    }
    args.extend(input.words.iter().take(4).map(|word| OsString::from_vec(word.clone())));
    match configuration_of(args) {
        Err(reason) if reason.is_empty() => found("refused without a reason"),
        Err(_) => {}
        Ok(config) if input.words.is_empty() => {
            for (disk, config) in input.disks.iter().zip(&config.disks).filter(|(it, _)| it.noise.is_none()) {
                assert_meant(disk, config);
            }
        }
        Ok(_) => {}
    }
}

/// What is taken is what was written.
fn assert_meant(disk: &Disk, config: &vhost_user_pmem::config::DiskConfig) {
    let path = |bytes: &[u8]| Path::new(&OsString::from_vec(bytes.to_vec())).to_owned();
    let is_socket = matches!(&config.socket, SocketSource::Path(socket) if *socket == path(&disk.socket));
    if config.path != path(&disk.path) || !is_socket {
        found(&format!("{disk:?} is taken as {config:?}"));
    }
    for (key, value) in &disk.values {
        let switch = |is_on: bool| {
            let words: [&[u8]; 3] = if is_on { [b"on", b"yes", b"true"] } else { [b"off", b"no", b"false"] };
            words.contains(&value.bytes().as_slice())
        };
        let number = |number: u64| String::from_utf8(value.bytes()).is_ok_and(|it| it.parse() == Ok(number));
        let is_user = |user: u32| number(user.into()) || (value.bytes() == b"root" && user == 0);
        let limit = config.limits.all().find(|(measure, _)| measure.name() == key.name());
        let is_meant = match key.name() {
            "name" => value.bytes() == config.name.as_bytes(),
            "readonly" => switch(config.read_only),
            "sparse" => switch(config.sparse),
            "postcopy" => switch(config.postcopy),
            "block-size" => config.block_bytes.is_some_and(|bytes| number(bytes.into())),
            "queues" => number(config.queues.get().into()),
            "seg-max" => number(config.seg_max.into()),
            "socket-mode" => config.access.mode <= 0o777 && is_octal(&value.bytes(), config.access.mode),
            // Names of other users are those of the machine.
            "socket-owner" => {
                config.access.owner.is_some_and(is_user) || matches!(value, Value::Word(_) | Value::Text(_))
            }
            "socket-group" => {
                config.access.group.is_some_and(is_user) || matches!(value, Value::Word(_) | Value::Text(_))
            }
            "allow-uid" => config.allowed_users != AllowedUsers::default(),
            "throttle-group" => {
                config.throttle_group.as_ref().is_some_and(|it| value.bytes() == it.as_bytes())
            }
            "slow-ms" => number(config.slow_ms.map_or(0, |it| it.get().into())),
            // Nothing, or a number; of bytes also with a unit.
            "iops" | "iops-rd" | "iops-wr" => match limit {
                Some((_, rate)) => number(rate.average.get()),
                None => number(0) || value.bytes() == b"none",
            },
            NO_KEY => false,
            _ => true,
        };
        if !is_meant {
            found(&format!("{key:?} of {disk:?} is taken as {config:?}"));
        }
    }
}

fn is_octal(text: &[u8], mode: u32) -> bool {
    let text = std::str::from_utf8(text).unwrap_or_default();
    u32::from_str_radix(text, 8) == Ok(mode)
}
