//! The lines of the log that programs follow as events: each such line has one of these names (`name:` of its call of
//! `tracing`), and is limited as all lines are.

/// A name, and what has happened when a line has it.
#[cfg(feature = "daemon")]
pub(crate) type Kind = (&'static str, &'static str);

macro_rules! kinds {
    ($($constant:ident = $name:literal: $meaning:literal,)*) => {
        $(
            #[doc = $meaning]
            #[cfg_attr(not(feature = "daemon"), allow(dead_code))]
            pub(crate) const $constant: &str = $name;
        )*

        /// All of them.
        #[cfg(feature = "daemon")]
        pub(crate) const ALL: &[Kind] = &[$(($name, $meaning)),*];
    };
}

kinds! {
    FRONT_END_CAME = "front-end-came": "A front-end has sent its first message",
    FRONT_END_LEFT = "front-end-left": "It has left, or its connection was closed: `reason` says why then",
    FRONT_END_REFUSED = "front-end-refused": "A front-end was not let in",
    RING_BROKEN = "ring-broken": "A driver's mistake has stopped a ring; `error` says which",
    DISK_ADDED = "disk-added": "A disk is served from now on",
    DISK_REMOVED = "disk-removed": "A disk is not served any more",
    LIMITS_CHANGED = "limits-changed": "What limits a disk has changed",
    DISK_RESIZED = "disk-resized": "A disk has grown",
    REQUEST_FAILED = "request-failed": "A request of a guest was answered with an error",
    REQUEST_SLOW = "request-slow": "A request took longer than `slow-ms=` says, or has not ended after it (`done`)",
    MEDIA_BAD = "media-bad": "Bad media was found in these ranges",
    MEDIA_HANGS = "media-hangs": "Media has not answered for long; again and again while that lasts",
    MEDIA_ANSWERS = "media-answers": "Media that hung has answered",
    LOG_CHANGED = "log-changed": "The log says more, or less, from now on",
    RELOADED = "reloaded": "The configuration was read again, and is in force",
    RELOAD_FAILED = "reload-failed": "The configuration was read again, and is not in force, or not all of it",
    STOPPING = "stopping": "The server is about to end",
}

/// Whether a line has a name: where it has none, `tracing` makes one of several words.
#[cfg(feature = "daemon")]
pub(crate) fn is_name(name: &str) -> bool {
    !name.contains(' ')
}

#[cfg(all(test, feature = "daemon"))]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_word_of_its_own_that_the_manual_has() {
        let manual = include_str!("../cli/man/manual.md");
        for (place, (name, _)) in ALL.iter().enumerate() {
            assert!(is_name(name) && manual.contains(&format!("`{name}`")), "{name}");
            assert!(ALL.iter().take(place).all(|(other, _)| other != name), "{name}");
        }
        assert!(!is_name("event src/log/kinds.rs:1"));
    }
}
