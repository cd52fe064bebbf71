//! DRBD: two guests, each with a disk of its own, and a daemon on `/dev/drbd0` of the one that is primary, or of both.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::common::Random;
use super::super::common::user_mode::INSTALLED;
use super::super::guest::{Guest, Reply};
use super::super::machine::{Kernel, script};
use super::super::soak::table::Row;
use super::super::soak::{Order, rig};
use super::recorder::Records;

/// Of a node: room for what is recorded, and for DRBD's own.
const DISK_BYTES: u64 = 48 << 20;

/// Writes that must be acknowledged before a node may be lost.
const ENOUGH: u64 = 64;

/// The longest that it then goes on.
const WRITING: Duration = Duration::from_secs(3);

/// The node that serves is lost, as a whole; the other one becomes primary and goes on.
pub fn node_losses(order: &Order<'_>) -> Vec<Row> {
    let mut nodes = match Nodes::new(order) {
        Ok(nodes) => nodes,
        Err(why) => return vec![Row::skipped(&why)],
    };
    let start = Instant::now();
    let mut random = Random::new(order.seed);
    let (mut records, mut pauses) = (Records::new(order.seed), Vec::new());
    let mut serving = 0;
    nodes.begin();
    for _ in 0..order.rounds {
        let before = records.count;
        let node = nodes.node(serving);
        node.stream(&format!("/lab/soak soak record {SOCKET} {} {before}", order.seed));
        while records.count < before + ENOUGH {
            records.count = acknowledged(&node.line());
        }
        std::thread::sleep(rig::moment(&mut random, WRITING));
        let rest = nodes.lose(serving);
        let since = Instant::now();
        records.count = rest.last().map_or(records.count, |line| acknowledged(line));
        let lost = serving;
        serving = 1 - lost;
        let node = nodes.node(serving);
        node.shell("/lab/drbd.sh primary && /lab/drbd.sh serve");
        node.shell(&format!("/lab/soak soak recorded {SOCKET} {} {}", order.seed, records.count));
        pauses.push(since.elapsed());
        nodes.start(lost, "");
        nodes.node(serving).shell("/lab/drbd.sh same");
    }
    let what = format!(
        "the node that serves lost, all of {} acknowledged writes found on the other; until then",
        records.count
    );
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses }]
}

/// A guest under verified load moves between daemons on two nodes, both of which are primary meanwhile. The nodes are User-Mode
/// Linux, as QEMU runs in them (`drbd_moves.py`).
pub fn migrations(order: &Order<'_>) -> Vec<Row> {
    if let Some(why) = super::missing("cluster") {
        return vec![Row::skipped(&why)];
    }
    if !Path::new(INSTALLED).exists() {
        return vec![Row::skipped("no User-Mode Linux (Debian's package user-mode-linux)")];
    }
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/cluster");
    let initramfs = Guest::initramfs(order.folder, &[&scripts.join("drbd_load.sh")]);
    let start = Instant::now();
    let moved = Command::new("python3")
        .arg(scripts.join("drbd_moves.py"))
        .arg(order.rounds.to_string())
        .arg(env!("CARGO_BIN_EXE_vhost-user-pmem"))
        .args([&Kernel::Cloud.image(), &initramfs, order.folder])
        .output()
        .unwrap();
    let [said, why] =
        [moved.stdout, moved.stderr].map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    assert!(moved.status.success(), "{said}\n{why}");
    let seconds = start.elapsed().as_secs_f32();
    vec![Row { what: said, rounds: order.rounds, seconds, pauses: Vec::new() }]
}

/// What [`Records::write_on`] says in the guest.
const SOCKET: &str = "/tmp/disk.sock";

/// What a daemon says where another node has the device.
const SECONDARY: &str =
    "/dev/drbd0: cannot use it (this node is secondary for its DRBD resource); make it primary";

fn acknowledged(line: &str) -> u64 {
    let count = line.strip_prefix("ACK ").and_then(|count| count.parse().ok());
    count.unwrap_or_else(|| panic!("the recorder said {line:?}"))
}

