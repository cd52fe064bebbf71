//! Private disks whose writes are kept in a file (`overlay=FILE`).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::common::daemon::{Place, Setup};
use vhost::vhost_user::VhostUserFrontend as _;
use vhost::vhost_user::message::VhostUserConfigFlags;

use super::common::frontend::request::{IOERR, OK, Request};
use super::common::frontend::{Options, Session};
use super::common::{Random, pattern};
use super::{BYTES, all, base, change_at_random, come_back, value};

/// Disks over one base, with a file for the writes of each.
fn over_one_base(place: Place, disks: usize, options: &str) -> Setup {
    let mut setup = Setup::new(place);
    for disk in 0..disks {
        let file = kept(&setup.image(disk));
        setup = setup.disk(&format!("overlay={}{options}", file.display()));
    }
    fs::write(setup.image(0), base()).unwrap();
    for disk in 1..disks {
        fs::hard_link(setup.image(0), setup.image(disk)).unwrap();
    }
    setup
}

/// The file that keeps what is written to the disk over this.
fn kept(image: &Path) -> PathBuf {
    image.with_extension("overlay")
}

/// What a start says that is refused; it can be known before.
fn error_of(setup: &Setup, code: i32) -> String {
    let output = setup.run();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{error}");
    let checked = setup.command().arg("--check").output().unwrap();
    assert_eq!(checked.status.code(), Some(code), "--check: {}", String::from_utf8_lossy(&checked.stderr));
    error
}

/// After a restart, and after kill -9 in the middle, each has what was written to it, and the guest goes on.
#[test]
fn what_is_written_stays_when_the_daemon_ends() {
    for place in Place::ALL {
        for options in Options::both_kinds() {
            let mut daemon = over_one_base(place, 2, "").start();
            let mut random = Random::new(5);
            let mut session = Session::connect_with(&daemon.socket(0), &options);
            let mut ring = session.ring(0, 64);
            let mut model = base();
            for life in 0..3 {
                for _ in 0..60 {
                    change_at_random(&mut ring, &mut model, &mut random);
                }
                daemon = if life == 1 { daemon.stop().start() } else { daemon.kill().start() };
                (session, ring) = come_back(&daemon, session, ring, &options);
                assert!(all(&mut ring) == model, "{place:?}, life {life}");
            }
            assert_eq!(ring.run(&Request::flush()).status, OK);
            let other = Session::connect_with(&daemon.socket(1), &options);
            assert!(all(&mut other.ring(0, 64)) == base(), "{place:?}: the other one's");
            drop((session, other));
            let setup = daemon.stop();
            assert!(fs::read(setup.image(0)).unwrap() == base(), "{place:?}: the base");
        }
    }
}

/// A guest that has switched to write-through sends no flushes: the next daemon has to know. It is kept at the overlay's file.
#[test]
fn a_guests_cache_mode_is_known_again() {
    const WRITEBACK: u32 = 32;
    for place in Place::ALL {
        let daemon = over_one_base(place, 1, "").start();
        let session = Session::connect(&daemon.socket(0));
        session.config(0, 60).unwrap();
        let mut ring = session.ring(0, 64);
        session.ask(|control| control.set_config(WRITEBACK, VhostUserConfigFlags::empty(), &[0])).unwrap();
        assert_eq!(ring.run(&Request::write(8, &[9; 512])).status, OK);
        assert_eq!(ring.run(&Request::flush()).status, OK);
        let daemon = daemon.kill().start();
        let (session, mut ring) = come_back(&daemon, session, ring, &Options::default());
        assert_eq!(ring.run(&Request::read(8, 512)).data, [9; 512]);
        assert_eq!(session.config(WRITEBACK, 1).unwrap(), [0], "{place:?}");
        drop((session, ring));
        let setup = daemon.stop();
        let names = rustix::fs::listxattr(setup.image(0), &mut [0_u8; 256]).unwrap();
        assert_eq!(names, 0, "{place:?}: nothing is kept at the base");
    }
}

