//! A guest moves while its memory comes and goes: a module is plugged right before each move, so that QEMU announces it
//! and at once the dirty log, and is unplugged under load after it. During a move QEMU refuses to plug and to unplug.
//!
//! The guest leaves the module alone. An emulated one that uses it loses what its own processors wrote there when it
//! moves (QEMU 10.0.2 with TCG, and with a disk of QEMU's own as well). What a disk writes to memory that comes before
//! the log or while it is on is looked at without a guest: `tests/migration/plugged.rs`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::super::common::process::Process;
use super::super::common::wait_for;
use super::super::guest::Guest;
use super::super::machine::PATIENCE;
use super::Order;
use super::migration::{self, Scene};
use super::monitor::Monitor;
use super::rig;
use super::table::Row;

/// The guest does not use modules by itself.
const KERNEL_ARGUMENTS: &str = "memhp_default_state=offline";

/// Room for modules.
const MACHINE: [&str; 2] = ["-m", "slots=4,maxmem=4G"];

const MODULE_BYTES: u64 = 256 << 20;

/// Where modules are in the guest's memory.
const MODULE_ADDRESS: u64 = 4 << 30;

/// What Linux counts memory in (x86-64, less than 64 GiB).
const BLOCK_BYTES: u64 = 128 << 20;

/// What QEMU calls the files that the daemon maps.
const REGION: &str = "memfd:memory-backend-memfd";
const DIRTY_LOG: &str = "memfd:vhost-log";

/// A guest that has not let a module go by then is asked again.
const AGAIN: Duration = Duration::from_secs(10);

pub fn moves(order: &Order<'_>) -> Vec<Row> {
    let daemons = vec![migration::setup(order, "daemon.log", "size=64M,serial=soak").start()];
    let mut scene = Scene::new(order, daemons);
    scene.arguments = MACHINE.map(str::to_owned).into();
    let mut guest = scene.boot(KERNEL_ARGUMENTS);

    let daemon = Process(scene.daemons[0].pid());
    let regions = daemon.mappings(REGION);
    let start = Instant::now();
    let mut monitor = scene.monitor();
    let mut pauses = Vec::new();
    for round in 1..=order.rounds {
        let module = Module(round);
        wait_for("the one before and its module are gone", || {
            (daemon.mappings(REGION) == regions).then_some(())
        });
        module.plug(&mut monitor);
        let machine = scene.arguments.clone();
        scene.arguments.extend(module.arguments());
        let pause;
        (monitor, pause) = scene.move_to(round as usize, &mut guest, monitor, |guest, source| {
            assert_refused(round, source);
            await_module(guest);
            wait_for("the dirty log is on", || (daemon.mappings(DIRTY_LOG) > 0).then_some(()));
            assert!(daemon.mappings(REGION) > regions, "the module has not come before the dirty log");
        });
        pauses.push(pause);
        scene.arguments = machine;
        module.unplug(&mut monitor);
    }
    rig::check_rereading(&mut guest);
    let passes = rig::finish_load(&mut guest);
    guest.power_off();
    let what = format!("moved with a module that came before and went afterwards, in {passes} passes of fio");
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses }]
}

/// Insists that QEMU refuses what would otherwise have to be tried here. (Its `object-add` of a module's memory never
/// answers while a move is being set up, whatever the disk does: QEMU 10.0.2.)
fn assert_refused(round: u32, source: &mut Monitor) {
    let requests = [
        ("device_add", Module(round + 1).device()),
        ("device_del", json!({ "id": format!("module-{round}") })),
    ];
    for (command, arguments) in requests {
        let refusal = source.ask(command, &arguments).unwrap_err();
        assert_eq!(refusal, format!("{command} not allowed while migrating"));
    }
}

/// Waits until the guest has found the module.
fn await_module(guest: &mut Guest) {
    let block = MODULE_ADDRESS / BLOCK_BYTES;
    guest.shell(&format!(
        "for try in $(seq 600); do [ ! -e /sys/devices/system/memory/memory{block} ] || exit 0; sleep 0.1; done; exit 1"
    ));
}

/// A module of memory, by its number.
#[derive(Debug, Clone, Copy)]
struct Module(u32);

impl Module {
    fn memory(self) -> serde_json::Value {
        json!({ "qom-type": "memory-backend-memfd", "id": format!("memory-{}", self.0), "size": MODULE_BYTES,
                "share": true })
    }

    fn device(self) -> serde_json::Value {
        json!({ "driver": "pc-dimm", "id": format!("module-{}", self.0), "memdev": format!("memory-{}", self.0),
                "slot": 0, "addr": MODULE_ADDRESS })
    }

    /// The arguments of a machine that has it from the start.
    fn arguments(self) -> [String; 4] {
        ["-object".to_owned(), self.memory().to_string(), "-device".to_owned(), self.device().to_string()]
    }

    fn plug(self, monitor: &mut Monitor) {
        monitor.run("object-add", &self.memory());
        monitor.run("device_add", &self.device());
    }

    /// Asks the guest to let it go, and asks again when it cannot at once.
    fn unplug(self, monitor: &mut Monitor) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            // Refused while the guest is about it.
            let _ = monitor.ask("device_del", &json!({ "id": format!("module-{}", self.0) }));
            let asked = Instant::now();
            while asked.elapsed() < AGAIN {
                if monitor.run("query-memory-devices", &json!({})) == json!([]) {
                    return self.free(monitor);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("the guest does not let the module go");
    }

    /// Frees its memory, which QEMU does later: a move that begins meanwhile may stand still for ever (10.0.2: its thread
    /// holds the list of memory and waits for a processor, which waits for whoever frees, who waits for the list).
    fn free(self, monitor: &mut Monitor) {
        let memory = format!("memory-{}", self.0);
        monitor.run("object-del", &json!({ "id": memory }));
        wait_for("the module's memory is free", || {
            let list = monitor.run("human-monitor-command", &json!({ "command-line": "info ramblock" }));
            (!list.to_string().contains(&memory)).then_some(())
        });
    }
}