/// Two guests, and what they boot from.
struct Nodes {
    guests: [Option<Guest>; 2],
    initramfs: PathBuf,
    folder: PathBuf,
    /// Of their network: paths of sockets are short.
    cable: tempfile::TempDir,
    boots: u32,
}

impl Nodes {
    /// Nothing runs yet; or why it cannot.
    fn new(order: &Order<'_>) -> Result<Self, String> {
        let installed = Command::new(script("install")).arg("cluster").output();
        if !installed.map_err(|error| error.to_string())?.status.success() {
            return Err("drbd-utils cannot be installed here".to_owned());
        }
        let program = order.folder.join("soak");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
        let daemon = Path::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
        let tools = [Path::new("/lib/drbd/drbdsetup-84"), Path::new("/sbin/drbdmeta")];
        let files = [&tests.join("drbd.sh"), daemon, &program, tools[0], tools[1]];
        let initramfs = Guest::initramfs_for(Kernel::Generic, order.folder, &files);
        std::fs::remove_file(program).unwrap();
        for number in 0..2 {
            let disk = std::fs::File::create(order.folder.join(format!("disk-{number}"))).unwrap();
            disk.set_len(DISK_BYTES).unwrap();
        }
        let folder = order.folder.to_owned();
        let cable = super::super::folder::for_sockets();
        Ok(Self { guests: [None, None], initramfs, folder, cable, boots: 0 })
    }

    /// Both with the same copy, and the first serves it.
    fn begin(&mut self) {
        self.start(0, "new");
        self.start(1, "new");
        self.node(0).shell("/lab/drbd.sh first && /lab/drbd.sh same && /lab/drbd.sh primary");
        // DRBD itself is the lock between nodes.
        for access in ["off", "on"] {
            let serve = format!("serve --disk path=/dev/drbd0,socket=/tmp/refused.sock,readonly={access}");
            let Reply { status, text } = self.node(1).run(&format!("/lab/vhost-user-pmem {serve}"));
            assert!(status == 10 && text.contains(SECONDARY), "readonly={access}: {status}: {text}");
        }
        self.node(0).shell("/lab/drbd.sh serve");
    }

    fn node(&mut self, number: usize) -> &mut Guest {
        self.guests[number].as_mut().unwrap()
    }

    /// Boots a node. An emulated Linux stands still now and then before it has come up, where nothing of ours runs yet: it is
    /// tried once more.
    fn start(&mut self, number: usize, new: &str) {
        let boot = catch_unwind(AssertUnwindSafe(|| self.boot(number)));
        let mut guest = boot.unwrap_or_else(|_| self.boot(number));
        guest.shell(&format!("/lab/drbd.sh up {} {new}", number + 1));
        self.guests[number] = Some(guest);
    }

    fn boot(&mut self, number: usize) -> Guest {
        self.boots += 1;
        let folder = self.folder.join(format!("boot-{}", self.boots));
        std::fs::create_dir(&folder).unwrap();
        let [own, other] = [number, 1 - number].map(|it| self.cable.path().join(it.to_string()));
        // Of its last life.
        let _ = std::fs::remove_file(&own);
        let disk = self.folder.join(format!("disk-{number}"));
        let devices = format!(
            "-smp 1 -drive file={},format=raw,if=none,id=disk -device virtio-blk-pci,drive=disk \
             -netdev dgram,id=cable,local.type=unix,local.path={},remote.type=unix,remote.path={} \
             -device virtio-net-pci,netdev=cable,mac=52:54:00:00:00:0{number}",
            disk.display(),
            own.display(),
            other.display()
        );
        let devices = devices.split(' ').map(str::to_owned).collect();
        Guest::boot_kernel(Kernel::Generic, &self.initramfs, &folder, devices, "")
    }

    /// Kills a node where it stands; the lines that its recorder has still sent.
    fn lose(&mut self, number: usize) -> Vec<String> {
        self.guests[number].take().unwrap().cut()
    }
}
