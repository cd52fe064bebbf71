//! What is refused, in which words, and that nothing is left behind.

use super::*;

#[test]
fn a_missing_file_is_not_created_without_a_size() {
    let folder = memory();
    let path = folder.path().join("a.img");
    let error = refused(&path, &options());
    assert!(matches!(error, OpenError::Missing { .. }));
    assert_eq!(
        message(&path, &error),
        "cannot open it (there is no such file); correct path=, or give size= to create it"
    );
    let error = refused(&path, &OpenOptions { read_only: true, ..sized(MIB) });
    assert!(matches!(error, OpenError::Missing { .. }));
    assert_eq!(
        message(&path, &error),
        "cannot open it (there is no such file); correct path=; a read-only disk is not created"
    );
    assert!(!path.exists());
}

#[test]
fn a_missing_directory_and_a_broken_link_are_told_apart() {
    let folder = memory();
    let path = folder.path().join("no/a.img");
    let error = refused(&path, &sized(MIB));
    assert!(matches!(error, OpenError::Missing { .. }));
    assert_eq!(
        message(&path, &error),
        "cannot create it (its directory does not exist); create the directory or correct path="
    );
    let path = folder.path().join("link");
    symlink(folder.path().join("nowhere"), &path).unwrap();
    let error = refused(&path, &sized(MIB));
    assert!(matches!(error, OpenError::Missing { .. }));
    assert_eq!(
        message(&path, &error),
        "cannot open it (it is a link to a file that does not exist); repair the link or correct path="
    );
    assert!(!folder.path().join("nowhere").exists());
    File::create(folder.path().join("file")).unwrap();
    let path = folder.path().join("file/a.img");
    let error = refused(&path, &sized(MIB));
    assert!(matches!(error, OpenError::Io { .. }));
    assert_eq!(
        message(&path, &error),
        "cannot examine it (Not a directory (os error 20)); correct path=, or repair what it leads to"
    );
}

#[test]
fn sizes_are_whole_blocks() {
    let folder = memory();
    let odd = folder.path().join("odd.img");
    sparse_file(&odd, 10_000);
    let tiny = folder.path().join("tiny.img");
    sparse_file(&tiny, 100);
    let empty = folder.path().join("empty.img");
    sparse_file(&empty, 0);
    let missing = folder.path().join("missing.img");
    let blocks = |block_bytes, options| OpenOptions { block_bytes: Some(block_bytes), ..options };
    let cases = [
        (
            &odd,
            blocks(4096, sized(9728)),
            "size= has 9728 bytes, not a multiple of the 4096-byte blocks",
            "use size=8192",
        ),
        (&tiny, options(), "the file has 100 bytes, less than a block of 512 bytes", "make it longer"),
        (&empty, options(), "the file has 0 bytes", "give the size of the disk with size="),
        (
            &missing,
            sized(1000),
            "size= has 1000 bytes, not a multiple of the 512-byte blocks",
            "use size=512",
        ),
        (&missing, sized(0), "size= has 0 bytes", "give the size of the disk with size="),
        (
            &missing,
            blocks(0, sized(MIB)),
            "its block size cannot be 0 bytes",
            "use block-size=512 or block-size=4096",
        ),
        (
            &missing,
            blocks(1024, sized(MIB)),
            "its block size cannot be 1024 bytes",
            "use block-size=512 or block-size=4096",
        ),
    ];
    for (path, options, cause, remedy) in cases {
        let error = refused(path, &options);
        assert!(matches!(error, OpenError::BadSize { .. }), "{error}");
        assert_eq!(message(path, &error), format!("cannot serve it ({cause}); {remedy}"));
    }
    assert!(!missing.exists());
    assert_eq!(capacity(&open(&odd, &sized(9728)).unwrap()), 9728);
    assert_eq!(
        capacity(&open(&odd, &options()).unwrap()),
        9728,
        "as many as are whole, when none were asked for"
    );
    assert_eq!(capacity(&open(&odd, &blocks(4096, options())).unwrap()), 8192);
}

#[test]
fn a_size_no_file_can_have_leaves_nothing_behind() {
    for folder in folders() {
        let path = folder.path().join("a.img");
        let error = refused(&path, &sized(u64::MAX - 511));
        assert!(matches!(error, OpenError::BadSize { .. }), "{error}");
        assert!(message(&path, &error).ends_with("; choose a smaller size="), "{error}");
        assert!(!path.exists());
    }
}

#[test]
fn what_can_be_no_disk_is_named() {
    let folder = memory();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let cases = [
        (folder.path().to_owned(), "a directory"),
        (PathBuf::from("/dev/null"), "a character device"),
        (fifo, "a FIFO"),
        (socket, "a socket"),
    ];
    for (path, what) in cases {
        for options in [options(), sized(MIB), OpenOptions { read_only: true, ..options() }] {
            let error = refused(&path, &options);
            assert!(matches!(error, OpenError::NotRegular { .. }), "{error}");
            assert_eq!(
                message(&path, &error),
                format!(
                    "cannot serve it (it is {what}; a disk is a regular file, a block device or device DAX); \
                     give the path of one of these"
                )
            );
        }
        let description = describe(&path).unwrap();
        assert_eq!(description.file_kind.to_string(), what);
        assert!(matches!(description.refusal, Some(OpenError::NotRegular { .. })));
        assert!(description.media.is_none());
    }
}

