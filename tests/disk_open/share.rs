//! Who else may have the file: locks, children, onlookers.

use super::*;

#[test]
fn a_file_is_served_for_writing_once() {
    for folder in folders() {
        let path = folder.path().join("a.img");
        let opened = open(&path, &sized(MIB)).unwrap();
        let error = refused(&path, &options());
        assert!(matches!(error, OpenError::Locked { .. }), "{error}");
        assert_eq!(
            message(&path, &error),
            "cannot lock it (another disk of this process already uses it); stop that one, serve it with \
             readonly=on on both sides, or use lock=wait on the destination of a migration"
        );
        assert!(path.exists());
        let waiting = open(&path, &OpenOptions { lock: LockMode::Wait, ..options() }).unwrap();
        assert!(!waiting.lock.try_acquire().unwrap());
        open(&path, &OpenOptions { lock: LockMode::Off, ..options() }).unwrap();

        // The disk alone keeps the lock: whoever writes is protected.
        let Opened { disk, lock, .. } = opened;
        drop(lock);
        assert!(!waiting.lock.try_acquire().unwrap());
        drop(disk);
        assert!(waiting.lock.try_acquire().unwrap());
        assert!(matches!(refused(&path, &options()), OpenError::Locked { .. }));
        drop(waiting);

        let read_only = OpenOptions { read_only: true, ..options() };
        let readers = [open(&path, &read_only).unwrap(), open(&path, &read_only).unwrap()];
        assert!(matches!(refused(&path, &options()), OpenError::Locked { .. }));
        drop(readers);
        let reader = open(&path, &OpenOptions { lock: LockMode::Wait, ..read_only.clone() }).unwrap();
        assert!(matches!(refused(&path, &options()), OpenError::Locked { .. }), "its rings wait for nobody");
        open(&path, &read_only).unwrap();
        drop(reader);
        open(&path, &options()).unwrap();
    }
}

#[test]
fn another_process_that_serves_it_is_named() {
    let folder = memory();
    let path = folder.path().join("a.img");
    sparse_file(&path, MIB);
    let mut child = Command::new("flock")
        .arg(&path)
        .args(["-c", "echo locked; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    let error = refused(&path, &options());
    assert!(matches!(&error, OpenError::Locked { holder, .. } if holder.pid == Some(child.id())), "{error}");
    assert!(message(&path, &error).starts_with(&format!("cannot lock it (process {} (", child.id())));
    assert_eq!(describe(&path).unwrap().holder.unwrap().pid, Some(child.id()));
    assert_eq!(allocated_bytes(&path), 0, "nothing was done before the lock");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
    open(&path, &options()).unwrap();
}

/// As the one that an NFS server has for a client (a delegation): it is asked back, and that takes a while.
#[test]
fn a_lease_on_the_file_is_waited_for() {
    let folder = memory();
    let path = folder.path().join("a.img");
    sparse_file(&path, MIB);
    let holder = File::options().read(true).write(true).open(&path).unwrap();
    /// Of `linux/fcntl.h`: which signal tells whoever has a lease.
    const F_SETSIG: i32 = 10;
    let fcntl = |command: i32, argument: i32| {
        // SAFETY: these commands take a number.
        assert_eq!(unsafe { libc::fcntl(holder.as_raw_fd(), command, argument) }, 0, "{command}");
    };
    // A signal that nobody minds.
    fcntl(F_SETSIG, libc::SIGURG);
    fcntl(libc::F_SETLEASE, libc::F_WRLCK);
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| open(&path, &options()));
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!opened.is_finished());
        fcntl(libc::F_SETLEASE, libc::F_UNLCK);
        assert_eq!(capacity(&opened.join().unwrap().unwrap()), MIB);
    });
}

#[test]
fn no_descriptor_is_inherited() {
    let folder = memory();
    let path = folder.path().join("a.img");
    let _opened = open(&path, &sized(MIB)).unwrap();
    let mut seen = 0;
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let fd = entry.unwrap().file_name();
        if fs::read_link(Path::new("/proc/self/fd").join(&fd)).is_ok_and(|it| it == path) {
            let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(&fd)).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
            assert_ne!(flags & libc::O_CLOEXEC, 0, "{info}");
            assert_ne!(flags & libc::O_NOATIME, 0, "{info}");
            seen += 1;
        }
    }
    assert_eq!(seen, 2, "disk and lock share one, the mapping asks another what became of the file");
}

#[test]
fn describing_changes_nothing() {
    for folder in folders() {
        let path = folder.path().join("a.img");
        let error = describe(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{}: cannot examine it (there is no such file); \
                 correct the path, or let `serve` create it with size=",
                path.display()
            )
        );
        assert!(!path.exists());

        sparse_file(&path, 4 * MIB);
        File::options().write(true).open(&path).unwrap().write_all_at(&[1; 8192], 0).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let state = || {
            let it = fs::metadata(&path).unwrap();
            (it.len(), it.blocks(), it.atime_nsec(), it.mtime_nsec(), it.ctime_nsec())
        };
        let before = state();
        let description = describe(&path).unwrap();
        assert_eq!(state(), before);
        assert_eq!(description.file_kind, FileKind::Regular);
        assert_eq!((description.length_bytes, description.allocated_bytes), (4 * MIB, 8192));
        assert!(description.writable && description.refusal.is_none() && description.holder.is_none());

        let opened = open(&path, &options()).unwrap();
        let description = describe(&path).unwrap();
        assert_eq!(description.kind(), Some(opened.media.kind));
        assert_eq!(description.durability(), Some(opened.disk.durability()));
        assert_eq!(description.holder.as_ref().unwrap().pid, Some(std::process::id()));
        assert!(matches!(refused(&path, &options()), OpenError::Locked { .. }), "the lock is still there");
        let words = match opened.disk {
            Backing::Mapped(_) => "reads and writes through the mapping",
            Backing::File(_) => "reads through the mapping, writes by pwritev",
            other => panic!("{other:?}"),
        };
        assert_eq!(description.data_path(), Some(words));

        let odd = folder.path().join("odd.img");
        sparse_file(&odd, 100);
        assert!(matches!(describe(&odd).unwrap().refusal, Some(OpenError::BadSize { .. })));
        sparse_file(&folder.path().join("empty.img"), 0);
        let empty = describe(&folder.path().join("empty.img")).unwrap();
        assert!(matches!(empty.refusal, Some(OpenError::BadSize { .. })));
    }
}
