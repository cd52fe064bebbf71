//! The parts of the sandbox, by the names that they are switched with.

use std::fmt;
use std::str::FromStr;

/// A part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// User, groups, capabilities, no new privileges, and that nobody may look into the process.
    Privileges,
    /// The file system.
    Landlock,
    /// System calls.
    Seccomp,
    /// Resource limits.
    Rlimits,
}

impl Part {
    /// All of them, in the order in which they come into force.
    pub const ALL: [Self; 4] = [Self::Rlimits, Self::Privileges, Self::Landlock, Self::Seccomp];

    /// How it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Privileges => "privileges",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Rlimits => "rlimits",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts(u8);

impl Parts {
    /// Every part.
    pub const ALL: Self = Self(0b1111);
    /// None of them.
    pub const NONE: Self = Self(0);

    /// Only these.
    pub const PRIVILEGES: Self = Self(1 << Part::Privileges as u8);

    /// Whether this one is among them.
    pub const fn contains(self, part: Part) -> bool {
        self.0 & 1 << part as u8 != 0
    }

    /// All of these but one.
    #[must_use]
    pub const fn without(self, part: Part) -> Self {
        Self(self.0 & !(1 << part as u8))
    }
}

/// What stands where a list of parts should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write on, require, off, or a list of privileges, landlock, seccomp and rlimits")]
pub struct UnknownPart;

impl FromStr for Parts {
    type Err = UnknownPart;

    fn from_str(text: &str) -> Result<Self, UnknownPart> {
        text.split(',').try_fold(Self::NONE, |parts, name| {
            let part = Part::ALL.into_iter().find(|part| part.name() == name).ok_or(UnknownPart)?;
            Ok(Self(parts.0 | 1 << part as u8))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_listed_by_their_names() {
        let all = "rlimits,privileges,landlock,seccomp".parse::<Parts>().unwrap();
        assert_eq!(all, Parts::ALL);
        assert!(Part::ALL.into_iter().all(|part| all.contains(part) && !all.without(part).contains(part)));
        let some = "seccomp,landlock".parse::<Parts>().unwrap();
        assert!(some.contains(Part::Seccomp) && !some.contains(Part::Privileges));
        for wrong in ["", "seccomp,", "all", "Seccomp"] {
            assert_eq!(wrong.parse::<Parts>(), Err(UnknownPart), "{wrong}");
        }
    }
}
