//! Persistent memory of every kind that QEMU and Linux can emulate, with the daemon and a client inside of the
//! guest. What is durable on it, and what is refused, is the daemon's to find out; where the bytes are, the host
//! looks up in the file behind the module.

pub(super) mod cxl;
mod device_dax;
mod mapper;
mod options;
mod sharing;
mod zeroing;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::bad_media::{self, METRICS};
use super::common::pattern;
use super::folder;
use super::guest::{Guest, Reply};
use super::machine::Kernel;
use super::report::Report;
use crate::common::MIB;

/// The exit code of a disk that is less durable than required.
const NOT_DURABLE: i32 = 13;

/// The exit code of what cannot be a disk.
const NOT_REGULAR: i32 = 4;

/// Size of every module; XFS refuses less than 300 MiB.
const MODULE_MIB: u64 = 384;

/// Size of the memory that the kernel's command line takes away.
const LEGACY_MIB: u64 = 128;

/// What the client writes, in requests of 1 MiB.
const WRITTEN_MIB: u64 = 24;

/// A guest with persistent memory, and the files behind its modules.
#[derive(Debug)]
pub(super) struct Pmem {
    pub(super) guest: Guest,
    modules: Vec<PathBuf>,
    /// Of what the client wrote last: each time it is something else.
    seed: u64,
    folder: TempDir,
}

pub(super) type Check = fn(&mut Pmem) -> String;

/// In the guest whose modules name the memory controller as their persistence domain.
const CHECKS: [(&str, Check); 24] = [
    ("pmem: ext4 with DAX on a module", |pmem| pmem.ext4("cacheline", "memory_controller")),
    ("pmem: xfs with DAX on a module", xfs),
    ("pmem: xfs whose files can share blocks", sharing::xfs),
    ("pmem: DAX file by file", options::file_by_file),
    ("pmem: ext4 that refuses DAX", options::refused_by_ext4),
    ("pmem: zeroes that the kernel writes", zeroing::counted),
    ("pmem: dm-linear over two modules", mapper::linear),
    ("pmem: dm-stripe over two modules", mapper::striped),
    ("pmem: dm-linear beside the pages", mapper::beside_the_pages),
    ("pmem: the page cache without DAX", without_dax),
    // Before any page is bad: free space would have those.
    ("pmem: a full DAX file system", bad_media::full),
    ("pmem: bad media below a DAX file", bad_media::of_a_file),
    ("pmem: bad media that the platform repairs", bad_media::repaired),
    ("pmem: bad media below the page cache", bad_media::below_the_page_cache),
    ("pmem: bad media that only faults tell of", bad_media::unannounced),
    ("pmem: block device of a module", block_device),
    ("pmem: bad media of a block device", bad_media::of_a_block_device),
    ("pmem: block translation table (BTT)", sector_device),
    ("pmem: device DAX", device_dax::durable),
    ("pmem: memory of the kernel's command line (e820)", legacy),
    ("pmem: virtio-pmem", virtio),
    ("pmem: virtio-pmem is not durable by itself", virtio_refused),
    ("pmem: block device of virtio-pmem", virtio_block),
    // The last of the modules: it may become the guest's own memory.
    ("pmem: device DAX of another driver", device_dax::of_another_driver),
];

/// Boots a guest for each persistence domain, and makes all checks.
pub fn run(report: &mut Report) {
    let names = CHECKS.iter().map(|(name, _)| *name);
    let others = [
        ("cpu", "pmem: caches that are saved", "byte", "caches are saved"),
        ("", "pmem: no persistence domain", "cacheline", "no persistence_domain"),
    ];
    if !names.chain(others.map(|(_, name, ..)| name)).any(|name| report.wants(name)) {
        return;
    }
    with_guest(report, "pmem: linux boots", || Pmem::boot("mem-ctrl"), &CHECKS);
    for (domain, name, class, why) in others {
        report.check(name, || {
            let mut pmem = Pmem::boot(domain);
            let seen = pmem.ext4(class, why);
            pmem.guest.power_off();
            seen
        });
    }
}

