//! What the kernel writes that nobody asked for: zeroes, where a page is entered that has space but no data.

use super::{METRICS, MIB, Pmem};

/// Size of the disks here.
const DISK_BYTES: u64 = 64 * MIB;

/// What the file system writes beside the zeroes, at most.
const OTHERS_BYTES: u64 = 8 * MIB;

impl Pmem {
    /// Bytes that a block device has been given to write. (Stores into a mapping are not among them.)
    fn device_written(&mut self, block: &str) -> u64 {
        let name = block.trim_start_matches("/dev/").to_owned();
        let sectors = self.guest.shell(&format!("sync; awk '{{ print $7 }}' /sys/block/{name}/stat"));
        sectors.parse::<u64>().unwrap() * 512
    }

    /// A metric of the disk.
    fn metric(&mut self, name: &str) -> u64 {
        let said = self.client(&format!("metric:{name}")).remove(0);
        said.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{said}"))
    }

    pub(super) fn await_populated(&mut self) {
        self.guest
            .shell("for try in $(seq 600); do grep -q populated /tmp/log && exit 0; sleep 0.1; done; exit 1");
    }
}

pub(super) fn counted(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    // Such devices do not count by themselves.
    let queue = format!("/sys/block/{}/queue", block.trim_start_matches("/dev/"));
    pmem.guest.shell(&format!("echo 1 >{queue}/iostats"));
    let mut seen = Vec::new();
    // ext4 would zero its inodes meanwhile.
    for (kind, options) in [("ext4", "dax=always,noinit_itable"), ("xfs", "dax=always")] {
        pmem.guest.shell(&format!("/lab/pmem.sh format {kind} {block} {options}"));
        let before = pmem.device_written(&block);
        pmem.serve("/mnt/disk", &format!(",size={DISK_BYTES}"), METRICS);
        pmem.await_populated();
        let zeroed = pmem.device_written(&block) - before;
        let counted = pmem.metric("populated_zero_bytes_total");
        assert_eq!(counted, DISK_BYTES, "{kind}: the kernel wrote {zeroed}");
        let plausible = DISK_BYTES..DISK_BYTES + OTHERS_BYTES;
        assert!(plausible.contains(&zeroed), "{kind}: {zeroed} bytes were written for {counted}");
        assert_eq!(pmem.metric("media_written_bytes_total"), DISK_BYTES, "{kind}");
        pmem.client("write:0:4096:7 flush");
        assert_eq!(pmem.metric("media_written_bytes_total"), DISK_BYTES + 4096, "{kind}");
        pmem.stop();
        // Everything is written by now.
        pmem.serve("/mnt/disk", "", METRICS);
        pmem.await_populated();
        assert_eq!(pmem.metric("populated_zero_bytes_total"), 0, "{kind}");
        pmem.stop();
        let first_store = first_store(pmem, &block);
        pmem.guest.shell("umount /mnt");
        seen.push(format!("{kind}: {zeroed} bytes for {counted} counted, {first_store} for a first store"));
    }
    seen.join("; ")
}

/// What the kernel writes for the first 512 bytes of a disk that has no data yet. It cannot be told from what the daemon
/// sees.
fn first_store(pmem: &mut Pmem, block: &str) -> u64 {
    pmem.guest.shell(&format!("fallocate -l {DISK_BYTES} /mnt/sparse"));
    pmem.serve("/mnt/sparse", ",sparse=on", METRICS);
    let before = pmem.device_written(block);
    pmem.client("write:4194304:512:7 flush");
    let written = pmem.device_written(block) - before;
    assert_eq!(pmem.metric("media_written_bytes_total"), 512);
    pmem.stop();
    written
}
