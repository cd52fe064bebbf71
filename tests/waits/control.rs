//! Disks that are to be added by the control socket on media that hangs: all else that is asked for there goes on, and the end comes.

use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::json;

use crate::common::daemon::Daemon;
use crate::common::frontend::Session;
use crate::common::frontend::request::{OK, Request};
use crate::common::process::Process;
use crate::common::wait_for;
use crate::fuse::{Media, with_disks};
use crate::http::{ask, connect};

/// Changes at a time.
const MOST: usize = 8;

/// Asks for a disk, and waits for no answer yet.
fn begin_to_add(control: &Path, name: &str, folder: &Path, sockets: &Path) -> UnixStream {
    let body = json!({"path": folder.join(name), "socket": sockets.join(name), "size": "1M"}).to_string();
    let head = format!("PUT /v1/disks/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    connect(control, (head + &body).as_bytes())
}

fn operations(daemon: &Daemon) -> usize {
    Process(daemon.pid()).threads_named("control-").len()
}

#[test]
fn disks_to_come_on_hung_media_hold_up_no_other_change_nor_the_end() {
    with_disks(Media::File, 1, |setup, server| {
        let (local, sockets) = (tempfile::tempdir().unwrap(), crate::common::folder::for_sockets());
        let (mount, control) = (server.image.parent().unwrap(), sockets.path().join("control"));
        let allow = [mount, local.path(), sockets.path()].map(|it| format!("--allow={}", it.display()));
        let setup = setup.arg(&format!("--control={}", control.display())).arg("--stop-timeout=1");
        let mut daemon = allow.iter().fold(setup, |setup, arg| setup.arg(arg)).start();
        let get = || ask(&control, "GET", "/v1/disks", None);
        let add = |name: &str| {
            let body =
                json!({"path": local.path().join(name), "socket": sockets.path().join(name), "size": "1M"});
            ask(&control, "PUT", &format!("/v1/disks/{name}"), Some(&body.to_string()))
        };
        let neighbour = Session::connect(&daemon.socket(1));
        let mut ring = neighbour.ring(0, 64);
        server.hang();
        let begin = |number: usize| begin_to_add(&control, &format!("hung{number}"), mount, sockets.path());
        let mut hung: Vec<_> = (1..MOST).map(begin).collect();
        wait_for("they are being added", || (operations(&daemon) == MOST - 1).then_some(()));
        // The others' changes, and the configuration.
        for name in ["a", "b"] {
            assert_eq!(add(name).status, 201);
            let session = Session::connect(&sockets.path().join(name));
            assert_eq!(session.ring(0, 64).run(&Request::write(0, &[7; 512])).status, OK);
            drop(session);
            assert_eq!(get().status, 200);
            let removed = ask(&control, "DELETE", &format!("/v1/disks/{name}?drain=10s"), None);
            assert_eq!(removed.status, 204, "{removed:?}");
        }
        // As many as there may be: what only looks still does.
        hung.push(begin(MOST));
        wait_for("so is the last one", || (operations(&daemon) == MOST).then_some(()));
        let refused = add("c").problem();
        assert!(refused.0 == "crowded" && refused.1.contains("8 changes are under way"), "{refused:?}");
        for _ in 0..2 * MOST {
            let shown = get();
            assert_eq!(shown.status, 200, "{shown:?}");
        }
        assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
        daemon.signal(libc::SIGTERM);
        let code = daemon.wait().code();
        assert!([Some(0), Some(15)].contains(&code), "{code:?}");
        server.go_on();
        drop(hung);
    });
}
