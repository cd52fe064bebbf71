//! A crash oracle that no one here wrote: the kernel's dm-log-writes below a device and below a file that the daemon serves
//! in a guest. Whatever a flush has acknowledged is on the device after a loss of power at any moment since, with many
//! writes under way.

pub mod front_end;
mod judge;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use super::folder;
use super::guest::Guest;
use super::machine::Kernel;
use super::report::Report;
use super::soak::in_guest::RECORD_BYTES;
use judge::{Judgement, Source, check_mixtures, judge};

/// Blocks of the disk that are written to; their numbers have less than 16 bits.
const BLOCKS: u64 = 512;

/// Of the device; of the log, and of what marks promise, which take no space where nothing is written.
const DEVICE_BYTES: u64 = 64 << 20;
const LOG_BYTES: u64 = 4 << 30;
const PROMISES_BYTES: u64 = 64 << 20;

/// Writes of a case; of one whose mistake is there from the beginning.
const WRITES: u64 = 6000;
const WRITES_OF_A_MISTAKE: u64 = 1000;

/// Of the records.
const SEED: u64 = 77;

/// How the front-end knows what is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By flushes; and while it has the disk write through, now and then, by the completion of each write.
    Changes,
    /// It cannot flush: by the completion of each write.
    WritesThrough,
}

impl Way {
    pub fn parse(word: &str) -> Self {
        match word {
            "changes" => Self::Changes,
            "writes-through" => Self::WritesThrough,
            other => panic!("{other} is no way"),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Changes => "changes",
            Self::WritesThrough => "writes-through",
        }
    }
}

/// What becomes of the daemon's syncs. The oracle must notice each mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Syncs {
    Done,
    /// None is done: each says that it was.
    LeftOut,
    /// Every other one is not, as if the one before had covered what it is for.
    Shared,
}

impl Syncs {
    /// What the daemon is started by.
    fn launcher(self) -> String {
        let which = match self {
            Self::Done => return String::new(),
            Self::LeftOut => "",
            Self::Shared => ":when=2+2",
        };
        format!(
            "/lab/strace -f --seccomp-bpf -qq -o /dev/null -e trace=fdatasync -e inject=fdatasync:retval=0{which} "
        )
    }

    fn writes(self) -> u64 {
        if self == Self::Done { WRITES } else { WRITES_OF_A_MISTAKE }
    }
}

pub fn run(report: &mut Report) {
    let cases = [
        ("log-writes: a device, the cache mode is changed", false, Way::Changes, Syncs::Done),
        ("log-writes: a device, no flush can be sent", false, Way::WritesThrough, Syncs::Done),
        ("log-writes: a device, a sync that is shared is noticed", false, Way::Changes, Syncs::Shared),
        ("log-writes: a file on ext4, the cache mode is changed", true, Way::Changes, Syncs::Done),
        ("log-writes: a file on ext4, no flush can be sent", true, Way::WritesThrough, Syncs::Done),
        (
            "log-writes: a file on ext4, a sync that is left out is noticed",
            true,
            Way::Changes,
            Syncs::LeftOut,
        ),
    ];
    report.check("log-writes: pages that change while they are written", check_mixtures);
    for (name, is_file, way, syncs) in cases {
        report.check(name, || check(is_file, way, syncs));
    }
}