pub(super) fn with_guest(
    report: &mut Report,
    name: &str,
    boot: impl FnOnce() -> Pmem,
    checks: &[(&str, Check)],
) {
    let Some(mut pmem) = report.produce(name, || (boot(), "the guest answers".to_owned())) else {
        for (name, _) in checks {
            report.check(name, || panic!("not tried: there is no guest"));
        }
        return;
    };
    for (name, check) in checks {
        report.check(name, || check(&mut pmem));
        // What a failed check left behind is not the next one's business.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pmem.guest.run("/lab/pmem.sh alive && /lab/pmem.sh stop; umount /mnt; dmsetup remove_all")
        }));
    }
    report.produce("pmem: linux powers off", || {
        pmem.guest.power_off();
        ((), "QEMU ended with 0".to_owned())
    });
}

impl Pmem {
    /// A guest with two modules of this persistence domain (none for an empty one), virtio-pmem, and memory that
    /// the kernel is told to take for persistent.
    fn boot(domain: &str) -> Self {
        let persistence = match domain {
            "" => String::new(),
            domain => format!(",nvdimm-persistence={domain}"),
        };
        Self::boot_with(Kernel::Cloud, &format!("-machine nvdimm=on{persistence}"))
    }

    /// The same with this kernel; `machine` are the arguments of QEMU that switch modules on.
    pub(super) fn boot_with(kernel: Kernel, machine: &str) -> Self {
        let folder = folder::on_files();
        let modules = ["module0", "module1", "virtio"].map(|name| folder.path().join(name));
        let mut devices = format!("{machine} -m slots=4,maxmem=8G");
        devices += &format!(" -monitor unix:{},server=on,wait=off", folder.path().join("monitor").display());
        for (index, module) in modules.iter().enumerate() {
            std::fs::File::create(module).unwrap().set_len(MODULE_MIB * MIB).unwrap();
            let driver = if index < 2 { "nvdimm" } else { "virtio-pmem-pci" };
            devices += &format!(
                " -object memory-backend-file,id=nv{index},share=on,mem-path={},size={MODULE_MIB}M \
                 -device {driver},memdev=nv{index}",
                module.display()
            );
        }
        Self::boot_on(kernel, folder, modules.to_vec(), &devices)
    }

    /// The same with persistent memory of another kind, behind which are these files.
    fn boot_on(kernel: Kernel, folder: TempDir, modules: Vec<PathBuf>, devices: &str) -> Self {
        let devices = devices.split(' ').map(str::to_owned).collect();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/pmem.sh");
        let daemon = Path::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
        // This very program.
        let client = std::env::current_exe().unwrap();
        let client_in_guest = folder.path().join("pmem-client");
        std::fs::copy(client, &client_in_guest).unwrap();
        let memory = format!("memmap={LEGACY_MIB}M!512M");
        let guest =
            Guest::boot_with(kernel, folder.path(), &[&script, daemon, &client_in_guest], devices, &memory);
        Self { guest, modules, seed: 0, folder }
    }

    /// The socket of QEMU's monitor.
    pub(super) fn monitor(&self) -> PathBuf {
        self.folder.path().join("monitor")
    }

    /// The number of a region.
    pub(super) fn region(&mut self, provider: &str, index: usize) -> String {
        self.guest.shell(&format!("/lab/pmem.sh region {provider} {index}"))
    }

    /// Makes the first module a block device for DAX file systems; its name.
    pub(super) fn module_block(&mut self) -> String {
        let region = self.region("ACPI.NFIT", 0);
        self.guest.shell(&format!("/lab/pmem.sh fsdax {region}"));
        format!("/dev/pmem{region}")
    }

