//! A row of the table: what somebody tries, and what becomes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Who tries what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A front-end: what it says.
    Message,
    /// A front-end or a driver: a ring, and how its chains are made.
    Ring,
    /// A driver: what its chains ask for.
    Request,
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
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

/// Where a row is tried.
#[derive(Debug)]
pub(crate) struct Place {
    /// The disk that is attacked.
    pub(crate) socket: PathBuf,
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
    pub(crate) attack: Box<dyn Fn(&Place) -> Answer>,
}

impl Row {
    /// Of which the log need not say anything.
    pub(crate) fn new(
        kind: Kind,
        name: impl Into<String>,
        expected: Answer,
        attack: impl Fn(&Place) -> Answer + 'static,
    ) -> Self {
        let (name, reason) = (name.into(), String::new());
        Self { kind, name, expected, reason, attack: Box::new(attack) }
    }

    /// The same, and these words are in the log.
    pub(crate) fn logged(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }
}

/// What was seen of each row, and how many of each kind there were.
#[derive(Debug, Default)]
pub(crate) struct Report {
    counts: BTreeMap<Kind, usize>,
    failed: Vec<String>,
}

impl Report {
    /// Prints a row and what was seen.
    pub(crate) fn add(&mut self, row: &Row, seen: &Result<(), String>) {
        let Row { kind, name, expected, .. } = row;
        *self.counts.entry(*kind).or_default() += 1;
        let seen = match seen {
            Ok(()) => "as expected",
            Err(what) => {
                self.failed.push(format!("{kind:?}: {name}: expected {expected}, but {what}"));
                what
            }
        };
        println!("| {kind:?} | {name} | {expected} | {seen} |");
    }

    /// Prints how many there were; fails if any was not as expected.
    pub(crate) fn finish(self) -> BTreeMap<Kind, usize> {
        let Self { counts, failed } = self;
        println!("{} cases: {counts:?}", counts.values().sum::<usize>());
        assert!(failed.is_empty(), "{} cases went wrong:\n{}", failed.len(), failed.join("\n"));
        counts
    }
}
