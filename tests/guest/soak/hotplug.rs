//! A guest moves while its memory comes and goes. A module is plugged right before each move, so that QEMU announces
//! it and then the dirty log, and the guest begins to use it while the log is on; after the move it is unplugged under
//! load. The window of another device, which is memory of its own, comes and goes all the time: regions are added and
//! removed while the log is on as well. A module cannot do that: during a move QEMU refuses `device_add`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::super::common::process::Process;
use super::super::guest::Guest;
use super::super::machine::PATIENCE;
use super::Order;
use super::migration::{self, Scene};
use super::monitor::Monitor;
use super::rig;
use super::table::Row;

/// What guests do with a module: it is for programs, and for what else can leave it again.
const KERNEL_ARGUMENTS: &str = "memhp_default_state=online_movable";

/// Room for modules, and a device with a window of memory that its guest switches on and off.
const MACHINE: &str = "-m slots=4,maxmem=4G \
    -object memory-backend-memfd,id=window,size=4M,share=on -device ivshmem-plain,memdev=window,master=on";

const MODULE_BYTES: u64 = 256 << 20;

/// Where modules are in the guest's memory.
const MODULE_ADDRESS: u64 = 4 << 30;

/// Pages of programs that lie in the module before a move goes on: buffers that the disk writes to are most of them.
const PAGES: u32 = 2048;

/// A guest that has not let a module go by then is asked again.
const AGAIN: Duration = Duration::from_secs(10);

/// How often a region must have come or gone before a move goes on.
const CHANGES: u32 = 4;

pub fn moves(order: &Order<'_>) -> Vec<Row> {
    let daemons = vec![migration::setup(order, "daemon.log", "size=64M,serial=soak").start()];
    let mut scene = Scene::new(order, daemons);
    scene.arguments = MACHINE.split_whitespace().map(str::to_owned).collect();
    let mut guest = scene.boot(KERNEL_ARGUMENTS);
    guest.shell("/lab/soak soak switch-window >/tmp/window 2>&1 &");

    let start = Instant::now();
    let mut monitor = scene.monitor();
    let mut pauses = Vec::new();
    for round in 1..=order.rounds {
        let module = Module(round);
        module.plug(&mut monitor);
        let machine = scene.arguments.clone();
        scene.arguments.extend(module.arguments());
        let daemon = Process(scene.daemons[0].pid());
        let pause;
        (monitor, pause) = scene.move_to(round as usize, &mut guest, monitor, |guest, source| {
            assert_refused(round, source);
            await_use(guest);
            await_changes(daemon);
        });
        pauses.push(pause);
        scene.arguments = machine;
        module.unplug(&mut monitor);
    }
    rig::check_rereading(&mut guest);
    let passes = rig::finish_load(&mut guest);
    assert_eq!(guest.shell("cat /tmp/window"), "", "who switches the window complains");
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

/// Waits until the guest's programs use the module.
fn await_use(guest: &mut Guest) {
    guest.shell(&format!(
        "for try in $(seq 600); do awk '/^Node/ {{ movable = /Movable/ }} \
             movable && /nr_zone_(in)?active_anon/ {{ sum += $2 }} END {{ exit sum < {PAGES} }}' /proc/zoneinfo && exit 0; \
             sleep 0.1; done; cat /proc/zoneinfo; exit 1"
    ));
}

/// Waits until the daemon has gained and lost regions of memory while it has a dirty log.
fn await_changes(daemon: Process) {
    let (start, mut before, mut changes) = (Instant::now(), None, 0);
    while changes < CHANGES {
        assert!(start.elapsed() < PATIENCE, "{changes} changes of memory while the dirty log is on");
        assert!(daemon.mappings("memfd:vhost-log") > 0, "the dirty log is not on");
        let regions = daemon.mappings("memfd:memory-backend");
        changes += u32::from(before.replace(regions).is_some_and(|before| before != regions));
        std::thread::sleep(Duration::from_millis(1));
    }
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
                    monitor.run("object-del", &json!({ "id": format!("memory-{}", self.0) }));
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("the guest does not let the module go");
    }
}
