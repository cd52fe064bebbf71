//! What the operator decides about a disk's media: discards, deep flushes, the durability that it must have.

use std::fmt;
use std::fs::File;
use std::io;
use std::str::FromStr;

use crate::disk::{BackingKind, Durability, Media, Region};

/// What becomes of space that a guest no longer needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiscardPolicy {
    /// It is given back, except on DAX: there every block that is given back must be faulted in and entered
    /// in the file system's journal again, and huge mappings break up.
    #[default]
    Auto,
    /// It is kept.
    Ignore,
    /// It is given back where that is possible.
    Unmap,
}

impl DiscardPolicy {
    /// Whether a disk of this kind gives space back.
    pub const fn unmaps(self, kind: BackingKind) -> bool {
        match (self, kind) {
            (Self::Ignore, _) | (_, BackingKind::DeviceDax) => false,
            (Self::Auto, BackingKind::DaxFile { .. }) => false,
            (Self::Auto | Self::Unmap, _) => true,
        }
    }
}

impl fmt::Display for DiscardPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Ignore => "ignore",
            Self::Unmap => "unmap",
        })
    }
}

impl FromStr for DiscardPolicy {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        choose(word, [Self::Auto, Self::Ignore, Self::Unmap])
    }
}

/// When FLUSH empties the memory controller's queues (`deep_flush` of the region) as well.
///
/// A fence is enough where the platform empties them by itself when the power fails (ADR), which Linux assumes of all
/// persistent memory. A deep flush saves the data even where that mechanism fails. A disk with deep flushes offers a write-back
/// cache, so that guests send FLUSH.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeepFlush {
    /// Where the region can do it (`deep_flush` is 1) and does not state its `persistence_domain`: then nothing says that the
    /// platform empties the queues by itself.
    #[default]
    Auto,
    /// Never.
    Never,
    /// Where the region can do it (`deep_flush` is 1).
    Always,
}

impl DeepFlush {
    /// The regions that FLUSH goes to; none where a fence is enough.
    pub(in crate::disk) fn regions(self, media: &Media) -> impl Iterator<Item = &Region> {
        let is_synchronous = !media.durability.needs_flush();
        media.regions.iter().filter(move |region| {
            let is_wanted = match self {
                Self::Never => false,
                Self::Auto => region.persistence_domain.is_none(),
                Self::Always => true,
            };
            is_synchronous && is_wanted && region.has_flush_hints
        })
    }

    /// The attributes to write to at FLUSH; none where a fence is enough.
    ///
    /// # Errors
    /// One of them cannot be opened for writing. [`DeepFlush::Auto`] leaves that one out instead, with a warning.
    pub(in crate::disk) fn files(self, media: &Media) -> io::Result<Vec<File>> {
        let mut files = Vec::new();
        for region in self.regions(media) {
            match region.deep_flush_file() {
                Ok(file) => files.push(file),
                Err(error) if self == Self::Auto => {
                    let region = &region.name;
                    tracing::warn!(region, %error, "cannot open deep_flush: a flush is only a fence");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }
}

impl fmt::Display for DeepFlush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Never => "never",
            Self::Always => "always",
        })
    }
}

impl FromStr for DeepFlush {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        choose(word, [Self::Auto, Self::Never, Self::Always])
    }
}

impl Durability {
    /// The class as one word, as users write it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Volatile => "volatile",
            Self::Page => "page",
            Self::CacheLine => "cacheline",
            Self::Byte => "byte",
        }
    }
}

impl FromStr for Durability {
    type Err = UnknownWord;

    /// Parses a class that can be required.
    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        let classes = [Self::Page, Self::CacheLine, Self::Byte];
        let found = classes.into_iter().find(|class| class.word() == word);
        found.ok_or_else(|| UnknownWord::new(word, &classes.map(Self::word)))
    }
}

/// A word that is none of those to choose from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is not one of its values; use {choices}")]
pub struct UnknownWord {
    word: String,
    choices: String,
}

impl UnknownWord {
    fn new(word: &str, choices: &[&str]) -> Self {
        Self { word: word.to_owned(), choices: choices.join(", ") }
    }
}

fn choose<T: Copy + fmt::Display, const N: usize>(word: &str, choices: [T; N]) -> Result<T, UnknownWord> {
    let found = choices.into_iter().find(|choice| choice.to_string() == word);
    found.ok_or_else(|| {
        let words = choices.map(|choice| choice.to_string());
        UnknownWord::new(word, &words.each_ref().map(String::as_str))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::media::region::testing::{NFIT, bus, pmem};
    use crate::disk::media::sysfs::testing::Tree;

    #[test]
    fn words_are_read_as_they_are_written() {
        for policy in [DiscardPolicy::Auto, DiscardPolicy::Ignore, DiscardPolicy::Unmap] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for policy in [DeepFlush::Auto, DeepFlush::Never, DeepFlush::Always] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for class in [Durability::Page, Durability::CacheLine, Durability::Byte] {
            assert_eq!(class.word().parse(), Ok(class));
        }
        let error = "volatile".parse::<Durability>().unwrap_err();
        assert_eq!(error.to_string(), "`volatile` is not one of its values; use page, cacheline, byte");
        let error = "on".parse::<DeepFlush>().unwrap_err();
        assert_eq!(error.to_string(), "`on` is not one of its values; use auto, never, always");
    }

    #[test]
    fn discards_are_for_those_whom_they_help() {
        use DiscardPolicy::{Auto, Ignore, Unmap};
        let file_system = crate::disk::FileSystem::of(&rustix::fs::statfs("/").unwrap());
        for (kind, expected) in [
            (BackingKind::Tmpfs, [true, false, true]),
            (BackingKind::OrdinaryFile { file_system }, [true, false, true]),
            (BackingKind::BlockDevice, [true, false, true]),
            (BackingKind::DaxFile { file_system }, [false, false, true]),
            (BackingKind::DeviceDax, [false, false, false]),
        ] {
            assert_eq!([Auto, Ignore, Unmap].map(|policy| policy.unmaps(kind)), expected, "{kind}");
        }
    }

    /// How many attributes are written to, by policy and by what the region can do.
    #[test]
    fn deep_flushes_go_where_they_are_wanted_and_possible() {
        let files = |hints: &str, domain, durability, policy: DeepFlush| {
            let tree = Tree::new();
            bus(&tree, NFIT, "ACPI.NFIT", domain);
            pmem(&tree, NFIT);
            tree.file(&format!("{NFIT}/region0/deep_flush"), hints);
            let regions = Region::all_of(&tree.sysfs().block(rustix::fs::makedev(259, 0)).unwrap());
            let media = Media::testing(BackingKind::DeviceDax, durability, regions);
            policy.files(&media).unwrap().len()
        };
        use DeepFlush::{Always, Auto, Never};
        let (controller, line) = (Some("memory_controller"), Durability::CacheLine);
        assert_eq!([Auto, Never, Always].map(|policy| files("1\n", None, line, policy)), [1, 0, 1]);
        assert_eq!([Auto, Never, Always].map(|policy| files("1\n", controller, line, policy)), [0, 0, 1]);
        assert_eq!([Auto, Never, Always].map(|policy| files("0\n", None, line, policy)), [0, 0, 0]);
        assert_eq!(files("1\n", None, Durability::Page, Always), 0, "fdatasync does it");
    }
}
