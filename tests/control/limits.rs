//! Disks that are limited while they are served. The limits are so low that what is held is held for an hour: no test waits for one.

use serde_json::{Value, json};

use super::common::daemon::Place;
use super::common::frontend::load::Load;
use super::common::frontend::request::{FLUSH, OK, Request};
use super::common::frontend::ring::Ring;
use super::common::frontend::{Session, settle};
use super::common::process::Process;
use super::events::Follower;
use super::{DISK_BYTES, Host, assert_works, http, reload, setup};
use crate::common::{pattern, wait_for};

/// Three reads of 4 KiB at once: one is taken while there is no more in the bucket than its 8 KiB. The next an hour later.
const THREE: &str = "bps=1,bps-max=8K";

fn limit(host: &Host, disk: &str, limits: &Value) -> Value {
    let answer = host.ask("PATCH", &format!("/v1/disks/{disk}"), Some(limits));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["options"].clone()
}

fn unlimited() -> Value {
    json!({"bps": null})
}

fn states(host: &Host, disk: &str) -> Vec<String> {
    let rings = host.get(&format!("/v1/disks/{disk}/rings"));
    rings.as_array().unwrap().iter().map(|ring| ring["state"].as_str().unwrap().to_owned()).collect()
}

fn wait_until_held(host: &Host, disk: &str, rings: usize) {
    wait_for("its rings are held", || {
        (states(host, disk).iter().filter(|state| *state == "throttled").count() == rings).then_some(())
    });
}

/// Asks for so many reads of 4 KiB.
fn ask(ring: &mut Ring, count: u64) {
    for number in 0..count {
        ring.submit(&Request::read(number * 8, 4096));
    }
    ring.notify();
}

/// Takes what is answered, so many.
fn take(ring: &mut Ring, count: usize) {
    for _ in 0..count {
        ring.wait();
    }
}

#[test]
fn a_limit_holds_its_disk_in_order_and_no_other() {
    for place in Place::ALL {
        let host = Host::start(setup(place));
        assert_eq!(host.add("other").status, 201);
        let shown = limit(&host, "stays", &json!({"bps": 1, "bps-max": "8K"}));
        assert_eq!(
            (&shown["bps"], &shown["bps-max"], &shown["bps-max-length"]),
            (&1.into(), &8192.into(), &1.into())
        );
        let session = Session::connect(&host.daemon.socket(0));
        let (mut ring, mut second) = (session.ring(0, 64), session.ring(1, 64));
        ask(&mut ring, 10);
        wait_until_held(&host, "stays", 1);
        wait_for("what was taken is done", || (ring.used_index() == 3).then_some(()));
        // Its second ring has no more, and the other disk all it wants.
        ask(&mut second, 2);
        wait_until_held(&host, "stays", 2);
        assert_eq!(second.used_index(), 0);
        let other = Session::connect(&host.socket("other"));
        let mut free = other.ring(0, 64);
        (0..50).for_each(|sector| assert_works(&mut free, sector * 8));
        assert_eq!((ring.used_index(), second.used_index()), (3, 0), "{place:?}");
        let text = host.ask("GET", "/metrics", None).body;
        for line in [r#"limit{disk="stays",limit="bps"} 1"#, r#"throttled_total{disk="stays"} 2"#] {
            assert!(text.contains(line), "{line}: {text}");
        }
        // No thread looks whether it may go on.
        let process = Process(host.daemon.pid());
        wait_for("it is at rest", || {
            let before = (process.sleeps(), process.ticks());
            settle();
            settle();
            ((process.sleeps(), process.ticks()) == before).then_some(())
        });
        // At once, and in their order.
        limit(&host, "stays", &unlimited());
        take(&mut ring, 10);
        take(&mut second, 2);
        assert_works(&mut ring, 80);
        assert_eq!(host.get("/v1/disks/stays")["options"].get("bps-max"), None);
        host.daemon.stop();
    }
}

