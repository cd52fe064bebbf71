use std::os::unix::fs::FileExt;
use std::sync::{Arc, Barrier};

use proptest::prelude::*;

use super::*;
use crate::copy::fault;
use crate::copy::fault::interruption::Interruptible;
use crate::copy::testing::{Memory, pattern};
use crate::disk::FileDisk;

/// Pages, and a part of one.
pub(super) const LEN: usize = 40 * 4096 + 1536;
pub(super) const ALL: u64 = LEN as u64;

pub(super) fn file(folder: &str) -> File {
    let file = tempfile::tempfile_in(folder).unwrap();
    file.write_all_at(&pattern(LEN, 3), 0).unwrap();
    file
}

pub(super) const BASE: Geometry = Geometry { capacity_bytes: ALL, block_bytes: 512, read_only: true };

fn over_memory(max_bytes: u64) -> Overlay<MappedDisk> {
    Overlay::new(MappedDisk::new(file("/dev/shm"), BASE).unwrap(), max_bytes, true).unwrap()
}

pub(super) fn read(disk: &impl Disk, offset: usize, len: usize) -> Vec<u8> {
    // Cut where no page ends.
    let memory = Memory::new(&vec![0xee; len]).cut(0, &[len / 3, len - len / 3], 0);
    disk.read(offset as u64, memory.segments(), PrefetchHint::NONE).unwrap();
    memory.bytes()
}

pub(super) fn write(disk: &impl Disk, offset: usize, bytes: &[u8]) -> Result<(), DiskError> {
    let memory = Memory::new(bytes).cut(0, &[bytes.len() / 3, bytes.len() - bytes.len() / 3], 0);
    disk.write(offset as u64, memory.segments(), PrefetchHint::NONE)
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize),
    Discard(usize, usize),
    Read(usize, usize),
    Try(usize, usize),
}

/// Sectors, as guests ask for them.
pub(super) fn step() -> impl Strategy<Value = Step> {
    let range = (0..LEN / 512, prop_oneof![1..9_usize, 1..200_usize]).prop_map(|(start, len)| {
        let len = len.min(LEN / 512 - start);
        (start * 512, len * 512)
    });
    (range, any::<u8>(), 0..6).prop_map(|((start, len), seed, what)| match what {
        0 | 1 => Step::Write(start, len, seed),
        2 => Step::Zero(start, len),
        3 => Step::Discard(start, len),
        4 => Step::Read(start, len),
        _ => Step::Try(start, len),
    })
}

/// Does it to the disk and to the model, and holds what is read against it.
pub(super) fn take(disk: &impl Disk, model: &mut [u8], step: Step) {
    match step {
        Step::Write(start, len, seed) => {
            let bytes = pattern(len, seed);
            write(disk, start, &bytes).unwrap();
            model[start..start + len].copy_from_slice(&bytes);
        }
        Step::Zero(start, len) => {
            disk.write_zeroes(start as u64, len as u64, false).unwrap();
            model[start..start + len].fill(0);
        }
        Step::Discard(start, len) => {
            disk.discard(start as u64, len as u64).unwrap();
            let end = if start + len == LEN { LEN } else { (start + len) / 4096 * 4096 };
            let start = start.next_multiple_of(4096);
            if start < end {
                model[start..end].fill(0);
            }
        }
        Step::Read(start, len) => assert!(read(disk, start, len) == model[start..start + len]),
        Step::Try(start, len) => {
            let memory = Memory::new(&vec![0; len]);
            if disk.try_read(start as u64, memory.segments(), PrefetchHint::NONE) {
                assert!(memory.bytes() == model[start..start + len]);
            }
        }
    }
}

fn follows_the_model<B: Disk>(base: B, under: &File, steps: Vec<Step>) {
    let disk = Overlay::new(base, ALL * 2, true).unwrap();
    let mut model = pattern(LEN, 3);
    for step in steps {
        take(&disk, &mut model, step);
    }
    assert!(read(&disk, 0, LEN) == model);
    let mut bytes = vec![0; LEN];
    under.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == pattern(LEN, 3), "the base");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Base and overlay are the model after any history, and the base is as it was.
    #[test]
    fn it_is_a_disk_over_memory(steps in prop::collection::vec(step(), 1..40)) {
        let under = file("/dev/shm");
        follows_the_model(MappedDisk::new(under.try_clone().unwrap(), BASE).unwrap(), &under, steps);
    }

    #[test]
    fn it_is_a_disk_over_a_file(steps in prop::collection::vec(step(), 1..40)) {
        let under = file(".");
        follows_the_model(FileDisk::new(under.try_clone().unwrap(), BASE).unwrap(), &under, steps);
    }
}

