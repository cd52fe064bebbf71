//! What a path becomes: created, grown, filled, or served as it is.

use super::*;

#[test]
fn a_missing_file_with_a_size_is_created_and_allocated() {
    for folder in folders() {
        let path = folder.path().join("a.img");
        let opened = open(&path, &sized(8 * MIB)).unwrap();
        assert!(opened.created);
        assert_eq!(capacity(&opened), 8 * MIB);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o7777), (8 * MIB, 0o600));
        assert!(allocated_bytes(&path) >= 8 * MIB);
        drop(opened);
        let opened = open(&path, &options()).unwrap();
        assert!(!opened.created);
        assert_eq!(capacity(&opened), 8 * MIB);

        let sparse = folder.path().join("sparse.img");
        let opened = open(&sparse, &OpenOptions { sparse: true, ..sized(8 * MIB) }).unwrap();
        assert_eq!((capacity(&opened), allocated_bytes(&sparse)), (8 * MIB, 0));
    }
}

#[test]
fn an_empty_file_with_a_size_is_grown() {
    for folder in folders() {
        let path = folder.path().join("a.img");
        File::create_new(&path).unwrap();
        let error = refused(&path, &OpenOptions { read_only: true, ..sized(MIB) });
        assert!(matches!(error, OpenError::TooSmall { .. }));
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        let opened = open(&path, &sized(MIB)).unwrap();
        assert!(!opened.created);
        assert_eq!((capacity(&opened), fs::metadata(&path).unwrap().len()), (MIB, MIB));
        assert!(allocated_bytes(&path) >= MIB);
    }
}

/// A directory that may be entered and written, but not read, cannot be opened to sync it.
#[test]
fn a_file_is_created_where_its_directory_cannot_be_read() {
    let Some(folder) = ordinary().filter(|_| is_root()) else { return };
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    std::os::unix::fs::chown(&closed, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o300)).unwrap();
    as_nobody(|| {
        let path = closed.join("a.img");
        let opened = open(&path, &sized(MIB)).unwrap_or_else(|error| panic!("{error}"));
        assert!(opened.created && capacity(&opened) == MIB);
    });
    assert!(closed.join("a.img").exists());
}

#[test]
fn the_backing_decides_how_the_disk_works() {
    let folder = memory();
    let opened = open(&folder.path().join("a.img"), &sized(MIB)).unwrap();
    assert_eq!(opened.media.kind, BackingKind::Tmpfs);
    assert!(matches!(opened.disk, Backing::Mapped(_)));
    assert_eq!(opened.disk.durability(), Durability::Volatile);
    if let Some(folder) = ordinary() {
        let opened = open(&folder.path().join("a.img"), &sized(MIB)).unwrap();
        assert!(matches!(opened.disk, Backing::File(_)));
        assert_eq!(opened.disk.durability(), Durability::Page);
    }
    let memfd = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", memfd.as_raw_fd()));
    let opened = open(&path, &sized(MIB)).unwrap();
    assert_eq!((opened.media.kind, capacity(&opened)), (BackingKind::Tmpfs, MIB));
}

#[test]
fn holes_are_filled_only_where_they_would_be_fatal() {
    let folder = memory();
    let cases = [
        (options(), 4 * MIB),
        (sized(MIB), MIB),
        (OpenOptions { sparse: true, ..options() }, 0),
        (OpenOptions { read_only: true, ..options() }, 0),
    ];
    for (index, (options, expected)) in cases.into_iter().enumerate() {
        let path = folder.path().join(format!("{index}.img"));
        sparse_file(&path, 4 * MIB);
        File::options().write(true).open(&path).unwrap().write_all_at(b"kept", 8192).unwrap();
        let written = allocated_bytes(&path);
        open(&path, &options).unwrap();
        assert_eq!(allocated_bytes(&path), expected.max(written), "{options:?}");
        assert_eq!(fs::read(&path).unwrap()[8192..8196], *b"kept");
        assert_eq!(fs::metadata(&path).unwrap().len(), 4 * MIB);
    }
    if let Some(folder) = ordinary() {
        let path = folder.path().join("a.img");
        sparse_file(&path, 4 * MIB);
        open(&path, &options()).unwrap();
        assert_eq!(allocated_bytes(&path), 0);
    }
}

#[test]
fn a_longer_file_is_served_in_part_and_a_shorter_one_refused() {
    for folder in folders() {
        let path = folder.path().join("a.img");
        sparse_file(&path, MIB);
        assert_eq!(capacity(&open(&path, &sized(4096)).unwrap()), 4096);
        assert_eq!(capacity(&open(&path, &sized(MIB)).unwrap()), MIB);
        let error = refused(&path, &sized(MIB + 512));
        assert!(matches!(error, OpenError::TooSmall { size_bytes: 1_049_088, file_bytes: 1_048_576, .. }));
        assert_eq!(
            message(&path, &error),
            "cannot serve 1049088 bytes of it (the file has only 1048576 bytes); \
             lower size=, or make the file longer first"
        );
        assert_eq!(fs::metadata(&path).unwrap().len(), MIB);
    }
}