/// Private disks of one template are limited together, and each goes on when there is no limit any more.
#[test]
fn a_template_is_limited_as_one_disk() {
    let host = Host::new(Place::Tmpfs);
    let base = host.image("base");
    std::fs::write(&base, pattern(1, 65_536)).unwrap();
    let disk = json!({"path": base, "socket": host.socket("farm"), "overlay": "memory", "template": "on",
        "bps": 1, "bps-max": "8K"});
    let added = host.ask("PUT", "/v1/disks/farm", Some(&disk));
    assert!(added.status == 201 && added.json()["options"]["template"] == "on", "{added:?}");
    let state = |key: &str| host.get("/v1/disks/farm")["state"][key].clone();
    let sessions = [0, 1].map(|_| Session::connect(&host.socket("farm")));
    let [mut ring, mut second] = sessions.each_ref().map(|session| session.ring(0, 64));
    ask(&mut ring, 10);
    wait_until_held(&host, "farm", 1);
    wait_for("what was taken is done", || (ring.used_index() == 3).then_some(()));
    ask(&mut second, 2);
    wait_until_held(&host, "farm", 2);
    assert_eq!((ring.used_index(), second.used_index()), (3, 0));
    assert_eq!((state("front_ends"), state("overlay_bytes")), (2.into(), 0.into()));
    limit(&host, "farm", &unlimited());
    take(&mut ring, 10);
    take(&mut second, 2);
    assert_works(&mut ring, 0);
    assert_works(&mut second, 8);
    assert_eq!(state("overlay_bytes"), 8192);
    let resized = host.ask("POST", "/v1/disks/farm/resize", Some(&json!({"size": "128K"})));
    assert!(resized.problem().1.contains("private disk over a base"), "{resized:?}");
    assert!(host.remove("farm", "").problem().1.contains("2 of its front-ends are connected"));
    drop((ring, second, sessions));
    wait_for("it can be removed", || (host.remove("farm", "").status == 204).then_some(()));
    host.daemon.stop();
}

/// A guest that comes again, asks with other requests, or through other rings, has no more than one that does not.
#[test]
fn there_is_no_way_around() {
    for place in Place::ALL {
        let host = Host::start(setup(place));
        limit(&host, "stays", &json!({"bps": 1, "bps-max": "8K"}));
        for round in 0..3 {
            let session = Session::connect(&host.daemon.socket(0));
            let mut ring = session.ring(0, 64);
            ask(&mut ring, 10);
            wait_until_held(&host, "stays", 1);
            let done = if round == 0 { 3 } else { 0 };
            // What was taken may be under way still.
            wait_for("what was taken is done", || (ring.used_index() == done).then_some(()));
            settle();
            assert_eq!(ring.used_index(), done, "{place:?}: {round}");
            // It stops at once, where it stands.
            assert_eq!(session.stop(&ring.vring()), u32::from(done));
        }
        // Of requests that are none, each is counted.
        limit(&host, "stays", &json!({"bps": null, "iops": 1, "iops-max": 20}));
        let session = Session::connect(&host.daemon.socket(0));
        let start = std::time::Instant::now();
        let mut rings: Vec<_> = (0..4).map(|index| session.ring(index, 64)).collect();
        for ring in &mut rings {
            for number in 0..32 {
                match number % 4 {
                    0 => ring.submit(&Request::get_id()),
                    1 => ring.submit(&Request { kind: 99, ..Request::flush() }),
                    2 => ring.submit(&Request::read(u64::MAX - 8, 512)),
                    _ => ring.submit(&Request { kind: FLUSH, ..Request::flush() }),
                };
            }
            ring.notify();
        }
        wait_until_held(&host, "stays", 4);
        let done = || rings.iter().map(|ring| u64::from(ring.used_index())).sum::<u64>();
        wait_for("what was taken is done", || (done() >= 21).then_some(()));
        let (done, most) = (done(), 21 + start.elapsed().as_secs() + 1);
        assert!(done <= most, "{place:?}: {done}, at most {most}");
        host.daemon.stop();
    }
}

/// What takes long is done slice by slice, as limits allow, and done again where its ring goes on elsewhere.
#[test]
fn long_requests_are_held_between_their_slices() {
    for place in Place::ALL {
        let host = Host::start(setup(place));
        limit(&host, "stays", &json!({"bps-wr": 1, "bps-wr-max": "64K"}));
        let session = Session::connect(&host.daemon.socket(0));
        let mut ring = session.ring(0, 16);
        let discard = Request {
            kind: super::common::frontend::request::WRITE_ZEROES,
            sector: 0,
            payload: super::common::frontend::request::range(0, 8192, 0).to_vec(),
            writable_bytes: 0,
        };
        ring.submit(&discard);
        ring.submit(&Request::write(0, &[7; 512]));
        ring.notify();
        wait_until_held(&host, "stays", 1);
        assert!(ring.used_index() < 2, "{place:?}");
        limit(&host, "stays", &json!({"bps-wr": "none"}));
        take(&mut ring, 2);
        assert_eq!(ring.run(&Request::read(0, 512)).data, [7; 512]);
        assert_eq!(ring.run(&Request::read(8, 512)).data, [0; 512]);
        host.daemon.stop();
    }
}

