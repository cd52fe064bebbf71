//! What media a path leads to, and what a write to it survives.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, StatFs, StatxAttributes, StatxFlags, statx};

use crate::copy::Engine;
use crate::disk::media::bad_blocks::{BadBlockList, PAGE_BYTES};
use crate::disk::media::region::Region;
use crate::disk::media::storage::Storage;
use crate::disk::media::sysfs::{Node, SECTOR_BYTES, Sysfs};
use crate::disk::sys::can_map_sync;
use crate::disk::{BackingKind, Durability, FileKind, FileSystem};

pub(in crate::disk) mod address;
pub(in crate::disk) mod bad_blocks;
pub(in crate::disk) mod kind;
mod map_sync;
pub(in crate::disk) mod region;
pub(in crate::disk) mod storage;
pub(in crate::disk) mod sysfs;

/// What a path is made of.
#[derive(Debug, Clone)]
pub struct Media {
    /// What it is.
    pub kind: BackingKind,
    /// What a completed and flushed write survives.
    pub durability: Durability,
    /// Why it has this durability and no other, in words.
    pub why: String,
    /// What is below, where that changes what a flush means.
    pub storage: Option<Storage>,
    /// Regions of persistent memory below: one, none, or those of a device-mapper device.
    pub regions: Vec<Region>,
    /// Bytes that were known to be bad when the media was examined, as offsets in the disk.
    pub bad_blocks: Vec<Range<u64>>,
    /// Where Linux lists what is bad by now.
    pub(in crate::disk) bad_block_list: Option<BadBlockList>,
    /// What the operator ought to know.
    pub(in crate::disk) warning: Option<String>,
    /// Why a device cannot be a disk as it is now.
    pub(in crate::disk) unusable: Option<Unusable>,
    /// The namespace of persistent memory that a device-DAX node is made of, as `ndctl` calls it.
    pub namespace: Option<String>,
    /// Size of a device in bytes, as sysfs says; 0 for files.
    pub device_bytes: u64,
    /// Bytes of a unit: of mappings for a device-DAX node, of transfers for a block device.
    pub unit_bytes: u64,
}

