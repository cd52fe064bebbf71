//! A server that starts without a disk, and one whose last disk has gone: disks come at the control socket, or by the configuration.

use super::common::daemon::{Daemon, Place, Setup};
use super::common::frontend::Session;
use super::common::wait_for;
use super::{DISK_BYTES, Host, assert_works, reload, with_control};

/// The start message comes when all sockets are answered.
fn wait_until_ready(daemon: &Daemon) {
    wait_for("it is ready", || {
        daemon.output().contains("no disk yet: they are added at the control socket").then_some(())
    });
}

#[test]
fn disks_come_to_a_server_that_has_none() {
    for place in Place::ALL {
        let host = Host::start(with_control(Setup::new(place)));
        wait_until_ready(&host.daemon);
        assert!(host.names().is_empty());
        assert_eq!(host.get("/v1/rings"), serde_json::json!([]));
        for _ in 0..2 {
            assert_eq!(host.add("first").status, 201, "{place:?}");
            let session = Session::connect(&host.socket("first"));
            assert_works(&mut session.ring(0, 64), 8);
            assert_eq!(host.ask("POST", "/v1/reload", None).status, 200);
            assert_eq!(host.names(), ["first"], "what is not in the configuration stays");
            drop(session);
            wait_for("the last disk is removed", || (host.remove("first", "").status == 204).then_some(()));
            assert!(host.names().is_empty());
        }
        host.daemon.stop();
    }
}

/// Without a place where disks may come from it does not start, and says what to do.
#[test]
fn a_server_that_can_have_no_disk_does_not_start() {
    let setup = Setup::new(Place::Tmpfs);
    let file = setup.folder().join("main.toml");
    std::fs::write(&file, "[server]\nworkers = 1\n").unwrap();
    let config = file.display().to_string();
    let setup = setup.arg("--config").arg(&config);
    let refused = |setup: &Setup| {
        let output = setup.run();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = refused(&setup);
    assert!(
        code == Some(2)
            && text.contains("no disk is given; describe one, or let some be added later (--control)"),
        "{text}"
    );
    let (code, text) = refused(&setup.arg("--check"));
    assert!(code == Some(2) && text.contains("no disk is given"), "{text}");
    let (code, text) = refused(&Setup::new(Place::Tmpfs));
    assert!(code == Some(2) && text.contains("--disk"), "{text}");
}

/// Its configuration names a socket and no disk, and then one.
#[test]
fn the_first_disk_comes_by_the_configuration() {
    let setup = Setup::new(Place::Tmpfs);
    let (folder, sockets) = (setup.folder().to_owned(), setup.socket(0).parent().unwrap().to_owned());
    let file = folder.join("main.toml");
    std::fs::write(&file, reload::text(&folder, &sockets, "", &[])).unwrap();
    let setup = with_control(setup).arg("--config").arg(&file.display().to_string());
    let host = reload::Host { daemon: setup.start(), folder, sockets };
    wait_until_ready(&host.daemon);
    assert!(host.names().is_empty());
    host.write("", &[("a", DISK_BYTES, "")]);
    assert_eq!(host.reload().json()["added"], serde_json::json!(["a"]));
    assert_works(&mut Session::connect(&host.sockets.join("a")).ring(0, 64), 0);
    host.daemon.stop();
}
