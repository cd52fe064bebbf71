//! A daemon that is to end while media hang: as it starts, and with whatever waits for them. It ends in time, and names what it
//! gives up.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::{Session, settle};
use crate::common::process::Process;
use crate::common::{metrics, pattern, wait_for};
use crate::fuse::{Media, Server, with_disks};
use crate::table::{Hung, ROWS, Row};

/// Has it end by a signal: it says what it gives up, and is gone when the media answers again. (A thread that waits for a device
/// cannot be ended before.) Returns what it has said.
fn end(daemon: &mut Daemon, signal: i32, server: &Server) -> (i32, String) {
    let since = Instant::now();
    daemon.signal(signal);
    daemon.wait_for_log("--stop-timeout");
    assert!(since.elapsed() >= Duration::from_millis(900), "it has not waited for --stop-timeout");
    server.go_on();
    let code = daemon.wait().code().unwrap();
    let log = daemon.log();
    let given_up = log.lines().find(|line| line.contains("--stop-timeout")).unwrap();
    (code, given_up.to_owned())
}

/// With whatever is under way of the rows that are `wanted`.
pub(crate) fn each_end(media: Media, packed: bool, wanted: impl Fn(&Row) -> bool) {
    for row in ROWS.iter().filter(|row| row.hangs(media) && wanted(row)) {
        with_disks(media, 2, |setup, server| {
            let mut daemon = setup.arg("--stop-timeout=1").start();
            let (mut hung, other) = (Hung::of(&daemon, packed, media), Session::connect(&daemon.socket(1)));
            let (mut fine, acknowledged) = (other.ring(0, 64), pattern(9, 4096));
            assert_eq!(fine.run(&Request::write(0, &acknowledged)).status, OK);
            // Else the last flush alone might wait.
            hung.connect_and_flush();
            server.forget();
            server.hang();
            let then = (row.begin)(&mut hung);
            // What its worker has not come to is not begun any more.
            wait_for("it waits for the media", || {
                let metrics = metrics::read(&daemon.metrics_socket());
                (metrics["requests_in_flight{disk=\"disk0\"}"] >= 1.0).then_some(())
            });
            drop((then, hung));
            let (code, given_up) = end(&mut daemon, libc::SIGTERM, server);
            eprintln!("{media:?}: {}: {given_up}", row.name);
            assert_eq!(code, 15, "{}: {given_up}", row.name);
            assert!(given_up.contains("disk \"disk0\"") && !given_up.contains("disk1"), "{given_up}");
            assert_eq!(std::fs::read(daemon.image(1)).unwrap()[..4096], acknowledged, "the other disk");
        });
    }
}

#[test]
fn the_end_comes_in_time_whatever_waits_for_a_file() {
    each_end(Media::File, false, |_| true);
}

#[test]
fn the_end_comes_in_time_whatever_waits_for_a_device() {
    each_end(Media::Device, true, |_| true);
}

/// A thread that waits for a device cannot be ended, and keeps the process and what it has open: not so the locks of what is over.
#[test]
fn another_daemon_can_have_the_disks_that_do_not_hang() {
    with_disks(Media::Local, 1, |setup, server| {
        let mut daemon = setup.arg("--stop-timeout=1").start();
        let (hung, other) = (Session::connect(&daemon.socket(0)), Session::connect(&daemon.socket(1)));
        assert_eq!(other.ring(0, 64).run(&Request::write(0, &pattern(9, 4096))).status, OK);
        server.forget();
        server.hang();
        let mut ring = hung.ring(0, 64);
        ring.submit(&Request::write(0, &pattern(8, 4096)));
        ring.submit(&Request::flush());
        ring.notify();
        wait_for("it waits for the media", || {
            let metrics = metrics::read(&daemon.metrics_socket());
            (metrics["requests_in_flight{disk=\"disk0\"}"] >= 1.0).then_some(())
        });
        drop((ring, hung, other));
        daemon.signal(libc::SIGTERM);
        daemon.wait_for_log("--stop-timeout");
        let process = Process(daemon.pid());
        wait_for("its first thread is over", || process.has_ended().then_some(()));
        let setup = Setup::new(Place::Tmpfs).disk("");
        link(&daemon.image(1), &setup.image(0));
        let second = setup.start();
        let read = Session::connect(&second.socket(0)).ring(0, 64).run(&Request::read(0, 4096));
        assert_eq!(read.data, pattern(9, 4096));
        assert!(!process.is_gone(), "the first one is still there");
        second.stop();
        server.go_on();
        assert_eq!(daemon.wait().code(), Some(15));
    });
}

