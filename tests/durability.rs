//! The daemon's promises as an operator meets them: refusals, exit codes, what it says at the start.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr, missing_docs)]

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use common::daemon::{Place, Setup};
use common::driver::{Driver, Options, Request};
use common::pattern;

fn is_ordinary(setup: &Setup) -> bool {
    let folder = setup.image(0).parent().unwrap().to_owned();
    let statfs = rustix::fs::statfs(&folder).unwrap();
    let ordinary = statfs.f_type != 0x0102_1994;
    if !ordinary {
        eprintln!("skipped: the build folder is on tmpfs");
    }
    ordinary
}

#[test]
fn memory_is_refused_where_durability_is_required() {
    for (disk, arg) in [
        ("size=1M,require-durable", None),
        ("size=1M,require-durable=byte", None),
        ("size=1M", Some("--require-durable")),
        ("size=1M", Some("--require-durable=cacheline")),
    ] {
        let mut setup = Setup::new(Place::Tmpfs).disk(disk);
        if let Some(arg) = arg {
            setup = setup.arg(arg);
        }
        let output = setup.run();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(13), "{disk} {arg:?}: {error}");
        assert!(error.contains("disk \"disk0\": ") && error.contains("cannot promise durability"), "{error}");
        assert!(!setup.image(0).exists() && !setup.socket(0).exists(), "nothing is left behind");
    }
    let daemon =
        Setup::new(Place::Tmpfs).disk("size=1M,require-durable=off").arg("--require-durable").start();
    daemon.stop();
}

#[test]
fn an_ordinary_file_is_enough_for_page_and_not_for_more() {
    let setup = Setup::new(Place::FileSystem).disk("size=1M").arg("--require-durable");
    if !is_ordinary(&setup) {
        return;
    }
    let daemon = setup.start();
    daemon.wait_for_log("durability=\"page\"");
    daemon.stop();
    let output = Setup::new(Place::FileSystem).disk("size=1M").arg("--require-durable=byte").run();
    assert_eq!(output.status.code(), Some(13));
    let output = Setup::new(Place::FileSystem).disk("size=1M").arg("--require-durable=volatile").run();
    assert_eq!(output.status.code(), Some(2), "nobody requires volatility");
}

/// The start states the class; what is not sparse is populated while it is served.
#[test]
fn the_start_says_what_a_disk_is_worth() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=8M").arg("--deep-flush=never").start();
    daemon.wait_for_log("durability=\"volatile\"");
    daemon.wait_for_log("does not outlive the machine");
    daemon.wait_for_log("populated");
    daemon.stop();
}

/// Once for all disks, and as it is told.
#[test]
fn the_start_says_once_how_bytes_are_copied() {
    let setup =
        Setup::new(Place::Tmpfs).disk("size=1M").disk("size=1M").env("VHOST_USER_PMEM_COPY", "portable");
    let log = setup.start().stop_for_log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("copies: ")).collect();
    assert!(lines.len() == 1 && lines[0].contains("writes by ordinary stores"), "{lines:?}");
}

/// 1 TiB without a byte in it: listening at once, no hole filled, and every end of it works.
#[test]
fn a_huge_sparse_disk_stays_empty() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=1T,sparse=on").start();
    let mut driver = Driver::connect(&daemon.socket(0), Options::default());
    let data = pattern(1, 4096);
    let last = (1 << 40) - 4096;
    driver.queue().write(last, &data).unwrap();
    assert_eq!(driver.queue().read(last, 4096).unwrap(), data);
    driver.queue().run(&Request::Flush).unwrap();
    let image = daemon.image(0);
    let mut back = vec![0; 4096];
    std::fs::File::open(&image).unwrap().read_exact_at(&mut back, last).unwrap();
    assert_eq!(back, data);
    assert!(image.metadata().unwrap().blocks() * 512 <= 4 << 20, "one page, or one huge page");
    assert!(!daemon.log().contains("populated"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn discards_are_kept_back_when_told_so() {
    for place in Place::ALL {
        for (policy, freed) in [("auto", 1 << 20), ("ignore", 0), ("unmap", 1 << 20)] {
            let daemon = Setup::new(place).disk(&format!("size=8M,discard={policy}")).start();
            let image = daemon.image(0);
            std::fs::OpenOptions::new()
                .write(true)
                .open(&image)
                .unwrap()
                .write_all_at(&[7; 8 << 20], 0)
                .unwrap();
            std::fs::File::open(&image).unwrap().sync_all().unwrap();
            let before = image.metadata().unwrap().blocks() * 512;
            let mut driver = Driver::connect(&daemon.socket(0), Options::default());
            driver.queue().run(&Request::Discard { offset: 1 << 20, len: 1 << 20 }).unwrap();
            let after = image.metadata().unwrap().blocks() * 512;
            assert_eq!(before - after, freed, "{place:?} {policy}");
            daemon.stop();
        }
    }
}

#[test]
fn info_says_why() {
    let setup = Setup::new(Place::Tmpfs);
    let image = setup.image(0);
    std::fs::File::create_new(&image).unwrap().set_len(1 << 20).unwrap();
    let info = |json: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
        command.arg("info").arg(&image).args(json.then_some("--json"));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let text = info(false);
    for line in [
        "  durability      volatile",
        "  because         memory (tmpfs",
        "  a flush is      fence",
        "  discards        unmap",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
    let report: serde_json::Value = serde_json::from_str(&info(true)).unwrap();
    assert_eq!((&report["durability"], &report["flush"]), (&"volatile".into(), &"fence".into()));
    assert_eq!((&report["discard"], &report["regions"]), (&"unmap".into(), &serde_json::json!([])));
    assert!(report["durability_reason"].is_string() && report["bad_blocks"] == serde_json::json!([]));
}
