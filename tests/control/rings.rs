//! Rings as they are shown while they run.

use serde_json::Value;

use super::common::daemon::Place;
use super::common::frontend::Session;
use super::common::frontend::load::Load;
use super::{Host, assert_works};
use crate::common::wait_for;

fn rings(host: &Host) -> Vec<Value> {
    host.get("/v1/disks/stays/rings").as_array().unwrap().clone()
}

#[test]
fn rings_are_shown_as_they_stand() {
    for place in Place::ALL {
        let host = Host::new(place);
        assert!(rings(&host).is_empty());
        let session = Session::connect(&host.daemon.socket(0));
        let mut ring = session.ring(0, 64);
        for sector in 0..10 {
            assert_works(&mut ring, sector * 8);
        }
        let shown = rings(&host).pop().unwrap();
        assert_eq!(
            (&shown["ring"], &shown["format"], &shown["size"]),
            (&0.into(), &"split".into(), &64.into())
        );
        for index in ["available", "taken", "used", "shown"] {
            assert_eq!(shown[index], 20, "{index}: {shown}");
        }
        assert_eq!(
            (&shown["reads"], &shown["writes"], &shown["under_way"]),
            (&10.into(), &10.into(), &0.into())
        );
        assert_eq!((&shown["broken"], shown["seconds"].as_f64().unwrap() > 0.0), (&Value::Null, true));
        // Nobody asks for anything: it waits for a kick.
        wait_for("it is armed", || (rings(&host)[0]["state"] == "armed").then_some(()));
        let load = Load::start(ring, 0);
        let before = rings(&host)[0]["reads"].as_u64().unwrap();
        load.wait_for_progress();
        wait_for("it goes on", || (rings(&host)[0]["reads"].as_u64().unwrap() > before).then_some(()));
        let ring = load.stop();
        drop((ring, session));
        wait_for("it is gone", || rings(&host).is_empty().then_some(()));
        host.daemon.stop();
    }
}

/// What its driver did wrong is said.
#[test]
fn a_broken_ring_is_shown_with_its_reason() {
    let host = Host::new(Place::Tmpfs);
    let session = Session::connect(&host.daemon.socket(0));
    let mut ring = session.ring(0, 64);
    assert_works(&mut ring, 0);
    ring.break_it();
    let shown = wait_for("it is broken", || rings(&host).pop().filter(|ring| ring["state"] == "broken"));
    assert!(shown["broken"].as_str().unwrap().contains("does not end"), "{shown}");
}
