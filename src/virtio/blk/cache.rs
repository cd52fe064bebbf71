//! Who sees to it that writes persist: the guest with its flushes, or we with each write.

use std::sync::atomic::{AtomicU8, Ordering};

const WRITE_BACK: u8 = 0;
const WRITE_THROUGH: u8 = 1;
const UNKNOWN: u8 = 2;

/// The cache mode of one front-end's device, shared by its rings (VIRTIO 1.2 §5.2.6.2).
///
/// A front-end that comes back after a restart of ours (QEMU with `reconnect-ms`) does not read the
/// configuration again and does not repeat that its guest had switched to write-through; a guest in that
/// mode sends no flush, ever. So a session that has not read the configuration starts in an *unknown* mode
/// that persists each write, until the guest's first flush shows that it relies on flushes.
#[derive(Debug)]
pub struct CacheMode {
    mode: AtomicU8,
    /// What an unknown mode turns out to be when nobody has chosen.
    initial: u8,
}

impl CacheMode {
    /// The mode of a session that has not said anything yet, on a disk that starts with `writeback`.
    pub const fn unknown(writeback: bool) -> Self {
        let initial = if writeback { WRITE_BACK } else { WRITE_THROUGH };
        Self { mode: AtomicU8::new(UNKNOWN), initial }
    }

    /// The mode of a driver that has not acknowledged `VIRTIO_BLK_F_FLUSH`: it will never send one.
    pub const fn write_through() -> Self {
        Self { mode: AtomicU8::new(WRITE_THROUGH), initial: WRITE_THROUGH }
    }

    /// The guest has chosen (`writeback` of the configuration).
    pub fn set_writeback(&self, writeback: bool) {
        self.mode.store(if writeback { WRITE_BACK } else { WRITE_THROUGH }, Ordering::Release);
    }

    /// What has been chosen, if it is known.
    pub fn chosen(&self) -> Option<bool> {
        match self.mode.load(Ordering::Acquire) {
            UNKNOWN => None,
            mode => Some(mode == WRITE_BACK),
        }
    }

    /// What the configuration shows. A front-end that reads it before its first ring starts (`settles`)
    /// passes it on to a driver that is yet to come; a later read changes nothing for a guest that runs.
    pub fn show_writeback(&self, settles: bool) -> bool {
        if settles {
            self.settle();
        }
        match self.mode.load(Ordering::Acquire) {
            UNKNOWN => self.initial == WRITE_BACK,
            mode => mode == WRITE_BACK,
        }
    }

    /// The guest has sent a flush.
    #[inline]
    pub fn saw_flush(&self) {
        if self.mode.load(Ordering::Relaxed) == UNKNOWN {
            self.settle();
        }
    }

    fn settle(&self) {
        // Fails when the guest has chosen already: its choice stands.
        let _ = self.mode.compare_exchange(UNKNOWN, self.initial, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether a write must persist before it is completed.
    #[inline]
    pub fn is_write_through(&self) -> bool {
        self.mode.load(Ordering::Acquire) != WRITE_BACK
    }
}

#[cfg(test)]
mod tests {
    use super::CacheMode;

    #[test]
    fn an_unknown_mode_persists_until_a_flush_or_a_look() {
        let flushing = CacheMode::unknown(true);
        assert!(flushing.is_write_through());
        flushing.saw_flush();
        assert!(!flushing.is_write_through());
        let looked_at = CacheMode::unknown(true);
        assert!(looked_at.show_writeback(false));
        assert!(looked_at.is_write_through(), "a look at a running guest's configuration settles nothing");
        assert!(looked_at.show_writeback(true));
        assert!(!looked_at.is_write_through());
    }

    #[test]
    fn a_disk_whose_writes_persist_by_themselves_says_so_at_first() {
        let mode = CacheMode::unknown(false);
        assert!(!mode.show_writeback(true));
        assert!(mode.is_write_through());
        mode.set_writeback(true);
        assert!(mode.show_writeback(true));
    }

    #[test]
    fn a_guests_choice_stands() {
        let mode = CacheMode::unknown(true);
        mode.set_writeback(false);
        mode.saw_flush();
        assert!(!mode.show_writeback(true));
        assert!(mode.is_write_through());
        mode.set_writeback(true);
        assert!(mode.show_writeback(true));
        assert!(!mode.is_write_through());
    }
}
