//! Device mapper over persistent memory: linear and striped devices are as durable as the regions below, unless they
//! begin beside the pages.

use super::Pmem;

/// Bytes of a sector times so many, that a part of a test's device has.
const PART_SECTORS: u64 = 192 << 11;

/// Sectors of 64 KiB.
const STRIPE_SECTORS: u64 = 128;

impl Pmem {
    /// Both modules as block devices for DAX file systems.
    fn module_blocks(&mut self) -> [String; 2] {
        [0, 1].map(|index| {
            let region = self.region("ACPI.NFIT", index);
            self.guest.shell(&format!("/lab/pmem.sh fsdax {region}"));
            format!("/dev/pmem{region}")
        })
    }

    /// Makes a device `disk` of these lines.
    fn map_devices(&mut self, table: &str) -> &'static str {
        self.guest.shell(&format!("printf '{table}' | dmsetup create --noudevrules --noudevsync disk"));
        "/dev/dm-0"
    }

    fn unmap_devices(&mut self) {
        self.guest.shell("dmsetup remove --noudevrules --noudevsync disk");
    }
}

pub(super) fn linear(pmem: &mut Pmem) -> String {
    let [one, other] = pmem.module_blocks();
    let table =
        format!("0 {PART_SECTORS} linear {one} 0\\n{PART_SECTORS} {PART_SECTORS} linear {other} 4096");
    let device = pmem.map_devices(&table);
    over_both(pmem, device)
}

pub(super) fn striped(pmem: &mut Pmem) -> String {
    let [one, other] = pmem.module_blocks();
    let sectors = 2 * PART_SECTORS;
    let device = pmem.map_devices(&format!("0 {sectors} striped 2 {STRIPE_SECTORS} {one} 0 {other} 0"));
    over_both(pmem, device)
}

fn over_both(pmem: &mut Pmem, device: &str) -> String {
    pmem.guest.shell(&format!("/lab/pmem.sh format ext4 {device} dax=always"));
    pmem.serve("/mnt/disk", ",size=32M", "--require-durable=cacheline");
    pmem.assert_class("/mnt/disk", "DAX file on ext4", "cacheline", "memory_controller");
    let regions = pmem.info("/mnt/disk")["regions"].as_array().map(Vec::len);
    assert_eq!(regions, Some(2));
    let grown = pmem.exercise(0);
    assert!(grown < 4096, "the page cache has grown by {grown} KiB");
    pmem.stop();
    pmem.guest.shell("umount /mnt");
    pmem.unmap_devices();
    "class cacheline, both regions named, bytes verified".to_owned()
}

/// Linux takes it for a DAX device, and rounds.
pub(super) fn beside_the_pages(pmem: &mut Pmem) -> String {
    let [one, other] = pmem.module_blocks();
    let shifted = format!("0 {PART_SECTORS} linear {one} 1");
    let later = format!("0 {PART_SECTORS} linear {one} 0\\n{PART_SECTORS} {PART_SECTORS} linear {other} 3");
    for table in [shifted, later] {
        let device = pmem.map_devices(&table);
        pmem.guest.shell(&format!("/lab/pmem.sh format ext4 {device} dax=always"));
        pmem.guest.shell("fallocate -l 32M /mnt/disk");
        pmem.assert_class("/mnt/disk", "", "page", "page boundary");
        pmem.assert_refused("/mnt/disk", "cacheline");
        pmem.serve("/mnt/disk", "", "");
        let log = pmem.guest.shell("cat /tmp/log");
        assert!(log.contains("WARN") && log.contains("page boundary"), "{log}");
        pmem.stop();
        pmem.guest.shell("umount /mnt");
        pmem.unmap_devices();
    }
    "class page, and a warning, wherever the part lies that is beside the pages".to_owned()
}
