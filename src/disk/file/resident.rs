//! What of a file is in the page cache: whether it can be read without waiting for media.
//!
//! To ask the kernel before each read would take longer than the read (4 KiB of a mapping 1.0 µs, with `mincore(2)` before it
//! 2.6 µs, by `preadv2` with `RWF_NOWAIT` 1.9 µs, measured). So it is asked for a window around what is read, and what it says
//! of a window that is there as a whole holds for a moment.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

use crate::disk::Mapping;
use crate::disk::mapping::residency::residency;

/// What is asked for at once.
const WINDOW_BYTES: u64 = 128 << 10;

/// How long an answer holds. A page that was there is hardly ever evicted so soon: it has just been used.
const MOMENT_MS: u64 = 1000;

/// Windows that are remembered.
const WINDOWS: usize = 4096;

/// Bits of a time.
const TIME_BITS: u32 = 24;

/// Windows of a file that were seen in the page cache as a whole.
#[derive(Debug, Default)]
pub(super) struct ResidentWindows {
    /// For each of these the number of the last such window that belongs here, from one, and when it was seen.
    seen: OnceLock<Box<[AtomicU64]>>,
    /// The moment at which a turn began last: to read the clock for each request would take a tenth of a hot one.
    now: AtomicU64,
}

impl ResidentWindows {
    /// Looks which moment it is.
    pub(super) fn begin_turn(&self) {
        let now = now();
        // A store only where it changes something: other workers read it, too.
        if self.now.load(Ordering::Relaxed) != now {
            self.now.store(now, Ordering::Relaxed);
        }
    }

    /// Whether all of a range was in the page cache a moment ago.
    #[inline]
    pub(super) fn has(&self, mapping: &Mapping, offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len).filter(|end| *end <= mapping.len_bytes()) else {
            return false;
        };
        let now = self.now.load(Ordering::Relaxed);
        let mut window = offset / WINDOW_BYTES;
        while window * WINDOW_BYTES < end {
            if !self.has_window(window, now) && !self.ask(mapping, window, now, offset, end) {
                return false;
            }
            window += 1;
        }
        true
    }

    /// A range is being taken out of the page cache: what was seen of it holds no longer.
    pub(super) fn forget(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let windows = offset / WINDOW_BYTES..end.div_ceil(WINDOW_BYTES);
        // From so many on each place belongs to one of them.
        windows.take(WINDOWS).filter_map(|window| self.place(window)).for_each(|place| {
            place.store(0, Ordering::Relaxed);
        });
    }

    #[inline]
    fn has_window(&self, window: u64, now: u64) -> bool {
        self.place(window).is_some_and(|place| place.load(Ordering::Relaxed) == mark(window, now))
    }

    /// Asks the kernel about the part of the range that lies in a window. Of what is not there, it is asked no more than that.
    #[cold]
    #[inline(never)]
    fn ask(&self, mapping: &Mapping, window: u64, now: u64, offset: u64, end: u64) -> bool {
        const PAGE_BYTES: u64 = 4096;
        let mut room = [0; (WINDOW_BYTES / PAGE_BYTES) as usize];
        let page_bytes = rustix::param::page_size() as u64;
        let start = window * WINDOW_BYTES;
        let mut are_there = |part| {
            let answers = residency(mapping, part, &mut room);
            !answers.is_empty() && answers.iter().all(|answer| answer & 1 != 0)
        };
        let first = offset.max(start);
        if !are_there(first - first % page_bytes..end.min(start + WINDOW_BYTES)) {
            return false;
        }
        if are_there(start..start + WINDOW_BYTES)
            && let Some(place) = self.place(window)
        {
            place.store(mark(window, now), Ordering::Relaxed);
        }
        true
    }

    fn place(&self, window: u64) -> Option<&AtomicU64> {
        let places = self.seen.get_or_init(|| (0..WINDOWS).map(|_| AtomicU64::new(0)).collect());
        places.get(usize::try_from(window).ok()? % WINDOWS)
    }
}

/// That a window is there. (Of more bytes than there can be, two windows would have the same.)
const fn mark(window: u64, now: u64) -> u64 {
    window.wrapping_add(1) << TIME_BITS | now
}

/// The current moment.
#[inline]
fn now() -> u64 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    let ms = time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000;
    (ms / MOMENT_MS) & ((1 << TIME_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    #[allow(clippy::print_stderr)]
    fn what_was_evicted_is_not_there_and_what_was_read_is() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let len = 8 * WINDOW_BYTES + 4096;
        (0..len / 4096).for_each(|page| file.write_all_at(&[7; 4096], page * 4096).unwrap());
        let mapping = Mapping::new(&file, len, true).unwrap();
        let windows = ResidentWindows::default();
        assert!(windows.has(&mapping, 0, len) && windows.has(&mapping, len - 1, 1));
        assert!(!windows.has(&mapping, len - 1, 2) && !windows.has(&mapping, u64::MAX, 1));
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        // What was remembered holds no longer than a moment.
        std::thread::sleep(std::time::Duration::from_millis(2 * MOMENT_MS));
        windows.begin_turn();
        if windows.has(&mapping, 3 * WINDOW_BYTES, 4096) {
            eprintln!("skipped: this file system keeps what was written in memory");
            return;
        }
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, 3 * WINDOW_BYTES + 8192).unwrap();
        assert!(windows.has(&mapping, 3 * WINDOW_BYTES + 8192, 4096));
        assert!(!windows.has(&mapping, 5 * WINDOW_BYTES, WINDOW_BYTES));
    }
}
