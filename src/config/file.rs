//! The configuration file: TOML, with the options of `--disk` and of `serve` under their names.
//!
//! ```toml
//! include = "conf.d/*.toml"      # more disks, each file with its own [[disk]]
//!
//! [server]                       # long options of `serve`, without the dashes
//! workers = 4
//! metrics = "/run/pmem/metrics.sock"
//!
//! [[disk]]                       # keys of --disk
//! path = "/mnt/pmem/db0.img"
//! socket = "/run/pmem/db0.sock"
//! size = "20G"
//! readonly = false
//! ```
//!
//! A path that does not begin with `/` is relative to the folder of the file that it stands in.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Key, Kind};
use super::options::{DiskOptions, OptionError, Values};
use crate::limits::bounds::MAX_CONFIG_FILE_BYTES;

/// What stands in a configuration file and those that it includes.
#[derive(Debug, Default)]
pub(crate) struct ConfigFile {
    /// The options of `[server]`.
    pub(crate) server: Vec<Setting>,
    /// The disks, in the order of the file; those of included files come last.
    pub(crate) disks: Vec<DiskOptions>,
    /// The first file in which nothing stands at all: as one that is about to be written.
    pub(crate) blank: Option<PathBuf>,
}

/// An option of `[server]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) value: SettingValue,
}

/// Its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SettingValue {
    Switch(bool),
    Text(String),
}

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Why a configuration file is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("{}: cannot read the configuration file ({source}); correct its path, or make it readable", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{place}: {cause}")]
    At { place: Place, cause: Box<FileCause> },
}

/// The same, without the place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileCause {
    #[error("this is not TOML: {0}")]
    Syntax(String),
    #[error(
        "unknown key {name:?}{}; a configuration file has [server], [[disk]] and include",
        keys::suggestion(name, PARTS.into_iter())
    )]
    UnknownPart { name: String },
    #[error("{name}: {found} is no value of it; write {wanted}")]
    Type { name: String, found: &'static str, wanted: String },
    #[error("[[disk]]: {}", in_toml(.0))]
    Disk(OptionError),
    #[error("{0} may only stand in the file that is given with --config; move it there")]
    Included(&'static str),
    #[error("include: {pattern:?} is no pattern of paths ({reason}); write one such as \"conf.d/*.toml\"")]
    Pattern { pattern: String, reason: String },
    #[error("include: cannot read {} ({source}); correct include, or make it readable", path.display())]
    Include { path: PathBuf, source: io::Error },
    /// What is said of an option of `[server]` by whoever knows them.
    #[error("[server]: {0}")]
    Server(String),
    #[error("[server]: unknown option {name:?}{suggestion}; `vhost-user-pmem serve --help` lists them")]
    UnknownOption { name: String, suggestion: String },
}

const PARTS: [&str; 3] = ["server", "disk", "include"];

/// What is to be added reads as it is to be written.
fn in_toml(error: &OptionError) -> String {
    let example = |key: Key| format!("{} = {:?}", key.name(), key.form());
    match error {
        OptionError::Missing(key) => format!("{} is missing; add {}", key.name(), example(*key)),
        OptionError::NoValue(key) => format!("{} has no value; write {}", key.name(), example(*key)),
        other => other.to_string(),
    }
}

impl ConfigFile {
    /// Reads a file and those that it includes.
    ///
    /// # Errors
    /// [`FileError`], the first in the order of the files.
    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let text = read_text(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
        let mut config = Self::default();
        let includes = Source { file: path, text: &text, is_included: false }.add_to(&mut config)?;
        for Include { place, pattern } in includes {
            for file in place.files(&pattern)? {
                let text = read_text(&file).map_err(|source| {
                    place.clone().error(FileCause::Include { path: file.clone(), source })
                })?;
                Source { file: &file, text: &text, is_included: true }.add_to(&mut config)?;
            }
        }
        Ok(config)
    }
}

/// All of a file that is not longer than it may be.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut file = File::open(path)?.take(MAX_CONFIG_FILE_BYTES + 1);
    file.read_to_string(&mut text)?;
    match file.limit() {
        0 => Err(io::Error::other(format!("it has more than {MAX_CONFIG_FILE_BYTES} bytes"))),
        _ => Ok(text),
    }
}