impl Media {
    /// What FLUSH does, in words.
    pub fn flush(&self) -> &'static str {
        match (self.durability, self.kind) {
            (Durability::Volatile, _) | (Durability::CacheLine | Durability::Byte, _) => "fence",
            (Durability::Page, BackingKind::DaxFile { .. } | BackingKind::DeviceDax) => {
                "msync of what was written, or fdatasync"
            }
            (Durability::Page, _) => "fdatasync",
        }
    }

    /// The NUMA node that all of it is near to.
    pub fn numa_node(&self) -> Option<u32> {
        let mut nodes = self.regions.iter().map(|region| region.numa_node);
        let first = nodes.next()??;
        nodes.all(|node| node == Some(first)).then_some(first)
    }

    /// The media of a regular file. `file`, if it is open, is tried whether it can be mapped with `MAP_SYNC`.
    pub(in crate::disk) fn of_file(
        metadata: &Metadata,
        statfs: &StatFs,
        file: Option<&File>,
        sysfs: &Sysfs,
    ) -> Self {
        let kind = BackingKind::of(statfs);
        if kind.is_written_through_mapping() {
            return Self::plain(kind, Durability::Volatile, format!("{kind} does not outlive the machine"));
        }
        let device = sysfs.block(metadata.dev());
        let regions = device.as_ref().map(Region::all_of).unwrap_or_default();
        let file_system = FileSystem::of(statfs);
        let dax = file.map_or(Dax::No, |file| Dax::of(file, file_system));
        let beside = device.as_ref().filter(|device| dax != Dax::No && is_beside_pages(device));
        let warning = beside.map(|device| {
            format!(
                "{} does not begin at a page boundary of what it lies on (alignment_offset is no multiple of {PAGE_BYTES}), \
                 and DAX reaches other bytes than its file system does by block I/O",
                device.name()
            )
        });
        let dax = warning.clone().map_or(dax, Dax::Pages);
        let mut media = Self { warning, ..Self::of_dax(dax, file_system, regions) };
        let is_dax = matches!(media.kind, BackingKind::DaxFile { .. });
        media.storage = Storage::of_file(metadata, sysfs);
        media.bad_block_list = device.filter(|_| is_dax).map(|device| BadBlockList::of_file(&device));
        if let Some(file) = file {
            media.find_bad_blocks(file);
        }
        media
    }

    /// Asks where the blocks of a file lie now, and which of them are bad.
    pub(in crate::disk) fn find_bad_blocks(&mut self, file: &File) {
        if let Some(list) = &self.bad_block_list {
            self.bad_blocks = list.read(file);
        }
    }

    /// The media of a regular file that is not in memory, by its DAX state and by the regions below it.
    fn of_dax(dax: Dax, file_system: FileSystem, regions: Vec<Region>) -> Self {
        let kind = match dax {
            Dax::No => BackingKind::OrdinaryFile { file_system },
            Dax::Pages(_) | Dax::Synchronous => BackingKind::DaxFile { file_system },
        };
        let weakest = regions.iter().min_by_key(|region| region.durability());
        let (durability, why) = match (dax, weakest) {
            (Dax::No, None) => (Durability::Page, "writes go through the page cache".to_owned()),
            (Dax::No, Some(_)) => {
                (Durability::Page, "on persistent memory, but not mounted with DAX: page cache".to_owned())
            }
            (_, Some(region)) if region.is_volatile => (Durability::Volatile, region.why()),
            (Dax::Pages(why), _) => (Durability::Page, format!("DAX, but {why}")),
            // The region decides, not MAP_SYNC: the kernel has been seen to accept that on virtio-pmem.
            (Dax::Synchronous, Some(region)) => (region.durability(), region.why()),
            (Dax::Synchronous, None) => {
                (Durability::Page, "DAX with MAP_SYNC, but on no known persistent memory".to_owned())
            }
        };
        Self { regions, ..Self::plain(kind, durability, why) }
    }

    /// The media of a character device; none unless it is device DAX.
    pub(in crate::disk) fn of_character_device(metadata: &Metadata, sysfs: &Sysfs) -> Option<Self> {
        let device = sysfs.character(metadata.rdev())?;
        device.link_name("subsystem").filter(|name| name == "dax")?;
        let regions = Region::all_of(&device);
        let unusable = Unusable::of_device_dax(&device);
        let (durability, why) = match regions.first() {
            _ if let Some(unusable) = &unusable => (Durability::Volatile, unusable.cause.clone()),
            // Only the host can make it persist, and device DAX has no fsync that would ask the host.
            Some(region) if region.is_virtual => (Durability::Volatile, region.why()),
            Some(_) if !Engine::get().flushes_lines() => {
                (Durability::Volatile, "this CPU's cache lines cannot be written back".to_owned())
            }
            Some(region) => (region.durability(), region.why()),
            None => (Durability::Volatile, "no nd region: memory set aside (hmem, CXL) is lost".to_owned()),
        };
        let bad_block_list =
            regions.first().map(|region| BadBlockList::of_device_dax(&device, region.node()));
        Some(Self {
            bad_blocks: bad_block_list.as_ref().map(BadBlockList::of_device).unwrap_or_default(),
            bad_block_list,
            unusable,
            namespace: device.ancestry().find_map(|node| node.text("namespace")),
            device_bytes: device.number("size").unwrap_or(0),
            // 2 MiB is what ndctl chooses; kernels before 5.2 have no `align`.
            unit_bytes: device.number("align").filter(|it| it.is_power_of_two()).unwrap_or(2 << 20),
            regions,
            ..Self::plain(BackingKind::DeviceDax, durability, why)
        })
    }

    /// The media of a block device.
    pub(in crate::disk) fn of_block_device(metadata: &Metadata, sysfs: &Sysfs) -> Self {
        let device = sysfs.block(metadata.rdev());
        let regions = device.as_ref().map(Region::all_of).unwrap_or_default();
        let is_btt = |node: &Node| node.ancestry().any(|it| it.name().starts_with("btt"));
        let kind = match &device {
            Some(node) if !regions.is_empty() && is_btt(node) => BackingKind::SectorBlock,
            _ if !regions.is_empty() => BackingKind::PmemBlock,
            _ => BackingKind::BlockDevice,
        };
        let volatile = regions.iter().find(|region| region.is_volatile);
        let (durability, why) = match volatile {
            Some(region) => (Durability::Volatile, region.why()),
            None => (Durability::Page, "a block device's writes are durable after fdatasync".to_owned()),
        };
        let sectors = device.as_ref().and_then(|node| node.number("size")).unwrap_or(0);
        let unit_bytes = device.as_ref().and_then(block_bytes).unwrap_or(SECTOR_BYTES);
        let bad_block_list = device.as_ref().map(BadBlockList::of_block_device);
        Self {
            bad_blocks: bad_block_list.as_ref().map(BadBlockList::of_device).unwrap_or_default(),
            bad_block_list,
            device_bytes: sectors.saturating_mul(SECTOR_BYTES),
            unit_bytes,
            regions,
            storage: Storage::of_device(device.as_ref()),
            ..Self::plain(kind, durability, why)
        }
    }

    /// Media for a test.
    #[cfg(test)]
    pub(in crate::disk) fn testing(kind: BackingKind, durability: Durability, regions: Vec<Region>) -> Self {
        Self { regions, ..Self::plain(kind, durability, String::new()) }
    }

    fn plain(kind: BackingKind, durability: Durability, why: String) -> Self {
        Self {
            kind,
            durability,
            why,
            storage: None,
            regions: Vec::new(),
            bad_blocks: Vec::new(),
            bad_block_list: None,
            warning: None,
            unusable: None,
            namespace: None,
            device_bytes: 0,
            unit_bytes: 1,
        }
    }
}

