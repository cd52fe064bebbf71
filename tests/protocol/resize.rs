//! Disks that grow while they are served: seen by whoever wrote to the file, or on SIGHUP.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::channel::{CONFIG_CHANGE, with_channel};
use super::{assert_works, with_disks};
use crate::common::MIB;
use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::load::{LOAD_SECTORS, Load};
use crate::common::frontend::request::{IOERR, OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::{Options, Session, settle};
use crate::common::{SECTOR_BYTES, pattern, wait_for};

/// Each size of a disk, from the start on: inside of the address space kept for it, and beyond that.
const SIZES: [u64; 6] = [4 * MIB, 5 * MIB, 8 * MIB, 30 * MIB, 31 * MIB + 4096, 200 * MIB];

/// Disks of the first size with these options.
///
/// They are made by another process. A child that another test has just forked has all descriptors of this one until it
/// becomes its program, and may be the last to close an image that was written to here: that is what daemons look for.
fn disks(place: Place, options: &[&str]) -> Setup {
    let setup = options.iter().fold(Setup::new(place), |setup, options| setup.disk(options));
    let images = (0..options.len()).map(|index| setup.image(index));
    let made = Command::new("truncate").arg(format!("--size={}", SIZES[0])).args(images).status();
    assert!(made.unwrap().success());
    setup
}

/// Makes a file longer or shorter, and closes it.
pub(super) fn set_len(image: &Path, bytes: u64) {
    File::options().write(true).open(image).unwrap().set_len(bytes).unwrap();
}

pub(super) fn capacity_bytes(session: &Session) -> u64 {
    let config = session.config(0, 8).unwrap();
    u64::from_le_bytes(config.try_into().unwrap()) * SECTOR_BYTES as u64
}

pub(super) fn wait_for_capacity(session: &Session, bytes: u64) {
    wait_for(&format!("the disk has {bytes} bytes"), || (capacity_bytes(session) == bytes).then_some(()));
}

/// The last 4 KiB of a disk of this size can be used and are in the file; what is behind is not there.
pub(super) fn assert_ends_at(ring: &mut Ring, image: &Path, bytes: u64) {
    let content = pattern(bytes, 4096);
    let sector = (bytes - 4096) / SECTOR_BYTES as u64;
    assert_eq!(ring.run(&Request::write(sector, &content)).status, OK, "the tail of {bytes} bytes");
    assert_eq!(ring.run(&Request::flush()).status, OK);
    let read = ring.run(&Request::read(sector, 4096));
    assert!(read.status == OK && read.data == content, "the tail of {bytes} bytes reads otherwise");
    let mut stored = vec![0; 4096];
    File::open(image).unwrap().read_exact_at(&mut stored, bytes - 4096).unwrap();
    assert!(stored == content, "the tail of {bytes} bytes is not in the file");
    assert_eq!(ring.run(&Request::read(sector + 8, 512)).status, IOERR, "behind {bytes} bytes");
    assert_eq!(ring.run(&Request::write(sector + 1, &content)).status, IOERR, "across {bytes} bytes");
}

/// A request that waits for nothing is answered all the while, on this disk and on another one.
#[test]
fn a_disk_grows_under_load_and_another_does_not_notice() {
    for place in Place::ALL {
        let daemon = disks(place, &["", ""]).start();
        let (session, channel) = with_channel(&daemon.socket(0));
        let (other, silent) = with_channel(&daemon.socket(1));
        assert_eq!([&session, &other].map(capacity_bytes), [SIZES[0]; 2]);
        let loads = [Load::start(session.ring(0, 64), 0), Load::start(other.ring(0, 64), 0)];
        let mut ring = session.ring(1, 64);
        for bytes in &SIZES[1..] {
            assert_eq!(ring.run(&Request::read(bytes / 512 - 8, 4096)).status, IOERR, "not yet");
            set_len(&daemon.image(0), *bytes);
            assert_eq!(channel.receive(), Some(CONFIG_CHANGE), "{place:?} {bytes}");
            assert_eq!(capacity_bytes(&session), *bytes, "{place:?}");
            assert_ends_at(&mut ring, &daemon.image(0), *bytes);
            loads.iter().for_each(Load::wait_for_progress);
        }
        settle();
        assert!(channel.is_silent() && silent.is_silent(), "{place:?}");
        assert_eq!(capacity_bytes(&other), SIZES[0]);
        // Behind what the load writes.
        assert_works(&mut other.ring(1, 64), LOAD_SECTORS);
        for load in loads {
            load.stop();
        }
        daemon.stop();
    }
}

/// Nobody is told of a file that stays open, or that another machine has changed.
#[test]
fn sighup_looks_at_the_size() {
    for place in Place::ALL {
        let daemon = disks(place, &["", ""]).start();
        // The size is also read once when the daemon has started, beside its first front-ends: that is over now.
        daemon.signal(libc::SIGHUP);
        daemon.wait_for_log("the size is the same as before disk=\"disk1\"");
        let (session, channel) = with_channel(&daemon.socket(0));
        let mut ring = session.ring(0, 64);
        assert_eq!(channel.receive(), Some(CONFIG_CHANGE), "the configuration was not read yet");
        let file = File::options().write(true).open(daemon.image(0)).unwrap();
        for bytes in &SIZES[1..] {
            file.set_len(*bytes).unwrap();
            settle();
            assert!(channel.is_silent() && capacity_bytes(&session) < *bytes, "{place:?}");
            daemon.signal(libc::SIGHUP);
            wait_for_capacity(&session, *bytes);
            assert_eq!(channel.receive(), Some(CONFIG_CHANGE));
            assert_ends_at(&mut ring, &daemon.image(0), *bytes);
        }
        daemon.stop();
    }
}

#[test]
fn a_disk_grows_while_nobody_is_connected() {
    for place in Place::ALL {
        let daemon = disks(place, &[""]).start();
        for bytes in &SIZES[1..3] {
            set_len(&daemon.image(0), *bytes);
            daemon.wait_for_log(&format!("to_bytes={bytes}"));
            let session = Session::connect(&daemon.socket(0));
            assert_eq!(capacity_bytes(&session), *bytes);
            assert_ends_at(&mut session.ring(0, 64), &daemon.image(0), *bytes);
        }
        // The next daemon serves the same.
        let daemon = daemon.stop().start();
        let session = Session::connect(&daemon.socket(0));
        assert_eq!(capacity_bytes(&session), SIZES[2]);
        assert_ends_at(&mut session.ring(0, 64), &daemon.image(0), SIZES[2]);
    }
}

/// It has no channel and one ring, and reads the configuration again when its user says so.
#[test]
fn firecracker_reads_the_configuration_after_a_patch() {
    let daemon = disks(Place::Tmpfs, &[""]).start();
    let options = Options { protocol: VhostUserProtocolFeatures::CONFIG, ..Options::default() };
    let session = Session::connect_with(&daemon.socket(0), &options);
    let mut ring = session.ring(0, 64);
    set_len(&daemon.image(0), SIZES[1]);
    wait_for_capacity(&session, SIZES[1]);
    assert_ends_at(&mut ring, &daemon.image(0), SIZES[1]);
}

/// QEMU takes no notice of a change while its device is stopped, and reads nothing when it starts again.
#[test]
fn a_front_end_whose_rings_are_stopped_is_told_again() {
    let daemon = disks(Place::Tmpfs, &[""]).start();
    let (session, channel) = with_channel(&daemon.socket(0));
    assert_eq!(capacity_bytes(&session), SIZES[0]);
    let ring = session.ring(0, 64);
    let base = session.stop(&ring);
    set_len(&daemon.image(0), SIZES[1]);
    assert_eq!(channel.receive(), Some(CONFIG_CHANGE));
    session.start(&ring, base).unwrap();
    assert_eq!(channel.receive(), Some(CONFIG_CHANGE));
    session.stop(&ring);
    session.start(&ring, base).unwrap();
    settle();
    assert!(channel.is_silent(), "once is enough");
}

#[test]
fn a_file_that_becomes_shorter_does_not_shrink_its_disk() {
    for place in Place::ALL {
        let daemon = disks(place, &[""]).start();
        let (session, channel) = with_channel(&daemon.socket(0));
        assert_eq!(capacity_bytes(&session), SIZES[0]);
        let mut ring = session.ring(0, 64);
        set_len(&daemon.image(0), SIZES[0] - 512);
        daemon.wait_for_log(&format!(
            "disk \"disk0\": the backing has only {} bytes, but {} are served, and a disk does not shrink",
            SIZES[0] - 512,
            SIZES[0]
        ));
        assert_eq!(capacity_bytes(&session), SIZES[0]);
        assert_works(&mut ring, 0);
        set_len(&daemon.image(0), SIZES[0]);
        assert_ends_at(&mut ring, &daemon.image(0), SIZES[0]);
        set_len(&daemon.image(0), SIZES[1]);
        wait_for_capacity(&session, SIZES[1]);
        assert_eq!(channel.receive(), Some(CONFIG_CHANGE), "for the growth only");
        assert!(channel.is_silent());
    }
}

#[test]
fn parts_of_blocks_are_left_out() {
    let daemon = disks(Place::Tmpfs, &["block-size=4096", ""]).start();
    let [large, small] = [0, 1].map(|index| Session::connect(&daemon.socket(index)));
    for index in 0..2 {
        set_len(&daemon.image(index), SIZES[0] + 4096 + 511);
    }
    wait_for_capacity(&large, SIZES[0] + 4096);
    wait_for_capacity(&small, SIZES[0] + 4096);
    assert_ends_at(&mut large.ring(0, 64), &daemon.image(0), SIZES[0] + 4096);
}

/// `size=` says how much of the file is the disk.
#[test]
fn a_chosen_size_stays() {
    let daemon = with_disks(&["size=4M"]).start();
    let session = Session::connect(&daemon.socket(0));
    set_len(&daemon.image(0), SIZES[5]);
    daemon.signal(libc::SIGHUP);
    daemon.wait_for_log("the size is the same as before");
    assert_eq!(capacity_bytes(&session), 4 * MIB);
}

fn allocated_bytes(daemon: &Daemon, index: usize) -> u64 {
    std::fs::metadata(daemon.image(index)).unwrap().blocks() * 512
}

#[test]
fn the_new_part_has_its_space_unless_it_is_to_be_sparse() {
    for place in Place::ALL {
        let daemon = disks(place, &["", "sparse"]).start();
        let before = allocated_bytes(&daemon, 1);
        for index in 0..2 {
            set_len(&daemon.image(index), SIZES[3]);
        }
        let sessions = [0, 1].map(|index| Session::connect(&daemon.socket(index)));
        sessions.iter().for_each(|session| wait_for_capacity(session, SIZES[3]));
        assert!(allocated_bytes(&daemon, 0) >= SIZES[3] - SIZES[0], "{place:?}");
        assert_eq!(allocated_bytes(&daemon, 1), before, "{place:?}");
    }
}

/// Nor does a disk that is only read touch its file.
#[test]
fn a_read_only_disk_grows_for_all_its_readers() {
    let daemon = disks(Place::Tmpfs, &["readonly"]).start();
    let readers = [0, 1].map(|_| with_channel(&daemon.socket(0)));
    let mut rings = readers.each_ref().map(|(session, _)| {
        assert_eq!(capacity_bytes(session), SIZES[0]);
        session.ring(0, 64)
    });
    set_len(&daemon.image(0), SIZES[3]);
    for ((session, channel), ring) in readers.iter().zip(&mut rings) {
        assert_eq!(channel.receive(), Some(CONFIG_CHANGE));
        assert_eq!(capacity_bytes(session), SIZES[3]);
        assert_eq!(ring.run(&Request::read(SIZES[3] / 512 - 8, 4096)).data, vec![0; 4096]);
    }
    assert!(allocated_bytes(&daemon, 0) < SIZES[3]);
}
