//! A guest moves to another QEMU under load, again and again, from one daemon to itself or to another one on the same
//! file; and a move that is given up leaves no trace.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::super::common::daemon::{Daemon, Place, Setup};
use super::super::folder;
use super::super::guest::Guest;
use super::super::image::Image;
use super::Order;
use super::monitor::Monitor;
use super::rig::{self, await_pulse, pulse};
use super::table::Row;

/// Long enough for any number of moves.
const LIFETIME: Duration = Duration::from_secs(4 * 3600);

/// Bytes a second at which no move comes to its end.
const TOO_SLOW: u64 = 1 << 20;

/// Bytes a second at which the guest changes much while QEMU goes through its memory.
const UNHURRIED: u64 = 128 << 20;

/// Bytes a second that no move reaches.
const UNLIMITED: u64 = 1 << 40;

/// In which a guest at work does not move. (QEMU does not come out of a limit of 0 any more.)
const AT_ONCE: Duration = Duration::from_millis(1);

/// In which it does.
const IN_TIME: Duration = Duration::from_secs(2);

/// The first of so many moves is tried, given up and tried again.
const GIVEN_UP_OF: u32 = 5;

/// How often QEMU asks which memory has changed before the guest may stop: at first, and after each pass through it.
/// What the disk wrote to pages that had been sent is lost by then, unless the dirty log says so.
const SYNCS: u64 = 4;

/// Both machines are front-ends of one daemon.
pub fn one_daemon(order: &Order<'_>) -> Vec<Row> {
    let setup = setup(order, "daemon.log", "size=64M,serial=soak");
    moves(order, Scene::new(order, vec![setup.start()]))
}

/// Each move is one to the other daemon, which waits for the file's lock.
pub fn two_daemons(order: &Order<'_>) -> Vec<Row> {
    let first = setup(order, "daemon-0.log", "size=64M,serial=soak,lock=wait").start();
    let second = setup(order, "daemon-1.log", "serial=soak,lock=wait");
    std::os::unix::fs::symlink(first.image(0), second.image(0)).unwrap();
    moves(order, Scene::new(order, vec![first, second.start()]))
}

/// A daemon with one disk.
pub fn setup(order: &Order<'_>, log: &str, disk: &str) -> Setup {
    Setup::new(Place::Tmpfs).disk(disk).log_to(order.folder.join(log)).lifetime(LIFETIME)
}

/// Moves a guest from daemon to daemon.
pub fn moves(order: &Order<'_>, mut scene: Scene) -> Vec<Row> {
    let mut guest = scene.boot("");
    let start = Instant::now();
    let mut monitor = scene.monitor();
    let (mut pauses, mut given_up) = (Vec::new(), 0);
    for round in 1..=order.rounds {
        if round % GIVEN_UP_OF == 1 {
            scene.give_up(round as usize, &mut monitor);
            given_up += 1;
        }
        let pause;
        (monitor, pause) = scene.move_to(round as usize, &mut guest, monitor, |_, _| ());
        pauses.push(pause);
    }
    rig::check_rereading(&mut guest);
    let passes = rig::finish_load(&mut guest);
    guest.power_off();
    let what = format!("moved, {given_up} times after a move given up, in {passes} passes of fio");
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses }]
}

/// What the machines, of which one at a time has the guest, share.
#[derive(Debug)]
pub struct Scene {
    /// The machines are attached to them in turn.
    pub daemons: Vec<Daemon>,
    /// What else the next machine is made of.
    pub arguments: Vec<String>,
    /// What both machines of a move are told to be capable of.
    pub capabilities: Vec<&'static str>,
    pub image: Image,
    initramfs: PathBuf,
    folder: PathBuf,
    sockets: TempDir,
    machines: usize,
}

impl Scene {
    pub fn new(order: &Order<'_>, daemons: Vec<Daemon>) -> Self {
        let image = Image::open(daemons[0].image(0));
        Self::over(order, daemons, image)
    }

    /// With `image` as the file behind all of them.
    pub fn over(order: &Order<'_>, daemons: Vec<Daemon>, image: Image) -> Self {
        Self {
            image,
            daemons,
            arguments: Vec::new(),
            capabilities: Vec::new(),
            initramfs: rig::initramfs(order.folder),
            folder: order.folder.to_owned(),
            sockets: folder::for_sockets(),
            machines: 0,
        }
    }

