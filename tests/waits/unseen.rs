//! What waits for media and is no request: a start of a queue, which looks at the configuration record; a look at the size; a
//! disk's removal.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::{Options, Session};
use crate::common::{MIB, metrics, pattern, wait_for};
use crate::fuse::{Media, Server, with_disks};
use crate::others::{Neighbour, say_everything};

const OTHER_BYTES: u64 = 4 * MIB;

/// The log and the metrics tell of it, and all others are served and grow.
#[test]
fn a_start_of_a_queue_and_a_look_at_the_size_are_seen_and_hold_up_no_other_disk() {
    with_disks(Media::File, 0, |setup, server| {
        let control = setup.socket(0).with_file_name("control.sock");
        let setup = setup.disk("").arg(&format!("--control={}", control.display()));
        let other_file = File::create(setup.image(1)).unwrap();
        other_file.set_len(OTHER_BYTES).unwrap();
        drop(other_file);
        let mut daemon = setup.start();
        let mut session = Session::open(&daemon.socket(0), &crate::common::frontend::SPANS);
        session.negotiate(&Options::default());
        session.share_memory();
        server.hang();
        let session = Arc::new(session);
        let starts = Arc::clone(&session);
        // Its guest is not new: it has not read the configuration.
        let start = std::thread::spawn(move || drop(starts.ring(0, 64)));
        let oldest = || metrics::read(&daemon.metrics_socket())["oldest_request_seconds{disk=\"disk0\"}"];
        wait_for("the metric tells of it", || (oldest() > 0.0).then_some(()));
        for round in 1..3 {
            daemon.signal(libc::SIGHUP);
            rustix::fs::ftruncate(
                File::options().write(true).open(daemon.image(1)).unwrap(),
                OTHER_BYTES * (round + 1),
            )
            .unwrap();
            daemon.signal(libc::SIGHUP);
            let sectors = (OTHER_BYTES * (round + 1) / 512).to_le_bytes();
            let other = Session::connect(&daemon.socket(1));
            wait_for("the other disk has grown", || (other.config(0, 8).unwrap() == sectors).then_some(()));
            let bytes = pattern(round, 4096);
            assert_eq!(other.ring(0, 64).run(&Request::write(0, &bytes)).status, OK);
        }
        daemon.wait_for_log("the disk hangs: its media does not tell what it is asked for");
        drop(UnixStream::connect(daemon.socket(0)).unwrap());
        server.go_on();
        start.join().unwrap();
        wait_for("nothing waits", || (oldest() == 0.0).then_some(()));
        daemon.wait_for_log("the disk goes on: its media has answered");
        wait_for("whoever asks for events is told", || {
            (events_of_media(&control) == ["media-hangs disk0", "media-answers disk0"]).then_some(())
        });
        drop(session);
        daemon.assert_alive();
        daemon.stop();
    });
}

/// What whoever asks for events is told of media, each once.
fn events_of_media(control: &Path) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
    let output = command.args(["ctl", "events", "--json", "--control"]).arg(control).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    let events = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let of_media = events.map(|event| text(&event, "event") + " " + &text(&event, "disk"));
    let mut all: Vec<_> = of_media.filter(|event| event.starts_with("media-")).collect();
    all.dedup();
    all
}

/// Of each kind of media, with requests under way: the disk grows when its media answers again, and others notice nothing.
#[test]
fn growth_waits_for_its_own_media() {
    for media in [Media::File, Media::Device, Media::Local] {
        with_disks(media, 2, |setup, server| {
            let daemon = setup.start();
            let neighbour = Neighbour::start(&daemon);
            let session = Session::connect(&daemon.socket(0));
            let mut ring = session.ring(0, 64);
            assert_eq!(ring.run(&Request::flush()).status, OK);
            let sectors = || u64::from_le_bytes(session.config(0, 8).unwrap().try_into().unwrap());
            let before = sectors();
            server.forget();
            grow(media, &daemon.image(0), server);
            server.hang();
            let requests = [Request::read(2048, 4096), Request::read(4096, 4096)];
            let heads = requests.each_ref().map(|request| ring.submit(request));
            ring.notify();
            daemon.signal(libc::SIGHUP);
            let (requests_took, messages_took) = (neighbour.wait_for_progress(), say_everything(&daemon));
            eprintln!(
                "{media:?}: growth: others' requests {requests_took:?}; messages up to {messages_took:?}"
            );
            server.go_on();
            for (request, head) in requests.iter().zip(heads) {
                let used = ring.wait();
                assert_eq!((used.head, ring.answer(request, used).status), (head, OK), "{media:?}");
            }
            wait_for("the disk has grown", || (sectors() > before).then_some(()));
            assert_eq!(ring.run(&Request::write(before, &pattern(3, 4096))).status, OK);
            assert!(ring.run(&Request::read(before, 4096)).data == pattern(3, 4096));
            neighbour.stop();
            drop((session, ring));
            daemon.stop();
        });
    }
}

/// Makes the first disk's media longer by a megabyte.
fn grow(media: Media, path: &Path, server: &Server) {
    let file = if media == Media::Local { path } else { &server.image };
    let file = File::options().write(true).open(file).unwrap();
    file.set_len(file.metadata().unwrap().len() + MIB).unwrap();
    if media == Media::Device {
        let device = std::fs::read_link(path).unwrap();
        assert!(Command::new("losetup").arg("--set-capacity").arg(device).status().unwrap().success());
    }
}
