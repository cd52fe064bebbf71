//! What kinds of values options have.

use crate::throttle::Measure;

/// What is said of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// How much in the long run.
    Average,
    /// How much in a burst.
    Max,
    /// How many seconds a burst may last.
    MaxLength,
}

/// What kind of value an option has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A path; it needs no UTF-8.
    Path,
    /// Any text.
    Text,
    /// Bytes, also with a unit.
    Bytes,
    /// A limit: a whole number, or `none`; of bytes also with a unit.
    Limit(Measure, Part),
    /// On or off.
    Switch,
    /// A whole number in a range.
    Number {
        /// The least.
        min: u16,
        /// The most.
        max: u16,
    },
    /// One of these numbers.
    OneOf(&'static [u32]),
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of these words, or a path with a `/` in it.
    WordOrPath(&'static [&'static str]),
    /// Permissions in octal.
    Mode,
    /// A user or a group, by name or number.
    Identity,
    /// Several of these, or CPUs and ranges of them.
    List,
}