/// Only what is written takes memory, by pages; what is zeroed or discarded gives it back, and to zero takes none.
#[test]
fn memory_is_taken_by_what_is_written() {
    let disk = over_memory(ALL);
    assert_eq!(read(&disk, 0, LEN), pattern(LEN, 3));
    assert_eq!(disk.resident_bytes(), 0);
    write(&disk, 4096 + 512, &[7; 512]).unwrap();
    assert_eq!(disk.resident_bytes(), 4096);
    assert_eq!(disk.write_zeroes(8192, 16 * 4096, false).unwrap(), 0);
    assert_eq!(read(&disk, 8192, 4096), [0; 4096]);
    assert_eq!(disk.resident_bytes(), 4096);
    write(&disk, 8192 + 1024, &[8; 512]).unwrap();
    assert_eq!(read(&disk, 8192, 4096), [vec![0; 1024], vec![8; 512], vec![0; 2560]].concat());
    assert_eq!(disk.resident_bytes(), 8192);
    disk.discard(4096, 8192).unwrap();
    assert_eq!(disk.resident_bytes(), 0);
    let keeps = Overlay::new(MappedDisk::new(file("/dev/shm"), BASE).unwrap(), ALL, false).unwrap();
    write(&keeps, 0, &[1; 4096]).unwrap();
    keeps.discard(0, 4096).unwrap();
    assert_eq!(read(&keeps, 0, 4096), [1; 4096]);
}

/// The request that meets the limit fails and says what to do; what was written stays, and what is given back can be had again.
#[test]
fn it_takes_no_more_than_its_limit() {
    let disk = over_memory(3 * 4096);
    for page in 0..3 {
        write(&disk, page * 4096, &[page as u8 + 1; 4096]).unwrap();
    }
    let error = write(&disk, 5 * 4096, &[9; 512]).unwrap_err().to_string();
    assert!(error.contains("12288 bytes were written to the overlay"), "{error}");
    assert!(error.contains("overlay-max="), "{error}");
    assert_eq!(read(&disk, 5 * 4096, 4096), pattern(LEN, 3)[5 * 4096..6 * 4096]);
    // To write what is there already needs nothing.
    write(&disk, 4096, &[5; 4096]).unwrap();
    assert_eq!(disk.resident_bytes(), 3 * 4096);
    disk.discard(0, 4096).unwrap();
    write(&disk, 5 * 4096, &[9; 512]).unwrap();
    assert_eq!(disk.resident_bytes(), 3 * 4096);
}

/// Nothing is lost where several write to parts of the same page that nobody has written to before.
#[test]
fn first_writes_to_one_page_at_once_are_all_kept() {
    let disk = over_memory(ALL);
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for writer in 0..4_u8 {
            let (disk, start) = (&disk, &start);
            scope.spawn(move || {
                for page in 0..40 {
                    start.wait();
                    write(disk, page * 4096 + usize::from(writer) * 1024, &[writer + 1; 512]).unwrap();
                }
            });
        }
    });
    let mut model = pattern(LEN, 3);
    for page in 0..40 {
        for writer in 0..4 {
            model[page * 4096 + writer * 1024..][..512].fill(writer as u8 + 1);
        }
    }
    assert!(read(&disk, 0, LEN) == model);
}

/// What is to be written whole need not be readable; of other writes the rest of the page is needed.
#[test]
fn a_page_that_the_base_has_lost_can_be_written() {
    fault::install().unwrap();
    let under = file("/dev/shm");
    let base = MappedDisk::new(under.try_clone().unwrap(), BASE).unwrap();
    let disk = Overlay::new(base, ALL, true).unwrap();
    under.set_len(4096).unwrap();
    let memory = Memory::new(&[0; 4096]);
    assert!(disk.read(8192, memory.segments(), PrefetchHint::NONE).is_err());
    write(&disk, 8192 + 512, &[2; 512]).unwrap_err();
    assert_eq!(disk.resident_bytes(), 0);
    // Of a copy that was ended it is not known why it fell short.
    let task = Arc::new(Interruptible::default());
    let on_this_thread = task.on_this_thread();
    interruption::pretend();
    write(&disk, 8192, &[3; 4096]).unwrap_err();
    assert_eq!(disk.resident_bytes(), 0);
    drop(on_this_thread);
    write(&disk, 8192, &[4; 4096]).unwrap();
    assert_eq!(read(&disk, 8192, 4096), [4; 4096]);
}

#[test]
fn nothing_outside_is_reached() {
    let disk = over_memory(ALL);
    let memory = Memory::new(&[0; 4096]);
    for offset in [ALL - 512, ALL, ALL + 4096, u64::MAX - 4095] {
        let outside = |result: Result<(), DiskError>| matches!(result, Err(DiskError::OutOfRange { .. }));
        assert!(outside(disk.read(offset, memory.segments(), PrefetchHint::NONE)), "{offset}");
        assert!(outside(disk.write(offset, memory.segments(), PrefetchHint::NONE)), "{offset}");
        assert!(outside(disk.discard(offset, 4096)), "{offset}");
        assert!(outside(disk.write_zeroes(offset, 4096, true).map(drop)), "{offset}");
    }
    assert_eq!(disk.resident_bytes(), 0);
}