impl Place {
    pub(crate) fn error(self, cause: FileCause) -> FileError {
        FileError::At { place: self, cause: Box::new(cause) }
    }

    fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// The files of a pattern in alphabetical order. One without wildcards is a file that must be there.
    fn files(&self, pattern: &str) -> Result<Vec<PathBuf>, FileError> {
        let refused =
            |reason: String| self.clone().error(FileCause::Pattern { pattern: pattern.to_owned(), reason });
        if !pattern.contains(['*', '?', '[']) {
            return Ok(vec![self.folder().join(pattern)]);
        }
        let folder = self.folder().to_str().ok_or_else(|| refused("the folder is not UTF-8".to_owned()))?;
        let absolute = Path::new(&glob::Pattern::escape(folder)).join(pattern);
        let found = glob::glob(&absolute.to_string_lossy()).map_err(|error| refused(error.to_string()))?;
        found
            .map(|file| {
                file.map_err(|error| {
                    let path = error.path().to_owned();
                    self.clone().error(FileCause::Include { path, source: error.into() })
                })
            })
            .collect()
    }
}

/// A pattern of files, and where it stands.
struct Include {
    place: Place,
    pattern: String,
}

/// One file.
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
    is_included: bool,
}

impl Source<'_> {
    /// Adds what stands here, and answers what is to be included.
    fn add_to(&self, config: &mut ConfigFile) -> Result<Vec<Include>, FileError> {
        if self.text.trim().is_empty() && config.blank.is_none() {
            config.blank = Some(self.file.to_owned());
        }
        let table = DeTable::parse(self.text).map_err(|error| {
            let (start, message) = (error.span().map_or(0, |span| span.start), error.message().to_owned());
            self.place(&(start..start)).error(FileCause::Syntax(message))
        })?;
        let mut includes = Vec::new();
        for (name, value) in in_order(table.get_ref()) {
            let place = self.place(&name.span());
            match name.get_ref().as_ref() {
                "server" | "include" if self.is_included => {
                    let part = if name.get_ref() == "server" { "[server]" } else { "include" };
                    return Err(place.error(FileCause::Included(part)));
                }
                "server" => self.add_server(value, config)?,
                "disk" => self.add_disks(value, config)?,
                "include" => includes = self.includes(value)?,
                other => return Err(place.error(FileCause::UnknownPart { name: other.to_owned() })),
            }
        }
        Ok(includes)
    }

    fn add_server(&self, value: &Spanned<DeValue<'_>>, config: &mut ConfigFile) -> Result<(), FileError> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.wrong_type("server", value, "a table, [server]".to_owned()));
        };
        for (name, value) in in_order(table) {
            let place = self.place(&name.span());
            // An option that may be repeated.
            let values = match value.get_ref() {
                DeValue::Array(values) => values.iter().collect(),
                _ => vec![value],
            };
            for value in values {
                let of_option = match value.get_ref() {
                    DeValue::Boolean(is_on) => SettingValue::Switch(*is_on),
                    other => plain(other).map(SettingValue::Text).ok_or_else(|| {
                        let wanted = "text, a whole number, true, false, or an array of them".to_owned();
                        self.wrong_type(name.get_ref(), value, wanted)
                    })?,
                };
                let (name, place) = (name.get_ref().to_string(), place.clone());
                config.server.push(Setting { place, name, value: of_option });
            }
        }
        Ok(())
    }

    fn add_disks(&self, value: &Spanned<DeValue<'_>>, config: &mut ConfigFile) -> Result<(), FileError> {
        let wanted = || "tables, each with the head [[disk]]".to_owned();
        let DeValue::Array(disks) = value.get_ref() else {
            return Err(self.wrong_type("disk", value, wanted()));
        };
        for disk in disks {
            let DeValue::Table(table) = disk.get_ref() else {
                return Err(self.wrong_type("disk", disk, wanted()));
            };
            config.disks.push(self.disk(table, &disk.span())?);
        }
        Ok(())
    }

    fn disk(&self, table: &DeTable<'_>, span: &Range<usize>) -> Result<DiskOptions, FileError> {
        let (mut values, mut places) = (Values::default(), Vec::new());
        for (name, value) in in_order(table) {
            let refused = |cause| self.place(&name.span()).error(FileCause::Disk(cause));
            let Some(key) = Key::named(name.get_ref()) else {
                return Err(refused(OptionError::UnknownKey { key: name.get_ref().to_string() }));
            };
            let text = text_of(key, value.get_ref())
                .ok_or_else(|| self.wrong_type(key.name(), value, wanted(key)))?;
            values.add(key, self.resolved(key, text)).map_err(refused)?;
            places.push((key, name.span()));
        }
        DiskOptions::read(values).map_err(|error| {
            let span =
                places.iter().find(|(key, _)| error.key() == Some(*key)).map_or(span, |(_, span)| span);
            self.place(span).error(FileCause::Disk(error))
        })
    }

    /// With the folder of this file before a path.
    fn resolved(&self, key: Key, text: String) -> OsString {
        match self.file.parent() {
            Some(folder) if key.is_path(text.as_ref()) => folder.join(text).into(),
            _ => text.into(),
        }
    }

    fn includes(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<Include>, FileError> {
        let one = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
            DeValue::String(pattern) => {
                Ok(Include { place: self.place(&value.span()), pattern: pattern.to_string() })
            }
            _ => Err(self.wrong_type("include", value, "a pattern such as \"conf.d/*.toml\"".to_owned())),
        };
        match value.get_ref() {
            DeValue::Array(patterns) => patterns.iter().map(one).collect(),
            _ => Ok(vec![one(value)?]),
        }
    }

    fn wrong_type(&self, name: &str, value: &Spanned<DeValue<'_>>, wanted: String) -> FileError {
        let found = match value.get_ref() {
            DeValue::String(_) => "text",
            DeValue::Integer(_) => "this whole number",
            DeValue::Float(_) => "a number with a point",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.place(&value.span()).error(FileCause::Type { name: name.to_owned(), found, wanted })
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let before = self.text.as_bytes().get(..span.start).unwrap_or(self.text.as_bytes());
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Place { file: self.file.to_owned(), line }
    }
}

