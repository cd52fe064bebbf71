//! What is below a file system or a device, where that changes what a flush means: storage of other machines, other processes or
//! other devices.

use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{major, minor};

use crate::disk::media::sysfs::{Node, Sysfs};

/// Layers that are named: more are hardly ever built, and a loop of links would have no end.
const NAMED_LAYERS: usize = 8;

/// The mounts of this process.
const MOUNTS: &str = "/proc/self/mountinfo";

/// A kind of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageKind {
    /// A replicated block device.
    Drbd,
    /// A block device of a Ceph cluster.
    Rbd,
    /// A network block device.
    Nbd,
    /// Logical volumes, encryption, several paths.
    DeviceMapper,
    /// Software RAID.
    Md,
    /// A file as a device.
    Loop,
    /// A replicated file system, through FUSE.
    Gluster,
    /// The file system of a Ceph cluster, by the kernel or through FUSE.
    CephFs,
    /// NFS.
    Nfs,
    /// SMB.
    Smb,
    /// 9p.
    Plan9,
    /// Any other process that answers as a file system.
    Fuse,
}

impl StorageKind {
    /// Of a block device, by the kernel's name of it.
    pub fn of_device(name: &str) -> Option<Self> {
        let letters = name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '-');
        Some(match letters {
            "drbd" => Self::Drbd,
            "rbd" => Self::Rbd,
            "nbd" => Self::Nbd,
            "dm" => Self::DeviceMapper,
            // As `md127`, and `md_d0` for arrays that could be partitioned before Linux 2.6.28.
            "md" | "md_d" => Self::Md,
            "loop" => Self::Loop,
            _ => return None,
        })
    }

    /// Of a mount, by the type that the kernel says, with its subtype.
    pub fn of_file_system(name: &str) -> Option<Self> {
        Some(match name {
            "fuse.glusterfs" => Self::Gluster,
            "ceph" | "fuse.ceph" | "fuse.ceph-fuse" => Self::CephFs,
            "nfs" | "nfs4" => Self::Nfs,
            "cifs" | "smb3" | "smbfs" => Self::Smb,
            "9p" => Self::Plan9,
            "fuse" | "fuseblk" => Self::Fuse,
            other if other.starts_with("fuse.") || other.starts_with("fuseblk.") => Self::Fuse,
            _ => return None,
        })
    }

    /// What a flush of ours has it do.
    pub const fn flush(self) -> &'static str {
        match self {
            Self::Drbd => {
                "it empties the caches of the disks of this node and, with protocol C, of the peer while that is connected"
            }
            Self::Nbd => "the server flushes, if it has said that it can; else nothing happens",
            Self::DeviceMapper | Self::Md => "it is passed on to each device below",
            Self::Loop => "the file behind it is synced",
            Self::Gluster => "each brick that can be reached has synced its file",
            Self::Rbd | Self::CephFs => {
                "all replicas that are there have what was written: at least as many as the min_size of the pool"
            }
            Self::Nfs => "the server has it on stable storage (COMMIT)",
            Self::Smb => "the server is asked to flush, unless it is mounted with nostrictsync",
            Self::Plan9 => "the server is asked to sync",
            Self::Fuse => "the server is asked to sync (FSYNC); what that does is its own affair",
        }
    }
}

impl fmt::Display for StorageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drbd => "DRBD",
            Self::Rbd => "Ceph RBD",
            Self::Nbd => "NBD",
            Self::DeviceMapper => "device mapper",
            Self::Md => "software RAID",
            Self::Loop => "loop device",
            Self::Gluster => "GlusterFS",
            Self::CephFs => "CephFS",
            Self::Nfs => "NFS",
            Self::Smb => "SMB",
            Self::Plan9 => "9p",
            Self::Fuse => "FUSE",
        })
    }
}

/// One of the layers below a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageLayer {
    /// What it is.
    pub kind: StorageKind,
    /// Which one: the kernel's name of a device, the type of a mount.
    pub name: String,
    /// What it is made of, where the kernel says: the file behind a loop device, the level of an array, the name of a volume, the
    /// source of a mount.
    pub detail: Option<String>,
}

impl fmt::Display for StorageLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.name, self.kind)?;
        if let Some(detail) = &self.detail {
            write!(f, ", {detail}")?;
        }
        f.write_str(")")
    }
}

/// The layers below a disk that change what a flush means, the uppermost first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage(Vec<StorageLayer>);

