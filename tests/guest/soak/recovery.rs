//! The daemon ends at random moments under load and starts again: the guest sees a pause and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::common::Random;
use super::super::common::daemon::{Daemon, Place, Setup};
use super::super::guest::Guest;
use super::super::image::Image;
use super::Order;
use super::rig::{self, await_pulse, moment, pulse};
use super::table::Row;

/// The longest that the daemon is left in peace between two ends.
pub const PEACE: Duration = Duration::from_millis(1500);

pub fn split(order: &Order<'_>) -> Vec<Row> {
    ends(order, "num-queues=2", "0")
}

pub fn packed(order: &Order<'_>) -> Vec<Row> {
    ends(order, "num-queues=2,packed=on", "1")
}

/// `packed` is what the guest says of the feature bit.
fn ends(order: &Order<'_>, device: &str, packed: &str) -> Vec<Row> {
    let mut scene = Scene::boot(order, device, packed);
    scene.keeps_the_cache_mode();
    let rows = vec![
        scene.rounds(order, "kill -9", |_, daemon| daemon.kill()),
        scene.rounds(order, "SIGTERM", |_, daemon| daemon.stop()),
        scene.replacements(order),
    ];
    scene.guest.power_off();
    rows
}

/// Requests are completed in order, and the guest knows it (VIRTIO_F_IN_ORDER): it takes a batch at its last one. Needs
/// QEMU and Linux of 2026.
pub fn in_order(order: &Order<'_>) -> Vec<Row> {
    let kinds = [("num-queues=2,in_order=on", "0"), ("num-queues=2,in_order=on,packed=on", "1")];
    let row = |(device, packed)| {
        let mut scene = Scene::boot(order, device, packed);
        // VIRTIO_F_IN_ORDER is bit 35.
        assert_eq!(scene.guest.shell("cut -c 36 /sys/block/vda/device/features"), "1", "in order");
        let row = scene.rounds(order, &format!("{device}: kill -9"), |_, daemon| daemon.kill());
        scene.guest.power_off();
        row
    };
    kinds.map(row).into()
}

/// A guest, and the daemon that comes and goes.
#[derive(Debug)]
struct Scene {
    guest: Guest,
    /// Taken only between an end and a start.
    daemon: Option<Daemon>,
    image: Image,
    random: Random,
}

impl Scene {
    fn boot(order: &Order<'_>, device: &str, packed: &str) -> Self {
        let setup =
            Setup::new(Place::Tmpfs).disk("size=64M,serial=soak").log_to(order.folder.join("daemon.log"));
        let daemon = setup.start();
        let image = Image::open(daemon.image(0));
        let disk = rig::disk(&daemon.socket(0), device);
        let mut guest = Guest::boot_from(&rig::initramfs(order.folder), order.folder, disk, "");
        // VIRTIO_F_RING_PACKED is bit 34, and the first character is bit 0.
        assert_eq!(guest.shell("cut -c 35 /sys/block/vda/device/features"), packed, "packed rings");
        rig::start_pulse(&mut guest, &image);
        Self { guest, daemon: Some(daemon), image, random: Random::new(order.seed) }
    }

    /// The guest has chosen write-through, and the daemon is another: its configuration says so, and it is not told of a
    /// new size that is the old one.
    fn keeps_the_cache_mode(&mut self) {
        let knob = "/sys/block/vda/cache_type";
        for mode in ["write through", "write back"] {
            self.guest.shell(&format!("echo '{mode}' > {knob}"));
            for is_killed in [true, false] {
                let daemon = self.daemon.take().unwrap();
                let setup = if is_killed { daemon.kill() } else { daemon.stop() };
                let last = pulse(&self.image);
                self.daemon = Some(setup.start());
                await_pulse(&self.image, last);
                assert_eq!(self.guest.shell(&format!("cat {knob}")), mode, "killed: {is_killed}");
            }
        }
        assert_eq!(self.guest.shell("dmesg | grep 'new size' || true"), "", "nothing has grown");
    }

    /// The daemon is stopped, and what starts is in turn another build and this one.
    fn replacements(&mut self, order: &Order<'_>) -> Row {
        let builds = [other_build(), env!("CARGO_BIN_EXE_vhost-user-pmem").into()];
        let [other, this] = builds.each_ref().map(|build| std::fs::read(build).unwrap());
        assert!(other != this, "{} is the same build", builds[0].display());
        self.rounds(order, "SIGTERM, then another build", |round, daemon| {
            let [before, after] = [1, 0].map(|back| &builds[(round + back) % builds.len()]);
            assert_eq!(daemon.program(), before.canonicalize().unwrap(), "the build that runs");
            daemon.stop().program(after)
        })
    }

    /// Under fio, each round ends the daemon at a random moment and starts what comes after it.
    fn rounds(&mut self, order: &Order<'_>, what: &str, end: impl Fn(usize, Daemon) -> Setup) -> Row {
        let start = Instant::now();
        rig::start_load(&mut self.guest);
        let mut pauses = Vec::new();
        for round in 0..order.rounds {
            std::thread::sleep(moment(&mut self.random, PEACE));
            let daemon = self.daemon.take().unwrap();
            let cut = Instant::now();
            let setup = end(round as usize, daemon);
            let last = pulse(&self.image);
            self.daemon = Some(setup.start());
            await_pulse(&self.image, last);
            pauses.push(cut.elapsed());
        }
        let passes = rig::finish_load(&mut self.guest);
        let what = format!("{what} in {passes} passes of fio");
        Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses }
    }
}

/// The daemon as the other of cargo's two profiles builds it.
fn other_build() -> PathBuf {
    let (profile, folder) = if cfg!(debug_assertions) { ("release", "release") } else { ("dev", "debug") };
    let name = env!("CARGO_PKG_NAME");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--bin", name, "--profile", profile])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.unwrap().success(), "cargo cannot make another build");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    target.join(folder).join(name)
}