    /// What `info` says of a path.
    pub(super) fn info(&mut self, path: &str) -> Value {
        let Reply { status, text } = self.guest.run(&format!("/lab/vhost-user-pmem info --json {path}"));
        assert_eq!(status, 0, "info {path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("info {path}: {error}: {text}"))
    }

    /// Panics unless `info` gives the path this backing and class, and this reason.
    fn assert_class(&mut self, path: &str, backing: &str, class: &str, why: &str) {
        let info = self.info(path);
        let word = |field: &str| info[field].as_str().unwrap_or_default().to_owned();
        assert!(word("backing").starts_with(backing), "not {backing}: {info:#}");
        assert_eq!(word("durability"), class, "{info:#}");
        assert_eq!(info["initial_writeback"], class == "page", "{info:#}");
        assert!(word("durability_reason").contains(why), "not because of {why}: {info:#}");
    }

    /// Panics unless `info`, the log and the metrics of the served path say the same of its region, and of its huge
    /// pages where they were counted already.
    fn assert_shown(&mut self, path: &str) {
        let info = self.info(path);
        let region = &info["regions"][0];
        let word = |field: &str| region[field].as_str().unwrap_or("unknown").to_owned();
        let (name, domain) = (word("name"), word("persistence_domain"));
        let node = region["numa_node"].as_u64().map_or("unknown".to_owned(), |node| node.to_string());
        let labels = format!(
            r#"disk="disk",region="{name}",provider="{}",persistence_domain="{domain}",numa_node="{node}""#,
            word("provider")
        );
        let said = self.client("metric:region_info");
        assert_eq!(said, [format!("metric:region_info region_info{{{labels}}} 1")]);
        let log = self.guest.shell("cat /tmp/log");
        assert!(log.contains(&format!("persistence_domain=\"{domain}\"")), "{log}");
        let huge_bytes = info["huge_bytes"].as_u64().unwrap_or_else(|| panic!("no huge_bytes: {info:#}"));
        assert!(huge_bytes.is_multiple_of(2 * MIB) && huge_bytes <= 32 * MIB, "{huge_bytes}");
        let counted = || self.client("metric:huge_page_bytes").remove(0);
        let expected = format!("metric:huge_page_bytes huge_page_bytes{{disk=\"disk\"}} {huge_bytes}");
        let counted = std::iter::repeat_with(counted).take(100).find(|said| !said.ends_with(" none"));
        assert_eq!(counted, Some(expected));
    }

    /// Starts a daemon on a path; `options` go to `--disk`.
    pub(super) fn serve(&mut self, path: &str, options: &str, arguments: &str) {
        self.guest.shell(&format!("/lab/pmem.sh serve {path} '{options}' {arguments}"));
    }

    /// Panics unless the daemon refuses to start for want of durability; what it said.
    fn assert_refused(&mut self, path: &str, class: &str) -> String {
        let command = format!("/lab/pmem.sh serve {path} '' --require-durable={class}");
        let Reply { status, text } = self.guest.run(&command);
        assert_eq!(status, NOT_DURABLE, "the exit code of {command}: {text}");
        assert!(text.contains(path) && text.contains("require-durable"), "the message: {text}");
        text.trim().lines().last().unwrap_or_default().to_owned()
    }

    /// Ends the daemon, which must end well.
    pub(super) fn stop(&mut self) {
        self.guest.shell("/lab/pmem.sh stop || { cat /tmp/log; false; }");
    }

    /// What a client of the daemon was told, one line for each operation.
    pub(super) fn client(&mut self, operations: &str) -> Vec<String> {
        let text = self.guest.shell(&format!("/lab/pmem-client client /tmp/disk.sock {operations}"));
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), operations.split_whitespace().count(), "answers: {text}");
        lines
    }

    /// Has a client write, flush and read back; `writeback` is what the disk must say at first. KiB that the
    /// page cache has grown by.
    fn exercise(&mut self, writeback: u8) -> i64 {
        self.exercise_part(writeback, WRITTEN_MIB)
    }

    /// The same with fewer MiB.
    fn exercise_part(&mut self, writeback: u8, mib: u64) -> i64 {
        self.seed += 1000;
        let seed = self.seed;
        let each = |verb: &str| {
            let one = |at: u64| format!("{verb}:{}:{MIB}:{} ", at * MIB, seed + at);
            (0..mib).map(one).collect::<String>()
        };
        let before = self.cached_kib();
        let said = self.client(&format!("writeback {}flush {}", each("write"), each("verify")));
        let grown = self.cached_kib() - before;
        assert_eq!(said[0], format!("writeback {writeback}"));
        for line in &said[1..] {
            assert!(line.ends_with(" ok"), "the client was told: {line}");
        }
        grown
    }

    fn cached_kib(&mut self) -> i64 {
        self.guest.shell("/lab/pmem.sh cached").parse().unwrap()
    }

    /// What the client wrote last.
    fn written(&self) -> Vec<u8> {
        (0..WRITTEN_MIB).flat_map(|at| pattern(self.seed + at, MIB as usize)).collect()
    }

    /// Panics unless every page that the client wrote last is in the file behind one of the modules, wherever.
    /// What was written before is something else.
    fn assert_on_module(&self) {
        let written = self.written();
        let lost = |module: &PathBuf| {
            let module = std::fs::read(module).unwrap();
            let pages: HashSet<&[u8]> = module.chunks(4096).collect();
            written.chunks(4096).filter(|page| !pages.contains(page)).count()
        };
        assert_eq!(self.modules.iter().map(lost).min(), Some(0), "pages that are in no module's file");
    }

    /// Serves a new file of a DAX file system that is mounted on /mnt: the class, the bytes, no page cache.
    fn dax_file(&mut self, class: &str, why: &str) -> String {
        self.serve("/mnt/disk", ",size=32M", &format!("--require-durable={class} {METRICS}"));
        self.assert_class("/mnt/disk", "DAX file on ", class, why);
        self.assert_shown("/mnt/disk");
        let writeback = u8::from(class == "page");
        let grown = self.exercise(writeback);
        assert!(grown < 4096, "the page cache has grown by {grown} KiB");
        self.stop();
        self.guest.shell("umount /mnt");
        format!(
            "class {class} ({why}), writeback={writeback}, {WRITTEN_MIB} MiB verified, {grown} KiB cached"
        )
    }

    /// ext4 on the first module.
    fn ext4(&mut self, class: &str, why: &str) -> String {
        let block = self.module_block();
        self.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=always"));
        let seen = self.dax_file(class, why);
        self.assert_on_module();
        if class != "byte" {
            self.guest.shell(&format!("mount -o dax=always {block} /mnt"));
            self.assert_refused("/mnt/disk", "byte");
            self.guest.shell("umount /mnt");
        }
        seen
    }
}

