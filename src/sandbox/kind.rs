//! The kinds of threads and processes of this program: what each does decides which system calls it may make.

use std::fmt;

/// A kind of thread, or of process where it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ThreadKind {
    /// The first one, once everything is started: it waits, and takes everything down.
    Main,
    /// Writes the log to standard error.
    Log,
    /// Writes the start message to standard output.
    StartMessage,
    /// Hands signals on.
    Signals,
    /// Lets front-ends in, and waits for the first message of each.
    Acceptor,
    /// Reads the messages of a front-end.
    Session,
    /// Waits until a front-end may write.
    WriterLock,
    /// Carries the requests of guests.
    Worker,
    /// Syncs what is written.
    Flusher,
    /// Does what may wait for media.
    Io,
    /// Names the disks that hang.
    Stalls,
    /// Enters a mapping into the page tables.
    Populate,
    /// Reads the sizes of disks again.
    Rescan,
    /// Hears of bad media.
    Media,
    /// Answers readers of metrics.
    Metrics,
    /// Does what is asked for on the control socket: it alone opens what is not open yet.
    Control,
    /// Fetches pages of a guest that has come before its memory.
    Prefault,
    /// Watches the connection meanwhile.
    ConnectionWatcher,
    /// A process that makes one [`Checker`](Self::Checker) after the other.
    Spawner,
    /// A process that receives what front-ends send along with messages.
    Checker,
    /// A process that keeps attributes of devices: the only one that keeps a capability.
    AttributeKeeper,
}

impl ThreadKind {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Main,
        Self::Log,
        Self::StartMessage,
        Self::Signals,
        Self::Acceptor,
        Self::Session,
        Self::WriterLock,
        Self::Worker,
        Self::Flusher,
        Self::Io,
        Self::Stalls,
        Self::Populate,
        Self::Rescan,
        Self::Media,
        Self::Metrics,
        Self::Control,
        Self::Prefault,
        Self::ConnectionWatcher,
        Self::Spawner,
        Self::Checker,
        Self::AttributeKeeper,
    ];

    /// Whether it is the only thread of a process that was forked.
    #[cfg(feature = "sandbox")]
    pub(crate) const fn is_process(self) -> bool {
        matches!(self, Self::Spawner | Self::Checker | Self::AttributeKeeper)
    }

    /// How its threads are called: those of which there are many have a number behind it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "vhost-user-pmem",
            Self::Log => "log",
            Self::StartMessage => "start-message",
            Self::Signals => "signals",
            Self::Acceptor => "acceptor",
            Self::Session => "session",
            Self::WriterLock => "writer",
            Self::Worker => "worker",
            Self::Flusher => "flusher",
            Self::Io => "io",
            Self::Stalls => "stalls",
            Self::Populate => "populate",
            Self::Rescan => "resize",
            Self::Media => "media",
            Self::Metrics => "metrics",
            Self::Control => "control",
            Self::Prefault => "prefault",
            Self::ConnectionWatcher => "watcher",
            Self::Spawner => "spawner",
            Self::Checker => "descriptors",
            Self::AttributeKeeper => "attributes",
        }
    }

    /// The kind of the thread of this name.
    pub fn of_thread(name: &str) -> Option<Self> {
        let base = name.trim_end_matches(|letter: char| letter.is_ascii_digit()).trim_end_matches('-');
        Self::ALL.into_iter().find(|kind| kind.name() == base || kind.name() == name)
    }

    /// The kinds that it starts. A filter is inherited, and those below it can only take from it: so it has what they have.
    pub const fn starts(self) -> &'static [Self] {
        match self {
            Self::Main => &[Self::Populate],
            Self::Acceptor => &[Self::Session, Self::Flusher],
            Self::Session => {
                &[Self::Worker, Self::WriterLock, Self::Prefault, Self::ConnectionWatcher, Self::Spawner]
            }
            Self::WriterLock | Self::Prefault => &[Self::Worker],
            // And others of its own kind, when it is held up.
            Self::Worker => &[Self::Flusher, Self::Io],
            Self::Rescan => &[Self::Populate],
            Self::Control => &[Self::Populate, Self::Rescan, Self::Media, Self::Stalls],
            Self::Spawner => &[Self::Checker],
            Self::Log
            | Self::StartMessage
            | Self::Signals
            | Self::Flusher
            | Self::Io
            | Self::Stalls
            | Self::Populate
            | Self::Media
            | Self::Metrics
            | Self::ConnectionWatcher
            | Self::Checker
            | Self::AttributeKeeper => &[],
        }
    }
}

impl fmt::Display for ThreadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_known_by_their_names() {
        for kind in ThreadKind::ALL {
            assert_eq!(ThreadKind::of_thread(kind.name()), Some(kind));
            assert_eq!(ThreadKind::of_thread(&format!("{}-17", kind.name())), Some(kind));
        }
        assert_eq!(ThreadKind::of_thread("other"), None);
    }

    #[test]
    fn who_starts_whom_ends_somewhere() {
        fn depth(kind: ThreadKind) -> usize {
            kind.starts().iter().map(|it| depth(*it)).max().map_or(0, |depth| depth + 1)
        }
        assert!(ThreadKind::ALL.into_iter().all(|kind| depth(kind) < 6));
    }
}
