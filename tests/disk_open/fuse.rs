//! File systems in user space: what is behind them may be anything, also another machine.

use std::process::Child;

use super::durable::{read, write};
use super::*;

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("-V").stderr(Stdio::null()).stdout(Stdio::null()).status().is_ok()
}

/// It ends with the test, also with one that fails.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `test` with a mount of fuse2fs, whose server is the child, in a mount namespace of its own; or says why not.
fn with_fuse(option: &str, test: impl FnOnce(&Path, &mut Child) + Send) {
    if !is_root() {
        return;
    }
    if !Path::new("/dev/fuse").exists() || !is_installed("fuse2fs") {
        eprintln!("skipped: no /dev/fuse, or no fuse2fs");
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (device, mount) = (folder.path().join("device"), folder.path().join("mount"));
    sparse_file(&device, 64 * MIB);
    fs::create_dir(&mount).unwrap();
    assert!(Command::new("mkfs.ext4").arg("-q").arg(&device).status().unwrap().success());
    let path = mount.to_str().unwrap();
    // Nobody else sees the mount, and it ends with the thread.
    with_mount(&["--bind", path, path], || {
        let mut program = Command::new("fuse2fs");
        program.args(["-f", "-o", option]).args([&device, &mount]).stdout(Stdio::null());
        let mut server = Server(program.spawn().unwrap());
        let is_mounted = || mount.join("lost+found").exists();
        for _ in 0..1000 {
            if is_mounted() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(is_mounted(), "fuse2fs has mounted nothing");
        test(&mount, &mut server.0);
        drop(server);
        assert!(Command::new("umount").arg("--lazy").arg(&mount).status().unwrap().success());
    });
}

/// A server that asks for direct I/O allows no shared mapping.
#[test]
fn a_file_that_cannot_be_mapped_is_read_by_system_calls() {
    with_fuse("rw,direct_io", |mount, _| {
        let path = mount.join("a.img");
        drop(open(&path, &sized(8 * MIB)).unwrap());
        let described = describe(&path).unwrap();
        assert!(described.refusal.is_none() && described.data_path().unwrap().contains("by preadv"));
        let opened = open(&path, &options()).unwrap();
        assert!(matches!(opened.disk, Backing::File(_)));
        let mut bytes: Vec<u8> = (0..9000).map(|index| (index % 251) as u8).collect();
        write(&opened, 512, &mut bytes).unwrap();
        opened.disk.flush().unwrap();
        let mut back = vec![0; 9000];
        read(&opened, 512, &mut back).unwrap();
        assert!(back == bytes && fs::read(&path).unwrap()[512..512 + 9000] == bytes);
        opened.disk.write_zeroes(1024, 512, false).unwrap();
        read(&opened, 512, &mut back).unwrap();
        assert!(back[..512] == bytes[..512] && back[512..1024] == [0; 512] && back[1024..] == bytes[1024..]);
        for offset in [8 * MIB - 8999, 8 * MIB, u64::MAX] {
            assert!(matches!(read(&opened, offset, &mut back), Err(DiskError::OutOfRange { .. })));
            assert!(matches!(write(&opened, offset, &mut back), Err(DiskError::OutOfRange { .. })));
        }
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(9 * MIB).unwrap();
        assert_eq!(opened.disk.rescan_size().unwrap(), 9 * MIB);
        read(&opened, 9 * MIB - 9000, &mut back).unwrap();
        assert!(back == [0; 9000], "the new part");
        file.set_len(MIB).unwrap();
        for error in [read(&opened, MIB - 512, &mut back), write(&opened, MIB, &mut back)] {
            let words = error.unwrap_err().to_string();
            assert!(words.contains("the file was truncated to 1048576 bytes"), "{words}");
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), MIB, "a write has not made it long again");
    });
}

/// Whichever request meets it, and whoever comes after.
#[test]
fn a_server_that_has_ended_is_called_that() {
    // As the daemon does at its start.
    vhost_user_pmem::copy::fault::install().unwrap();
    for option in ["rw", "rw,direct_io"] {
        with_fuse(option, |mount, server| {
            let path = mount.join("a.img");
            let opened = open(&path, &sized(8 * MIB)).unwrap();
            let mut bytes = vec![7; 4096];
            write(&opened, 0, &mut bytes).unwrap();
            server.kill().unwrap();
            server.wait().unwrap();
            let refused = |what: &str, result: Result<(), DiskError>, place: &str| {
                let words = result.expect_err(what).to_string();
                assert!(
                    words.contains("a.img: the file server (FUSE) failed")
                        || words.contains("a.img: the file server failed"),
                    "{what}: {words}"
                );
                assert!(words.contains("(Transport endpoint is not connected (os error 107))"), "{words}");
                assert!(words.contains(place) && words.contains("check that it runs"), "{what}: {words}");
            };
            refused("a read", read(&opened, 4 * MIB, &mut bytes), "at byte 4194304");
            refused("a write", write(&opened, 4 * MIB, &mut bytes), "at byte 4194304");
            refused("zeroes", opened.disk.write_zeroes(8192, 512, false).map(drop), "at byte 8192");
            refused("a flush", opened.disk.flush(), "failed (");
            assert_eq!(opened.disk.bad_blocks(), [], "the media is not to blame");
            let words = message(&path, &super::refused(&path, &options()));
            assert!(words.contains("its file server does not answer"), "{words}");
        });
    }
}

/// As any other that is neither DAX nor in memory: read through the mapping, written and synced by system calls.
#[test]
fn a_file_on_fuse_is_an_ordinary_file() {
    with_fuse("rw", |mount, _| {
        let path = mount.join("a.img");
        let created = OpenOptions {
            require_durable: Some(Durability::Page),
            discard: DiscardPolicy::Unmap,
            ..sized(8 * MIB)
        };
        let opened = open(&path, &created).unwrap();
        assert_eq!(opened.media.kind.to_string(), "ordinary file on FUSE");
        assert!(opened.disk.initial_writeback() && matches!(opened.disk, Backing::File(_)));
        let mut bytes = vec![7; 4096];
        write(&opened, 512, &mut bytes).unwrap();
        opened.disk.write_zeroes(1024, 512, false).unwrap();
        bytes[512..1024].fill(0);
        opened.disk.discard(4 * MIB, MIB).unwrap();
        opened.disk.flush().unwrap();
        assert!(matches!(opened.disk.try_flush(), Some(Ok(()))));
        let mut back = vec![0; 4096];
        read(&opened, 512, &mut back).unwrap();
        assert!(back == bytes, "through the mapping");
        assert!(fs::read(&path).unwrap()[512..512 + 4096] == bytes, "in the file");
        let refused =
            OpenOptions { require_durable: Some(Durability::CacheLine), lock: LockMode::Off, ..options() };
        assert!(matches!(open(&path, &refused), Err(OpenError::NotDurable { .. })));
    });
}
