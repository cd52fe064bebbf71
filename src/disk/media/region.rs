//! The region of persistent memory that a device is made of: libnvdimm's `regionN` and the bus it is on.

use std::fs::File;

use crate::disk::Durability;
use crate::disk::media::sysfs::Node;

/// How many layers of device-mapper devices are followed.
const MAX_DEPTH: u32 = 8;

/// A region of persistent memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// `regionN`.
    pub name: String,
    /// Who reports its bus: `ACPI.NFIT`, `e820`, `virtio-pmem`, …
    pub provider: Option<String>,
    /// What a write must have reached for the platform to save it when the power fails; none where it does not say.
    pub persistence_domain: Option<String>,
    /// Its memory does not outlive the machine.
    pub is_volatile: bool,
    /// It is memory of a host (virtio-pmem), which makes it persist only when it is asked to.
    pub is_virtual: bool,
    /// The platform can be told to empty the memory controller's queues.
    pub has_flush_hints: bool,
    /// The NUMA node it is near to.
    pub numa_node: Option<u32>,
    /// How often its modules lost power in a way that may have cost data; none where they do not count.
    pub dirty_shutdowns: Option<u64>,
    node: Node,
}

impl Region {
    /// The regions below a device: one for `/dev/pmemN`, `/dev/daxX.Y` and their partitions, several for a
    /// device-mapper device over several of them. Empty unless every device below has one.
    pub(in crate::disk) fn all_of(device: &Node) -> Vec<Self> {
        Self::gather(device, MAX_DEPTH).unwrap_or_default()
    }

    fn gather(device: &Node, depth: u32) -> Option<Vec<Self>> {
        if let Some(region) = Self::around(device) {
            return Some(vec![region]);
        }
        let below = device.children("slaves");
        if below.is_empty() || depth == 0 {
            return None;
        }
        let mut regions = Vec::new();
        for device in below {
            regions.extend(Self::gather(&device, depth - 1)?);
        }
        Some(regions)
    }

    /// The region whose folder the device is in.
    fn around(device: &Node) -> Option<Self> {
        let is_region = |node: &Node| {
            node.name().starts_with("region") && node.text("devtype").is_some_and(|it| it.starts_with("nd_"))
        };
        let node = device.ancestry().find(is_region)?;
        let bus = node.ancestry().find(|node| node.text("provider").is_some());
        let provider = bus.as_ref().and_then(|bus| bus.text("provider"));
        let is_virtual = provider.as_ref().is_some_and(|name| name.starts_with("virtio"))
            || node.ancestry().any(|node| node.link_name("subsystem").is_some_and(|it| it == "virtio"));
        Some(Self {
            name: node.name(),
            provider,
            persistence_domain: node.text("persistence_domain"),
            is_volatile: node.text("devtype").is_some_and(|it| it == "nd_volatile"),
            is_virtual,
            has_flush_hints: node.number("deep_flush") == Some(1),
            numa_node: node.text("numa_node").and_then(|it| it.parse().ok()),
            dirty_shutdowns: bus.and_then(|bus| dirty_shutdowns(&node, &bus)),
            node,
        })
    }

    /// What a store survives after a fence or a flush of its line, in a mapping of this region.
    ///
    /// A region without `persistence_domain` (old firmware, e820) counts as one whose memory controller's queues are saved, as in
    /// libpmem2 and Linux: the platform says that it is persistent memory, and that is believed. CPU caches are believed to be
    /// saved only where the region itself says so.
    pub(in crate::disk) fn durability(&self) -> Durability {
        match self.persistence_domain.as_deref() {
            _ if self.is_volatile => Durability::Volatile,
            _ if self.is_virtual => Durability::Page,
            Some("cpu_cache") => Durability::Byte,
            _ => Durability::CacheLine,
        }
    }