/// The keys of a table in the order in which they stand in the file.
fn in_order<'t, 'i>(
    table: &'t DeTable<'i>,
) -> Vec<(&'t Spanned<std::borrow::Cow<'i, str>>, &'t Spanned<DeValue<'i>>)> {
    let mut all: Vec<_> = table.iter().collect();
    all.sort_by_key(|(name, _)| name.span().start);
    all
}

/// Text, or the digits of a whole number.
fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            let number = i128::from_str_radix(number.as_str(), number.radix()).ok()?;
            Some(number.to_string())
        }
        _ => None,
    }
}

/// A value as `--disk` would have it; none if it is of another kind.
fn text_of(key: Key, value: &DeValue<'_>) -> Option<String> {
    match (key.kind(), value) {
        (_, DeValue::String(text)) => Some(text.to_string()),
        (Kind::Switch, DeValue::Boolean(is_on)) => Some(if *is_on { "on" } else { "off" }.to_owned()),
        (Kind::Mode, DeValue::Integer(mode)) if mode.radix() == 8 => Some(mode.as_str().to_owned()),
        (
            Kind::Bytes
            | Kind::Limit(..)
            | Kind::Number { .. }
            | Kind::OneOf(_)
            | Kind::Identity
            | Kind::List,
            DeValue::Integer(_),
        ) => plain(value),
        (Kind::List, DeValue::Array(items)) => {
            let items: Option<Vec<_>> = items.iter().map(|item| plain(item.get_ref())).collect();
            Some(items?.join(","))
        }
        _ => None,
    }
}

/// What a value may be, in words.
fn wanted(key: Key) -> String {
    match key.kind() {
        Kind::Mode => key.wanted() + " or 0o660",
        _ => key.wanted(),
    }
}

#[cfg(test)]
mod tests;