/// How a start comes upon a file that hangs.
struct Start {
    name: &'static str,
    /// Puts it in the way, and says which disk that is.
    prepare: fn(&Setup, &Server) -> &'static str,
    signal: i32,
}

const STARTS: &[Start] = &[
    Start { name: "a file", prepare: |_, _| "disk0", signal: libc::SIGTERM },
    Start { name: "a file, by Ctrl-C", prepare: |_, _| "disk0", signal: libc::SIGINT },
    Start {
        name: "a file that is not there",
        prepare: |setup, server| {
            link(&server.image.with_extension("other"), &setup.image(0));
            "disk0"
        },
        signal: libc::SIGTERM,
    },
    Start {
        name: "the second disk's file",
        prepare: |setup, server| {
            std::fs::remove_file(setup.image(0)).unwrap();
            std::fs::write(setup.image(0), pattern(3, 1 << 20)).unwrap();
            link(&server.image, &setup.image(1));
            "disk1"
        },
        signal: libc::SIGTERM,
    },
    Start {
        name: "a file that is to be made",
        prepare: |setup, server| {
            std::fs::remove_file(setup.image(0)).unwrap();
            std::fs::write(setup.image(0), pattern(3, 1 << 20)).unwrap();
            link(&server.image.with_extension("new"), &setup.image(1));
            "disk1"
        },
        signal: libc::SIGTERM,
    },
];

fn link(target: &Path, at: &Path) {
    let _ = std::fs::remove_file(at);
    std::os::unix::fs::symlink(target, at).unwrap();
}

#[test]
fn a_start_that_hangs_ends_in_time_and_says_where() {
    for Start { name, prepare, signal } in STARTS {
        with_disks(Media::File, 1, |setup, server| {
            let disk = prepare(&setup, server);
            server.hang();
            let mut daemon = setup.arg("--stop-timeout=1").begin();
            wait_for("signals are caught", || catches(&daemon, *signal).then_some(()));
            settle();
            let (code, given_up) = end(&mut daemon, *signal, server);
            eprintln!("{name}: {given_up}");
            assert_eq!(code, 15, "{name}: {given_up}");
            assert!(
                given_up.contains(&format!("disk {disk:?}: ")) && given_up.contains("is being opened"),
                "{given_up}"
            );
        });
    }
}

/// What hangs at the start alone holds nothing up for good.
#[test]
fn a_start_goes_on_when_the_media_answers() {
    with_disks(Media::File, 1, |setup, server| {
        server.hang();
        let mut daemon = setup.begin();
        daemon.wait_for_log("the start waits: the disk is still being opened");
        server.go_on();
        daemon.wait_until_ready();
        let session = Session::connect(&daemon.socket(0));
        assert_eq!(session.ring(0, 64).run(&Request::write(0, &[1; 512])).status, OK);
        drop(session);
        let setup = daemon.stop();
        // The same, and it is to end before --stop-timeout is over: nothing was given up.
        server.hang();
        let mut daemon = setup.arg("--stop-timeout=60").begin();
        wait_for("signals are caught", || catches(&daemon, libc::SIGTERM).then_some(()));
        settle();
        daemon.signal(libc::SIGTERM);
        settle();
        server.go_on();
        assert_eq!(daemon.wait().code(), Some(0));
        daemon.wait_for_log("stopped by a signal while it started");
    });
}

/// Whether a signal would not just kill it.
fn catches(daemon: &Daemon, signal: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    caught & 1 << (signal - 1) != 0
}
