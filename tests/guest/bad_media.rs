//! Bad media, by the lists that Linux lets a test write to: who fails, and what a write mends.

use serde_json::Value;

use super::pmem::Pmem;
use crate::common::MIB;

/// Where the client looks for the metrics of the disk named `disk`, and for events.
pub(super) const METRICS: &str = "--metrics /tmp/metrics.sock --control /tmp/control.sock --allow /tmp";

impl Pmem {
    /// Serves a new file of an ext4 with DAX on this device, fills its first bytes with seed 7, and has its third
    /// page go bad while it is not served. Metrics are served with it from then on.
    fn spoil(&mut self, block: &str) {
        self.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=always"));
        self.serve("/mnt/disk", ",size=32M", "");
        self.client("write:0:1048576:7 flush");
        self.stop();
        let page = self.block_of(block, 2);
        self.guest.shell(&format!("echo '{} 8' > {}", page * 8, list_of(block)));
        let ranges = self.info("/mnt/disk")["bad_blocks"].to_string();
        assert_eq!(ranges, r#"[{"length_bytes":4096,"offset_bytes":8192}]"#);
        self.serve("/mnt/disk", "", METRICS);
        self.assert_event("[8192..12288]");
    }

    /// Whoever follows events is told that these ranges are bad.
    pub(super) fn assert_event(&mut self, ranges: &str) {
        let told = self.guest.shell("/lab/vhost-user-pmem ctl --control /tmp/control.sock events --json");
        let events = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let bad: Vec<_> = events.filter(|event| event["event"] == "media-bad").collect();
        assert!(bad.iter().any(|it| it["disk"] == "disk" && it["ranges"] == ranges), "{told}");
    }

    /// Where the file system has this page of the file `disk`, in pages of the device.
    pub(super) fn block_of(&mut self, block: &str, page: u64) -> u64 {
        let text = self.guest.shell(&format!("sync; debugfs -R 'bmap disk {page}' {block} 2>/dev/null"));
        text.parse().unwrap_or_else(|_| panic!("bmap: {text:?}"))
    }

    /// Insists on what a client is told, operation by operation.
    pub(super) fn assert_told(&mut self, told: &[(&str, &str)]) {
        let operations: Vec<&str> = told.iter().map(|(operation, _)| *operation).collect();
        let said = self.client(&operations.join(" "));
        let expected: Vec<String> =
            told.iter().map(|(operation, told)| format!("{operation} {told}")).collect();
        assert_eq!(said, expected);
    }
}

/// Where Linux lists the bad sectors of a device.
fn list_of(block: &str) -> String {
    format!("/sys/block/{}/badblocks", block.trim_start_matches("/dev/"))
}

/// What the requests around the third page are told; with the answer of the metrics before and after.
const AROUND: [(&str, &str); 11] = [
    ("bad-bytes", "4096"),
    ("verify:0:8192:7", "ok"),
    ("verify:4096:8192:7", "errno 5"),
    ("verify:8192:512:7", "errno 5"),
    ("verify:12288:4096:9", "differs"),
    ("write:12288:4096:9", "ok"),
    ("verify:12288:4096:9", "ok"),
    ("write:8704:512:9", "errno 5"),
    ("write:16384:4096:9", "ok"),
    ("flush", "ok"),
    ("bad-bytes", "4096"),
];

/// A write of more than the page, and one of less, after which the page is like any other.
const COVERING: [(&str, &str); 7] = [
    ("write:4096:12288:5", "ok"),
    ("bad-bytes", "0"),
    ("verify:4096:12288:5", "ok"),
    ("verify:0:4096:7", "ok"),
    ("write:8192:512:6", "ok"),
    ("verify:8192:512:6", "ok"),
    ("flush", "ok"),
];

/// The platform (QEMU's modules) cannot clear it: the file gets another page instead.
pub fn of_a_file(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    pmem.spoil(&block);
    pmem.assert_told(&AROUND);
    pmem.assert_told(&COVERING);
    pmem.guest.shell("/lab/pmem.sh alive");
    pmem.stop();
    assert_eq!(pmem.info("/mnt/disk")["bad_blocks"].to_string(), "[]");
    pmem.serve("/mnt/disk", "", METRICS);
    pmem.assert_told(&COVERING[3..]);
    pmem.stop();
    pmem.guest.shell("umount /mnt");
    "exactly the requests that touch the page fail; a write that covers it gets the file another one"
        .to_owned()
}

/// Memory of the kernel's command line is repaired by being written.
pub fn repaired(pmem: &mut Pmem) -> String {
    let block = format!("/dev/pmem{}", pmem.region("e820", 0));
    pmem.spoil(&block);
    pmem.assert_told(&AROUND);
    let listed = pmem.guest.shell(&format!("cat {}", list_of(&block)));
    assert!(!listed.is_empty(), "nothing is listed before");
    let before = pmem.block_of(&block, 2);
    pmem.assert_told(&COVERING);
    let listed = pmem.guest.shell(&format!("cat {}", list_of(&block)));
    assert_eq!(listed, "", "still listed");
    assert_eq!(pmem.block_of(&block, 2), before, "the page itself was repaired");
    pmem.stop();
    pmem.guest.shell("umount /mnt");
    "a write that covers the page repairs it: it reads well, and badblocks is empty".to_owned()
}

pub fn of_a_block_device(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    pmem.serve(&block, "", "");
    pmem.client("write:0:1048576:7 flush");
    pmem.stop();
    pmem.guest.shell(&format!("echo '8 8' > {}", list_of(&block)));
    let ranges = pmem.info(&block)["bad_blocks"].to_string();
    assert!(ranges.starts_with(r#"[{"length_bytes":4096,"offset_bytes":4096}"#), "{ranges}");
    pmem.serve(&block, ",name=disk", METRICS);
    let said = pmem.client("bad-bytes");
    assert_ne!(said, ["bad-bytes 0"]);
    pmem.assert_told(&[
        ("verify:0:4096:7", "ok"),
        ("verify:0:4608:7", "errno 5"),
        ("verify:4096:512:7", "errno 5"),
        ("verify:7680:1024:7", "errno 5"),
        ("write:8192:4096:9", "ok"),
        ("verify:8192:4096:9", "ok"),
    ]);
    pmem.guest.shell("/lab/pmem.sh alive");
    pmem.stop();
    "exactly the requests that touch the page fail".to_owned()
}

/// Pages that go bad without a word while they are served, and have not been touched before: the faults tell.
pub fn unannounced(pmem: &mut Pmem) -> String {
    let block = format!("/dev/pmem{}", pmem.region("e820", 0));
    pmem.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=always"));
    pmem.serve("/mnt/disk", ",size=32M", "");
    pmem.client("write:0:1048576:7 flush");
    pmem.stop();
    pmem.serve("/mnt/disk", ",sparse=on", METRICS);
    for page in [2, 5, 6] {
        let page = pmem.block_of(&block, page);
        pmem.guest.shell(&format!("echo '{} 8' > {}", page * 8, list_of(&block)));
    }
    // Once something is repaired Linux says that its list has changed, and the rest of it is known, too.
    pmem.assert_told(&[
        ("bad-bytes", "0"),
        ("verify:8192:512:7", "errno 5"),
        ("bad-bytes", "4096"),
        ("write:20480:512:5", "errno 5"),
        ("bad-bytes", "8192"),
        ("write:16384:16384:5", "ok"),
        ("write:8192:4096:5", "ok"),
        ("bad-bytes", "0"),
        ("verify:8192:4096:5", "ok"),
        ("verify:16384:16384:5", "ok"),
        ("verify:0:8192:7", "ok"),
    ]);
    pmem.stop();
    pmem.guest.shell("umount /mnt");
    "reads and partial writes fail, writes that cover the pages repair them as they meet them".to_owned()
}

/// Without DAX: a page of the page cache that cannot be filled.
pub fn below_the_page_cache(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    pmem.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=never"));
    pmem.serve("/mnt/disk", ",size=32M", "");
    pmem.client("write:0:1048576:7 flush");
    pmem.stop();
    let page = pmem.block_of(&block, 2);
    pmem.guest.shell(&format!("echo '{} 8' > {}", page * 8, list_of(&block)));
    pmem.guest.shell("echo 3 > /proc/sys/vm/drop_caches");
    pmem.serve("/mnt/disk", "", METRICS);
    pmem.assert_told(&[
        ("bad-bytes", "0"),
        ("verify:0:8192:7", "ok"),
        ("verify:4096:8192:7", "errno 5"),
        ("verify:8192:512:7", "errno 5"),
        ("bad-bytes", "4096"),
        ("verify:12288:4096:9", "differs"),
        ("write:12288:4096:9", "ok"),
        ("write:8192:4096:9", "ok"),
        ("bad-bytes", "0"),
        ("verify:8192:4096:9", "ok"),
        ("bad-bytes", "0"),
    ]);
    let log = pmem.guest.shell("cat /tmp/log");
    assert!(log.contains("/mnt/disk: the media failed at byte 8192"), "{log}");
    pmem.guest.shell("/lab/pmem.sh alive");
    pmem.stop();
    pmem.guest.shell("umount /mnt");
    "exactly the requests that touch the page fail, and it is listed until it is written".to_owned()
}

/// A hole of a DAX file for which there is no space is a fault of the store.
pub fn full(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    pmem.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=always"));
    pmem.serve("/mnt/disk", ",size=32M,sparse=on", METRICS);
    pmem.client("write:0:1048576:7 flush");
    // What a failed write has taken is there again after a sync.
    let fill = |name| {
        format!("dd if=/dev/zero of=/mnt/{name} bs=1M; dd if=/dev/zero of=/mnt/{name}-4k bs=4k; sync;")
    };
    pmem.guest.shell(&format!("{} {} {} true", fill("a"), fill("b"), fill("c")));
    let writes: Vec<String> = (8..32).map(|mib| format!("write:{}:1048576:8", mib * MIB)).collect();
    let said = pmem.client(&writes.join(" "));
    assert!(said.last().unwrap().ends_with(" errno 5"), "{said:?}");
    pmem.assert_told(&[
        ("verify:0:1048576:7", "ok"),
        ("write:0:4096:8", "ok"),
        ("flush", "ok"),
        ("bad-bytes", "0"),
    ]);
    let log = pmem.guest.shell("cat /tmp/log");
    assert!(log.contains("/mnt/disk: no space is left on its file system for the hole at byte"), "{log}");
    // ext4 gives what was freed to others once its journal says so.
    pmem.guest.shell("rm /mnt/a; sync");
    pmem.assert_told(&[("write:32505856:1048576:8", "ok"), ("verify:32505856:1048576:8", "ok")]);
    pmem.guest.shell("/lab/pmem.sh alive");
    pmem.stop();
    pmem.guest.shell("umount /mnt");
    "writes that need more space fail until there is some".to_owned()
}