    /// Why it has this durability, in words.
    pub(in crate::disk) fn why(&self) -> String {
        let name = &self.name;
        match self.persistence_domain.as_deref() {
            _ if self.is_volatile => format!("{name} is volatile memory"),
            _ if self.is_virtual => {
                let provider = self.provider.as_deref().unwrap_or("virtio");
                format!("{name} belongs to {provider}: its host saves it only when asked to")
            }
            Some("cpu_cache") => format!("{name}: the caches are saved when the power fails"),
            Some(domain) => format!("{name}: persistence_domain is {domain}"),
            None => format!(
                "{name} of {}: no persistence_domain, so caches are not taken to be saved",
                self.provider.as_deref().unwrap_or("an unknown bus")
            ),
        }
    }

    /// Writing `1` here empties the memory controller's queues.
    pub(in crate::disk) fn deep_flush_file(&self) -> std::io::Result<File> {
        self.node.open_for_writing("deep_flush")
    }

    /// A region without a folder in sysfs.
    #[cfg(test)]
    pub(crate) fn testing(name: &str, dirty_shutdowns: Option<u64>) -> Self {
        Self {
            name: name.to_owned(),
            provider: Some("ACPI.NFIT".to_owned()),
            persistence_domain: Some("cpu_cache".to_owned()),
            is_volatile: false,
            is_virtual: false,
            has_flush_hints: false,
            numa_node: None,
            dirty_shutdowns,
            node: Node::nowhere(),
        }
    }

    /// Its folder in sysfs.
    pub(in crate::disk) const fn node(&self) -> &Node {
        &self.node
    }
}

/// The sum of the counters of a region's modules. (`mapping0` of a region is `nmem0,start,length,position`.)
fn dirty_shutdowns(region: &Node, bus: &Node) -> Option<u64> {
    let mut total = None;
    for number in 0..region.number("mappings")? {
        let mapping = region.text(&format!("mapping{number}"))?;
        let module = bus.child(mapping.split(',').next()?)?;
        let counter = ["nfit", "papr", "cxl"];
        let counts = counter.iter().find_map(|family| module.number(&format!("{family}/dirty_shutdown")));
        total = counts.map(|count| total.unwrap_or(0_u64).saturating_add(count)).or(total);
    }
    total
}

#[cfg(test)]
pub(in crate::disk) mod testing {
    use crate::disk::media::sysfs::testing::Tree;

    pub(in crate::disk) const NFIT: &str = "devices/acpi/ndbus0";

    /// A bus with a region of two modules.
    pub(in crate::disk) fn bus(tree: &Tree, bus: &str, provider: &str, domain: Option<&str>) {
        let region = format!("{bus}/region0");
        tree.file(&format!("{bus}/provider"), provider)
            .file(&format!("{region}/devtype"), "nd_pmem\n")
            .file(&format!("{region}/numa_node"), "1\n")
            .file(&format!("{region}/resource"), "0x100000000\n")
            .file(&format!("{region}/mappings"), "2\n")
            .file(&format!("{region}/mapping0"), "nmem0,0,1073741824,0\n")
            .file(&format!("{region}/mapping1"), "nmem1,0,1073741824,1\n")
            .file(&format!("{bus}/nmem0/nfit/dirty_shutdown"), "2\n")
            .file(&format!("{bus}/nmem1/nfit/dirty_shutdown"), "3\n");
        if let Some(domain) = domain {
            tree.file(&format!("{region}/persistence_domain"), &format!("{domain}\n"));
        }
    }

