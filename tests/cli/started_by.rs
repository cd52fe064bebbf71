//! What a process inherits from whoever starts it: blocked and ignored signals, limits.

use std::fs::File;

use super::common::daemon::{Place, Setup};
use super::common::frontend::Session;
use super::common::frontend::request::{IOERR, OK, Request};
use super::common::wait_for;
use super::stderr;

/// The longest file that may be written, in bytes.
const LONGEST: u64 = 1 << 20;

fn limited(setup: Setup) -> Setup {
    setup.through(&["prlimit", &format!("--fsize={LONGEST}")])
}

#[test]
fn signals_that_were_blocked_are_obeyed() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let blocked = ["env", "--block-signal"];
        let mut daemon = Setup::new(Place::Tmpfs).disk("size=1M").through(&blocked).start();
        daemon.signal(libc::SIGHUP);
        daemon.wait_for_log("on SIGHUP");
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "signal {signal}: {}", daemon.log());
    }
}

/// Of a disk that is written by system calls, the part behind `ulimit -f` cannot be written, nor made longer.
#[test]
fn a_limit_of_file_sizes_fails_the_writes_behind_it() {
    let setup = limited(Setup::new(Place::FileSystem).disk("sparse=on").disk("sparse=on"));
    for index in 0..2 {
        File::create(setup.image(index)).unwrap().set_len(4 * LONGEST).unwrap();
    }
    let mut daemon = setup.start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 16);
    let limit = LONGEST / 512;
    for _ in 0..3 {
        assert_eq!(ring.run(&Request::write(limit, &[1; 4096])).status, IOERR);
        assert_eq!(ring.run(&Request::write(0, &[1; 4096])).status, OK);
        assert_eq!(ring.run(&Request::read(limit, 4096)).status, OK);
    }
    let other = Session::connect(&daemon.socket(1));
    assert_eq!(other.ring(0, 16).run(&Request::write(limit - 8, &[1; 4096])).status, OK);
    daemon.assert_alive();
    let log = daemon.stop_for_log();
    let line = log.lines().find(|line| line.contains("request failed")).unwrap();
    assert!(line.contains("disk0.img") && line.contains("ulimit -f"), "{line}");
}

#[test]
fn a_file_that_may_not_become_so_long_is_not_left_behind() {
    for place in Place::ALL {
        for keys in ["size=8M", "size=8M,sparse=on"] {
            let setup = limited(Setup::new(place).disk(keys));
            let output = setup.run();
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(5), "{place:?} {keys}: {:?} {text}", output.status);
            assert!(text.contains("ulimit -f") && text.contains("disk0.img"), "{text}");
            assert!(!setup.image(0).exists(), "{place:?} {keys}: an empty file stays");
        }
    }
}

/// A disk whose file others have made longer than this process may write goes on.
#[test]
fn a_disk_grows_beyond_the_limit_of_file_sizes_or_says_why_not() {
    for place in Place::ALL {
        let setup = limited(Setup::new(place).disk(""));
        let file = File::create(setup.image(0)).unwrap();
        file.set_len(LONGEST / 2).unwrap();
        let mut daemon = setup.start();
        file.set_len(4 * LONGEST).unwrap();
        daemon.signal(libc::SIGHUP);
        wait_for("its size was looked at", || {
            let log = daemon.log();
            (log.contains("has grown") || log.contains("ulimit -f")).then_some(())
        });
        daemon.assert_alive();
        daemon.stop();
    }
}

/// Both limits of inotify are those of a user namespace here.
#[test]
fn used_up_inotify_is_called_by_its_name() {
    for (limit, name) in
        [("instances", "fs.inotify.max_user_instances"), ("watches", "fs.inotify.max_user_watches")]
    {
        let script = format!("echo 0 >/proc/sys/user/max_inotify_{limit}; exec \"$@\"");
        let setup =
            Setup::new(Place::Tmpfs).disk("size=1M").through(&["unshare", "-Ur", "sh", "-c", &script, "sh"]);
        let daemon = setup.start();
        daemon.wait_for_log("is only noticed on SIGHUP");
        let log = daemon.log();
        assert!(log.contains(name), "{log}");
        daemon.stop();
    }
}