fn xfs(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    pmem.guest.shell(&format!(
        "dd if=/dev/zero of={block} bs=1M count=8; /lab/pmem.sh format xfs {block} dax=always"
    ));
    let seen = pmem.dax_file("cacheline", "memory_controller");
    pmem.assert_on_module();
    seen
}

/// The same work on the same device, but not with DAX: the page cache does show, and the class is another.
fn without_dax(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    pmem.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=never"));
    pmem.serve("/mnt/disk", ",size=32M", "--require-durable");
    pmem.assert_class("/mnt/disk", "ordinary file on ext4", "page", "not mounted with DAX");
    let grown = pmem.exercise(1);
    assert!(grown > 16 * 1024, "the page cache has grown by {grown} KiB only: is it measured?");
    pmem.stop();
    pmem.assert_refused("/mnt/disk", "cacheline");
    pmem.guest.shell("umount /mnt");
    format!("class page, {grown} KiB cached")
}

fn block_device(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    pmem.assert_class(&block, "block device of persistent memory", "page", "fdatasync");
    let seen = pmem.direct(&block, "");
    pmem.assert_on_module();
    pmem.assert_refused(&block, "cacheline");
    seen
}

impl Pmem {
    /// Serves a block device, past the page cache.
    fn direct(&mut self, block: &str, options: &str) -> String {
        self.direct_part(block, options, WRITTEN_MIB)
    }

