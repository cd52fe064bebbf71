//! Entering a mapping into the page tables before a guest needs it.
//!
//! A first touch costs a fault, and on DAX with `MAP_SYNC` a commit of the file system's journal. Nothing
//! waits for it: the disk is served meanwhile.

use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;

use super::MappedDisk;
use crate::disk::failure::missing_space;
use crate::disk::mapping::HUGE_PAGE_BYTES;
use crate::disk::{BackingKind, Disk, space};

/// Most bytes populated at a time. The kernel holds the lock of all mappings meanwhile, and a front-end that comes needs
/// it: with 64 MiB it waited up to 75 ms for its first answer, with these half as long.
const STEP_BYTES: u64 = 8 << 20;

/// The first step, and the shortest: a page may take as long as a copy of it, or a commit of the journal.
const FIRST_STEP_BYTES: u64 = 4096;

/// How long a step should take at most. Where the media is slow the steps are so much shorter.
const STEP_TIME: Duration = Duration::from_millis(10);

/// Bytes populated at a time where a whole step failed.
const SMALL_STEP_BYTES: u64 = 2 << 20;

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Populated {
    /// Bytes that are in the page tables now.
    pub bytes: u64,
    /// Bytes that could not be entered: bad media, no space, or the kernel has no means (before 5.14).
    pub failed_bytes: u64,
    /// Bytes of these that there is no space for: a write to them fails.
    pub full_bytes: u64,
}

/// As [`Backing::populate`](crate::disk::Backing::populate).
pub(in crate::disk) fn populate(
    disk: &MappedDisk,
    from_bytes: u64,
    should_stop: impl Fn() -> bool,
) -> Populated {
    let mut populated = Populated::default();
    let capacity_bytes = disk.geometry().capacity_bytes;
    let (mut at, mut gathered, mut step) = (from_bytes, from_bytes, StepLen(FIRST_STEP_BYTES));
    while let Some(part) = next_part(disk, at..capacity_bytes, step.0) {
        if should_stop() {
            break;
        }
        let len = part.end - part.start;
        at = part.end;
        let start = Instant::now();
        let around = huge_pages_around(part.clone(), capacity_bytes);
        let holes = unwritten_bytes(disk, around.clone());
        let failed = match disk.mapping().populate(part.clone()) {
            Ok(()) => {
                disk.add_populated_zero_bytes(holes.saturating_sub(unwritten_bytes(disk, around)));
                if disk.kind() == BackingKind::Tmpfs {
                    gathered = collapse(disk, gathered..at, capacity_bytes);
                }
                Failed::default()
            }
            Err(_) => failed(disk, part),
        };
        step.learn(start.elapsed());
        populated.bytes += len - failed.bytes;
        populated.failed_bytes += failed.bytes;
        populated.full_bytes += failed.full_bytes;
    }
    populated
}

/// How many bytes are populated at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StepLen(u64);

impl StepLen {
    /// A step has taken so long.
    fn learn(&mut self, took: Duration) {
        self.0 = match took {
            took if took > STEP_TIME => (self.0 / 4).max(FIRST_STEP_BYTES),
            took if took < STEP_TIME / 4 => (self.0 * 2).min(STEP_BYTES),
            _ => self.0,
        };
    }
}

/// Gathers what was populated into huge pages, once it is enough. Returns where to go on.
///
/// Space was allocated before the kernel could know that huge pages are wanted. An error is ignored: with small pages the disk
/// is slower, and no less right.
fn collapse(disk: &MappedDisk, part: Range<u64>, capacity_bytes: u64) -> u64 {
    const HUGE: u64 = HUGE_PAGE_BYTES as u64;
    let end = part.end - part.end % HUGE;
    if part.end < capacity_bytes && end < part.start.saturating_add(STEP_BYTES) {
        return part.start;
    }
    // Ignored: Linux before 6.1 cannot do it, nor can any other when no huge page is free.
    let _ = disk.mapping().collapse(part.start..end.max(part.start));
    end.max(part.start)
}

/// What could not be populated; bytes.
#[derive(Debug, Default)]
struct Failed {
    bytes: u64,
    full_bytes: u64,
}

/// The huge pages that this part lies in: the kernel may zero all of one for a byte of it.
fn huge_pages_around(part: Range<u64>, capacity_bytes: u64) -> Range<u64> {
    const HUGE: u64 = HUGE_PAGE_BYTES as u64;
    let end = part.end.checked_next_multiple_of(HUGE).unwrap_or(capacity_bytes);
    part.start - part.start % HUGE..end.min(capacity_bytes)
}

/// Bytes that the kernel will zero before they can be stored into: on DAX such a page has data.
fn unwritten_bytes(disk: &MappedDisk, part: Range<u64>) -> u64 {
    match disk.kind() {
        BackingKind::DaxFile { .. } if !disk.geometry().read_only => space::hole_bytes(disk.file(), part),
        _ => 0,
    }
}

/// Populates what can be in smaller parts, and answers how much could not.
#[cold]
fn failed(disk: &MappedDisk, range: Range<u64>) -> Failed {
    let mut failed = Failed::default();
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at.saturating_add(SMALL_STEP_BYTES));
        if disk.mapping().populate(at..end).is_err() {
            failed.bytes += end - at;
            if missing_space(disk.file(), at).is_some() {
                failed.full_bytes += end - at;
            }
        }
        at = end;
    }
    failed
}