    /// `/dev/pmem0` of number 259:0 on that bus.
    pub(in crate::disk) fn pmem(tree: &Tree, bus: &str) {
        tree.device("block", "259:0", &format!("{bus}/region0/pfn0.1/block/pmem0"));
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{NFIT, bus, pmem};
    use super::*;
    use crate::disk::media::sysfs::Sysfs;
    use crate::disk::media::sysfs::testing::Tree;

    fn regions(sysfs: &Sysfs, major: u32, minor: u32) -> Vec<Region> {
        Region::all_of(&sysfs.block(rustix::fs::makedev(major, minor)).unwrap())
    }

    #[test]
    fn a_region_says_what_its_memory_survives() {
        for (domain, durability, why) in [
            (None, Durability::CacheLine, "region0 of ACPI.NFIT: no persistence_domain"),
            (Some("memory_controller"), Durability::CacheLine, "persistence_domain is memory_controller"),
            (Some("cpu_cache"), Durability::Byte, "the caches are saved"),
        ] {
            let tree = Tree::new();
            bus(&tree, NFIT, "ACPI.NFIT\n", domain);
            pmem(&tree, NFIT);
            let region = regions(&tree.sysfs(), 259, 0).remove(0);
            assert_eq!(region.durability(), durability, "{domain:?}");
            assert!(region.why().contains(why), "{}", region.why());
            assert_eq!(region.provider.as_deref(), Some("ACPI.NFIT"));
            assert_eq!((region.numa_node, region.dirty_shutdowns), (Some(1), Some(5)));
            assert!(!region.has_flush_hints);
        }
    }

    /// virtio-pmem is recognised by its provider, or by the virtio device above it; even `cpu_cache` does not make it durable.
    #[test]
    fn memory_of_a_host_is_not_durable() {
        let named = Tree::new();
        bus(&named, NFIT, "virtio-pmem", Some("cpu_cache"));
        pmem(&named, NFIT);
        let above = Tree::new();
        bus(&above, "devices/virtio1/ndbus1", "something new", None);
        above.link("devices/virtio1/subsystem", "bus/virtio");
        pmem(&above, "devices/virtio1/ndbus1");
        for tree in [named, above] {
            let region = regions(&tree.sysfs(), 259, 0).remove(0);
            assert!(region.is_virtual && region.durability() == Durability::Page, "{region:?}");
        }
    }

    #[test]
    fn volatile_regions_are_volatile() {
        let tree = Tree::new();
        bus(&tree, NFIT, "ACPI.NFIT", Some("cpu_cache"));
        tree.file(&format!("{NFIT}/region0/devtype"), "nd_volatile");
        pmem(&tree, NFIT);
        assert_eq!(regions(&tree.sysfs(), 259, 0).remove(0).durability(), Durability::Volatile);
    }

    #[test]
    fn device_mapper_has_the_regions_below_or_none() {
        let tree = Tree::new();
        bus(&tree, NFIT, "ACPI.NFIT", Some("memory_controller"));
        pmem(&tree, NFIT);
        bus(&tree, "devices/b/ndbus1", "ACPI.NFIT", Some("cpu_cache"));
        tree.device("block", "259:1", "devices/b/ndbus1/region0/block/pmem1")
            .device("block", "254:0", "devices/virtual/block/dm-0")
            .link("devices/virtual/block/dm-0/slaves/pmem0", &format!("{NFIT}/region0/pfn0.1/block/pmem0"))
            .link("devices/virtual/block/dm-0/slaves/pmem1", "devices/b/ndbus1/region0/block/pmem1")
            .device("block", "8:0", "devices/pci/block/sda")
            .device("block", "254:1", "devices/virtual/block/dm-1")
            .link("devices/virtual/block/dm-1/slaves/dm-0", "devices/virtual/block/dm-0")
            .link("devices/virtual/block/dm-1/slaves/sda", "devices/pci/block/sda")
            .link("devices/virtual/block/dm-0/slaves/loop", "devices/virtual/block/dm-0");
        assert_eq!(regions(&tree.sysfs(), 254, 0).len(), 0, "a loop ends");
        std::fs::remove_file(tree.path("devices/virtual/block/dm-0/slaves/loop")).unwrap();
        let both = regions(&tree.sysfs(), 254, 0);
        assert_eq!(both.iter().map(Region::durability).min(), Some(Durability::CacheLine));
        assert_eq!(both.len(), 2);
        assert!(regions(&tree.sysfs(), 254, 1).is_empty(), "a disk that is no memory below");
        assert!(regions(&tree.sysfs(), 8, 0).is_empty());
    }

    /// CXL's regions have names of the same form.
    #[test]
    fn other_regions_are_not_ours() {
        let tree = Tree::new();
        tree.device("block", "259:0", "devices/cxl/region0/dax_region0/dax0.0")
            .file("devices/cxl/region0/devtype", "cxl_region");
        assert!(regions(&tree.sysfs(), 259, 0).is_empty());
    }
}
