//! Disks come, change and go beside another one's load.

use serde_json::json;

use super::common::daemon::Place;
use super::common::frontend::load::Load;
use super::common::frontend::request::{OK, Request};
use super::common::frontend::{Session, settle};
use super::common::{pattern, wait_for};
use super::{DISK_BYTES, Host, assert_works};

#[test]
fn a_disk_comes_and_goes_while_another_is_used() {
    for place in Place::ALL {
        let host = Host::new(place);
        let neighbour = Session::connect(&host.daemon.socket(0));
        let load = Load::start(neighbour.ring(0, 64), 0);
        for round in 0..3 {
            let added = host.add("comes");
            assert_eq!(added.status, 201, "{added:?}");
            assert!(added.head.contains("location: /v1/disks/comes"), "{added:?}");
            let disk = added.json();
            assert_eq!((&disk["name"], &disk["options"]["size"]), (&"comes".into(), &DISK_BYTES.into()));
            assert_eq!(disk["state"]["capacity_bytes"], DISK_BYTES);
            assert_eq!(host.names(), ["stays", "comes"]);
            let again = host.add("comes");
            assert_eq!((again.status, host.names().len()), (200, 2), "the same is no error: {again:?}");
            let session = Session::connect(&host.socket("comes"));
            let mut ring = session.ring(0, 64);
            if round > 0 {
                assert!(ring.run(&Request::read(8, 4096)).data == pattern(8, 4096), "what was there before");
            }
            assert_works(&mut ring, 8);
            let (code, text) = host.remove("comes", "").problem();
            assert!(code == "connected" && text.contains("?drain=10s"), "{text}");
            assert_eq!(host.get("/v1/disks/comes")["state"]["front_ends"], 1);
            assert_works(&mut ring, 16);
            drop((ring, session));
            wait_for("its front-end has left", || (host.remove("comes", "").status == 204).then_some(()));
            assert!(!host.socket("comes").exists() && host.names() == ["stays"]);
            load.wait_for_progress();
        }
        load.stop();
        assert_eq!(host.remove("comes", "").problem().0, "no-such-disk");
        host.daemon.stop();
    }
}

/// All that was acknowledged is in the file, and the front-end sees the end of its connection.
#[test]
fn front_ends_are_hung_up_on_when_that_is_asked_for() {
    let host = Host::new(Place::Tmpfs);
    for query in ["?force", "?drain=10ms"] {
        assert_eq!(host.add("goes").status, 201);
        let session = Session::connect(&host.socket("goes"));
        let mut ring = session.ring(0, 64);
        assert_works(&mut ring, 8);
        assert_eq!(host.remove("goes", query).status, 204);
        assert!(session.config(0, 8).is_err(), "the connection has ended");
        let bytes = std::fs::read(host.image("goes")).unwrap();
        assert!(bytes[4096..8192] == pattern(8, 4096));
    }
    assert_eq!(host.add("stays2").status, 201);
    let session = Session::connect(&host.socket("stays2"));
    let answer = host.ask("POST", "/v1/disks/stays2/disconnect", None);
    assert_eq!((answer.status, answer.json()), (200, json!({"front_ends": 1})));
    assert!(session.config(0, 8).is_err(), "the connection has ended");
    drop(Session::connect(&host.socket("stays2")));
}

#[test]
fn a_disk_is_made_larger_and_its_guest_is_told() {
    for place in Place::ALL {
        let host = Host::new(place);
        assert_eq!(host.add("grows").status, 201);
        let session = Session::connect(&host.socket("grows"));
        let capacity = || u64::from_le_bytes(session.config(0, 8).unwrap().try_into().unwrap()) * 512;
        assert_eq!(capacity(), DISK_BYTES);
        let answer = host.ask("POST", "/v1/disks/grows/resize", Some(&json!({"size": "16M"})));
        assert_eq!(
            answer.json(),
            json!({"from_bytes": DISK_BYTES, "to_bytes": 2 * DISK_BYTES}),
            "{answer:?}"
        );
        assert_eq!(capacity(), 2 * DISK_BYTES);
        let patch = host.ask("PATCH", "/v1/disks/grows", Some(&json!({"size": 3 * DISK_BYTES})));
        assert_eq!((patch.status, &patch.json()["options"]["size"]), (200, &(3 * DISK_BYTES).into()));
        assert_eq!(capacity(), 3 * DISK_BYTES);
        assert_eq!(std::fs::metadata(host.image("grows")).unwrap().len(), 3 * DISK_BYTES);
        let refused = host.ask("POST", "/v1/disks/grows/resize", Some(&json!({"size": DISK_BYTES})));
        assert_eq!(refused.problem().0, "bad-size");
        let refused = host.ask("PATCH", "/v1/disks/grows", Some(&json!({"size": null})));
        assert_eq!(refused.problem().0, "not-changeable");
        // With a size of its own it does not follow its file.
        let answer = host.ask("POST", "/v1/disks/grows/resize", None);
        assert_eq!(answer.json(), json!({"from_bytes": 3 * DISK_BYTES, "to_bytes": 3 * DISK_BYTES}));
        assert_eq!(host.ask("POST", "/v1/disks/grows/flush", None).status, 204);
    }
}