/// Why a device cannot be a disk as it is now, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::disk) struct Unusable {
    pub(in crate::disk) cause: String,
    pub(in crate::disk) remedy: String,
}

impl Unusable {
    /// A device-DAX node exists whatever the device's driver is, but only with `device_dax` it can be mapped: `kmem` makes it
    /// memory of the system. (Before Linux 5.1 these devices had a class and no drivers.)
    fn of_device_dax(device: &Node) -> Option<Self> {
        if !device.link("subsystem").is_some_and(|it| it.ends_with("bus/dax")) {
            return None;
        }
        let cause = match device.link_name("driver").as_deref() {
            Some("device_dax") => return None,
            Some("kmem") => "its driver is kmem: it is memory of this machine's system".to_owned(),
            Some(other) => format!("its driver is {other}, not device_dax"),
            None => "it has no driver".to_owned(),
        };
        let remedy = format!("run `daxctl reconfigure-device --mode=devdax {}`", device.name());
        Some(Self { cause, remedy })
    }
}

/// Whether a device, or a part of a device-mapper one, does not begin at a page boundary of the device below. (Linux says -1
/// where the parts' offsets differ.)
fn is_beside_pages(device: &Node) -> bool {
    let offset = device.text("alignment_offset").and_then(|text| text.parse::<i64>().ok());
    offset.is_some_and(|offset| !offset.unsigned_abs().is_multiple_of(PAGE_BYTES))
}

/// Whether the device that a file is, or lies on, is removed, or has another driver than it had.
pub(in crate::disk) fn is_gone(metadata: &Metadata, sysfs: &Sysfs) -> bool {
    let is_without = |device: Option<Node>| device.is_none_or(|it| Unusable::of_device_dax(&it).is_some());
    sysfs.is_there()
        && match FileKind::from(metadata.file_type()) {
            FileKind::CharacterDevice => is_without(sysfs.character(metadata.rdev())),
            FileKind::BlockDevice => sysfs.block(metadata.rdev()).is_none(),
            // Major 0: the file system is on no device.
            _ => rustix::fs::major(metadata.dev()) != 0 && sysfs.block(metadata.dev()).is_none(),
        }
}

/// Whether a file's pages are the media itself (DAX).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Dax {
    No,
    /// Yes, but a store persists only after `msync` or `fdatasync`, for this reason: the file system may not have written down
    /// where the page lies.
    Pages(String),
    /// Yes, and `MAP_SYNC` holds: where a page lies is written down before it can be stored into.
    Synchronous,
}

impl Dax {
    fn of(file: &File, file_system: FileSystem) -> Self {
        if !is_dax(file) {
            return Self::No;
        }
        if !can_map_sync(file) {
            return Self::Pages("MAP_SYNC is refused".to_owned());
        }
        if !Engine::get().flushes_lines() {
            return Self::Pages("this CPU's cache lines cannot be written back".to_owned());
        }
        map_sync::check(file, file_system).map_or_else(Self::Pages, |()| Self::Synchronous)
    }
}

/// Whether `statx` says that this file is on DAX.
fn is_dax(file: &File) -> bool {
    statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::empty())
        .is_ok_and(|it| it.stx_attributes.contains(StatxAttributes::DAX))
}

/// As above, for a path; nothing is opened.
pub(in crate::disk) fn is_dax_path(path: &std::path::Path) -> io::Result<bool> {
    let found = statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::DAX))
}