fn check(is_file: bool, way: Way, syncs: Syncs) -> String {
    let folder = folder::on_files();
    let place = |name: &str| folder.path().join(name);
    for (name, bytes) in [("device", DEVICE_BYTES), ("log", LOG_BYTES), ("promises", PROMISES_BYTES)] {
        File::create(place(name)).unwrap().set_len(bytes).unwrap();
    }
    let program = place("soak");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let daemon = Path::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
    let strace = Path::new("/usr/bin/strace");
    let tools: &[&Path] =
        if syncs == Syncs::Done { &[daemon, &program] } else { &[daemon, &program, strace] };
    let initramfs = Guest::initramfs(folder.path(), tools);
    let disk = |name: &str| {
        let path = place(name);
        format!(
            "-drive file={},format=raw,if=none,id={name} -device virtio-blk-pci,drive={name}",
            path.display()
        )
    };
    let devices = ["device", "log", "promises"].map(disk).join(" ");
    let devices = devices.split(' ').map(str::to_owned).collect();
    let mut guest = Guest::boot_kernel(Kernel::Cloud, &initramfs, folder.path(), devices, "");
    let sectors = DEVICE_BYTES / 512;
    guest.shell(&format!(
        "dmsetup create log --noudevrules --noudevsync --table '0 {sectors} log-writes /dev/vda /dev/vdb' && \
         mkdir -p /dev/mapper && [ -e /dev/dm-0 ]"
    ));
    let blocks =
        if is_file { make_file(&mut guest) } else { (0..BLOCKS).map(|block| (block * 8, block)).collect() };
    let path = if is_file { "/mnt/disk.img" } else { "/dev/dm-0" };
    let launcher = syncs.launcher();
    guest.shell(&format!(
        "{launcher}/lab/vhost-user-pmem serve --disk path={path},socket=/tmp/disk.sock,queues=2 >/tmp/daemon 2>&1 & \
         for try in $(seq 600); do grep -q /tmp/disk.sock /proc/net/unix && exit 0; sleep 0.1; done; cat /tmp/daemon; exit 1"
    ));
    let (word, writes) = (way.word(), syncs.writes());
    guest.shell(&format!("/lab/soak log-writes /tmp/disk.sock {SEED} {writes} {word} /dev/vdc && sync"));
    guest.shell("kill $(pidof vhost-user-pmem); while pidof vhost-user-pmem; do sleep 0.1; done; umount /mnt; dmsetup remove log");
    guest.power_off();
    // A ring's writes, which are begun together, may go a bit beyond the last.
    let source = Source { seed: SEED, numbers: writes + BLOCKS, is_cached: is_file };
    let judgement = judge(&place("log"), &place("promises"), &blocks, source);
    assert_judged(&judgement, syncs)
}

/// Makes a file whose blocks are written, so that they stay where they are; where that is on the device, by sector.
fn make_file(guest: &mut Guest) -> BTreeMap<u64, u64> {
    let bytes = BLOCKS * RECORD_BYTES as u64;
    guest.shell(&format!(
        "mkfs.ext4 -q -b 4096 /dev/dm-0 && mount -t ext4 /dev/dm-0 /mnt && \
         head -c {bytes} /dev/zero >/mnt/disk.img && sync"
    ));
    let listed = guest.shell("debugfs -R 'blocks /disk.img' /dev/dm-0 2>/dev/null");
    let blocks: BTreeMap<u64, u64> = listed
        .split_whitespace()
        .zip(0..)
        .map(|(at, block)| (at.parse::<u64>().unwrap() * 8, block))
        .collect();
    assert_eq!(blocks.len() as u64, BLOCKS, "{listed}");
    blocks
}

fn assert_judged(judgement: &Judgement, syncs: Syncs) -> String {
    let Judgement { marks, flushes, records, mixtures, violations } = judgement;
    let some: Vec<&String> = violations.iter().take(5).collect();
    assert!(*marks >= syncs.writes() / 20 && *records >= BLOCKS, "only {marks} marks and {records} records");
    match syncs {
        Syncs::Done => {
            assert!(violations.is_empty(), "{} are wrong of {marks} marks: {some:#?}", violations.len());
        }
        Syncs::LeftOut | Syncs::Shared => {
            assert!(!violations.is_empty(), "nothing was noticed at {marks} marks");
        }
    }
    let wrong = violations.len();
    format!(
        "{marks} marks, {flushes} flushes, {records} records ({mixtures} changed meanwhile), {wrong} violations"
    )
}
