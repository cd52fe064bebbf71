//! kill -9 at any moment of a change leaves no half state: a start with the same command line finds what was before or after.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;

use super::common::Random;
use super::common::daemon::Place;
use super::common::frontend::Session;
use super::{DISK_BYTES, Host, assert_works, http, reload, setup};

const KILLS: u64 = 20;

#[test]
fn a_kill_at_any_moment_leaves_no_half_state() {
    for place in Place::ALL {
        let mut random = Random::new(7);
        let mut setup = setup(place);
        for kill in 0..KILLS / 2 {
            let host = Host::start(setup);
            let (control, options) =
                (host.control(), [host.options("a"), host.options("b")].map(|it| it.to_string()));
            let load = std::thread::spawn(move || change(&control, &options));
            std::thread::sleep(Duration::from_micros(2000 + random.below(60_000)));
            let (images, sockets) = (host.images.clone(), host.sockets.clone());
            setup = host.daemon.kill();
            load.join().unwrap();
            for name in ["a", "b"] {
                // It is made whole, or is empty, or not there; and it has grown, or not.
                let bytes = std::fs::metadata(images.join(name)).map_or(0, |it| it.len());
                assert!(bytes % DISK_BYTES == 0 && bytes <= 3 * DISK_BYTES, "{kill}: {bytes}");
            }
            let names: Vec<_> =
                std::fs::read_dir(&images).unwrap().map(|it| it.unwrap().file_name()).collect();
            assert!(
                names.iter().all(|name| ["a", "b", "disk0.img"].contains(&name.to_str().unwrap())),
                "{names:?}"
            );
            let _ = std::fs::remove_file(images.join("a"));
            let _ = sockets;
        }
        let host = Host::start(setup);
        assert_eq!(host.names(), ["stays"], "what came by the socket is not in the configuration");
        // Both can be had again: no lock, no socket and no half file is in the way.
        for name in ["a", "b"] {
            let mut options = host.options(name);
            options.as_object_mut().unwrap().remove("size");
            // A file that is empty is one that is not there: with a size it is made as new, as at a start.
            if std::fs::metadata(host.image(name)).map_or(0, |it| it.len()) == 0 {
                options["size"] = json!(DISK_BYTES);
            }
            let added = host.ask("PUT", &format!("/v1/disks/{name}"), Some(&options));
            assert_eq!(added.status, 201, "{added:?}");
            assert_works(&mut Session::connect(&host.socket(name)).ring(0, 64), 0);
        }
        host.daemon.stop();
    }
}

/// Such a socket has no permissions yet: without privileges nobody can connect to it to see whether somebody listens.
#[test]
fn a_socket_whose_daemon_was_killed_before_it_listened_is_replaced() {
    let host = Host::new(Place::Tmpfs);
    drop(std::os::unix::net::UnixListener::bind(host.socket("a")).unwrap());
    std::fs::set_permissions(host.socket("a"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let added = host.add("a");
    assert_eq!(added.status, 201, "{added:?}");
}

/// Adds, resizes, reloads and removes until nobody answers any more.
fn change(control: &std::path::Path, [a, b]: &[String; 2]) {
    let is_answered = |method: &str, path: &str, body: &str| {
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        let stream = UnixStream::connect(control);
        stream.is_ok() && http::send(control, request.as_bytes()).is_some()
    };
    for round in 1.. {
        let size = json!({"size": DISK_BYTES * (1 + round % 3)}).to_string();
        let all = is_answered("PUT", "/v1/disks/a", a)
            && is_answered("PUT", "/v1/disks/b", b)
            && is_answered("POST", "/v1/disks/a/resize", &size)
            && is_answered("POST", "/v1/reload", "")
            && is_answered("DELETE", "/v1/disks/a?force", "")
            && is_answered("DELETE", "/v1/disks/b", "");
        if !all {
            return;
        }
    }
}

/// A reload that adds, grows and removes is killed under way: a start with the same file serves what the file says, and files are as
/// before or as after.
#[test]
fn a_kill_during_a_reload_is_no_obstacle() {
    let mut host = reload::Host::start("", &reload::BEFORE);
    let (mut random, mut added) = (Random::new(11), 0);
    for kill in 0..KILLS {
        host.write("", &reload::AFTER);
        let control = host.control();
        // It is answered, or the connection ends.
        let reloading = std::thread::spawn(move || {
            let Ok(mut stream) = UnixStream::connect(control) else { return };
            let _ = stream.write_all(b"POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        let is_added;
        (host, is_added) = host.kill_in_reload(&format!("kill {kill}"), || reloading.join().unwrap());
        added += u64::from(is_added);
    }
    println!("{added} of {KILLS} were killed when the new disk's file was there");
    host.daemon.stop();
}
