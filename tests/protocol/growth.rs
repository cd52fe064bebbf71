//! Disks that grow on a file system with an end, on a device, of huge pages, and while no daemon runs.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::channel::{CONFIG_CHANGE, with_channel};
use super::resize::{assert_ends_at, capacity_bytes, set_len, wait_for_capacity};
use crate::common::daemon::{Place, Setup};
use crate::common::folder;
use crate::common::frontend::load::Load;
use crate::common::frontend::request::{IOERR, OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::wire::Wire;
use crate::common::frontend::{Options, Session, settle};
use crate::common::host::{HugePages, Loop, Mounted, remount, succeeds};
use crate::common::{MIB, pattern};

fn create(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

/// The disk goes on with the size it had, under load, and with every byte it had; once there is space it grows.
fn grows_only_with_space(setup: Setup, free_some: impl FnOnce()) {
    let image = setup.image(0);
    create(&image, 8 * MIB);
    let daemon = setup.start();
    let (session, channel) = with_channel(&daemon.socket(0));
    assert_eq!(capacity_bytes(&session), 8 * MIB);
    let mut ring = session.ring(0, 64);
    let load = Load::start(session.ring(1, 64), 0);
    let content = pattern(8, 32 << 10);
    let last = (8 * MIB / 512) - 64;
    assert_eq!(ring.run(&Request::write(last, &content)).status, OK);

    set_len(&image, 40 * MIB);
    for _ in 0..2 {
        daemon.wait_for_log("disk \"disk0\": no space for 33554432 more bytes");
        daemon.wait_for_log("free some, or use sparse=on");
        load.wait_for_progress();
        assert_eq!(capacity_bytes(&session), 8 * MIB);
        let read = ring.run(&Request::read(last, 32 << 10));
        assert!(read.status == OK && read.data == content, "the disk has lost something");
        assert_eq!(ring.run(&Request::read(last + 64, 512)).status, IOERR, "it has grown");
        assert!(channel.is_silent());
        daemon.signal(libc::SIGHUP);
    }
    settle();
    free_some();
    daemon.signal(libc::SIGHUP);
    wait_for_capacity(&session, 40 * MIB);
    assert_eq!(channel.receive(), Some(CONFIG_CHANGE));
    assert_ends_at(&mut ring, &image, 40 * MIB);
    assert!(ring.run(&Request::read(last, 32 << 10)).data == content);
    load.stop();
    daemon.stop();
}

#[test]
fn a_full_tmpfs_refuses_a_larger_disk_until_there_is_space() {
    let setup = Setup::new(Place::Tmpfs).disk("");
    let folder = setup.folder().to_owned();
    let Some(setup) = setup.mounted(|folder| Mounted::tmpfs(folder, "size=24M")) else { return };
    grows_only_with_space(setup, || remount(&folder, "size=64M"));
}

#[test]
fn a_full_file_system_refuses_a_larger_disk_until_there_is_space() {
    let setup = Setup::new(Place::FileSystem).disk("");
    let below = tempfile::NamedTempFile::new().unwrap();
    below.as_file().set_len(64 * MIB).unwrap();
    let file = below.path().to_str().unwrap();
    if !succeeds(std::process::Command::new("mkfs.ext4").args(["-q", "-F", file])) {
        return;
    }
    let Some(setup) = setup.mounted(|folder| Mounted::of(&["-o", "loop", file], folder)) else { return };
    let ballast = setup.folder().join("ballast");
    let full = File::create(&ballast).unwrap();
    rustix::fs::fallocate(&full, rustix::fs::FallocateFlags::empty(), 0, 24 * MIB).unwrap();
    drop(full);
    grows_only_with_space(setup, || std::fs::remove_file(&ballast).unwrap());
}

#[test]
fn a_block_device_grows_when_it_is_looked_at() {
    let setup = Setup::new(Place::FileSystem).disk("");
    let below = setup.folder().join("below");
    create(&below, 8 * MIB);
    let Some(device) = Loop::over(&below, &[]) else { return };
    symlink(device.path(), setup.image(0)).unwrap();
    let daemon = setup.start();
    let (session, channel) = with_channel(&daemon.socket(0));
    assert_eq!(capacity_bytes(&session), 8 * MIB);
    let mut ring = session.ring(0, 64);
    let load = Load::start(session.ring(1, 64), 0);
    for bytes in [12 * MIB, 12 * MIB + 4096, 64 * MIB] {
        set_len(&below, bytes);
        device.rescan_size();
        daemon.signal(libc::SIGHUP);
        wait_for_capacity(&session, bytes);
        assert_eq!(channel.receive(), Some(CONFIG_CHANGE));
        assert_ends_at(&mut ring, &below, bytes);
        load.wait_for_progress();
    }
    load.stop();
    daemon.stop();
    drop(device);
}

#[test]
fn a_disk_of_huge_pages_grows_by_whole_ones_and_not_beyond_the_pool() {
    let setup = Setup::new(Place::Tmpfs).disk("");
    let image = setup.image(0);
    let pages = HugePages::add(4);
    let huge = ["-t", "hugetlbfs", "-o", "pagesize=2M", "none"];
    let Some(setup) = setup.mounted(|folder| Mounted::of(&huge, folder)) else { return };
    create(&image, 4 * MIB);
    let probe_path = setup.folder().join("probe");
    let probe = File::create(&probe_path).unwrap();
    if let Err(error) = rustix::fs::fallocate(&probe, rustix::fs::FallocateFlags::empty(), 0, 8 * MIB) {
        return println!("skipped: no 4 huge pages can be had here ({error})");
    }
    std::fs::remove_file(&probe_path).unwrap();
    drop(probe);
    let daemon = setup.start();
    let session = Session::connect(&daemon.socket(0));
    assert_eq!(capacity_bytes(&session), 4 * MIB);
    let mut ring = session.ring(0, 64);
    set_len(&image, 8 * MIB);
    wait_for_capacity(&session, 8 * MIB);
    let content = pattern(3, 4096);
    assert_eq!(ring.run(&Request::write((8 * MIB / 512) - 8, &content)).status, OK);
    assert_eq!(ring.run(&Request::read((8 * MIB / 512) - 8, 4096)).data, content);
    set_len(&image, 512 * MIB);
    daemon.wait_for_log("disk \"disk0\": no space for 528482304 more bytes");
    assert_eq!(capacity_bytes(&session), 8 * MIB);
    assert_eq!(ring.run(&Request::read((8 * MIB / 512) - 8, 4096)).data, content);
    daemon.stop();
    drop(pages);
}

/// The front-end that was there before the restart, with its guest's memory: it does not read the configuration unless
/// it is told to, as QEMU.
fn come_back(socket: &Path, before: &Session, ring: &Ring) -> (Session, Wire) {
    let mut session = Session::open(socket, &Options::default().spans);
    session.memory = before.memory.clone();
    session.negotiate(&Options::default());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let backend = &theirs;
    session
        .ask(|control| vhost::vhost_user::VhostUserFrontend::set_backend_request_fd(control, backend))
        .unwrap();
    session.share_memory();
    session.start(ring, 0).unwrap();
    (session, Wire::new(ours))
}

/// What becomes of the requests that the guest has sent for the size it knew: what is there is done.
#[test]
fn a_daemon_that_comes_back_with_another_size_says_so() {
    for (place, after) in Place::ALL.into_iter().flat_map(|place| [24, 3].map(|after| (place, after * MIB))) {
        let setup = Setup::new(place).disk("");
        create(&setup.image(0), 8 * MIB);
        let daemon = setup.start();
        let (session, _channel) = with_channel(&daemon.socket(0));
        assert_eq!(capacity_bytes(&session), 8 * MIB);
        let mut ring = session.ring(0, 64);
        let content = pattern(1, 4096);
        assert_eq!(ring.run(&Request::write(8, &content)).status, OK);
        let setup = daemon.stop();
        set_len(&setup.image(0), after);
        let requests =
            [Request::read(8, 4096), Request::read((8 * MIB / 512) - 8, 4096), Request::read(8, 4096)];
        requests.iter().for_each(|request| _ = ring.submit(request));
        let daemon = setup.start();
        let (session, channel) = come_back(&daemon.socket(0), &session, &ring);
        let statuses = requests.each_ref().map(|request| {
            let used = ring.wait();
            ring.answer(request, used).status
        });
        assert_eq!(statuses, [OK, if after < 8 * MIB { IOERR } else { OK }, OK], "{place:?} {after}");
        assert_eq!(channel.receive(), Some(CONFIG_CHANGE), "{place:?} {after}");
        assert_eq!(capacity_bytes(&session), after);
        assert_ends_at(&mut ring, &daemon.image(0), after);
        assert!(ring.run(&Request::read(8, 4096)).data == content);
        daemon.stop();
    }
}

/// What is mapped is the file as it was before its overlay copied it for whoever made it longer.
#[test]
fn a_file_that_its_overlay_copies_up_is_served_as_it_was() {
    let setup = Setup::new(Place::FileSystem).disk("readonly=on");
    let parts = folder::in_memory();
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| parts.path().join(name));
    for part in [&lower, &upper, &work] {
        std::fs::create_dir(part).unwrap();
    }
    let content = pattern(9, 8 << 20);
    std::fs::write(lower.join(setup.image(0).file_name().unwrap()), &content).unwrap();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let overlay = ["-t", "overlay", "-o", &options, "overlay"];
    let Some(setup) = setup.mounted(|folder| Mounted::of(&overlay, folder)) else { return };
    let daemon = setup.start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    set_len(&daemon.image(0), 16 * MIB);
    daemon.signal(libc::SIGHUP);
    daemon.wait_for_log(
        "the file is read through overlayfs, and the file that is open may not be the one that is longer now",
    );
    assert_eq!(capacity_bytes(&session), 8 * MIB);
    let last = ring.run(&Request::read(8 * MIB / 512 - 8, 4096));
    assert!(last.status == OK && last.data == content[(8 << 20) - 4096..]);
    daemon.stop();
}
