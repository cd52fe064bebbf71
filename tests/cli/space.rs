//! Space and memory that a disk is to have for itself, where there is not enough or somebody is interrupted.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use super::common::daemon::{Place, Setup};
use super::common::host::{Made, MemoryGroup, script};
use super::common::wait_for;
use super::{assert_error, image};
use crate::common::MIB;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vhost-user-pmem"))
}

/// The kernel would end the daemon, and all its disks with it.
#[test]
fn more_memory_than_the_control_group_has_is_7() {
    let Some(group) = MemoryGroup::new(96 * MIB) else { return };
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(Place::Tmpfs).program(&group.wrap(program(), folder.path()));
    let path = setup.image(0);
    let new = setup.disk("size=256M,name=new");
    let parts =
        ["disk \"new\": ", path.to_str().unwrap(), "256.0 MiB needed", "memory cgroup ", "MemoryMax="];
    assert_error(&new.run(), 7, &parts);
    assert!(!path.exists(), "what was created is removed");
    image(&path, 0);
    assert_error(&new.run(), 7, &parts);
    image(&path, 256 * MIB);
    assert_error(&new.run(), 7, &parts);
    assert_eq!(path.metadata().unwrap().blocks(), 0, "memory was taken all the same");
}

#[test]
fn a_sparse_disk_beyond_the_control_group_is_warned_of() {
    let Some(group) = MemoryGroup::new(97 * MIB) else { return };
    let folder = tempfile::tempdir().unwrap();
    let wrapped = group.wrap(program(), folder.path());
    let daemon = Setup::new(Place::Tmpfs).program(&wrapped).disk("size=256M,sparse=on").start();
    daemon.wait_for_log(
        "the kernel will end this process when guests fill more holes than there is memory for",
    );
    daemon.stop();
}

#[test]
fn a_disk_does_not_grow_beyond_the_control_group() {
    let Some(group) = MemoryGroup::new(98 * MIB) else { return };
    let folder = tempfile::tempdir().unwrap();
    let wrapped = group.wrap(program(), folder.path());
    let setup = Setup::new(Place::Tmpfs).program(&wrapped).disk("");
    let path = setup.image(0);
    image(&path, 8 * MIB);
    let mut daemon = setup.start();
    let longer = std::fs::File::options().write(true).open(&path).unwrap();
    longer.set_len(256 * MIB).unwrap();
    drop(longer);
    daemon.wait_for_log("disk \"disk0\": no memory for 260046848 more bytes (the memory cgroup ");
    daemon.assert_alive();
    assert!(path.metadata().unwrap().blocks() * 512 <= 8 * MIB, "memory was taken all the same");
    group.set_limit(400 * MIB);
    daemon.signal(libc::SIGHUP);
    daemon.wait_for_log("the disk has grown");
    daemon.stop();
}

/// Without the space that was asked for, the next start would take the file for a complete disk.
#[test]
fn who_is_killed_while_it_allocates_leaves_no_disk_behind() {
    for place in Place::ALL {
        let setup = Setup::new(place).disk("size=8M");
        let mut command = Command::new("strace");
        let killed =
            command.args(["-f", "-o", "/dev/null", "-e", "inject=fallocate:signal=KILL"]).arg(program());
        let disk = format!("path={},socket={},size=8M", setup.image(0).display(), setup.socket(0).display());
        let status = killed.args(["serve", "--disk", &disk]).status();
        assert!(!status.expect("strace cannot be run; ci/lab/install installs it").success());
        assert_eq!(setup.image(0).metadata().map_or(0, |it| it.len()), 0);
        let daemon = setup.start();
        assert!(daemon.image(0).metadata().unwrap().blocks() * 512 >= 8 * MIB);
        daemon.stop();
    }
}

/// As NFS 4.2 is: it allocates, but not without making a shorter file longer.
#[test]
fn a_disk_grows_where_only_the_plain_kind_of_allocation_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let inject = "inject=fallocate:error=EOPNOTSUPP:when=1";
    let strace = format!("exec strace -D -f -o /dev/null -e {inject} {} \"$@\"", program().display());
    let setup = Setup::new(Place::FileSystem).program(&script(folder.path(), &strace)).disk("");
    let path = setup.image(0);
    image(&path, 8 * MIB);
    let daemon = setup.start();
    let longer = std::fs::File::options().write(true).open(&path).unwrap();
    longer.set_len(24 * MIB).unwrap();
    drop(longer);
    daemon.wait_for_log("the disk has grown");
    wait_for("the new part has its space", || {
        (path.metadata().unwrap().blocks() * 512 >= 16 * MIB).then_some(())
    });
    assert!(!daemon.log().contains("cannot preallocate"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn files_that_btrfs_copies_on_write_are_warned_of() {
    const WARNING: &str =
        "btrfs writes this file to a new place each time: writes fail when the file system is full";
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(made) = Made::new(folder.path(), "btrfs", &["--mixed"], 128 * MIB) else { return };
    std::fs::write(made.folder().join("old.img"), vec![7; 1 << 20]).unwrap();
    for (name, keys, is_warned) in
        [("old", "", true), ("old", "readonly=on", false), ("new", "size=1M", false), ("new", "", false)]
    {
        let path = made.folder().join(name).with_extension("img");
        let socket = folder.path().join("s");
        let disk = format!("path={},socket={},{keys}", path.display(), socket.display());
        let disk = disk.trim_end_matches(',');
        let mut command = super::program(["serve", "--disk", disk]);
        command.stderr(std::process::Stdio::piped());
        let mut daemon = super::Running::spawn(command);
        wait_for("it listens", || socket.exists().then_some(()));
        daemon.terminate();
        let log = std::io::read_to_string(daemon.0.stderr.take().unwrap()).unwrap();
        assert_eq!(log.contains(WARNING), is_warned, "{name} {keys}: {log}");
    }
}