impl Storage {
    /// Below a file: its mount, where another process or machine answers, and the device of its file system.
    pub(in crate::disk) fn of_file(metadata: &Metadata, sysfs: &Sysfs) -> Option<Self> {
        let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
        Self::of(mount(&mounts, metadata.dev()), sysfs.block(metadata.dev()))
    }

    /// Below a block device, and itself.
    pub(in crate::disk) fn of_device(device: Option<&Node>) -> Option<Self> {
        Self::of(None, device.cloned())
    }

    fn of(mount: Option<(&str, &str)>, device: Option<Node>) -> Option<Self> {
        let mut layers: Vec<_> = mount
            .and_then(|(name, source)| {
                let kind = StorageKind::of_file_system(name)?;
                Some(StorageLayer { kind, name: name.to_owned(), detail: Some(unescaped(source)) })
            })
            .into_iter()
            .collect();
        if let Some(device) = device {
            add_device(&device, &mut layers);
        }
        (!layers.is_empty()).then_some(Self(layers))
    }

    /// The layers, the uppermost first.
    pub fn layers(&self) -> &[StorageLayer] {
        &self.0
    }

    /// What a flush has the lowest layers do: those above pass it on.
    pub fn flush(&self) -> &'static str {
        self.0.last().map_or("", |layer| layer.kind.flush())
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, layer) in self.0.iter().enumerate() {
            if number != 0 {
                f.write_str(" on ")?;
            }
            write!(f, "{layer}")?;
        }
        Ok(())
    }
}

/// Adds a device, or the disk that it is a partition of, and those below it.
fn add_device(device: &Node, layers: &mut Vec<StorageLayer>) {
    let known = |node: Node| Some((StorageKind::of_device(&node.name())?, node));
    if let Some((kind, node)) = device.ancestry().take(2).find_map(known) {
        let name = node.name();
        if layers.len() >= NAMED_LAYERS || layers.iter().any(|layer| layer.name == name) {
            return;
        }
        let detail = match kind {
            StorageKind::Loop => node.text("loop/backing_file"),
            StorageKind::Md => node.text("md/level"),
            StorageKind::DeviceMapper => node.text("dm/name").map(|name| match node.text("dm/uuid") {
                Some(uuid) if uuid.starts_with("LVM-") => format!("LVM volume {name}"),
                Some(uuid) if uuid.starts_with("CRYPT-") => format!("encrypted {name}"),
                Some(uuid) if uuid.starts_with("mpath-") => format!("multipath {name}"),
                _ => name,
            }),
            _ => None,
        };
        layers.push(StorageLayer { kind, name, detail });
        let mut below = node.children("slaves");
        below.sort_by_key(Node::name);
        below.iter().for_each(|below| add_device(below, layers));
    }
}

/// Type and source of the mount with this device number (proc_pid_mountinfo(5)); the uppermost, if there are several.
fn mount(mounts: &str, dev: u64) -> Option<(&str, &str)> {
    let number = format!("{}:{}", major(dev), minor(dev));
    mounts.lines().rev().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (before.split(' ').nth(2)? == number).then_some(())?;
        let mut words = after.split(' ');
        Some((words.next()?, words.next()?))
    })
}

