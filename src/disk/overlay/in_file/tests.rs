use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;

use super::*;
use crate::copy::testing::pattern;
use crate::disk::overlay::Overlay;
use crate::disk::overlay::tests::{ALL, BASE, LEN, Step, file, read, step, take, write};
use crate::disk::{BackingPath, LockMode, MappedDisk};

mod crashes;

const STAMP: BaseStamp = BaseStamp::for_test(ALL, 5);

fn empty(folder: &str) -> File {
    let file = tempfile::tempfile_in(folder).unwrap();
    file.set_len(InFile::file_bytes(ALL).unwrap()).unwrap();
    file
}

fn open(file: &File, base: BaseStamp, capacity_bytes: u64) -> Result<(InFile, Pages), OverlayFileError> {
    let file: Arc<BackingFile> = Arc::new(file.try_clone().unwrap().into());
    let path = BackingPath::of_disk("kept", "kept".as_ref());
    let lock = FileLock::new(Arc::clone(&file), &path, LockMode::Off, false);
    let geometry = Geometry { capacity_bytes, block_bytes: 512, read_only: false };
    InFile::open(file, lock, base, geometry, true, Durability::Page)
}

fn over(base: &File, kept: &File, max_bytes: u64) -> Overlay<MappedDisk, InFile> {
    let base = MappedDisk::new(base.try_clone().unwrap(), BASE).unwrap();
    let (upper, pages) = open(kept, STAMP, ALL).unwrap();
    Overlay::over(Arc::new(base), upper, pages, max_bytes, true)
}

fn follows_the_model(folder: &str, lives: Vec<Vec<Step>>) {
    let (base, kept) = (file("/dev/shm"), empty(folder));
    let mut model = pattern(LEN, 3);
    for steps in lives {
        let disk = over(&base, &kept, u64::MAX);
        assert!(read(&disk, 0, LEN) == model, "as it was left");
        for step in steps {
            take(&disk, &mut model, step);
        }
        // Each life ends without a flush.
    }
    assert!(read(&over(&base, &kept, u64::MAX), 0, LEN) == model);
    let mut bytes = vec![0; LEN];
    base.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == pattern(LEN, 3), "the base");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever was written is there when the file is laid over its base again.
    #[test]
    fn nothing_is_lost_with_a_process_on_tmpfs(lives in prop::collection::vec(prop::collection::vec(step(), 1..20), 1..4)) {
        follows_the_model("/dev/shm", lives);
    }

    #[test]
    fn nothing_is_lost_with_a_process_on_a_file_system(lives in prop::collection::vec(prop::collection::vec(step(), 1..20), 1..4)) {
        follows_the_model(".", lives);
    }
}

#[test]
fn another_file_or_base_is_refused_by_name() {
    let kept = empty("/dev/shm");
    drop(open(&kept, STAMP, ALL).unwrap());
    let refusal = |base, capacity_bytes| open(&kept, base, capacity_bytes).map(drop).unwrap_err().to_string();
    let changed = refusal(BaseStamp::for_test(ALL, 6), ALL);
    assert!(
        changed.contains("its base has changed since it was made") && changed.contains("at 5 seconds"),
        "{changed}"
    );
    // The parts of a smaller one are elsewhere.
    assert_eq!(refusal(STAMP, ALL - 40960), "it is not empty, and no overlay");
    let other = file("/dev/shm");
    assert!(matches!(open(&other, STAMP, ALL), Err(OverlayFileError::NotAnOverlay)));
    other.set_len(InFile::file_bytes(ALL).unwrap()).unwrap();
    assert!(matches!(open(&other, STAMP, ALL), Err(OverlayFileError::NotAnOverlay)));
    drop(open(&kept, STAMP, ALL).unwrap());
}

/// Space is taken by what is written, and by the pages of the indices that tell of it.
#[test]
fn space_is_taken_by_what_is_written_and_given_back() {
    let (base, kept) = (file("/dev/shm"), empty("/dev/shm"));
    let disk = over(&base, &kept, u64::MAX);
    let begun = disk.resident_bytes();
    assert!(begun <= 2 * 4096, "{begun}");
    write(&disk, 512, &[7; 512]).unwrap();
    let written = disk.resident_bytes() - begun;
    // By a load from the mapping, which on tmpfs makes a page of a hole.
    assert_eq!(written, 4 * 4096, "the page, one of each index, and the last one, which is looked at");
    disk.write_zeroes(8192, 8 * 4096, false).unwrap();
    assert_eq!(disk.resident_bytes() - begun, written);
    disk.discard(0, 4096).unwrap();
    assert_eq!(disk.resident_bytes() - begun, written - 4096);
    drop(disk);
    let limited = over(&base, &kept, begun + 4 * 4096);
    write(&limited, 512, &[1; 4096 - 512]).unwrap();
    let error = write(&limited, 4096, &[1; 4096]).unwrap_err().to_string();
    assert!(error.contains("raise overlay-max="), "{error}");
}

/// A page that was written, and of which its file system knows nothing, is what the last flush has left.
#[test]
fn a_page_without_bytes_is_not_believed() {
    let (base, kept) = (file("/dev/shm"), empty("/dev/shm"));
    let disk = over(&base, &kept, u64::MAX);
    write(&disk, 0, &[1; 4096]).unwrap();
    disk.flush().unwrap();
    write(&disk, 4096, &[2; 4096]).unwrap();
    drop(disk);
    let flags = space::PUNCH;
    rustix::fs::fallocate(&kept, flags, 4096, 4096).unwrap();
    let disk = over(&base, &kept, u64::MAX);
    assert_eq!(read(&disk, 0, 4096), [1; 4096]);
    assert!(read(&disk, 4096, 4096) == pattern(LEN, 3)[4096..8192]);
}
