//! The guest starts again under load: by itself, by the machine's reset, and by kexec, after which the disk is as the
//! kernel before has left it. The new one finds it well, and what was durable before.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::common::Random;
use super::super::common::daemon::{Place, Setup};
use super::super::folder;
use super::super::guest::Guest;
use super::super::image::Image;
use super::super::machine::Kernel;
use super::Order;
use super::monitor::Monitor;
use super::rig::{self, moment};
use super::table::Row;
use crate::common::MIB;

/// What kexec starts is on the disk, behind what the load writes.
const KERNEL_MIB: u64 = 64;
const INITRAMFS_MIB: u64 = 96;

/// The longest that the load runs before the guest starts again.
const LOAD: Duration = Duration::from_millis(1500);

pub fn restarts(order: &Order<'_>) -> Vec<Row> {
    let initramfs = rig::initramfs(order.folder);
    let setup =
        Setup::new(Place::Tmpfs).disk("size=320M,serial=soak").log_to(order.folder.join("daemon.log"));
    let mut daemon = setup.start();
    let image = Image::open(daemon.image(0));
    let fetch = provide(&image, &initramfs);
    let sockets = folder::for_sockets();
    let mut arguments = rig::disk(&daemon.socket(0), "num-queues=2");
    arguments.extend(Monitor::arguments(&sockets.path().join("monitor")));
    let mut guest = Guest::boot_from(&initramfs, order.folder, arguments, "");
    let mut monitor = Monitor::connect(&sockets.path().join("monitor"));
    let mut random = Random::new(order.seed);

    let rows = ["reboot", "reset of the machine", "kexec"].map(|way| {
        let start = Instant::now();
        for _ in 0..order.rounds {
            if way == "kexec" {
                guest.shell(&fetch);
            }
            let sum = guest.shell(
                "dd if=/dev/urandom of=/tmp/lasting bs=1M count=1 status=none && \
                 dd if=/tmp/lasting of=/dev/vda bs=1M seek=48 oflag=direct conv=fsync status=none && \
                 sha256sum </tmp/lasting",
            );
            rig::start_pulse(&mut guest, &image);
            rig::start_load(&mut guest);
            std::thread::sleep(moment(&mut random, LOAD));
            rig::assert_content(&guest);
            match way {
                "reboot" => guest.restart("reboot -f"),
                "kexec" => guest.restart("/lab/soak soak kexec /tmp/vmlinuz /tmp/initramfs"),
                _ => {
                    monitor.run("system_reset", &json!({}));
                    guest.await_restart();
                }
            }
            let found = "dd if=/dev/vda bs=1M skip=48 count=1 iflag=direct status=none | sha256sum";
            assert_eq!(guest.shell(found), sum, "what lasted before the {way}");
            rig::assert_content(&guest);
        }
        let what = format!("{way} under fio");
        Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses: Vec::new() }
    });
    rig::start_pulse(&mut guest, &image);
    rig::start_load(&mut guest);
    rig::finish_load(&mut guest);
    guest.power_off();
    daemon.assert_alive();
    daemon.stop();
    rows.into()
}

/// Puts what kexec starts into the image; the command that fetches it from there.
fn provide(image: &Image, initramfs: &Path) -> String {
    let file = File::options().write(true).open(image.path()).unwrap();
    let parts = [
        (Kernel::Cloud.image(), KERNEL_MIB, "/tmp/vmlinuz"),
        (initramfs.to_owned(), INITRAMFS_MIB, "/tmp/initramfs"),
    ];
    let commands = parts.map(|(path, at_mib, name)| {
        let bytes = std::fs::read(path).unwrap();
        file.write_all_at(&bytes, at_mib * MIB).unwrap();
        let len = bytes.len();
        format!(
            "dd if=/dev/vda of={name} bs=1M iflag=skip_bytes,count_bytes skip={} count={len} status=none",
            at_mib * MIB
        )
    });
    commands.join(" && ")
}