/// Disks that come and go wake up no worker, and so no other disk.
#[test]
fn no_worker_wakes_up_when_disks_come_and_go() {
    let host = Host::new(Place::Tmpfs);
    let session = Session::connect(&host.daemon.socket(0));
    let mut ring = session.ring(0, 64);
    assert_works(&mut ring, 8);
    let sleeps = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", host.daemon.pid())).unwrap();
        let read =
            |path: &std::path::Path, file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
        let workers =
            tasks.map(|task| task.unwrap().path()).filter(|task| read(task, "comm").starts_with("worker-"));
        let switches = |task: std::path::PathBuf| {
            let status = read(&task, "status");
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        workers.map(switches).collect::<Vec<_>>()
    };
    let before = wait_for("the worker sleeps", || {
        let before = sleeps();
        settle();
        settle();
        (sleeps() == before).then_some(before)
    });
    assert_eq!(before.len(), 1, "one has the ring");
    for number in 0..20 {
        assert_eq!(host.add(&format!("d{number}")).status, 201);
    }
    for number in 0..20 {
        assert_eq!(host.remove(&format!("d{number}"), "").status, 204);
    }
    // One that was woken up would sleep again by then.
    settle();
    settle();
    assert_eq!(sleeps(), before);
    assert_works(&mut ring, 8);
    wait_for("it is seen when it wakes up", || (sleeps() != before).then_some(()));
    host.daemon.stop();
}

/// Two private disks over one file, added while the daemon runs, in its sandbox.
#[test]
fn private_disks_come_and_go() {
    let host = Host::new(Place::Tmpfs);
    let base = host.image("base");
    std::fs::write(&base, pattern(1, 65_536)).unwrap();
    for name in ["one", "two"] {
        let disk =
            json!({"path": base, "socket": host.socket(name), "overlay": "memory", "overlay-max": "32K"});
        let added = host.ask("PUT", &format!("/v1/disks/{name}"), Some(&disk));
        assert_eq!(added.status, 201, "{added:?}");
        let options = &added.json()["options"];
        assert_eq!((&options["overlay"], &options["overlay-max"]), (&"memory".into(), &32_768.into()));
    }
    let session = Session::connect(&host.socket("one"));
    let mut ring = session.ring(0, 64);
    assert_works(&mut ring, 8);
    let state = |name: &str, key: &str| host.get(&format!("/v1/disks/{name}"))["state"][key].clone();
    assert_eq!(state("one", "overlay_bytes"), 4096);
    assert_eq!((state("two", "overlay_bytes"), state("two", "overlay_max_bytes")), (0.into(), 32_768.into()));
    let resized = host.ask("POST", "/v1/disks/one/resize", Some(&json!({"size": "128K"})));
    assert!(resized.problem().1.contains("private disk over a base"), "{resized:?}");
    assert!(std::fs::read(&base).unwrap() == pattern(1, 65_536), "the base");
    drop((ring, session));
    for name in ["one", "two"] {
        wait_for("it can be removed", || (host.remove(name, "").status == 204).then_some(()));
    }
    host.daemon.stop();
}

/// What is written to it is there when the disk comes again, whoever has read the number of the system's run first.
#[test]
fn private_disks_that_are_kept_come_again() {
    let host = Host::new(Place::Tmpfs);
    let (base, kept) = (host.image("base"), host.image("kept"));
    std::fs::write(&base, pattern(1, 65_536)).unwrap();
    let disk = json!({"path": base, "socket": host.socket("one"), "overlay": kept});
    for life in 0..2 {
        let added = host.ask("PUT", "/v1/disks/one", Some(&disk));
        assert_eq!(added.status, 201, "{added:?}");
        assert_eq!(added.json()["options"]["overlay"], json!(kept));
        assert_eq!(added.json()["state"]["overlay_max_bytes"], json!(null));
        assert_eq!(added.json()["state"]["durability"], "volatile", "as what its file lies on");
        let session = Session::connect(&host.socket("one"));
        let mut ring = session.ring(0, 64);
        let first = if life == 0 { pattern(1, 65_536)[..512].to_vec() } else { vec![7; 512] };
        assert_eq!(ring.run(&Request::read(0, 512)).data, first, "{life}");
        assert_eq!(ring.run(&Request::write(0, &[7; 512])).status, OK);
        drop((ring, session));
        wait_for("it can be removed", || (host.remove("one", "").status == 204).then_some(()));
    }
    let relative = json!({"path": base, "socket": host.socket("one"), "overlay": "./kept"});
    assert_eq!(host.ask("PUT", "/v1/disks/one", Some(&relative)).status, 422);
    let outside = json!({"path": base, "socket": host.socket("one"), "overlay": "/var/kept"});
    let refused = host.ask("PUT", "/v1/disks/one", Some(&outside));
    assert!(refused.problem().1.contains("/var/kept is in no folder of --allow"), "{refused:?}");
    assert!(std::fs::read(&base).unwrap() == pattern(1, 65_536), "the base");
    host.daemon.stop();
}