/// Disks of a group have one bucket, and one set of limits.
#[test]
fn a_group_shares_its_limits() {
    let host = Host::start(setup(Place::Tmpfs));
    let of_group = |name: &str, bytes: u64| {
        let mut options = host.options(name);
        options["throttle-group"] = "g".into();
        options["bps"] = bytes.into();
        options["bps-max"] = 8192.into();
        host.ask("PUT", &format!("/v1/disks/{name}"), Some(&options))
    };
    assert_eq!((of_group("a", 1).status, of_group("b", 1).status), (201, 201));
    let refused = of_group("c", 2);
    assert_eq!((refused.status, refused.json()["code"].as_str()), (422, Some("bad-options")), "{refused:?}");
    assert!(refused.body.contains("say the same of each of its disks"), "{refused:?}");
    let (first, second) = (Session::connect(&host.socket("a")), Session::connect(&host.socket("b")));
    let (mut a, mut b) = (first.ring(0, 64), second.ring(0, 64));
    ask(&mut a, 10);
    wait_until_held(&host, "a", 1);
    ask(&mut b, 10);
    wait_until_held(&host, "b", 1);
    assert_eq!((a.used_index(), b.used_index()), (3, 0));
    // One leaves, and has no limits of its own then.
    limit(&host, "b", &json!({"throttle-group": null, "bps": null}));
    take(&mut b, 10);
    assert_eq!(a.used_index(), 3);
    // It comes back only if it says what the group says.
    let answer = host.ask("PATCH", "/v1/disks/b", Some(&json!({"throttle-group": "g", "bps": 7})));
    assert_eq!(answer.status, 422, "{answer:?}");
    limit(&host, "b", &json!({"throttle-group": "g", "bps": 1, "bps-max": 8192}));
    ask(&mut b, 1);
    wait_until_held(&host, "b", 1);
    // What is said of one is said of all.
    limit(&host, "b", &unlimited());
    take(&mut a, 10);
    take(&mut b, 1);
    assert_eq!(host.get("/v1/disks/a")["options"].get("bps"), None);
    host.daemon.stop();
}

/// A disk with requests that are held leaves at once.
#[test]
fn a_held_disk_can_be_removed() {
    let host = Host::start(setup(Place::Tmpfs));
    assert_eq!(host.add("leaves").status, 201);
    limit(&host, "leaves", &json!({"iops": 1}));
    let session = Session::connect(&host.socket("leaves"));
    let mut ring = session.ring(0, 64);
    ask(&mut ring, 50);
    wait_until_held(&host, "leaves", 1);
    assert_eq!(host.remove("leaves", "?force").status, 204);
    host.daemon.stop();
}

