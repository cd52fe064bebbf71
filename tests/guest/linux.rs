//! One Linux guest with four disks of two daemons, and the checks that it goes through.

use std::path::Path;

use tempfile::TempDir;

use super::common::daemon::{Daemon, Place, Setup};
use super::common::pattern;
use super::guest::Guest;
use super::image::Image;
use super::machine::disk_arguments;
use super::report::Report;
use super::{bytes, filesystems, folder, identity, lifecycle};
use crate::common::MIB;

/// A disk, as it was ordered and as the host sees it.
#[derive(Debug)]
pub struct Drive {
    /// Its name in the guest, without `/dev/`.
    pub device: &'static str,
    pub serial: &'static str,
    pub size_bytes: u64,
    pub block_bytes: u64,
    pub queues: u64,
    pub is_read_only: bool,
    pub image: Image,
}

impl Drive {
    /// One of 512-byte blocks with one queue, that can be written to: the disk of this index of a daemon.
    pub fn new(
        device: &'static str,
        serial: &'static str,
        size_bytes: u64,
        daemon: &Daemon,
        index: usize,
    ) -> Self {
        let image = Image::open(daemon.image(index));
        Self { device, serial, size_bytes, block_bytes: 512, queues: 1, is_read_only: false, image }
    }
}

/// The running guest, its disks and what was written beforehand.
#[derive(Debug)]
pub struct Linux {
    pub guest: Guest,
    /// On tmpfs, preallocated, 512-byte blocks, two queues; the size is no multiple of a page.
    pub memory: Drive,
    /// On tmpfs, from the same daemon, sparse.
    pub second: Drive,
    /// On tmpfs, from the same daemon, read-only.
    pub frozen: Drive,
    /// On an ordinary file system, sparse, 4096-byte blocks.
    pub ordinary: Drive,
    /// `/lab/payload` in the guest.
    pub payload: Vec<u8>,
    /// `/lab/document` in the guest, for file systems.
    pub document: Vec<u8>,
    /// What the frozen disk holds.
    pub frozen_bytes: Vec<u8>,
    daemons: Vec<(&'static str, Daemon)>,
    _folder: TempDir,
}

type Check = fn(&mut Linux) -> String;

const CHECKS: [(&str, Check); 21] = [
    ("disks are there", identity::disks),
    ("capacity", identity::capacity),
    ("serial", identity::serial),
    ("queue count", identity::queue_count),
    ("logical block size", identity::block_size),
    ("read-only flag", identity::read_only_flag),
    ("read what the host wrote", bytes::read),
    ("write and compare on the host", bytes::write),
    ("512-byte I/O at odd sectors", bytes::odd_sectors),
    ("disks of one daemon keep apart", bytes::disks_apart),
    ("discard frees space", bytes::discard),
    ("write zeroes", bytes::write_zeroes),
    ("fio verify on two queues", filesystems::fio),
    ("partition table re-read", filesystems::partitions),
    ("xfs on tmpfs", |linux| filesystems::xfs(&mut linux.guest, &linux.memory, &linux.document)),
    ("ext4 on tmpfs", |linux| filesystems::ext4(&mut linux.guest, &linux.memory, &linux.document)),
    ("ext4 on a file system", |linux| filesystems::ext4(&mut linux.guest, &linux.ordinary, &linux.document)),
    ("xfs on a file system", |linux| filesystems::xfs(&mut linux.guest, &linux.ordinary, &linux.document)),
    ("cache type toggled", lifecycle::cache_type),
    ("read-only disk refuses writes", lifecycle::refuses_writes),
    ("guest reboot", lifecycle::reboot),
];

/// What the daemons are told of polling, and how the checks are called then. Workers that always poll need a CPU each,
/// and the guest has two.
const POLLING: [(&str, &[&str]); 3] = [
    ("", &[]),
    (", no polling", &["--poll-max-us=0"]),
    (", always polling", &["--poll-max-us=busy", "--workers=1"]),
];

/// All checks, once for each way in which workers wait.
pub fn run(report: &mut Report) {
    for (suffix, daemon_arguments) in POLLING {
        let name = |check: &str| format!("{check}{suffix}");
        if CHECKS.iter().any(|(check, _)| report.wants(&name(check))) {
            run_one(report, name, daemon_arguments);
        }
    }
}

/// Boots the guest, makes all checks and ends guest and daemons.
fn run_one(report: &mut Report, name: impl Fn(&str) -> String, daemon_arguments: &[&str]) {
    let Some(mut linux) = report.produce(&name("linux boots"), || Linux::boot(daemon_arguments)) else {
        for (check, _) in CHECKS {
            report.check(&name(check), || panic!("not tried: there is no guest"));
        }
        return;
    };
    for (check, run) in CHECKS {
        report.check(&name(check), || run(&mut linux));
    }
    let Linux { guest, daemons, .. } = linux;
    report.produce(&name("linux powers off"), || {
        guest.power_off();
        ((), "QEMU ended with 0".to_owned())
    });
    for (check, daemon) in daemons {
        report.produce(&name(check), || ((), lifecycle::ends_well(daemon)));
    }
}

impl Linux {
    fn boot(daemon_arguments: &[&str]) -> (Self, String) {
        let folder = folder::on_files();
        let payload = pattern(1, 4 << 20);
        let document = pattern(2, 4 << 20);
        let frozen_bytes = pattern(3, 16 << 20);
        let files = [folder.path().join("payload"), folder.path().join("document")];
        std::fs::write(&files[0], &payload).unwrap();
        std::fs::write(&files[1], &document).unwrap();

        let on_tmpfs = Setup::new(Place::Tmpfs)
            .disk(&format!("size={},serial=lab-memory-012345678", 512 * MIB + 3 * 512))
            .disk(&format!("size={},serial=lab-second,sparse=on", 64 * MIB))
            .disk("readonly=on,serial=lab-frozen");
        std::fs::write(on_tmpfs.image(2), &frozen_bytes).unwrap();
        let on_files = Setup::new(Place::FileSystem).disk(&format!(
            "size={},serial=lab-ordinary,block-size=4096,sparse=on,queues=1",
            512 * MIB + 5 * 4096
        ));
        let start = |setup| daemon_arguments.iter().copied().fold(setup, Setup::arg).start();
        let (on_tmpfs, on_files) = (start(on_tmpfs), start(on_files));

        let disks = [
            disk_arguments("memory", &on_tmpfs.socket(0), "num-queues=2"),
            disk_arguments("second", &on_tmpfs.socket(1), "num-queues=1"),
            disk_arguments("frozen", &on_tmpfs.socket(2), "num-queues=1"),
            disk_arguments("ordinary", &on_files.socket(0), "num-queues=1"),
        ];
        let paths: Vec<&Path> = files.iter().map(AsRef::as_ref).collect();
        let guest = Guest::boot(folder.path(), &paths, disks.concat());
        let memory = Drive::new("vda", "lab-memory-012345678", 512 * MIB + 3 * 512, &on_tmpfs, 0);
        let second = Drive::new("vdb", "lab-second", 64 * MIB, &on_tmpfs, 1);
        let frozen = Drive::new("vdc", "lab-frozen", 16 * MIB, &on_tmpfs, 2);
        let ordinary = Drive::new("vdd", "lab-ordinary", 512 * MIB + 5 * 4096, &on_files, 0);
        let linux = Self {
            guest,
            memory: Drive { queues: 2, ..memory },
            second,
            frozen: Drive { is_read_only: true, ..frozen },
            ordinary: Drive { block_bytes: 4096, ..ordinary },
            payload,
            document,
            frozen_bytes,
            daemons: vec![("daemon on tmpfs ends well", on_tmpfs), ("daemon on files ends well", on_files)],
            _folder: folder,
        };
        (linux, "the guest answers".to_owned())
    }

    /// The guest, and each of its disks.
    pub fn each(&mut self) -> (&mut Guest, [&Drive; 4]) {
        (&mut self.guest, [&self.memory, &self.second, &self.frozen, &self.ordinary])
    }
}
