//! Who serves, and who is served: users without privileges.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use super::in_force::start;
use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::Session;
use crate::common::frontend::request::{OK, Request};
use crate::common::process::{Process, as_user};
use crate::common::{pattern, wait_for};

/// A user and a group that need not exist.
pub(super) const USER: u32 = 54_321;
const GROUP: u32 = 54_322;

/// A disk that this user serves, without any privilege.
pub(super) fn setup() -> Setup {
    let setup = Setup::new(Place::Tmpfs).disk("size=16M");
    for folder in [setup.folder(), setup.socket(0).parent().unwrap()] {
        chown(folder, Some(USER), Some(GROUP)).unwrap();
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
    let program = setup.folder().join("program");
    fs::copy(env!("CARGO_BIN_EXE_vhost-user-pmem"), &program).unwrap();
    let user = [format!("--reuid={USER}"), format!("--regid={GROUP}")];
    setup.program(&program).through(&["setpriv", &user[0], &user[1], "--clear-groups"])
}

/// Somebody else who has the socket's group and nothing besides is served.
fn assert_serves_the_group(daemon: &Daemon) {
    let socket = daemon.socket(0);
    as_user(USER + 1, GROUP, || {
        let session = Session::connect(&socket);
        let mut ring = session.ring(0, 64);
        let bytes = pattern(3, 4096);
        assert_eq!(ring.run(&Request::write(8, &bytes)).status, OK);
        assert!(ring.run(&Request::read(8, 4096)).data == bytes);
        assert_eq!(ring.run(&Request::flush()).status, OK);
    });
    let refused = as_user(USER + 1, GROUP + 1, || std::os::unix::net::UnixStream::connect(&socket));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
}

pub(super) fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: needs root to become another user");
    }
    is_root
}

#[test]
fn a_user_without_privileges_serves_whoever_has_the_group() {
    if !is_root() {
        return;
    }
    let daemon = start(setup().arg("--sandbox=require"));
    assert_eq!(Process(daemon.pid()).user(), USER);
    assert_eq!(fs::metadata(daemon.image(0)).unwrap().uid(), USER);
    assert_serves_the_group(&daemon);
    let socket = daemon.socket(0);
    daemon.stop();
    assert!(!socket.exists());
}

#[test]
fn who_is_to_be_served_as_another_user_is_no_more_than_that() {
    if !is_root() {
        return;
    }
    let user = [format!("--user={USER}"), format!("--group={GROUP}")];
    let setup = Setup::new(Place::Tmpfs).disk(&format!("size=16M,socket-group={GROUP}"));
    fs::set_permissions(setup.socket(0).parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    let daemon = start(setup.arg(&user[0]).arg(&user[1]));
    // A process becomes that when it begins.
    wait_for("all threads and processes are that user's", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let mut tasks = tasks.map(|it| it.unwrap().file_name().to_str().unwrap().parse().unwrap());
        let mut processes = Process(daemon.pid()).descendants().into_iter();
        let is_other = |process| Process(process).user() == USER;
        (processes.len() == 2 && tasks.all(is_other) && processes.all(is_other)).then_some(())
    });
    assert_eq!(fs::metadata(daemon.image(0)).unwrap().uid(), 0, "opened before");
    assert_serves_the_group(&daemon);
    // The folder is root's.
    daemon.wait_for_log("sockets in this folder stay behind at the end");
    let setup = daemon.stop();
    assert!(setup.socket(0).exists());
    setup.start().stop();
}

/// … or not at all.
#[test]
fn a_user_that_cannot_be_had_is_an_error() {
    if !is_root() {
        return;
    }
    let setup = setup().arg("--user=12345");
    let output = setup.run();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(14), "{error}");
    assert!(error.contains("cannot become another user"), "{error}");
    assert!(!setup.socket(0).exists());
}
