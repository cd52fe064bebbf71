//! The power fails: QEMU, the daemon or both are killed where they stand. Every write that the guest was told to be
//! durable is in the image, and the file system recovers from its journal.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::common::Random;
use super::super::common::daemon::{Daemon, Place, Setup};
use super::super::guest::Guest;
use super::Order;
use super::in_guest::{RECORD_BYTES, claim, record};
use super::rig::{self, moment};
use super::table::Row;

/// XFS refuses less than 300 MiB.
const DISK: &str = "size=320M,serial=soak,sparse=on";

/// The longest that the guest writes before the cut.
const WRITING: Duration = Duration::from_secs(2);

/// The longest that QEMU outlives a daemon.
const AGONY: Duration = Duration::from_millis(300);

/// What makes a file system, what checks it, and what its kernel says when it has recovered.
const FILE_SYSTEMS: [(&str, &str, &str, &str); 2] = [
    ("ext4", "mkfs.ext4 -q -F -b 4096", "e2fsck -f -n", "recovery complete"),
    ("xfs", "mkfs.xfs -q -f", "xfs_repair -n", "Ending recovery"),
];

/// Who dies.
const VICTIMS: [&str; 3] = ["QEMU", "the daemon", "both"];

pub fn cuts(order: &Order<'_>) -> Vec<Row> {
    let start = Instant::now();
    let setup = Setup::new(Place::FileSystem).disk(DISK).log_to(order.folder.join("daemon.log"));
    let mut scene = Scene {
        daemon: Some(setup.start()),
        initramfs: rig::initramfs(order.folder),
        folder: order.folder.to_owned(),
        random: Random::new(order.seed),
    };
    let mut guest = scene.boot(0);
    let mut acknowledged = 0;
    for round in 1..=order.rounds {
        let count;
        (guest, count) = scene.round(guest, round);
        acknowledged += count;
    }
    guest.power_off();
    let what = format!("QEMU, the daemon or both killed, all of {acknowledged} acknowledged writes found");
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses: Vec::new() }]
}

/// The daemon, and what its guests boot from.
#[derive(Debug)]
struct Scene {
    /// Taken only between an end and a start.
    daemon: Option<Daemon>,
    initramfs: PathBuf,
    folder: PathBuf,
    random: Random,
}

impl Scene {
    fn boot(&self, number: u32) -> Guest {
        let folder = self.folder.join(format!("boot-{number}"));
        std::fs::create_dir(&folder).unwrap();
        let socket = self.daemon.as_ref().unwrap().socket(0);
        Guest::boot_from(&self.initramfs, &folder, rig::disk(&socket, "num-queues=2"), "")
    }

    /// A new file system, writes, the cut, and the next boot, which checks; that guest, and how many writes had been
    /// acknowledged.
    fn round(&mut self, mut guest: Guest, round: u32) -> (Guest, u64) {
        let (kind, make, check, recovered) = FILE_SYSTEMS[round as usize % FILE_SYSTEMS.len()];
        let victim = VICTIMS[round as usize % VICTIMS.len()];
        let seed = self.random.next();
        guest.shell(&format!("{make} /dev/vda && mount -t {kind} /dev/vda /mnt"));
        guest.stream(&format!("/lab/soak soak append /mnt/records {seed}"));
        assert_eq!(guest.line(), "ACK 0");
        std::thread::sleep(moment(&mut self.random, WRITING));
        let later = self.cut(guest, victim);
        let count = 1 + later.len() as u64;
        for (index, line) in (1..).zip(later) {
            assert_eq!(line, format!("ACK {index}"), "before the cut of {victim}");
        }
        self.assert_in_image(seed, count);

        let mut guest = self.boot(round);
        guest.shell(&format!("mount -t {kind} /dev/vda /mnt"));
        assert!(guest.console().contains(recovered), "{kind} had nothing to recover:\n{}", guest.console());
        guest.shell(&format!("/lab/soak soak check /mnt/records {seed} {count}"));
        guest.shell(&format!("umount /mnt && {check} /dev/vda"));
        rig::assert_content(&guest);
        (guest, count)
    }

    /// Kills `victim`, then what is left of the guest; what the guest had said before. Afterwards the daemon runs.
    fn cut(&mut self, guest: Guest, victim: &str) -> Vec<String> {
        let mut daemon = self.daemon.take().unwrap();
        let (lines, daemon) = match victim {
            "QEMU" => {
                let lines = guest.cut();
                daemon.assert_alive();
                (lines, daemon)
            }
            "the daemon" => {
                let setup = daemon.kill();
                std::thread::sleep(moment(&mut self.random, AGONY));
                (guest.cut(), setup.start())
            }
            _ => {
                daemon.signal(libc::SIGKILL);
                (guest.cut(), daemon.kill().start())
            }
        };
        self.daemon = Some(daemon);
        lines
    }

    /// Insists that the first `count` records are in the image as it is, before anything is recovered.
    fn assert_in_image(&self, seed: u64, count: u64) {
        let mut image = File::open(self.daemon.as_ref().unwrap().image(0)).unwrap();
        let mut found = HashSet::new();
        let mut block = vec![0; RECORD_BYTES];
        while image.read_exact(&mut block).is_ok() {
            if let Some((of, index)) = claim(&block)
                && of == seed
                && block == record(seed, index)
            {
                found.insert(index);
            }
        }
        let missing: Vec<u64> = (0..count).filter(|index| !found.contains(index)).collect();
        assert!(missing.is_empty(), "acknowledged, but not in the image: {missing:?} of {count}");
    }
}