/// The smallest transfer of a block device, in bytes; a partition has that of its disk.
fn block_bytes(device: &Node) -> Option<u64> {
    device.ancestry().take(2).find_map(|node| node.number("queue/logical_block_size"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::media::region::testing::{NFIT, bus, pmem};
    use crate::disk::media::sysfs::testing::Tree;

    fn tree(provider: &str, domain: Option<&str>) -> Tree {
        let tree = Tree::new();
        bus(&tree, NFIT, provider, domain);
        pmem(&tree, NFIT);
        tree
    }

    fn regions(tree: &Tree) -> Vec<Region> {
        Region::all_of(&tree.sysfs().block(rustix::fs::makedev(259, 0)).unwrap())
    }

    /// Regular files, by whether MAP_SYNC holds and by the regions below.
    #[test]
    fn files_are_as_durable_as_both_the_mapping_and_the_region_say() {
        use Dax::{No, Pages, Synchronous};
        use Durability::{Byte, CacheLine, Page};
        let ext4 = FileSystem::of(&rustix::fs::statfs("/").unwrap());
        for (dax, provider, domain, durability, why) in [
            (Synchronous, "ACPI.NFIT", Some("memory_controller"), CacheLine, "memory_controller"),
            (Synchronous, "ACPI.NFIT", Some("cpu_cache"), Byte, "caches are saved"),
            (Synchronous, "e820", None, CacheLine, "of e820: no persistence_domain"),
            (Synchronous, "virtio-pmem", None, Page, "belongs to virtio-pmem"),
            (Synchronous, "virtio3", Some("cpu_cache"), Page, "belongs to virtio3"),
            (Pages("it is shared".to_owned()), "ACPI.NFIT", Some("cpu_cache"), Page, "DAX, but it is shared"),
            (No, "ACPI.NFIT", Some("cpu_cache"), Page, "not mounted with DAX"),
        ] {
            let (what, is_no) = (format!("{dax:?} {provider} {domain:?}"), dax == No);
            let media = Media::of_dax(dax, ext4, regions(&tree(provider, domain)));
            assert_eq!(media.durability, durability, "{what}");
            assert!(media.why.contains(why), "{}", media.why);
            let is_dax = matches!(media.kind, BackingKind::DaxFile { .. });
            assert_eq!(is_dax, !is_no);
            assert_eq!(media.kind.is_written_through_mapping(), !is_no);
            assert_eq!(media.numa_node(), Some(1));
            assert_eq!(media.flush().contains("fdatasync"), durability == Page);
        }
        let nowhere = Media::of_dax(Synchronous, ext4, vec![]);
        assert_eq!(nowhere.durability, Page, "{}", nowhere.why);
        assert_eq!(Media::of_dax(No, ext4, vec![]).flush(), "fdatasync");
    }

    /// `/dev/null` stands for the device node: only its device number is used.
    #[test]
    fn device_dax_is_told_by_its_subsystem() {
        let metadata = std::fs::metadata("/dev/null").unwrap();
        let number = format!("{}:{}", rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let of = |tree: &Tree| Media::of_character_device(&metadata, &tree.sysfs());
        for (domain, durability) in
            [(Some("cpu_cache"), Durability::Byte), (Some("memory_controller"), Durability::CacheLine)]
        {
            let tree = tree("ACPI.NFIT", domain);
            assert!(of(&tree).is_none());
            let device = format!("{NFIT}/region0/dax0.1/dax0.0");
            tree.device("char", &number, &device).file(&format!("{device}/size"), "1073741824\n");
            assert!(of(&tree).is_none(), "no subsystem");
            tree.link(&format!("{device}/subsystem"), "bus/dax")
                .link(&format!("{device}/driver"), "bus/dax/drivers/device_dax")
                .file(&format!("{NFIT}/region0/dax0.1/namespace"), "namespace0.0\n");
            let media = of(&tree).unwrap();
            assert_eq!((media.kind, media.durability), (BackingKind::DeviceDax, durability));
            assert_eq!((media.device_bytes, media.unit_bytes), (1 << 30, 2 << 20));
            assert_eq!(media.namespace.as_deref(), Some("namespace0.0"));
            tree.file(&format!("{device}/align"), "4096");
            assert_eq!(of(&tree).unwrap().unit_bytes, 4096);
        }
        let hmem = Tree::new();
        hmem.device("char", &number, "devices/platform/hmem.0/dax0.0")
            .link("devices/platform/hmem.0/dax0.0/subsystem", "bus/dax");
        let media = of(&hmem).unwrap();
        assert_eq!((media.durability, media.device_bytes), (Durability::Volatile, 0));
    }

    #[test]
    fn device_dax_of_another_driver_is_no_disk() {
        let metadata = std::fs::metadata("/dev/null").unwrap();
        let number = format!("{}:{}", rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        for (subsystem, driver, cause) in [
            ("bus/dax", Some("device_dax"), None),
            ("bus/dax", Some("kmem"), Some("its driver is kmem")),
            ("bus/dax", Some("other"), Some("its driver is other")),
            ("bus/dax", None, Some("it has no driver")),
            ("class/dax", None, None),
        ] {
            let tree = tree("ACPI.NFIT", Some("memory_controller"));
            let device = format!("{NFIT}/region0/dax0.1/dax0.0");
            tree.device("char", &number, &device).link(&format!("{device}/subsystem"), subsystem);
            if let Some(driver) = driver {
                tree.link(&format!("{device}/driver"), &format!("bus/dax/drivers/{driver}"));
            }
            let media = Media::of_character_device(&metadata, &tree.sysfs()).unwrap();
            let fit = if cause.is_some() { Durability::Volatile } else { Durability::CacheLine };
            assert_eq!(media.durability, fit, "{driver:?}");
            assert_eq!(is_gone(&metadata, &tree.sysfs()), cause.is_some(), "{driver:?}");
            assert_eq!(media.unusable.is_some(), cause.is_some(), "{driver:?}");
            if let (Some(unusable), Some(cause)) = (media.unusable, cause) {
                assert!(unusable.cause.starts_with(cause), "{}", unusable.cause);
                assert_eq!(unusable.remedy, "run `daxctl reconfigure-device --mode=devdax dax0.0`");
            }
        }
        let elsewhere = tree("ACPI.NFIT", None);
        assert!(is_gone(&metadata, &elsewhere.sysfs()), "there is no such device");
        // A file is gone with the device below, where its file system names one.
        let file = std::fs::metadata(env!("CARGO_MANIFEST_DIR")).unwrap();
        assert_eq!(is_gone(&file, &elsewhere.sysfs()), rustix::fs::major(file.dev()) != 0);
        let memory = std::fs::metadata("/dev/shm").unwrap();
        assert!(!is_gone(&memory, &elsewhere.sysfs()) && !is_gone(&file, &Tree::new().sysfs()));
    }

    #[test]
    fn devices_that_begin_beside_the_pages_are_known() {
        for (offset, is_beside) in [("0", false), ("4096", false), ("3584", true), ("-1", true)] {
            let tree = tree("ACPI.NFIT", None);
            tree.file(&format!("{NFIT}/region0/pfn0.1/block/pmem0/alignment_offset"), &format!("{offset}\n"));
            let device = tree.sysfs().block(rustix::fs::makedev(259, 0)).unwrap();
            assert_eq!(is_beside_pages(&device), is_beside, "{offset}");
        }
    }

    #[test]
    fn block_devices_need_a_sync_whatever_they_are_made_of() {
        let metadata = std::fs::metadata("/dev/null").unwrap();
        let number = format!("{}:{}", rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let of = |device: &str, domain| {
            let tree = tree("ACPI.NFIT", domain);
            tree.device("block", &number, device)
                .file(&format!("{device}/size"), "2048\n")
                .file(&format!("{device}/queue/logical_block_size"), "4096\n")
                .file(&format!("{device}/badblocks"), "16 8\n");
            Media::of_block_device(&metadata, &tree.sysfs())
        };
        for domain in [None, Some("cpu_cache")] {
            let media = of(&format!("{NFIT}/region0/pfn0.2/block/pmem1"), domain);
            assert_eq!((media.kind, media.durability), (BackingKind::PmemBlock, Durability::Page));
            assert_eq!((media.device_bytes, media.unit_bytes), (1 << 20, 4096));
            assert_eq!(media.bad_blocks, [8192..12288]);
            assert_eq!(
                of(&format!("{NFIT}/region0/btt0.0/block/pmem1s"), domain).kind,
                BackingKind::SectorBlock
            );
        }
        let other = of("devices/pci/block/sda", None);
        assert_eq!((other.kind, other.durability), (BackingKind::BlockDevice, Durability::Page));
        assert!(other.regions.is_empty() && other.flush() == "fdatasync");
    }

    #[test]
    fn the_file_system_of_the_machine_is_told() {
        let of = |folder: &str| {
            let file = tempfile::tempfile_in(folder).unwrap();
            let statfs = rustix::fs::fstatfs(&file).unwrap();
            Media::of_file(&file.metadata().unwrap(), &statfs, Some(&file), &Sysfs::system())
        };
        let memory = of("/dev/shm");
        assert_eq!((memory.kind, memory.durability), (BackingKind::Tmpfs, Durability::Volatile));
        assert_eq!(memory.flush(), "fence");
        let ordinary = of(env!("CARGO_MANIFEST_DIR"));
        if matches!(ordinary.kind, BackingKind::OrdinaryFile { .. }) {
            assert_eq!(ordinary.durability, Durability::Page);
        }
        assert!(!is_dax_path(std::path::Path::new("/")).unwrap());
    }
}
