//! XFS whose files can share blocks. `MAP_SYNC` does not keep the copy that a first store makes of a shared one, so what
//! is written there is safe after a sync only; `soak::pmem_power` cuts the power.

use super::{METRICS, MIB, Pmem};
use crate::guest::Reply;

/// The exit code of a disk whose space is not to be had.
const NO_SPACE: i32 = 7;

/// Size of the disks here, as `dax_file` makes them.
const DISK_BYTES: u64 = 32 * MIB;

/// As `mkfs.xfs` makes it by itself.
pub(super) fn xfs(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    pmem.guest.shell(&format!("/lab/pmem.sh format xfs-sharing {block} dax=always"));
    let seen = pmem.dax_file("page", "reflink=1");
    pmem.assert_on_module();
    pmem.guest.shell(&format!("mount -o dax=always {block} /mnt"));
    let said = pmem.assert_refused("/mnt/disk", "cacheline");
    assert!(said.contains("can share blocks (reflink=1)") && said.contains("reflink=0"), "{said}");
    clone_while_served(pmem);
    blocks_of_its_own(pmem);
    pmem.guest.shell("umount /mnt");
    format!("{seen}; {said}")
}

/// What the disk writes after it was cloned is not in the clone.
fn clone_while_served(pmem: &mut Pmem) {
    pmem.serve("/mnt/disk", "", "--require-durable=page");
    pmem.client("write:0:1048576:7 flush");
    pmem.guest.shell("/lab/pmem-client clone /mnt/disk /mnt/clone");
    pmem.client("write:0:4096:8 verify:0:4096:8 flush");
    pmem.stop();
    pmem.serve("/mnt/clone", ",sparse=on", METRICS);
    pmem.assert_told(&[("verify:0:1048576:7", "ok"), ("write:4096:4096:9", "ok"), ("flush", "ok")]);
    pmem.stop();
    assert!(pmem.shared_extents("/mnt/clone") > 0, "with sparse=on the rest stays shared");
}

/// What a clone shares is left alone where the disk is sparse, and else becomes its own before it is served: a store into
/// it cannot fail for want of space then, and if that is missing the start does.
fn blocks_of_its_own(pmem: &mut Pmem) {
    pmem.serve("/mnt/clone", "", METRICS);
    pmem.await_populated();
    assert_eq!(pmem.shared_extents("/mnt/clone"), 0);
    pmem.assert_told(&[("verify:0:4096:7", "ok"), ("write:0:4096:5", "ok"), ("flush", "ok")]);
    pmem.stop();
    pmem.serve("/mnt/disk", ",sparse=on", "");
    pmem.assert_told(&[("verify:0:4096:8", "ok"), ("verify:4096:4096:9", "differs")]);
    pmem.stop();
    pmem.guest.shell("/lab/pmem-client clone /mnt/disk /mnt/other");
    pmem.guest.shell(&format!(
        "fallocate -l $(( $(stat -f -c '%a * %S' /mnt) - {} )) /mnt/rest && sync",
        DISK_BYTES / 2
    ));
    let Reply { status, text } = pmem.guest.run("/lab/pmem.sh serve /mnt/other ''");
    assert_eq!(status, NO_SPACE, "{text}");
    assert!(pmem.shared_extents("/mnt/other") > 0);
}

impl Pmem {
    /// Extents of a file whose blocks belong to another one, too.
    fn shared_extents(&mut self, path: &str) -> usize {
        const SHARED: u64 = 0x2000;
        let text = self.guest.shell(&format!("sync; xfs_io -r -c 'fiemap -v' {path}"));
        let flags = text.lines().filter_map(|line| line.rsplit_once(" 0x"));
        flags.filter(|(_, hex)| u64::from_str_radix(hex.trim(), 16).unwrap_or(0) & SHARED != 0).count()
    }
}