    /// The same with fewer MiB.
    fn direct_part(&mut self, block: &str, options: &str, mib: u64) -> String {
        self.serve(block, options, "--require-durable=page");
        let flags = self.guest.shell(&format!("/lab/pmem.sh flags {block}"));
        let is_direct =
            |flags: &str| i32::from_str_radix(flags.trim(), 8).is_ok_and(|flags| flags & libc::O_DIRECT != 0);
        assert!(flags.lines().any(is_direct), "no descriptor of {block} is O_DIRECT: {flags:?}");
        let grown = self.exercise_part(1, mib);
        assert!(grown < 4096, "the page cache has grown by {grown} KiB");
        self.stop();
        format!("class page, O_DIRECT, {mib} MiB verified, {grown} KiB cached")
    }
}

/// Whole sectors or nothing, by the kernel's table; with some bytes of its own behind each, too.
fn sector_device(pmem: &mut Pmem) -> String {
    let region = pmem.region("ACPI.NFIT", 1);
    let block = format!("/dev/pmem{region}s");
    let mut seen = String::new();
    for (sector, block_bytes) in [(512, 512), (520, 512), (4160, 4096), (4096, 4096)] {
        pmem.guest.shell(&format!("ndctl create-namespace -f -e namespace{region}.0 -m sector -l {sector}"));
        let backing = "block device of persistent memory with atomic sectors (BTT)";
        pmem.assert_class(&block, backing, "page", "fdatasync");
        assert_eq!(pmem.info(&block)["page_bytes"], block_bytes, "sectors of {sector} bytes");
        let mib = if sector == 4096 { WRITTEN_MIB } else { 4 };
        seen = pmem.direct_part(&block, &format!(",block-size={block_bytes}"), mib);
        if mib == WRITTEN_MIB {
            pmem.assert_on_module();
        }
        pmem.assert_refused(&block, "cacheline");
    }
    format!("{seen}, in sectors of 512, 520, 4160 and 4096 bytes")
}

fn legacy(pmem: &mut Pmem) -> String {
    let block = format!("/dev/pmem{}", pmem.region("e820", 0));
    pmem.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=always"));
    let seen = pmem.dax_file("cacheline", "of e820: no persistence_domain");
    // No file is behind it: the bytes are looked up through the block device.
    pmem.guest.shell(&format!("debugfs -R 'dump disk /tmp/dump' {block}"));
    let sum = pmem.guest.shell(&format!("head -c {} /tmp/dump | sha256sum; rm /tmp/dump", WRITTEN_MIB * MIB));
    assert_eq!(sum.split(' ').next(), Some(&*super::bytes::sha256(&pmem.written())), "through {block}");
    seen
}

/// Its region's block device.
fn virtio_device(pmem: &mut Pmem) -> String {
    format!("/dev/pmem{}", pmem.region("virtio-pmem", 0))
}

fn virtio(pmem: &mut Pmem) -> String {
    let block = virtio_device(pmem);
    pmem.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=always"));
    let seen = pmem.dax_file("page", "");
    pmem.assert_on_module();
    seen
}

fn virtio_refused(pmem: &mut Pmem) -> String {
    let block = virtio_device(pmem);
    pmem.guest.shell(&format!("mount -o dax=always {block} /mnt"));
    let said = pmem.assert_refused("/mnt/disk", "cacheline");
    // Also without a value it requires the pages' class.
    pmem.serve("/mnt/disk", "", "--require-durable");
    pmem.stop();
    pmem.guest.shell("umount /mnt");
    said
}

fn virtio_block(pmem: &mut Pmem) -> String {
    let block = virtio_device(pmem);
    pmem.assert_class(&block, "block device of persistent memory", "page", "fdatasync");
    let seen = pmem.direct(&block, "");
    pmem.assert_on_module();
    seen
}