    /// Boots the guest and puts it to work.
    pub fn boot(&mut self, kernel_arguments: &str) -> Guest {
        let (folder, arguments) = self.next_machine(0);
        let mut guest = Guest::boot_from(&self.initramfs, &folder, arguments, kernel_arguments);
        rig::start_pulse(&mut guest, &self.image);
        rig::start_load(&mut guest);
        rig::start_rereading(&mut guest, &self.image);
        guest
    }

    /// The folder and the arguments of one more machine, attached to the daemon whose turn it is.
    fn next_machine(&mut self, turn: usize) -> (PathBuf, Vec<String>) {
        self.machines += 1;
        let folder = self.folder.join(format!("machine-{}", self.machines));
        std::fs::create_dir(&folder).unwrap();
        let socket = self.daemons[turn % self.daemons.len()].socket(0);
        let mut arguments = rig::disk(&socket, "num-queues=2");
        arguments.extend(Monitor::arguments(&self.socket("monitor")));
        arguments.extend(self.arguments.iter().cloned());
        (folder, arguments)
    }

    /// A socket of the machine that was made last.
    fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(format!("{name}-{}", self.machines))
    }

    /// The monitor of the machine that was made last.
    pub fn monitor(&self) -> Monitor {
        Monitor::connect(&self.socket("monitor"))
    }

    /// Starts to move the guest to a new machine, so slowly that it cannot end.
    pub fn begin(&mut self, turn: usize, source: &mut Monitor) -> (Guest, Monitor) {
        let (folder, arguments) = self.next_machine(turn);
        let machine = Guest::incoming(&self.initramfs, &folder, arguments);
        let mut destination = self.monitor();
        let uri = json!({ "uri": format!("unix:{}", self.socket("migration").display()) });
        let capability = |it| json!({ "capability": it, "state": true });
        let capabilities: Vec<_> = self.capabilities.iter().map(capability).collect();
        for monitor in [&mut destination, source] {
            monitor.run("migrate-set-capabilities", &json!({ "capabilities": capabilities }));
        }
        destination.run("migrate-incoming", &uri);
        set_pace(source, TOO_SLOW, AT_ONCE);
        source.run("migrate", &uri);
        (machine, destination)
    }

    /// Begins a move that cannot end, and cancels it: the guest goes on where it is.
    fn give_up(&mut self, turn: usize, source: &mut Monitor) {
        let (machine, _) = self.begin(turn, source);
        source.await_status("query-migrate", "active", || ());
        await_pulse(&self.image, pulse(&self.image));
        source.run("migrate_cancel", &json!({}));
        source.await_status("query-migrate", "cancelled", || ());
        drop(machine);
        await_pulse(&self.image, pulse(&self.image));
    }

    /// Moves the guest, which works all the time; its new monitor, and the longest time without a request completed.
    /// `meanwhile` is called before the guest can have moved.
    pub fn move_to(
        &mut self,
        turn: usize,
        guest: &mut Guest,
        mut source: Monitor,
        meanwhile: impl FnOnce(&mut Guest, &mut Monitor),
    ) -> (Monitor, Duration) {
        let (machine, mut destination) = self.begin(turn, &mut source);
        meanwhile(guest, &mut source);
        set_pace(&mut source, UNHURRIED, AT_ONCE);
        source.await_answer("query-migrate", |answer| {
            assert_ne!(answer["status"], "failed", "{answer}");
            // A guest that gets no processor time does so little that it moves before.
            answer["status"] == "completed" || answer["ram"]["dirty-sync-count"].as_u64() >= Some(SYNCS)
        });
        set_pace(&mut source, UNLIMITED, IN_TIME);
        let (mut last, mut since, mut pause) = (pulse(&self.image), Instant::now(), Duration::ZERO);
        let mut watch = || {
            let now = pulse(&self.image);
            if now != last {
                (last, since) = (now, Instant::now());
            }
            pause = pause.max(since.elapsed());
        };
        source.await_status("query-migrate", "completed", &mut watch);
        destination.await_status("query-status", "running", &mut watch);
        rig::assert_content(guest);
        guest.moved_to(machine);
        await_pulse(&self.image, last);
        (destination, pause.max(since.elapsed()))
    }
}

/// Bytes a second, and how long the guest may stand still for the rest.
fn set_pace(source: &mut Monitor, bytes_per_second: u64, downtime: Duration) {
    let parameters =
        json!({ "max-bandwidth": bytes_per_second, "downtime-limit": downtime.as_millis() as u64 });
    source.run("migrate-set-parameters", &parameters);
}
