//! File systems where a block that is there is not always a block that can be written to: clones on XFS, all of btrfs.

use super::durable::write;
use super::host::{Made, succeeds};
use super::*;

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn free_bytes(folder: &Path) -> u64 {
    let it = rustix::fs::statvfs(folder).unwrap();
    it.f_bavail * it.f_frsize
}

#[test]
fn a_clone_must_have_space_of_its_own() {
    let folder = folder();
    let Some(made) = Made::new(folder.path(), "xfs", &["-m", "reflink=1"], 400 * MIB) else { return };
    let (first, clone) = (made.folder().join("first"), made.folder().join("clone"));
    fs::write(&first, vec![7; 64 << 20]).unwrap();
    File::open(&first).unwrap().sync_all().unwrap();
    assert!(succeeds(Command::new("cp").arg("--reflink=always").args([&first, &clone])));
    made.fill("ballast", 16 * MIB);
    let free_before = free_bytes(made.folder());

    let error = refused(&clone, &options());
    assert!(matches!(error, OpenError::NoSpace { needed_bytes: 67_108_864, .. }), "{error}");
    let text = message(&clone, &error);
    assert!(text.contains("as much of it is shared with other files"), "{text}");
    assert!(text.contains("sparse=on"), "{text}");
    assert_eq!(free_bytes(made.folder()), free_before, "what is left was taken");

    let sparse = open(&clone, &OpenOptions { sparse: true, ..options() }).unwrap();
    assert_eq!(sparse.disk.populate(0, || false), None, "nothing that is shared is touched");
    assert_eq!(free_bytes(made.folder()), free_before);
    made.fill("more", 0);
    let mut at = 0;
    let error = loop {
        match write(&sparse, at, &mut vec![9; 1 << 20]).and_then(|()| sparse.disk.flush()) {
            Ok(()) => at += MIB,
            Err(error) => break error.to_string(),
        }
        assert!(at < 64 * MIB, "there was space for all of it");
    };
    assert!(
        error.contains("no space is left on its file system to copy what it shares with another file"),
        "{error}"
    );
    assert!(error.ends_with("free some, or copy it before"), "{error}");
    drop(sparse);
    fs::remove_file(made.folder().join("ballast")).unwrap();
    // XFS gives it back when it finds the time.
    for _ in 0..6000 {
        if free_bytes(made.folder()) >= 64 * MIB {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    open(&clone, &options()).unwrap();
}

/// However often a block is written, where all of the file was allocated before.
#[test]
fn a_new_file_on_btrfs_is_written_in_place() {
    let folder = folder();
    let Some(made) = Made::new(folder.path(), "btrfs", &["--mixed"], 128 * MIB) else { return };
    let created = made.folder().join("created");
    let empty = made.folder().join("empty");
    File::create_new(&empty).unwrap();
    let disks = [&created, &empty].map(|path| open(path, &sized(16 * MIB)).unwrap());
    made.fill("ballast", 0);
    for (index, disk) in disks.iter().enumerate() {
        for round in 0..4 {
            for at in (0..16 * MIB).step_by(1 << 20) {
                let written = write(disk, at, &mut vec![round; 1 << 20]);
                written.unwrap_or_else(|error| panic!("disk {index}, round {round}, at {at}: {error}"));
            }
            disk.disk.flush().unwrap();
        }
    }
}

#[test]
fn a_write_that_finds_no_space_on_btrfs_presumes_nothing() {
    let folder = folder();
    let Some(made) = Made::new(folder.path(), "btrfs", &["--mixed"], 128 * MIB) else { return };
    let path = made.folder().join("a.img");
    fs::write(&path, vec![7; 16 << 20]).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let disk = open(&path, &options()).unwrap();
    made.fill("ballast", 0);
    for round in 0..64 {
        for at in (0..16 * MIB).step_by(1 << 20) {
            let Err(error) = write(&disk, at, &mut vec![round; 1 << 20]) else { continue };
            let text = error.to_string();
            assert!(text.contains("no space is left on its file system for a write at byte"), "{text}");
            assert!(text.ends_with("; free some"), "{text}");
            return;
        }
        let _ = disk.disk.flush();
    }
    panic!("nothing failed");
}
