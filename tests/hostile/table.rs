//! A row of the table: what somebody tries, and what becomes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use crate::common::daemon::Daemon;

/// Who tries what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A front-end: what it says.
    Message,
    /// A front-end or a driver: a ring, and how its chains are made.
    Ring,
    /// A driver: what its chains ask for.
    Request,
    /// A front-end: what it hands over.
    Descriptor,
    /// A front-end: when it speaks, stops speaking, or leaves.
    Timing,
    /// Another user of the machine.
    User,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A message is done.
    Done,
    /// A message is refused with a NACK; the connection goes on.
    Nack,
    /// The connection is closed.
    HungUp,
    /// A message is not answered; the connection goes on.
    Silence,
    /// A request has this status, and this many bytes in the used ring.
    Status(u8, u32),
    /// The ring is broken: err is notified, nothing is completed.
    Broken,
    /// It is as if nothing had been tried.
    Served,
    /// The kernel says no.
    Denied,
    /// A start of the program ends with this exit code.
    Exit(i32),
    /// It has gone otherwise than any row expects.
    Wrong(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Nack => f.write_str("NACK"),
            Self::HungUp => f.write_str("hangs up"),
            Self::Silence => f.write_str("silence"),
            Self::Status(0, bytes) => write!(f, "OK, {bytes} B used"),
            Self::Status(1, bytes) => write!(f, "IOERR, {bytes} B used"),
            Self::Status(2, bytes) => write!(f, "UNSUPP, {bytes} B used"),
            Self::Status(status, bytes) => write!(f, "status {status}, {bytes} B used"),
            Self::Broken => f.write_str("ring broken"),
            Self::Served => f.write_str("served on"),
            Self::Denied => f.write_str("denied by the kernel"),
            Self::Exit(code) => write!(f, "exit code {code}"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

/// Where a row is tried.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// The daemon.
    pub(crate) daemon: &'a Daemon,
    /// Where the disk that is attacked is served.
    pub(crate) socket: PathBuf,
    /// What it consists of.
    pub(crate) image: PathBuf,
}

/// One case.
pub(crate) struct Row {
    /// Who tries what.
    pub(crate) kind: Kind,
    /// What is wrong with it.
    pub(crate) name: String,
    /// What becomes of it.
    pub(crate) expected: Answer,
    /// What the log says of it, where it must.
    pub(crate) reason: String,
    /// Tries it.
    pub(crate) attack: Box<dyn Fn(&Place<'_>) -> Answer>,
    /// Takes more than a moment: it is not tried over and over.
    pub(crate) is_slow: bool,
}

impl Row {
    /// Of which the log need not say anything.
    pub(crate) fn new(
        kind: Kind,
        name: impl Into<String>,
        expected: Answer,
        attack: impl Fn(&Place<'_>) -> Answer + 'static,
    ) -> Self {
        let (name, reason) = (name.into(), String::new());
        Self { kind, name, expected, reason, attack: Box::new(attack), is_slow: false }
    }

    /// The same, and these words are in the log.
    pub(crate) fn logged(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// The same; it takes more than a moment.
    pub(crate) fn slow(mut self) -> Self {
        self.is_slow = true;
        self
    }
}

/// What was seen of each row.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// By the row's place in the table.
    lines: BTreeMap<usize, (Kind, String)>,
    failed: Vec<String>,
}

impl Report {
    /// Adds what was seen of the row at this place of the table.
    pub(crate) fn add(&mut self, number: usize, row: &Row, seen: &Result<(), String>) {
        let Row { kind, name, expected, .. } = row;
        let seen = match seen {
            Ok(()) => "as expected",
            Err(what) => {
                self.failed.push(format!("{kind:?}: {name}: expected {expected}, but {what}"));
                what
            }
        };
        self.lines.insert(number, (*kind, format!("| {kind:?} | {name} | {expected} | {seen} |")));
    }

    /// Prints all, and how many there were of each kind; fails if any was not as expected.
    pub(crate) fn finish(self) -> BTreeMap<Kind, usize> {
        let Self { lines, failed } = self;
        let mut counts = BTreeMap::<_, usize>::new();
        for (kind, line) in lines.into_values() {
            println!("{line}");
            *counts.entry(kind).or_default() += 1;
        }
        println!("{} cases: {counts:?}", counts.values().sum::<usize>());
        assert!(failed.is_empty(), "{} cases went wrong:\n{}", failed.len(), failed.join("\n"));
        counts
    }
}
