//! A guest moves to another QEMU before its memory does: it runs there, under load, while the pages that it and its disk
//! need are fetched from where it was (QEMU's `postcopy-ram`).

use std::time::{Duration, Instant};

use serde_json::json;

use super::super::common::daemon::Daemon;
use super::super::guest::Guest;
use super::Order;
use super::migration::{self, Scene};
use super::monitor::Monitor;
use super::rig::{self, await_pulse, pulse};
use super::table::Row;

/// So often each, in turn.
pub fn moves(order: &Order<'_>) -> Vec<Row> {
    let daemon = migration::setup(order, "daemon.log", "size=64M,serial=soak,postcopy=on").start();
    let mut scene = Scene::new(order, vec![daemon]);
    scene.capabilities.push("postcopy-ram");
    let mut guest = scene.boot("");
    let mut monitor = scene.monitor();
    let start = Instant::now();
    let mut pauses = Vec::new();
    for round in 1..=order.rounds {
        (monitor, _) = scene.move_to(round as usize, &mut guest, monitor, |_, _| ());
        let pause;
        (monitor, pause) = move_first(&mut scene, &mut guest, monitor);
        pauses.push(pause);
    }
    rig::check_rereading(&mut guest);
    let passes = rig::finish_load(&mut guest);
    guest.power_off();
    assert_eq!(
        began(&scene.daemons[0]),
        order.rounds as usize,
        "pages were not fetched as often as asked for"
    );
    let what = format!("moved before its memory, and as often with it after all, in {passes} passes of fio");
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses }]
}

/// How often the daemon has had a guest whose memory came later.
fn began(daemon: &Daemon) -> usize {
    daemon.log().matches("the guest runs before its memory").count()
}

/// Moves the guest while nearly all of its memory is where it was.
fn move_first(scene: &mut Scene, guest: &mut Guest, mut source: Monitor) -> (Monitor, Duration) {
    let (machine, mut destination) = scene.begin(0, &mut source);
    source.await_status("query-migrate", "active", || ());
    let (mut last, mut since, mut pause) = (pulse(&scene.image), Instant::now(), Duration::ZERO);
    let mut watch = || {
        let now = pulse(&scene.image);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        pause = pause.max(since.elapsed());
    };
    source.run("migrate-start-postcopy", &json!({}));
    destination.await_status("query-status", "running", &mut watch);
    // What it needs now is not here yet.
    source.await_status("query-migrate", "completed", &mut watch);
    destination.await_status("query-migrate", "completed", &mut watch);
    rig::assert_content(guest);
    guest.moved_to(machine);
    await_pulse(&scene.image, pulse(&scene.image));
    (destination, pause)
}
