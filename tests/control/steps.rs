//! kill -9 just before each system call that a change makes leaves no half state: files and sockets are as before or as after, and a
//! start with the same command line and configuration goes on from there.
//!
//! Each twentieth step is tried, beginning with another one each day; `CONTROL_STEPS=1` (ci/soak) tries all.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::common::daemon::{Daemon, Place};
use super::common::frontend::Session;
use super::common::frontend::request::{OK, Request};
use super::common::killer::Killer;
use super::common::process::Process;
use super::common::{pattern, wait_for};
use super::{DISK_BYTES, Host, assert_works, http, reload, setup};

const SECTOR: u64 = 8;

/// The steps that are tried: one of so many.
fn stride() -> u64 {
    std::env::var("CONTROL_STEPS").map_or(20, |every| every.parse().unwrap())
}

fn steps() -> impl Iterator<Item = u64> {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / (24 * 60 * 60);
    (1 + days % stride()..).step_by(usize::try_from(stride()).unwrap())
}

/// Asks for a change, and kills the daemon at this step of it. Returns whether it was done before that.
fn is_done_before(daemon: &Daemon, at: u64, control: &Path, request: &str) -> bool {
    let threads = wait_for("nobody changes anything", || {
        Some(Process(daemon.pid()).threads_named("control")).filter(|threads| threads.len() == 1)
    });
    let killer = Killer::follow(daemon.pid(), threads[0], at);
    // A front-end that has left is a moment longer in the books of who lets them in.
    let answer = wait_for("nobody is connected", || {
        let answer = http::send(control, request.as_bytes());
        let is_connected = answer.as_ref().is_some_and(|answer| answer.body.contains("\"connected\""));
        (!is_connected).then_some(answer)
    });
    let is_done = answer.is_some();
    if let Some(answer) = answer {
        assert!((200..300).contains(&answer.status), "{answer:?}");
        daemon.signal(libc::SIGKILL);
    }
    let count = killer.end();
    assert!(is_done || count >= at, "{count} of {at}");
    is_done
}

fn request(method: &str, path: &str, body: &Value) -> String {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Whether somebody may be traced here.
fn may_trace() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: a daemon lets only root look into it");
    }
    is_root
}

/// Has a change of the disk `a` killed at its steps. It is prepared by `before`, and `after` looks at what is there when the daemon
/// runs again.
fn at_each_step(what: &str, change: impl Fn(&Host) -> String, before: impl Fn(&Host), after: impl Fn(&Host)) {
    if !may_trace() {
        return;
    }
    let mut setups = Place::ALL.map(|place| Some(setup(place)));
    let mut count = 0;
    for (place, at) in [0, 1].into_iter().cycle().zip(steps()) {
        let host = Host::start(setups[place].take().unwrap());
        before(&host);
        let is_done = is_done_before(&host.daemon, at, &host.control(), &change(&host));
        let host = Host::start(host.daemon.kill());
        assert_eq!(
            host.names(),
            ["stays"],
            "{what}, step {at}: what came by the socket is not in the configuration"
        );
        let names = std::fs::read_dir(&host.images).unwrap().map(|it| it.unwrap().file_name());
        let strange: Vec<_> = names.filter(|name| name != "a" && name != "disk0.img").collect();
        assert!(strange.is_empty(), "{what}, step {at}: {strange:?}");
        after(&host);
        let _ = host.remove("a", "?force");
        let _ = std::fs::remove_file(host.image("a"));
        setups[place] = Some(host.daemon.stop());
        count += 1;
        if is_done {
            break;
        }
    }
    println!("{what}: killed at {count} steps, one of {}", stride());
    assert!(count > 1, "it is killed at some step");
}

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |it| it.len())
}

/// Adds the disk as it is by now.
fn add_as_it_is(host: &Host) {
    let mut options = host.options("a");
    // A file that is empty is one that is not there.
    if len(&host.image("a")) != 0 {
        options.as_object_mut().unwrap().remove("size");
    }
    let added = host.ask("PUT", "/v1/disks/a", Some(&options));
    assert_eq!(added.status, 201, "{added:?}");
}

fn write_a(host: &Host) {
    let session = Session::connect(&host.socket("a"));
    assert_eq!(session.ring(0, 64).run(&Request::write(SECTOR, &pattern(SECTOR, 4096))).status, OK);
    drop(session);
    wait_for("the front-end has left", || {
        (host.get("/v1/disks/a")["state"]["front_ends"] == 0).then_some(())
    });
}

fn assert_written(host: &Host) {
    let session = Session::connect(&host.socket("a"));
    let read = session.ring(0, 64).run(&Request::read(SECTOR, 4096));
    assert!(read.status == OK && read.data == pattern(SECTOR, 4096));
}

#[test]
fn of_an_addition_that_makes_a_file() {
    let change = |host: &Host| request("PUT", "/v1/disks/a", &host.options("a"));
    at_each_step(
        "add",
        change,
        |_| (),
        |host| {
            let bytes = len(&host.image("a"));
            assert!([0, DISK_BYTES].contains(&bytes), "it is made whole: {bytes}");
            add_as_it_is(host);
            assert_works(&mut Session::connect(&host.socket("a")).ring(0, 64), 0);
        },
    );
}

#[test]
fn of_a_removal() {
    let change = |_: &Host| request("DELETE", "/v1/disks/a", &Value::Null);
    let before = |host: &Host| {
        assert_eq!(host.add("a").status, 201);
        write_a(host);
    };
    at_each_step("remove", change, before, |host| {
        assert_eq!(len(&host.image("a")), DISK_BYTES);
        add_as_it_is(host);
        assert_written(host);
    });
}

#[test]
fn of_a_growth() {
    let change = |_: &Host| request("POST", "/v1/disks/a/resize", &json!({"size": 2 * DISK_BYTES}));
    let before = |host: &Host| {
        assert_eq!(host.add("a").status, 201);
        write_a(host);
    };
    at_each_step("resize", change, before, |host| {
        let bytes = len(&host.image("a"));
        assert!([DISK_BYTES, 2 * DISK_BYTES].contains(&bytes), "it has grown, or it has not: {bytes}");
        add_as_it_is(host);
        assert_eq!(host.get("/v1/disks/a")["state"]["capacity_bytes"], bytes);
        assert_written(host);
    });
}

#[test]
fn of_a_reload() {
    if !may_trace() {
        return;
    }
    let mut host = reload::Host::start("", &reload::BEFORE);
    let mut count = 0;
    for at in steps() {
        host.write("", &reload::AFTER);
        let request = request("POST", "/v1/reload", &Value::Null);
        let is_done = is_done_before(&host.daemon, at, &host.control(), &request);
        (host, _) = host.kill_in_reload(&format!("step {at}"), || ());
        count += 1;
        if is_done {
            break;
        }
    }
    println!("reload: killed at {count} steps, one of {}", stride());
    assert!(count > 1, "it is killed at some step");
    host.daemon.stop();
}