/// The next part of `range` to be populated, at most so long. Reading a hole of tmpfs would fill it: a disk
/// that is only read, whose holes were not filled at the start, leaves them out.
fn next_part(disk: &MappedDisk, range: Range<u64>, step_bytes: u64) -> Option<Range<u64>> {
    if range.is_empty() {
        return None;
    }
    let step = range.start..range.end.min(range.start.saturating_add(step_bytes));
    if !disk.geometry().read_only || disk.kind() == BackingKind::DeviceDax {
        return Some(step);
    }
    // Offsets of the open file are nobody's business: all I/O names its own.
    let start = rustix::fs::seek(disk.file(), SeekFrom::Data(range.start)).ok()?;
    let end = rustix::fs::seek(disk.file(), SeekFrom::Hole(start)).ok()?;
    let part = start..end.min(range.end).min(start.saturating_add(step_bytes));
    (!part.is_empty()).then_some(part)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::disk::Backing;
    use crate::disk::{Geometry, LockMode, OpenOptions, count_huge_pages, open};

    #[test]
    fn a_disk_is_populated_step_by_step_until_told_to_stop() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        let capacity_bytes = 2 * STEP_BYTES + 4096;
        file.set_len(capacity_bytes).unwrap();
        let again = file.try_clone().unwrap();
        let geometry = Geometry { capacity_bytes, block_bytes: 512, read_only: false };
        let disk = Backing::Mapped(MappedDisk::new(file, geometry).unwrap());
        let steps = std::cell::Cell::new(0);
        let stop = || {
            steps.set(steps.get() + 1);
            steps.get() == 2
        };
        let populated = disk.populate(0, stop).unwrap();
        assert_eq!((populated.bytes, populated.failed_bytes), (FIRST_STEP_BYTES, 0));
        assert_eq!(again.metadata().unwrap().blocks() * 512, FIRST_STEP_BYTES);
        let populated = disk.populate(0, || false).unwrap();
        assert_eq!(populated.bytes, capacity_bytes);
        let Backing::Mapped(mapped) = &disk else { unreachable!() };
        assert_eq!(disk.huge_bytes(), None, "not counted yet");
        count_huge_pages([&disk]);
        let huge_bytes = disk.huge_bytes().unwrap();
        match mapped.mapping().collapse(0..STEP_BYTES) {
            Ok(()) => assert!(huge_bytes >= STEP_BYTES, "{huge_bytes} bytes on huge pages"),
            #[allow(clippy::print_stdout)]
            Err(error) => println!("skipped: no huge pages for tmpfs here ({error})"),
        }
    }

    #[test]
    fn huge_pages_around_a_part_end_with_the_disk() {
        const HUGE: u64 = HUGE_PAGE_BYTES as u64;
        assert_eq!(huge_pages_around(HUGE + 4096..HUGE + 8192, 8 * HUGE), HUGE..2 * HUGE);
        assert_eq!(huge_pages_around(HUGE..2 * HUGE, 8 * HUGE), HUGE..2 * HUGE);
        assert_eq!(huge_pages_around(HUGE - 1..HUGE + 1, HUGE + 4096), 0..HUGE + 4096);
        assert_eq!(huge_pages_around(0..1, u64::MAX), 0..HUGE);
    }

    /// The lock of all mappings is never held for long, whatever the media is like; where it is quick, steps are long.
    #[test]
    fn steps_are_as_long_as_the_media_is_quick() {
        let (quick, slow) = (Duration::from_micros(100), Duration::from_secs(1));
        let mut step = StepLen(FIRST_STEP_BYTES);
        for steps in 0..20 {
            assert_eq!(step.0, (FIRST_STEP_BYTES << steps).min(STEP_BYTES));
            step.learn(quick);
        }
        step.learn(STEP_TIME / 2);
        assert_eq!(step.0, STEP_BYTES);
        for steps in 0..10 {
            assert_eq!(step.0, (STEP_BYTES >> (2 * steps)).max(FIRST_STEP_BYTES));
            step.learn(slow);
        }
    }

    #[test]
    fn holes_of_a_disk_that_is_only_read_stay() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("a.img");
        let file = File::create_new(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 8192], 32 << 20).unwrap();
        let before = file.metadata().unwrap().blocks();
        let options = OpenOptions { read_only: true, lock: LockMode::Off, ..OpenOptions::new("db0") };
        let opened = open(&path, &options).unwrap();
        let populated = opened.disk.populate(0, || false).unwrap();
        assert_eq!((populated.bytes, populated.failed_bytes), (8192, 0));
        assert_eq!(file.metadata().unwrap().blocks(), before);
    }

    #[test]
    fn a_file_cut_short_is_counted_as_failed() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(8 << 20).unwrap();
        let again = file.try_clone().unwrap();
        let geometry = Geometry { capacity_bytes: 8 << 20, block_bytes: 512, read_only: false };
        let disk = Backing::Mapped(MappedDisk::new(file, geometry).unwrap());
        again.set_len(3 << 20).unwrap();
        let populated = disk.populate(0, || false).unwrap();
        assert!((1 << 20..=3 << 20).contains(&populated.bytes), "{populated:?}");
        assert_eq!(populated.bytes + populated.failed_bytes, 8 << 20);
    }
}