/// The kernel writes blanks and backslashes as octal numbers.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::media::sysfs::testing::Tree;

    #[test]
    fn devices_are_known_by_their_names() {
        for (name, kind) in [
            ("drbd0", Some("DRBD")),
            ("drbd1000", Some("DRBD")),
            ("rbd3", Some("Ceph RBD")),
            ("nbd15", Some("NBD")),
            ("dm-0", Some("device mapper")),
            ("md127", Some("software RAID")),
            ("md_d0", Some("software RAID")),
            ("loop7", Some("loop device")),
            ("sda", None),
            ("sda1", None),
            ("nvme0n1", None),
            ("nvme0n1p2", None),
            ("vda", None),
            ("pmem0", None),
            ("ram0", None),
            ("zram0", None),
            ("mmcblk0", None),
            ("", None),
        ] {
            let is = StorageKind::of_device(name).map(|kind| kind.to_string());
            assert_eq!(is.as_deref(), kind, "{name}");
        }
    }

    #[test]
    fn mounts_are_known_by_their_types() {
        for (name, kind) in [
            ("fuse.glusterfs", Some(StorageKind::Gluster)),
            ("ceph", Some(StorageKind::CephFs)),
            ("fuse.ceph-fuse", Some(StorageKind::CephFs)),
            ("nfs4", Some(StorageKind::Nfs)),
            ("nfs", Some(StorageKind::Nfs)),
            ("cifs", Some(StorageKind::Smb)),
            ("9p", Some(StorageKind::Plan9)),
            ("fuse.sshfs", Some(StorageKind::Fuse)),
            ("fuse", Some(StorageKind::Fuse)),
            ("fuseblk", Some(StorageKind::Fuse)),
            ("ext4", None),
            ("xfs", None),
            ("tmpfs", None),
            ("nfsd", None),
            ("fusectl", None),
        ] {
            assert_eq!(StorageKind::of_file_system(name), kind, "{name}");
        }
    }

    #[test]
    fn the_mount_of_a_file_is_found_by_its_device_number() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
                      90 22 0:45 / /mnt/a\\040b rw shared:9 master:2 - fuse.glusterfs node1:/vol\\040ume rw\n\
                      91 22 0:46 / /n rw - nfs4 server:/x rw,vers=4.2\nbroken\n92 22 0:47 - \n";
        let dev = |minor| rustix::fs::makedev(0, minor);
        assert_eq!(mount(mounts, rustix::fs::makedev(254, 0)), Some(("ext4", "/dev/root")));
        assert_eq!(mount(mounts, dev(46)), Some(("nfs4", "server:/x")));
        assert_eq!(mount(mounts, dev(47)), None);
        let storage = Storage::of(mount(mounts, dev(45)), None).unwrap();
        assert_eq!(storage.to_string(), "fuse.glusterfs (GlusterFS, node1:/vol ume)");
        assert_eq!(storage.flush(), StorageKind::Gluster.flush());
        let ceph = "92 22 0:48 / /c rw,nosuid - fuse.ceph-fuse ceph-fuse rw,user_id=0,allow_other\n";
        let storage = Storage::of(mount(ceph, dev(48)), None).unwrap();
        assert_eq!(storage.to_string(), "fuse.ceph-fuse (CephFS, ceph-fuse)");
        assert!(storage.flush().contains("min_size"));
        assert_eq!(Storage::of(mount(mounts, rustix::fs::makedev(254, 0)), None), None);
    }

    #[test]
    fn layers_are_named_down_to_the_lowest() {
        let tree = Tree::new();
        tree.device("block", "253:0", "devices/virtual/block/dm-0")
            .file("devices/virtual/block/dm-0/dm/name", "vg0-disk\n")
            .file("devices/virtual/block/dm-0/dm/uuid", "LVM-abc\n")
            .link("devices/virtual/block/dm-0/slaves/drbd0", "devices/virtual/block/drbd0")
            .file("devices/virtual/block/drbd0/size", "8\n")
            // A loop of links, which no kernel makes.
            .link("devices/virtual/block/drbd0/slaves/dm-0", "devices/virtual/block/dm-0")
            .device("block", "9:127", "devices/virtual/block/md127")
            .file("devices/virtual/block/md127/md/level", "raid1\n")
            .link("devices/virtual/block/md127/slaves/loop1", "devices/virtual/block/loop1")
            .link("devices/virtual/block/md127/slaves/loop0", "devices/virtual/block/loop0")
            .link("devices/virtual/block/md127/slaves/sda1", "devices/pci/block/sda/sda1")
            .file("devices/virtual/block/loop0/loop/backing_file", "/srv/a\n")
            .file("devices/virtual/block/loop1/loop/backing_file", "/srv/b\n")
            .file("devices/pci/block/sda/sda1/size", "8\n")
            .device("block", "8:1", "devices/pci/block/sda/sda1")
            .device("block", "43:1", "devices/virtual/block/nbd0/nbd0p1");
        let of =
            |major, minor| Storage::of_device(tree.sysfs().block(rustix::fs::makedev(major, minor)).as_ref());
        let volume = of(253, 0).unwrap();
        assert_eq!(volume.to_string(), "dm-0 (device mapper, LVM volume vg0-disk) on drbd0 (DRBD)");
        assert!(volume.flush().contains("protocol C"));
        let array = of(9, 127).unwrap();
        assert_eq!(
            array.to_string(),
            "md127 (software RAID, raid1) on loop0 (loop device, /srv/a) on loop1 (loop device, /srv/b)"
        );
        assert_eq!(of(43, 1).unwrap().to_string(), "nbd0 (NBD)", "of a partition, the disk");
        assert_eq!(of(8, 1), None);
        assert_eq!(of(1, 1), None, "there is none");
    }
}