/// An overlay that is made anew has nothing of a guest that goes on.
#[test]
fn a_guest_whose_overlay_was_removed_gets_errors() {
    let options = Options::default();
    let daemon = over_one_base(Place::Tmpfs, 1, "").start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    assert_eq!(ring.run(&Request::write(8, &[9; 512])).status, OK);
    let setup = daemon.kill();
    fs::remove_file(kept(&setup.image(0))).unwrap();
    let daemon = setup.start();
    let (session, mut ring) = come_back(&daemon, session, ring, &options);
    assert_eq!(ring.run(&Request::read(8, 512)).status, IOERR);
    drop((session, ring));
    daemon.stop();
}

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    let setup = over_one_base(Place::Tmpfs, 1, "");
    let daemon = setup.start();
    let session = Session::connect(&daemon.socket(0));
    assert_eq!(session.ring(0, 64).run(&Request::write(0, &[1; 512])).status, OK);
    drop(session);

    // Two of the same overlay.
    let other = Setup::new(Place::Tmpfs);
    let file = kept(&daemon.image(0));
    let other = other.disk(&format!("overlay={}", file.display()));
    fs::hard_link(daemon.image(0), other.image(0)).unwrap();
    let error = error_of(&other, 9);
    assert!(error.contains("disk0.overlay: cannot lock it") && error.contains("already uses it"), "{error}");
    let setup = daemon.stop();

    // A base that has changed.
    let metadata = fs::metadata(setup.image(0)).unwrap();
    let touched = fs::File::options().write(true).open(setup.image(0)).unwrap();
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let error = error_of(&setup, 4);
    assert!(error.contains("its base has changed since it was made"), "{error}");
    assert!(error.contains(&format!("{} seconds, and now", metadata.mtime())), "{error}");
    assert!(error.contains("put the base back"), "{error}");
    touched.set_modified(metadata.modified().unwrap()).unwrap();

    // Another base's size, and a file that is none.
    fs::write(kept(&setup.image(0)), pattern(1, 8192)).unwrap();
    let error = error_of(&setup, 4);
    assert!(error.contains("it is not empty, and no overlay"), "{error}");
    fs::remove_file(kept(&setup.image(0))).unwrap();
    setup.start().stop();

    // An overlay in no folder.
    let nowhere = Setup::new(Place::Tmpfs).disk("overlay=/nowhere/at/all");
    fs::write(nowhere.image(0), base()).unwrap();
    let error = error_of(&nowhere, 3);
    assert!(error.contains("/nowhere/at/all: cannot create it (its directory does not exist)"), "{error}");
    assert!(nowhere.image(0).exists(), "the base stays");
}

/// The request that meets the limit fails, and no other.
#[test]
fn what_is_written_takes_no_more_space_than_it_may() {
    let daemon = over_one_base(Place::Tmpfs, 1, ",overlay-max=128K").with_metrics().start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    let page = |page: u64| Request::write(page * 8, &[page as u8; 4096]);
    let failed = (0..64).find(|at| ring.run(&page(*at)).status == IOERR).unwrap();
    assert!((20..32).contains(&failed), "{failed}");
    daemon.wait_for_log("raise overlay-max=");
    assert_eq!(ring.run(&page(3)).status, OK, "it is there already");
    assert_eq!(ring.run(&Request::read(failed * 8, 4096)).data, base()[failed as usize * 4096..][..4096]);
    // A page of each index, and the last one of the disk, come on top.
    assert!(value(&daemon, "vhost_user_pmem_overlay_bytes{disk=\"disk0\"}") <= 143_360.0);
    assert!(fs::metadata(kept(&daemon.image(0))).unwrap().len() > BYTES as u64);
    daemon.stop();
}

/// What a start that fails has made is removed, and the base is not.
#[test]
fn a_start_that_fails_leaves_the_base_alone() {
    let setup = over_one_base(Place::Tmpfs, 1, "").disk("path=/nowhere/at/all");
    let output = setup.run();
    assert!(!output.status.success());
    assert!(fs::read(setup.image(0)).unwrap() == base() && !kept(&setup.image(0)).exists());
}

/// Its file is only as safe as what it lies on.
#[test]
fn durability_is_that_of_the_file() {
    let daemon = over_one_base(Place::Tmpfs, 1, "").start();
    daemon.wait_for_log("durability=volatile");
    let setup = daemon.stop();
    let mut file = kept(&setup.image(0)).into_os_string();
    file.push(",require-durable=page");
    let strict = Setup::new(Place::Tmpfs).disk(&format!("overlay={}", file.display()));
    fs::hard_link(setup.image(0), strict.image(0)).unwrap();
    assert!(error_of(&strict, 13).contains("cannot promise durability \"page\""));
}
