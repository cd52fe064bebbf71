//! Disks of which each front-end gets one of its own.

/// Whether a disk is a template, of which each front-end gets a private disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Template {
    /// There is one disk.
    #[default]
    Off,
    /// Their serial numbers have a number behind them.
    On,
    /// They have the same serial number.
    SameSerial,
}

#[cfg(feature = "daemon")]
impl Template {
    const WORDS: [(&str, Self); 3] =
        [("off", Self::Off), ("on", Self::On), ("same-serial", Self::SameSerial)];

    pub(super) fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, template)| *template == self).map_or("off", |(word, _)| word)
    }

    pub(super) fn named(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(name, _)| *name == word).map(|(_, template)| *template)
    }
}
