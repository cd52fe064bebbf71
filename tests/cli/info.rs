//! `info`: what it says, and that it changes nothing.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::common::daemon::{Place, Setup};
use super::common::host::Made;
use super::common::{folder, metrics, wait_for};
use super::{image, run, stderr, stdout};

fn lines(path: &Path) -> String {
    let output = run([OsStr::new("info"), path.as_os_str()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stdout(&output)
}

fn json(path: &Path) -> serde_json::Value {
    let output = run([OsStr::new("info"), path.as_os_str(), OsStr::new("--json")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn assert_lines(text: &str, rows: &[(&str, &str)]) {
    for (name, value) in rows {
        let found = text.lines().any(|line| {
            line.trim_start().strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(value))
        });
        assert!(found, "no line {name:?} {value:?} in:\n{text}");
    }
}

#[test]
fn a_file_in_memory_is_volatile() {
    let folder = folder::in_memory();
    let path = folder.path().join("db.img");
    image(&path, 3 << 20);
    let before = path.metadata().unwrap();
    let text = lines(&path);
    assert_lines(
        &text,
        &[
            ("path", path.to_str().unwrap()),
            ("type", "a regular file"),
            ("backing", "memory (tmpfs"),
            ("size", "3 MiB (3145728 bytes)"),
            ("allocated", "0 bytes"),
            ("writable", "yes"),
            ("served by", "reads and writes through the mapping"),
            ("durability", "volatile"),
        ],
    );
    assert!(!text.contains("not servable"), "{text}");
    let report = json(&path);
    assert_eq!((&report["size_bytes"], &report["durability"]), (&3_145_728.into(), &"volatile".into()));
    assert!(report["refusal"].is_null() && report["holder_pid"].is_null(), "{report}");
    let after = path.metadata().unwrap();
    assert_eq!((after.len(), after.blocks()), (before.len(), before.blocks()), "info changed the file");
}

#[test]
fn an_ordinary_file_is_safe_after_a_flush() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("db.img");
    image(&path, 1 << 20);
    let report = json(&path);
    assert_eq!(report["durability"], "page", "{report}");
    assert!(report["backing"].as_str().unwrap().starts_with("ordinary file on "), "{report}");
    assert_eq!((&report["flush"], &report["initial_writeback"]), (&"fdatasync".into(), &true.into()));
    assert_lines(
        &lines(&path),
        &[("served by", "reads through the mapping, writes by pwritev"), ("cache at first", "write back")],
    );
}

#[test]
fn what_cannot_be_served_says_why() {
    assert_lines(&lines(Path::new("/")), &[("type", "a directory"), ("not servable", "/: cannot serve it")]);
    let report = json(Path::new("/dev/null"));
    assert_eq!(report["type"], "a character device");
    assert!(report["refusal"].as_str().unwrap().contains("a disk is a regular file"), "{report}");
    assert!(report["backing"].is_null() && report["durability"].is_null(), "{report}");

    let folder = folder::in_memory();
    let odd = folder.path().join("odd.img");
    image(&odd, 1000);
    assert!(json(&odd)["refusal"].is_null(), "its whole blocks are served");
    image(&odd, 100);
    assert!(json(&odd)["refusal"].as_str().unwrap().contains("less than a block"), "{}", json(&odd));
}

/// What is below the file system, or is the device, is named with what a flush has it do: by `info`, the start message and the log.
#[test]
fn what_a_disk_lies_on_is_told() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(made) = Made::new(folder.path(), "ext4", &[], 16 << 20) else { return };
    let path = made.folder().join("db.img");
    image(&path, 1 << 20);
    let behind = folder.path().join("device");
    let layer = json(&path)["storage"][0].clone();
    assert_eq!((&layer["kind"], &layer["detail"]), (&"loop device".into(), &behind.to_str().unwrap().into()));
    let name = layer["name"].as_str().unwrap();
    assert!(name.starts_with("loop"), "{name}");
    let lies_on = format!("{name} (loop device, {})", behind.display());
    let there = ("a flush there", "the file behind it is synced");
    assert_lines(&lines(&path), &[("it lies on", &lies_on), there]);
    assert_lines(&lines(&Path::new("/dev").join(name)), &[("it lies on", &lies_on), there]);
    let setup = Setup::new(Place::Tmpfs).disk("");
    std::os::unix::fs::symlink(&path, setup.image(0)).unwrap();
    let daemon = setup.start();
    daemon.wait_for_log(&format!("storage={lies_on}"));
    let message = format!("it lies on {lies_on}; there, the file behind it is synced");
    wait_for("the start message is written", || daemon.output().contains(&message).then_some(()));
    daemon.stop();
    // In memory there is nothing below.
    let memory = folder::in_memory();
    image(&memory.path().join("db.img"), 1 << 20);
    let report = json(&memory.path().join("db.img"));
    assert_eq!(
        (&report["storage"], &report["storage_flush"]),
        (&serde_json::json!([]), &serde_json::Value::Null)
    );
}

/// Whether there are huge pages for tmpfs is the machine's business; the daemon and `info` say the same of it.
#[test]
fn the_huge_pages_of_a_served_file_are_those_of_its_daemon() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=8M").with_metrics().start();
    let counted = wait_for("the disk is populated", || {
        metrics::read(&daemon.metrics_socket()).get(r#"huge_page_bytes{disk="disk0"}"#).copied()
    });
    let told = json(&daemon.image(0))["huge_bytes"].clone();
    assert_eq!(told.as_f64(), Some(counted), "{told}");
    assert!(counted == 0.0 || counted >= 2_097_152.0, "{counted}");
    assert_lines(&lines(&daemon.image(0)), &[("huge pages", if counted == 0.0 { "0 bytes" } else { "" })]);
    let setup = daemon.stop();
    assert!(json(&setup.image(0))["huge_bytes"].is_null(), "nobody has it mapped");
}

#[test]
fn a_served_file_names_its_daemon() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=1M").start();
    assert_eq!(json(&daemon.image(0))["holder_pid"], daemon.pid());
    assert_lines(
        &lines(&daemon.image(0)),
        &[("in use", &format!("locked by process {} (vhost-user-pmem)", daemon.pid()))],
    );
    let setup = daemon.stop();
    assert!(json(&setup.image(0))["holder_pid"].is_null());
}
