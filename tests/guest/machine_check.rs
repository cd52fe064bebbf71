//! Machine checks: QEMU says to the guest's CPU that a page of persistent memory has gone bad, while the daemon in
//! the guest serves it. It takes a kernel with memory-failure, and a CPU that its driver knows.

use std::io::Write;
use std::os::unix::net::UnixStream;

use super::bad_media::METRICS;
use super::machine::Kernel;
use super::pmem::{Check, Pmem, with_guest};
use super::report::Report;

const CHECKS: [(&str, Check); 3] = [
    ("machine check: a page of a DAX file that is served", below_a_file),
    ("machine check: a page of a DAX file, and Linux keeps no list", without_a_list),
    ("machine check: a page of device DAX", below_device_dax),
];

/// What the client is to be told of a disk whose third page is bad, and which it has filled with seed 7.
const REQUESTS: [(&str, &str); 7] = [
    ("verify:0:8192:7", "ok"),
    ("verify:4096:8192:7", "errno 5"),
    ("verify:8192:512:7", "errno 5"),
    ("write:8704:512:9", "errno 5"),
    ("write:12288:4096:9", "ok"),
    ("verify:12288:4096:9", "ok"),
    ("flush", "ok"),
];

/// After them, a write that covers the page makes it like any other.
const MENDED: [(&str, &str); 6] = [
    ("bad-bytes", "4096"),
    ("write:8192:4096:8", "ok"),
    ("bad-bytes", "0"),
    ("verify:8192:4096:8", "ok"),
    ("write:8704:512:9", "ok"),
    ("verify:8704:512:9", "ok"),
];

/// Boots the guest and makes all checks.
pub fn run(report: &mut Report) {
    if CHECKS.iter().any(|(name, _)| report.wants(name)) {
        with_guest(report, "machine check: linux boots", boot, &CHECKS);
    }
}

fn boot() -> Pmem {
    let mut pmem = Pmem::boot_with(
        Kernel::Generic,
        "-machine nvdimm=on,nvdimm-persistence=mem-ctrl -cpu Icelake-Server -smp 1",
    );
    pmem.guest.shell("mount -t debugfs debugfs /sys/kernel/debug || true");
    pmem
}

impl Pmem {
    /// Has the CPU told, as by its memory controller, that the line at this physical address is bad, and waits
    /// until the kernel has taken the page out of use and the daemon has learnt of it.
    fn machine_check(&mut self, address: u64) {
        let recovered = |pmem: &mut Self| {
            let log = pmem.guest.shell("dmesg");
            log.matches("recovery action for dax page: Recovered").count()
        };
        let before = recovered(self);
        let mut monitor = UnixStream::connect(self.monitor()).unwrap();
        writeln!(monitor, "mce 0 9 0xbd000000000000c0 0x5 {address:#x} 0x8c").unwrap();
        let has_happened = |pmem: &mut Self| {
            recovered(pmem) > before
                && pmem.guest.shell("cat /tmp/log").contains("bad media: reads of these ranges fail")
        };
        if !(0..100).any(|_| has_happened(self)) {
            let said = self.guest.shell("dmesg | tail -20; cat /tmp/log");
            panic!("the machine check was not noticed: {said}");
        }
    }

    fn number(&mut self, path: &str) -> u64 {
        let text = self.guest.shell(&format!("cat {path}"));
        let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
        parsed.unwrap_or_else(|_| panic!("{path}: {text:?}"))
    }

    /// Insists on the answers to [`REQUESTS`], and that the daemon has survived them.
    fn assert_third_page_fails(&mut self) {
        self.assert_told(&REQUESTS);
        self.guest.shell("/lab/pmem.sh alive");
    }

    fn assert_listed(&mut self, path: &str) {
        let ranges = self.info(path)["bad_blocks"].to_string();
        assert_eq!(ranges, r#"[{"length_bytes":4096,"offset_bytes":8192}]"#, "info {path}");
    }

    /// Serves a new file of an ext4 with DAX on this device, fills its first bytes with seed 7, and has its third
    /// page go bad while it is served and mapped.
    fn spoil_served(&mut self, block: &str) {
        self.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=always"));
        self.serve("/mnt/disk", ",size=32M", &format!("--require-durable=cacheline {METRICS}"));
        self.client("write:0:1048576:7 flush verify:0:1048576:7");
        let page = self.block_of(block, 2);
        let name = block.trim_start_matches("/dev/").to_owned();
        let start = self.number(&format!("/sys/block/{name}/device/resource"));
        self.machine_check(start + page * 4096);
        self.assert_event("[8192..12288]");
    }
}

fn below_a_file(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    pmem.spoil_served(&block);
    pmem.assert_third_page_fails();
    pmem.assert_listed("/mnt/disk");
    pmem.stop();
    // The next daemon finds it listed.
    pmem.serve("/mnt/disk", "", METRICS);
    pmem.assert_third_page_fails();
    pmem.assert_told(&MENDED);
    assert_eq!(pmem.info("/mnt/disk")["bad_blocks"].to_string(), "[]");
    pmem.stop();
    pmem.guest.shell("umount /mnt");
    "exactly the requests that touch the page fail, at once and in the next daemon, until it is written anew"
        .to_owned()
}

/// Memory of the kernel's command line: only the announcement says which page it is.
fn without_a_list(pmem: &mut Pmem) -> String {
    let block = format!("/dev/pmem{}", pmem.region("e820", 0));
    pmem.spoil_served(&block);
    assert_eq!(pmem.info("/mnt/disk")["bad_blocks"].to_string(), "[]", "there is a list");
    pmem.assert_third_page_fails();
    pmem.assert_told(&MENDED);
    pmem.stop();
    pmem.guest.shell("umount /mnt");
    "exactly the requests that touch the page fail, until it is written anew".to_owned()
}

fn below_device_dax(pmem: &mut Pmem) -> String {
    let region = pmem.region("ACPI.NFIT", 1);
    pmem.guest.shell(&format!("ndctl create-namespace -f -e namespace{region}.0 -m devdax"));
    let device = format!("/dev/dax{region}.0");
    pmem.serve(&device, "", "--require-durable=cacheline");
    pmem.client("write:0:1048576:7 verify:0:1048576:7");
    let start = pmem.number(&format!("/sys/bus/dax/devices/dax{region}.0/resource"));
    pmem.machine_check(start + 8192);
    pmem.assert_third_page_fails();
    pmem.assert_listed(&device);
    pmem.stop();
    pmem.serve(&device, "", "");
    pmem.assert_third_page_fails();
    pmem.assert_told(&[("write:8192:4096:9", "errno 5"), ("verify:8192:4096:9", "errno 5")]);
    let line = format!("run `ndctl clear-errors namespace{region}.0`");
    let log = pmem.guest.shell("cat /tmp/log");
    assert!(log.contains(&line), "the log does not say {line}: {log}");
    pmem.stop();
    format!(
        "exactly the requests that touch the page fail, at once and in the next daemon; the log says: {line}"
    )
}
