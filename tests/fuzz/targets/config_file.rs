//! The configuration file: what it says is taken as the same words of a command line are, or refused with the place and a reason.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Unstructured};
use vhost_user_pmem::cli::configuration_of;

use super::command_line::{Key, escaped, word_at};
use crate::common::guarded::found;

#[derive(Debug, Arbitrary)]
enum Value {
    Switch(bool),
    Number(i64),
    Hex(u32),
    Octal(u16),
    Size(u32, u8),
    Word(u8),
    Text(String),
    List(Vec<u16>),
    Nested(u8),
    Float(u8),
    Time,
}

impl Value {
    fn toml(&self) -> String {
        match self {
            Self::Switch(is_on) => is_on.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Hex(number) => format!("0x{number:x}"),
            Self::Octal(number) => format!("0o{number:o}"),
            Self::List(numbers) => format!("{numbers:?}"),
            Self::Nested(depth) => {
                let depth = usize::from(*depth) + 2;
                [&"[".repeat(depth), "1", &"]".repeat(depth)].concat()
            }
            Self::Float(number) => format!("{number}.5"),
            Self::Time => "1979-05-27T07:32:00Z".to_owned(),
            text => quoted(&text.text().unwrap_or_default()),
        }
    }

    /// The value where it is written as text in the file, too.
    fn text(&self) -> Option<String> {
        match self {
            Self::Size(number, unit) => {
                let units = ["", "K", "M", "G", "T", "P", "E", "KiB", "kb", "%"];
                Some(format!("{number}{}", units[usize::from(*unit) % units.len()]))
            }
            Self::Word(word) => Some(word_at(*word).to_owned()),
            Self::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// As a command line has it; none if it cannot say this.
    fn on_the_line(&self, is_mode: bool) -> Option<String> {
        match self {
            Self::Switch(is_on) => Some(if *is_on { "on" } else { "off" }.to_owned()),
            Self::Number(number) => Some(number.to_string()),
            Self::Hex(number) => Some(number.to_string()),
            Self::Octal(number) if is_mode => Some(format!("{number:o}")),
            Self::Octal(number) => Some(number.to_string()),
            Self::List(numbers) => {
                Some(numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
            Self::Nested(_) | Self::Float(_) | Self::Time => None,
            text => text.text(),
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Disk {
    path: String,
    socket: String,
    values: Vec<(Key, Value)>,
    is_included: bool,
}

#[derive(Debug, Arbitrary)]
struct Input {
    disks: Vec<Disk>,
    server: Vec<(u8, Value)>,
    /// Put in somewhere, after everything else.
    noise: Option<(u16, String)>,
}

/// Options whose place is the same in both, but for `--disk`.
const OPTIONS: [&str; 11] = [
    "workers",
    "stop-timeout",
    "metrics-listen",
    "poll-max-us",
    "cpus",
    "numa",
    "require-durable",
    "deep-flush",
    "exit-on-disconnect",
    "no-symlinks",
    "workerz",
];

fn quoted(text: &str) -> String {
    let inside: String = text
        .chars()
        .map(|it| match it {
            '"' | '\\' => format!("\\{it}"),
            it if it.is_control() => format!("\\u{:04X}", u32::from(it)),
            it => it.to_string(),
        })
        .collect();
    format!("\"{inside}\"")
}

impl Disk {
    fn toml(&self) -> String {
        let mut lines = vec!["[[disk]]".to_owned()];
        lines.push(format!("path = {}", quoted(&self.path)));
        lines.push(format!("socket = {}", quoted(&self.socket)));
        let values = self.values.iter().take(20);
        lines.extend(values.map(|(key, value)| format!("{} = {}", quoted(key.name()), value.toml())));
        lines.join("\n") + "\n"
    }

    /// The value of `--disk`, where paths begin in the folder; none if it cannot say this.
    fn text(&self, folder: &Path) -> Option<OsString> {
        let path = |text: &str| match text {
            "" => String::new(),
            text => folder.join(text).to_string_lossy().into_owned(),
        };
        let mut pairs = vec![("path", path(&self.path)), ("socket", path(&self.socket))];
        for (key, value) in self.values.iter().take(20) {
            pairs.push((key.name(), value.on_the_line(key.name() == "socket-mode")?));
        }
        let pairs: Vec<Vec<u8>> = pairs
            .iter()
            .map(|(key, value)| [key.as_bytes(), b"=", &escaped(value.as_bytes())].concat())
            .collect();
        String::from_utf8(pairs.join(&b","[..])).ok().map(OsString::from)
    }
}

impl Input {
    fn disks(&self, are_included: bool) -> impl Iterator<Item = &Disk> {
        self.disks.iter().take(4).filter(move |disk| disk.is_included == are_included)
    }

    fn server(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        let name = |option: u8| OPTIONS[usize::from(option) % OPTIONS.len()];
        self.server.iter().take(4).map(move |(option, value)| (name(*option), value))
    }

    fn toml(&self) -> String {
        let mut text = "include = \"more/*.toml\"\n[server]\n".to_owned();
        text.extend(self.server().map(|(option, value)| format!("{option} = {}\n", value.toml())));
        text.extend(self.disks(false).map(Disk::toml));
        if let Some((at, noise)) = &self.noise {
            let at = usize::from(*at) % (text.len() + 1);
            let at = (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
            text.insert_str(at, noise);
        }
        text
    }

    /// The command line that says the same; none if there is no such.
    fn line(&self, folder: &Path) -> Option<Vec<OsString>> {
        let mut args: Vec<OsString> = vec!["vhost-user-pmem".into(), "serve".into()];
        for (option, value) in self.server() {
            match (value, option) {
                (Value::Switch(false), "exit-on-disconnect" | "no-symlinks") => {}
                (Value::Switch(true), "exit-on-disconnect" | "no-symlinks") => {
                    args.push(format!("--{option}").into());
                }
                _ => args.push(format!("--{option}={}", value.on_the_line(false)?).into()),
            }
        }
        for disk in self.disks(false).chain(self.disks(true)) {
            let folder = if disk.is_included { folder.join("more") } else { folder.to_owned() };
            args.extend(["--disk".into(), disk.text(&folder)?]);
        }
        Some(args)
    }

    /// All is text, which a file takes wherever a command line does.
    fn is_text(&self) -> bool {
        self.disks.iter().all(|disk| disk.values.iter().all(|(_, value)| value.text().is_some()))
            && self.server.iter().all(|(_, value)| value.text().is_some())
    }
}

/// The folder of the files. It lasts from one input to the next.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("pmem-config-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("more")).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads a file, and the command line that says the same.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    // Files of others are none of a fuzzer's business.
    if input.noise.as_ref().is_some_and(|(_, noise)| noise.contains(['/', '\\'])) {
        return;
    }
    thread_local! { static FOLDER: Folder = Folder::new(); }
    FOLDER.with(|folder| read(&input, &folder.0));
}

fn read(input: &Input, folder: &Path) {
    let file = folder.join("pmem.toml");
    std::fs::write(&file, input.toml()).unwrap();
    let included: String = input.disks(true).map(Disk::toml).collect();
    std::fs::write(folder.join("more/more.toml"), included).unwrap();
    let args = vec!["vhost-user-pmem".into(), "serve".into(), "--config".into(), file.clone().into()];
    let of_file = configuration_of(args).map(|config| format!("{config:?}"));
    if of_file.as_ref().is_err_and(String::is_empty) {
        found("refused without a reason");
    }
    if input.noise.is_some() {
        return;
    }
    let of_line = input.line(folder).map(|args| configuration_of(args).map(|config| format!("{config:?}")));
    match (of_file, of_line) {
        (Ok(file), Some(Ok(line))) if file == line => {}
        (Err(_), None | Some(Err(_))) => {}
        (Err(_), Some(Ok(_))) if !input.is_text() => {}
        (file, line) => found(&format!("{input:?} is taken as {file:?}, and as {line:?} on a command line")),
    }
}