#[test]
fn a_full_file_system_is_told_before_it_is_fatal() {
    if !is_root() {
        return;
    }
    let folder = memory();
    let at = folder.path();
    with_mount(&["-t", "tmpfs", "-o", "size=4m", "tmpfs", at.to_str().unwrap()], || {
        let path = at.join("new.img");
        let error = refused(&path, &sized(8 * MIB));
        assert!(matches!(error, OpenError::NoSpace { needed_bytes: 8_388_608, .. }), "{error}");
        assert_eq!(
            message(&path, &error),
            "cannot allocate its space (no space: 8.0 MiB needed, 4.0 MiB free: No space left on device \
             (os error 28)); free some space, choose a smaller size=, or use sparse=on"
        );
        assert!(!path.exists(), "what was created is removed");

        let path = at.join("empty.img");
        sparse_file(&path, 0);
        assert!(matches!(refused(&path, &sized(8 * MIB)), OpenError::NoSpace { .. }));
        assert_eq!(fs::metadata(&path).unwrap().len(), 0, "what was empty is empty again");

        let path = at.join("holes.img");
        sparse_file(&path, 8 * MIB);
        File::options().write(true).open(&path).unwrap().write_all_at(&[1; 4096], 0).unwrap();
        let error = refused(&path, &options());
        assert!(matches!(error, OpenError::NoSpace { needed_bytes: 8_384_512, .. }), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 8 * MIB, "what was there stays");
        assert_eq!(capacity(&open(&path, &OpenOptions { sparse: true, ..options() }).unwrap()), 8 * MIB);
        assert_eq!(capacity(&open(&path, &sized(2 * MIB)).unwrap()), 2 * MIB);
    });
}

/// As many blocks as it is long, but not where its bytes are.
#[test]
fn blocks_behind_the_end_are_no_space_for_holes() {
    if !is_root() {
        return;
    }
    let folder = memory();
    let at = folder.path();
    with_mount(&["-t", "tmpfs", "-o", "size=5m", "tmpfs", at.to_str().unwrap()], || {
        let path = at.join("a.img");
        sparse_file(&path, 4 * MIB);
        let file = File::options().write(true).open(&path).unwrap();
        let behind = rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, behind, 4 * MIB, 3 * MIB).unwrap();
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        assert_eq!(allocated_bytes(&path), 4 * MIB);
        let error = refused(&path, &options());
        assert!(matches!(error, OpenError::NoSpace { .. }), "{error}");
        rustix::fs::fallocate(&file, behind | rustix::fs::FallocateFlags::PUNCH_HOLE, 4 * MIB, 3 * MIB)
            .unwrap();
        open(&path, &options()).unwrap();
        assert_eq!(allocated_bytes(&path), 4 * MIB);
    });
}

#[test]
fn a_read_only_file_system_needs_a_read_only_disk() {
    if !is_root() {
        return;
    }
    let folder = memory();
    let at = folder.path();
    with_mount(&["-t", "tmpfs", "tmpfs", at.to_str().unwrap()], || {
        let path = at.join("a.img");
        sparse_file(&path, MIB);
        let remount = ["-o", "remount,ro", at.to_str().unwrap()];
        assert!(Command::new("mount").args(remount).status().unwrap().success());
        for path in [&path, &at.join("new.img")] {
            let error = refused(path, &sized(MIB));
            assert!(matches!(error, OpenError::Permission { .. }), "{error}");
            assert!(
                message(path, &error).ends_with(
                    " it (Read-only file system (os error 30)); \
                     mount the file system for writing, or serve it with readonly=on"
                ),
                "{error}"
            );
        }
        open(&path, &OpenOptions { read_only: true, ..options() }).unwrap();
        assert!(!describe(&path).unwrap().writable);
    });
}

#[test]
fn permissions_are_named() {
    if !is_root() {
        return;
    }
    let folder = memory();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = folder.path().join("a.img");
    sparse_file(&path, MIB);
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    as_nobody(|| {
        let error = refused(&path, &options());
        assert!(matches!(error, OpenError::Permission { .. }), "{error}");
        assert_eq!(
            message(&path, &error),
            "cannot open it (Permission denied (os error 13)); \
             run as a user who may read and write it, or serve it with readonly=on"
        );
        let new = folder.path().join("new.img");
        let error = refused(&new, &sized(MIB));
        assert!(matches!(error, OpenError::Permission { .. }), "{error}");
        // Not the owner: the time stamps cannot be left out, which must not stop it.
        open(&path, &OpenOptions { read_only: true, ..options() }).unwrap();
        let description = describe(&path).unwrap();
        assert!(description.refusal.is_none());
    });
}