#[test]
fn ctl_shows_and_sets_limits() {
    let host = Host::start(setup(Place::Tmpfs));
    let ctl = |words: &[&str]| {
        let control = host.control().display().to_string();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
        let output =
            command.args(["ctl", "--control", &control, "limit", "stays"]).args(words).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(ctl(&[]), (Some(0), "none\n".into()));
    let set = "iops                    1000\niops-max                5000\niops-max-length         10\n";
    assert_eq!(ctl(&["iops=1000", "iops-max=5000", "iops-max-length=10"]), (Some(0), set.into()));
    assert_eq!(ctl(&[]), (Some(0), set.into()));
    let (code, text) = ctl(&["iops-rd=5"]);
    assert!(
        code == Some(2) && text.contains("iops and iops-rd both limit the same requests"),
        "{code:?}: {text}"
    );
    let (code, text) = ctl(&["size=5"]);
    assert!(code == Some(2) && text.contains("size is no limit; write iops"), "{code:?}: {text}");
    assert_eq!(ctl(&["iops=none", "bps-wr=100M"]), (Some(0), "bps-wr                  104857600\n".into()));
    assert_eq!(ctl(&["bps-wr=0"]), (Some(0), "none\n".into()));
    assert_eq!(host.get("/v1/disks/stays")["state"]["throttled"], 0);
    host.daemon.stop();
}

/// What stands in the options of the start holds from the start.
#[test]
fn limits_of_the_start_hold() {
    use super::common::daemon::Setup;
    let setup = Setup::new(Place::Tmpfs).disk(&format!("name=stays,size=8M,{THREE}"));
    let host = Host::start(super::with_control(setup));
    let session = Session::connect(&host.daemon.socket(0));
    let mut ring = session.ring(0, 64);
    ask(&mut ring, 4);
    wait_until_held(&host, "stays", 1);
    assert_eq!(ring.used_index(), 3);
    limit(&host, "stays", &unlimited());
    take(&mut ring, 4);
    assert_eq!(ring.run(&Request::get_id()).status, OK);
    host.daemon.stop();
}

/// Whoever looks at disks sees what limits them, and is told when that changes.
#[test]
fn limits_are_seen_wherever_disks_are() {
    let host = Host::start(setup(Place::Tmpfs));
    let mut events = Follower::new(&host.control(), "");
    limit(&host, "stays", &json!({"bps": 1, "bps-max": "8K"}));
    let changed = events.find("limits-changed");
    assert_eq!((&changed["disk"], &changed["message"]), (&"stays".into(), &"limits changed".into()));
    assert_eq!(changed["limits"], "bps=1,bps-max=8192,bps-max-length=1", "{changed}");
    let session = Session::connect(&host.daemon.socket(0));
    let mut ring = session.ring(0, 64);
    ask(&mut ring, 10);
    wait_until_held(&host, "stays", 1);
    let control = host.control().display().to_string();
    let said = |words: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem")).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = said(&["ctl", "--control", &control, "show", "stays"]);
    for line in ["bps-max 8192", "throttled 1"] {
        let has = |it: &str| it.split_whitespace().eq(line.split(' '));
        assert!(shown.lines().any(has), "{line}: {shown}");
    }
    let document = said(&["top", "--control", &control, "--once", "--json", "--interval", "0.2"]);
    let document: Value = serde_json::from_str(&document).unwrap();
    let disk = &document["disks"][0];
    assert_eq!((&disk["state"], &document["rings"][0]["state"]), (&"throttled".into(), &"throttled".into()));
    assert_eq!(disk["limits"], json!({"bps": 1, "bps-max": 8192, "bps-max-length": 1}), "{document}");
    let table = said(&["top", "--control", &control, "--once", "--interval", "0.2"]);
    assert!(table.contains("LIMITS") && table.contains("bps=1,bps-max=8192"), "{table}");
    limit(&host, "stays", &unlimited());
    assert_eq!(events.find("limits-changed")["limits"], "none");
    take(&mut ring, 10);
    host.daemon.stop();
}

/// The file changes limits of disks that are busy, all of them or none; of those that it leaves as they are, no bucket is emptied.
#[test]
fn a_reload_changes_limits_under_load() {
    let (free, low) = ("", "bps = 1\nbps-max = 8192");
    let (member, low_member) = ("throttle-group = 'g'", "throttle-group = 'g'\nbps = 1\nbps-max = 8192");
    let disks = |a, b, c| [("a", DISK_BYTES, a), ("b", DISK_BYTES, b), ("c", DISK_BYTES, c)];
    let host = reload::Host::start("workers = 1", &disks(free, member, member));
    let sessions = ["a", "b", "c"].map(|name| Session::connect(&host.sockets.join(name)));
    let [a, b, c] = [0, 1, 2].map(|number: usize| Load::start(sessions[number].ring(0, 64), 0));
    let wait_until_held = |names: &[&str]| {
        wait_for("they are held", || {
            let state = |name: &&str| {
                http::ask(&host.control(), "GET", &format!("/v1/disks/{name}/rings"), None).json()[0]["state"]
                    .clone()
            };
            names.iter().all(|name| state(name) == "throttled").then_some(())
        });
    };
    let limited = |names: Value| json!({"added": [], "limited": names, "removed": [], "resized": []});
    host.write("workers = 1", &disks(low, member, member));
    assert_eq!(host.reload().json(), limited(json!(["a"])));
    wait_until_held(&["a"]);
    let held_at = a.done();
    [&b, &c].into_iter().for_each(Load::wait_for_progress);

    // What the file says of others does not give it anything.
    host.write("workers = 1", &disks(low, low_member, low_member));
    host.hang_up("the configuration was read again");
    wait_until_held(&["b", "c"]);
    assert_eq!(a.done(), held_at);

    // Members of a group that say different things: nothing changes, not even what would be well.
    host.write("workers = 1", &disks(free, low_member, member));
    let refused = host.reload();
    assert_eq!((refused.status, refused.json()["code"].as_str()), (422, Some("bad-options")), "{refused:?}");
    wait_until_held(&["a", "b", "c"]);
    assert_eq!((a.done(), &host.disk("a")["options"]["bps"]), (held_at, &1.into()));

    host.write("workers = 1", &disks(free, member, member));
    host.hang_up("the configuration was read again");
    for load in [a, b, c] {
        load.stop();
    }
    assert_eq!(host.disk("b")["options"].get("bps"), None);
    host.daemon.stop();
}
