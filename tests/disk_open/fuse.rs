//! File systems in user space: what is behind them may be anything, also another machine.

use super::durable::{read, write};
use super::*;

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("-V").stderr(Stdio::null()).stdout(Stdio::null()).status().is_ok()
}

/// As any other that is neither DAX nor in memory: read through the mapping, written and synced by system calls.
#[test]
fn a_file_on_fuse_is_an_ordinary_file() {
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
    let run = |program: &str, arguments: &[&str]| {
        assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
    };
    let (device, mount) = (device.to_str().unwrap(), mount.to_str().unwrap());
    run("mkfs.ext4", &["-q", device]);
    // Nobody else sees the mount, and it ends with the thread.
    with_mount(&["--bind", mount, mount], || {
        run("fuse2fs", &["-o", "rw", device, mount]);
        let path = Path::new(mount).join("a.img");
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
        drop(opened);
        run("umount", &[mount]);
    });
}
