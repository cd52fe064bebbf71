//! Slow requests are told to whoever follows events, and which are slow is changed while they are served.

use serde_json::{Value, json};

use super::common::daemon::Place;
use super::common::frontend::Session;
use super::common::frontend::request::{OK, Request, range};
use super::events::Follower;
use super::{Host, assert_works, setup};
use crate::common::wait_for;

fn change(host: &Host, options: &Value) -> Value {
    let answer = host.ask("PATCH", "/v1/disks/stays", Some(options));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["options"].clone()
}

/// What a limit holds for an hour is told of while it waits, and once it is done; with the limit it was held by.
#[test]
fn what_a_limit_holds_is_told() {
    for place in Place::ALL {
        let host = Host::start(setup(place));
        let mut events = Follower::new(&host.control(), "");
        let shown = change(&host, &json!({"bps": 1, "bps-max": "8K", "slow-ms": 200}));
        assert_eq!(shown["slow-ms"], 200);
        let session = Session::connect(&host.daemon.socket(0));
        let mut ring = session.ring(3, 64);
        for number in 0..10 {
            ring.submit(&Request::read(number * 8, 4096));
        }
        ring.notify();
        // Three fit into the bucket, and the fourth is next.
        let slow = events.find("request-slow");
        let text = |key: &str| slow[key].as_str().unwrap_or_default();
        assert_eq!(
            (text("disk"), text("operation"), text("waited_for")),
            ("stays", "read", "limit"),
            "{slow}"
        );
        assert_eq!((&slow["ring"], &slow["offset"]), (&3.into(), &(3 * 4096).into()), "{place:?}: {slow}");
        assert_eq!(slow["done"], false);
        change(&host, &json!({"bps": null}));
        let ended = events.find("request-slow");
        assert_eq!((&ended["done"], &ended["waited_for"]), (&true.into(), &"limit".into()), "{ended}");
        assert_eq!(ended["offset"], slow["offset"], "{place:?}");
        assert!(ended["seconds"].as_f64().unwrap() >= slow["seconds"].as_f64().unwrap(), "{ended}");
        (0..10).for_each(|_| _ = ring.wait());
        assert!(host.get("/v1/disks/stays")["state"]["slow_requests"].as_u64().unwrap() >= 1);
        host.daemon.stop();
    }
}

/// It is set by PATCH, `ctl` and a reload, while its rings run; 0 and nothing are the same.
#[test]
fn it_is_changed_while_rings_run() {
    let host = Host::new(Place::Tmpfs);
    let session = Session::connect(&host.daemon.socket(0));
    let mut ring = session.ring(0, 64);
    for slow_ms in [json!(1), json!("60000"), json!(0), json!(7), Value::Null] {
        let shown = change(&host, &json!({"slow-ms": slow_ms}));
        let number =
            slow_ms.as_u64().or_else(|| slow_ms.as_str()?.parse().ok()).filter(|number| *number != 0);
        assert_eq!(shown.get("slow-ms").and_then(Value::as_u64), number);
        for sector in [0, 64, 8] {
            assert_works(&mut ring, sector);
        }
        // One that is done in slices.
        let ranges = range(0, 8, 0).to_vec();
        let discard = Request { kind: 11, sector: 0, payload: ranges, writable_bytes: 0 };
        assert_eq!(ring.run(&discard).status, OK);
    }
    let answer = host.ask("PATCH", "/v1/disks/stays", Some(&json!({"slow-ms": 60_001})));
    let (code, text) = answer.problem();
    assert!(
        code == "bad-options" && text.contains("slow-ms=60001: write a whole number from 0 to 60000"),
        "{text}"
    );
    host.daemon.stop();
    let host = super::reload::Host::start("", &[("a", super::DISK_BYTES, "")]);
    host.write("", &[("a", super::DISK_BYTES, "slow-ms = 50")]);
    assert_eq!(host.reload().json()["limited"], json!(["a"]));
    assert_eq!(host.disk("a")["options"]["slow-ms"], 50);
    host.daemon.stop();
}

/// What waits for nothing but its turn is not slow: of many requests none is named that took less.
#[test]
fn what_is_quick_is_not_named() {
    let host = Host::start(setup(Place::Tmpfs));
    change(&host, &json!({"slow-ms": 60_000}));
    let session = Session::connect(&host.daemon.socket(0));
    let mut ring = session.ring(0, 64);
    (0..50).for_each(|sector| assert_works(&mut ring, sector * 8));
    let timed = wait_for("they are timed", || {
        let state = host.get("/v1/disks/stays")["state"].clone();
        let count = |operation: &str| state["latency"][operation]["count"].as_array()?.last()?.as_u64();
        Some((count("read")?, count("write")?, state["slow_requests"].as_u64()?))
    });
    assert_eq!(timed, (50, 50, 0), "each of them is, then");
    host.daemon.stop();
}
