//! The power fails while a daemon in the guest serves files on persistent memory. What it had said to be safe is there
//! when the file system has replayed its log: with `MAP_SYNC` at once where the file system keeps that, after a sync on an
//! XFS whose files can share blocks.
//!
//! QEMU's modules keep every store, so only the file systems' logs can lose something here, and they do so late: the
//! stores are the last that happens. Each disk has a file system, and so a log, of its own. Of stores into shared blocks
//! XFS forgets every second one unless it is synced (Linux 6.1 to 7.3): there is an odd number of them, and an even one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use virtio_driver::VirtioBlkFeatureFlags;

use super::super::common::driver::{Driver, Options, Request};
use super::super::common::pattern;
use super::super::guest::Guest;
use super::super::machine::Kernel;
use super::Order;
use super::table::Row;

/// XFS refuses less than 300 MiB.
const MODULE_BYTES: u64 = 384 << 20;

const PAGE_BYTES: usize = 4096;

/// The part of a disk that is filled before it is cloned.
const FILLED_BYTES: usize = 2 << 20;

/// Of what is there before.
const OLD_SEED: u64 = 17;

/// By when XFS writes its log by itself, for which nobody shall wait.
const LOG_WRITTEN_AFTER: Duration = Duration::from_secs(30);

/// A file system on a module of its own, and how a client writes to the disk on it.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// What `pmem.sh format` makes.
    file_system: &'static str,
    class: &'static str,
    client: Client,
    stores: u64,
}

/// What makes a write of the client safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    /// A flush behind it.
    Flushes,
    /// Nothing that the client knows of: it cannot flush.
    WritesThrough,
    /// Its completion, by the class of the disk.
    Trusts,
}

impl Client {
    const ALL: [(&'static str, Self); 3] =
        [("flushes", Self::Flushes), ("writes-through", Self::WritesThrough), ("trusts", Self::Trusts)];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, client)| *client == self).unwrap().0
    }
}

const fn case(file_system: &'static str, class: &'static str, client: Client, stores: u64) -> Case {
    Case { file_system, class, client, stores }
}

const CASES: [Case; 7] = [
    case("xfs-sharing", "page", Client::Flushes, 40),
    case("xfs-sharing", "page", Client::Flushes, 41),
    case("xfs-sharing", "page", Client::WritesThrough, 40),
    case("xfs-sharing", "page", Client::WritesThrough, 41),
    case("xfs", "cacheline", Client::Trusts, 41),
    case("ext4", "cacheline", Client::Trusts, 41),
    case("ext4-no-journal", "cacheline", Client::Trusts, 41),
];

pub fn cuts(order: &Order<'_>) -> Vec<Row> {
    let start = Instant::now();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/pmem.sh");
    let program = order.folder.join("soak");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let daemon = Path::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
    let initramfs = Guest::initramfs(order.folder, &[&script, daemon, &program]);
    for round in 0..order.rounds {
        let seed = order.seed + u64::from(round);
        let scene = Scene { initramfs: &initramfs, folder: order.folder.join(format!("round-{round}")) };
        let mut guest = scene.boot("before");
        scene.store(&mut guest, seed);
        guest.cut();
        let mut guest = scene.boot("after");
        scene.check(&mut guest, seed);
        guest.power_off();
        std::fs::remove_dir_all(&scene.folder).unwrap();
    }
    let stores: u64 = CASES.iter().map(|case| case.stores).sum();
    let what = format!("QEMU killed, all of {stores} acknowledged writes to {} disks found", CASES.len());
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses: Vec::new() }]
}

struct Scene<'a> {
    initramfs: &'a Path,
    folder: PathBuf,
}

impl Scene<'_> {
    fn boot(&self, name: &str) -> Guest {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut devices =
            format!("-machine nvdimm=on,nvdimm-persistence=mem-ctrl -m slots={},maxmem=8G", CASES.len());
        for index in 0..CASES.len() {
            let module = self.folder.join(format!("module{index}"));
            let file = File::options().write(true).create(true).truncate(false).open(&module).unwrap();
            file.set_len(MODULE_BYTES).unwrap();
            devices += &format!(
                " -object memory-backend-file,id=nv{index},share=on,mem-path={},size={MODULE_BYTES} \
                 -device nvdimm,memdev=nv{index}",
                module.display()
            );
        }
        let devices = devices.split(' ').map(str::to_owned).collect();
        Guest::boot_kernel(Kernel::Cloud, self.initramfs, &folder, devices, "")
    }

    /// Serves new disks, and has all of them written to, as the last that the guest does.
    fn store(&self, guest: &mut Guest, seed: u64) {
        for index in 0..CASES.len() {
            guest.shell(&format!("/lab/pmem.sh fsdax $(/lab/pmem.sh region ACPI.NFIT {index})"));
        }
        let (mut format, mut options, mut disks) = (String::new(), String::new(), String::new());
        let start = Instant::now();
        for (index, Case { file_system, class, client, stores }) in CASES.iter().enumerate() {
            // All at once: the logs shall not be old when the power fails.
            format += &format!(
                "{{ mkdir -p /disks/{index} && \
                 /lab/pmem.sh format {file_system} {} dax=always /disks/{index}; }} & made=\"$made $!\"; ",
                block(index)
            );
            let place = format!("path={},socket=/tmp/{index}.sock", file(index));
            options += &format!(" --disk {place},size=32M,sparse=on,require-durable={class}");
            disks += &format!(" /tmp/{index}.sock {} {} {stores}", file(index), client.word());
        }
        guest.shell(&format!("{format} for each in $made; do wait $each || exit 1; done"));
        guest.shell(&format!("/lab/vhost-user-pmem serve {options} >/tmp/out 2>/tmp/log &"));
        let last = CASES.len() - 1;
        guest.shell(&format!(
            "for try in $(seq 600); do [ -s /tmp/out ] && [ -S /tmp/{last}.sock ] && exit 0; sleep 0.1; done; \
             cat /tmp/log; exit 1"
        ));
        guest.stream(&format!("/lab/soak soak store {seed}{disks} 2>/dev/ttyS1"));
        assert_eq!(guest.line(), "ACKNOWLEDGED");
        let taken = start.elapsed();
        if taken > LOG_WRITTEN_AFTER {
            println!(
                "       the power was cut {taken:?} after the first mount: XFS may have written its log by itself"
            );
        }
    }

    /// Mounts them, which replays the logs, and insists on what was acknowledged.
    fn check(&self, guest: &mut Guest, seed: u64) {
        for (index, Case { file_system, client, stores, .. }) in CASES.iter().enumerate() {
            let kind = file_system.split('-').next().unwrap();
            guest.shell(&format!(
                "mkdir -p /disks/{index} && mount -t {kind} {} /disks/{index}",
                block(index)
            ));
            let mut found = guest.shell(&format!("/lab/soak soak stored {seed} {} {stores}", file(index)));
            if *client != Client::Trusts {
                found += &guest.shell(&format!("/lab/soak soak stored {seed} {}.clone 0", file(index)));
            }
            assert_eq!(found, "", "{file_system} of {client:?} with {stores} stores");
            guest.shell(&format!("umount /disks/{index}"));
        }
    }
}

