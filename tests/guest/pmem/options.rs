//! Where ext4 has no DAX though it was asked for, and where it has it file by file.

use super::Pmem;

/// Some of its files are DAX files, those below a folder that says so.
pub(super) fn file_by_file(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    pmem.guest.shell(&format!("/lab/pmem.sh format ext4 {block} dax=inode"));
    pmem.guest.shell("mkdir /mnt/dax && xfs_io -c 'chattr +x' /mnt/dax");
    for (path, backing, class, why) in [
        ("/mnt/plain", "ordinary file on ext4", "page", "not mounted with DAX"),
        ("/mnt/dax/disk", "DAX file on ext4", "cacheline", "memory_controller"),
    ] {
        pmem.serve(path, ",size=32M", "");
        pmem.assert_class(path, backing, class, why);
        pmem.stop();
    }
    let said = pmem.assert_refused("/mnt/plain", "cacheline");
    pmem.guest.shell("umount /mnt");
    format!("only files with the attribute are DAX files; of another: {said}")
}

/// Blocks that are no pages, and data in the journal: the kernel refuses DAX for all, or for each file.
pub(super) fn refused_by_ext4(pmem: &mut Pmem) -> String {
    let block = pmem.module_block();
    for (make, option) in [("-b 1024", ""), ("-b 4096", ",data=journal")] {
        pmem.guest.shell(&format!("mkfs.ext4 -q -F {make} {block}"));
        let mount = |dax: &str| format!("mount -t ext4 -o dax={dax}{option} {block} /mnt");
        assert_ne!(pmem.guest.run(&mount("always")).status, 0, "ext4 {make} is mounted with DAX");
        pmem.guest.shell(&mount("inode"));
        pmem.guest.shell("mkdir /mnt/dax && xfs_io -c 'chattr +x' /mnt/dax || true");
        pmem.serve("/mnt/dax/disk", ",size=16M", "");
        pmem.assert_class("/mnt/dax/disk", "ordinary file on ext4", "page", "not mounted with DAX");
        let grown = pmem.exercise_part(1, 2);
        assert!(grown > 1024, "the page cache has grown by {grown} KiB only");
        pmem.stop();
        pmem.assert_refused("/mnt/dax/disk", "cacheline");
        pmem.guest.shell("umount /mnt");
    }
    "blocks of 1024 bytes, and data in the journal: an ordinary file of class page".to_owned()
}
