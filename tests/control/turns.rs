//! Several change disks at the same time.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{RecvFlags, recv};
use serde_json::json;

use super::common::daemon::{Daemon, Place};
use super::common::frontend::Session;
use super::common::process::Process;
use super::common::wait::Ends;
use super::common::wait_for;
use super::http::{Answer, answer, ask, connect};
use super::reload::{self, Host};
use super::{DISK_BYTES, assert_works};

/// Asks for something without a body, and waits for no answer yet.
fn begin(host: &Host, method: &str, path: &str) -> UnixStream {
    connect(&host.control(), format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
}

fn done(host: &Host, method: &str, path: &str) -> Answer {
    ask(&host.control(), method, path, None)
}

fn put(host: &Host, name: &str, bytes: u64) -> Answer {
    let options = json!({"path": host.folder.join(name), "socket": host.sockets.join(name), "size": bytes});
    ask(&host.control(), "PUT", &format!("/v1/disks/{name}"), Some(&options.to_string()))
}

/// How many do what was asked for.
fn operations(daemon: &Daemon) -> usize {
    Process(daemon.pid()).threads_named("control-").len()
}

/// Sends SIGHUP, which is heard of when this returns.
fn hang_up(host: &Host) {
    host.hang_up("reading the configuration, and the sizes of the disks, again on SIGHUP");
}

#[test]
fn a_slow_removal_holds_up_no_other_disk() {
    let host = Host::start("workers = 1", &[("a", DISK_BYTES, ""), ("b", DISK_BYTES, "")]);
    let session = Session::connect(&host.sockets.join("a"));
    let mut draining = begin(&host, "DELETE", "/v1/disks/a?drain=1000s");
    wait_for("the disk is being removed", || {
        // It is refused if what only asks whether it has begun comes first.
        if recv(&draining, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok() {
            draining = begin(&host, "DELETE", "/v1/disks/a?drain=1000s");
        }
        (done(&host, "DELETE", "/v1/disks/a").problem().0 == "leaving").then_some(())
    });
    for _ in 0..20 {
        hang_up(&host);
    }
    wait_for("no thread waits", || (operations(&host.daemon) == 1).then_some(()));
    host.daemon.wait_for_log("nothing has changed: disk \"a\": it is being removed; ask again");
    let (code, text) = host.reload().problem();
    assert!(code == "busy" && text.contains("disk \"a\": it is being removed"), "{text}");
    assert_eq!(put(&host, "a", DISK_BYTES).problem().0, "busy");
    let grown = ask(
        &host.control(),
        "POST",
        "/v1/disks/b/resize",
        Some(&json!({"size": 2 * DISK_BYTES}).to_string()),
    );
    assert_eq!(grown.status, 200, "{grown:?}");
    assert_eq!(put(&host, "c", DISK_BYTES).status, 201);
    assert_eq!(done(&host, "DELETE", "/v1/disks/c").status, 204);
    drop(session);
    let removed = answer(draining).unwrap();
    assert_eq!(removed.status, 204, "{removed:?}");
    host.write("workers = 1", &[("a", DISK_BYTES, ""), ("b", 2 * DISK_BYTES, "")]);
    assert_eq!(host.reload().json(), json!({"added": ["a"], "limited": [], "removed": [], "resized": []}));
    host.daemon.stop();
}

/// The end of a FIFO that is written to, once somebody reads it.
fn writer(fifo: &Path) -> File {
    let mut open = File::options();
    open.write(true).custom_flags(libc::O_NONBLOCK);
    wait_for("somebody reads it", || open.open(fifo).ok())
}

/// However slow the file is to read.
#[test]
fn a_reload_that_is_under_way_holds_up_nobody_and_signals_are_one_more() {
    let (a, b, c) = (("a", DISK_BYTES, ""), ("b", DISK_BYTES, ""), ("c", DISK_BYTES, ""));
    let host = Host::start("workers = 1", &[a]);
    let file = host.folder.join("main.toml");
    std::fs::remove_file(&file).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    hang_up(&host);
    let mut first = writer(&file);
    for _ in 0..20 {
        hang_up(&host);
    }
    let (code, text) = host.reload().problem();
    assert!(code == "busy" && text.contains("the configuration is being read again"), "{text}");
    wait_for("one thread reads", || (operations(&host.daemon) == 1).then_some(()));
    assert_eq!(put(&host, "d", DISK_BYTES).status, 201);
    assert_eq!(done(&host, "DELETE", "/v1/disks/d").status, 204);
    let text = |disks: &[reload::Disk<'_>]| reload::text(&host.folder, &host.sockets, "workers = 1", disks);
    first.write_all(text(&[a, b]).as_bytes()).unwrap();
    drop(first);
    host.daemon.wait_for_log(r#"{"added":["b"],"limited":[],"removed":[],"resized":[]}"#);
    writer(&file).write_all(text(&[a, b, c]).as_bytes()).unwrap();
    host.daemon.wait_for_log(r#"{"added":["c"],"limited":[],"removed":[],"resized":[]}"#);
    wait_for("nobody reads any more", || (operations(&host.daemon) == 0).then_some(()));
    assert_works(&mut Session::connect(&host.sockets.join("c")).ring(0, 64), 0);
    host.daemon.stop();
}

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// What a front-end holds is looked at before anything grows.
#[test]
fn a_reload_that_is_refused_has_not_grown_a_disk() {
    let (a, b) = (("a", DISK_BYTES, ""), ("b", DISK_BYTES, ""));
    let host = Host::start("workers = 1", &[a, b]);
    let _session = Session::connect(&host.sockets.join("a"));
    host.write("workers = 1", &[("b", 2 * DISK_BYTES, "")]);
    let (code, text) = host.reload().problem();
    assert!(code == "connected" && !text.contains("done already"), "{text}");
    let disk = host.disk("b");
    let (size, capacity) = (&disk["options"]["size"], &disk["state"]["capacity_bytes"]);
    assert_eq!((size, capacity), (&DISK_BYTES.into(), &DISK_BYTES.into()));
    assert_eq!(len(&host.folder.join("b")), DISK_BYTES);
    host.write("workers = 1", &[a, b]);
    assert_eq!(host.reload().json(), json!({"added": [], "limited": [], "removed": [], "resized": []}));
}

/// A growth that nobody can foresee to fail comes last: what was done before is said, and is what is so from then on.
#[test]
fn a_reload_that_fails_says_what_is_done() {
    let host = Host::start("workers = 1", &[("a", DISK_BYTES, ""), ("b", DISK_BYTES, "")]);
    let changed = [("b", 1 << 62, ""), ("c", DISK_BYTES, "")];
    host.write("workers = 1", &changed);
    let (_, text) = host.reload().problem();
    assert!(text.contains("disk \"b\": ") && text.ends_with("(done already: removed a; added c)"), "{text}");
    assert_eq!(host.names(), ["line", "b", "c"]);
    assert_eq!(host.disk("c")["options"]["size"], DISK_BYTES);
    assert_eq!(host.disk("b")["options"]["size"], DISK_BYTES);
    assert_eq!(len(&host.folder.join("b")), DISK_BYTES);
    host.write("workers = 1", &[("b", DISK_BYTES, ""), ("c", DISK_BYTES, "")]);
    assert_eq!(host.reload().json(), json!({"added": [], "limited": [], "removed": [], "resized": []}));
    assert_eq!(put(&host, "a", DISK_BYTES).status, 201);
    assert_eq!(done(&host, "DELETE", "/v1/disks/a").status, 204);
    host.write("workers = 1", &[("b", 1 << 62, "")]);
    host.hang_up("not all of it was applied: disk \"b\": ");
    assert_eq!(host.names(), ["line", "b"]);
    assert_works(&mut Session::connect(&host.sockets.join("b")).ring(0, 64), 0);
    host.daemon.stop();
}

/// Who adds a disk finds it or is told to ask again, and what is shown has its options.
#[test]
fn a_name_that_many_add_and_remove_is_there_or_is_not() {
    let host = super::Host::new(Place::Tmpfs);
    let (is_over, control) = (AtomicBool::new(false), host.control());
    std::thread::scope(|threads| {
        let ends = Ends(&is_over);
        for _ in 0..4 {
            threads.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let removed = ask(&control, "DELETE", "/v1/disks/r?force", None);
                    assert!([204, 404, 409].contains(&removed.status), "{removed:?}");
                }
            });
        }
        let added: Vec<Answer> = (0..500).map(|_| host.add("r")).collect();
        drop(ends);
        let wrong = added.iter().find(|added| ![200, 201, 409].contains(&added.status));
        assert!(wrong.is_none() && added.iter().any(|added| added.status == 201), "{wrong:?}");
    });
    let added = host.add("r");
    assert!([200, 201].contains(&added.status) && added.json()["options"]["size"] == DISK_BYTES, "{added:?}");
    assert_eq!(host.remove("r", "").status, 204);
    assert_eq!(host.add("r").status, 201);
    host.daemon.stop();
}