fn block(index: usize) -> String {
    format!("/dev/pmem$(/lab/pmem.sh region ACPI.NFIT {index})")
}

fn file(index: usize) -> String {
    format!("/disks/{index}/disk")
}

/// In the guest: `SEED` and, for each disk, `SOCKET FILE CLIENT STORES`.
pub fn store(arguments: &[&str]) {
    let (seed, disks) = arguments.split_first().unwrap();
    let mut disks: Vec<Disk> = disks.chunks(4).map(Disk::connect).collect();
    for disk in &mut disks {
        disk.fill();
    }
    // What comes now is all that the logs have to keep.
    rustix::fs::sync();
    std::thread::sleep(Duration::from_secs(1));
    rustix::fs::sync();
    let most = disks.iter().map(|disk| disk.stores).max().unwrap();
    for index in 0..most {
        for disk in disks.iter_mut().filter(|disk| index < disk.stores) {
            disk.store(seed.parse().unwrap(), index);
        }
    }
    println!("ACKNOWLEDGED");
    // Until the cut.
    std::thread::sleep(Duration::from_secs(3600));
}

struct Disk {
    driver: Driver,
    client: Client,
    file: PathBuf,
    stores: u64,
}

impl Disk {
    fn connect(words: &[&str]) -> Self {
        let [socket, file, client, stores] = words else { panic!("{words:?}") };
        let client = Client::ALL.iter().find(|(word, _)| word == client).unwrap().1;
        let mut options = Options::default();
        if client == Client::WritesThrough {
            options.block_features.remove(VirtioBlkFeatureFlags::FLUSH | VirtioBlkFeatureFlags::CONFIG_WCE);
        }
        let driver = Driver::connect(Path::new(socket), options);
        Self { driver, client, file: file.into(), stores: stores.parse().unwrap() }
    }

    /// Every block that is stored into later has data, and shares it with a clone; or has nothing at all.
    fn fill(&mut self) {
        if self.client == Client::Trusts {
            return;
        }
        self.driver.queue().write(0, &pattern(OLD_SEED, FILLED_BYTES)).unwrap();
        self.flush();
        let clone = File::create(self.file.with_extension("clone")).unwrap();
        rustix::fs::ioctl_ficlone(clone, File::open(&self.file).unwrap()).unwrap();
    }

    fn store(&mut self, seed: u64, index: u64) {
        let at = index * PAGE_BYTES as u64;
        self.driver.queue().write(at, &pattern(seed + index, PAGE_BYTES)).unwrap();
        self.flush();
    }

    fn flush(&mut self) {
        if self.client == Client::Flushes {
            self.driver.queue().run(&Request::Flush).unwrap();
        }
    }
}

/// In the guest: says which of the first pages of a file are not what was stored, and of what comes then, which are not
/// what was there before.
pub fn stored(seed: u64, file: &Path, stores: u64) {
    let old = pattern(OLD_SEED, FILLED_BYTES);
    let file = File::open(file).unwrap();
    let is_filled = stores == 0;
    for index in 0..if is_filled { (FILLED_BYTES / PAGE_BYTES) as u64 } else { stores } {
        let at = index as usize * PAGE_BYTES;
        let mut found = vec![0; PAGE_BYTES];
        file.read_exact_at(&mut found, at as u64).unwrap();
        let wanted =
            if is_filled { old[at..at + PAGE_BYTES].to_vec() } else { pattern(seed + index, PAGE_BYTES) };
        if found != wanted {
            let is_old = old.get(at..at + PAGE_BYTES) == Some(&found[..]);
            println!("page {index} is {}", if is_old { "the OLD one" } else { "another" });
        }
    }
}
