//! What sysfs says about devices. It is read here only, and tests have a tree of their own instead.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::KeptFile;

/// Bytes of a sector: the unit of sizes, offsets and bad blocks in sysfs, whatever the block size of the device. (VIRTIO's
/// sector, which happens to be as long, is `virtio::blk::SECTOR_BYTES`.)
pub(in crate::disk) const SECTOR_BYTES: u64 = 512;

/// A sysfs tree.
#[derive(Debug, Clone)]
pub(in crate::disk) struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// The kernel's, at `/sys`.
    pub(in crate::disk) fn system() -> Self {
        Self { root: PathBuf::from("/sys") }
    }

    /// One that a test has made.
    #[cfg(test)]
    pub(in crate::disk) fn at(root: &Path) -> Self {
        Self { root: fs::canonicalize(root).unwrap() }
    }

    /// Whether it lists devices at all: in some containers it is empty.
    pub(in crate::disk) fn is_there(&self) -> bool {
        self.root.join("dev/block").exists()
    }

    /// The folder of a block device, by its device number.
    pub(in crate::disk) fn block(&self, dev: u64) -> Option<Node> {
        self.device("dev/block", dev)
    }

    /// The folder of a character device, by its device number.
    pub(in crate::disk) fn character(&self, dev: u64) -> Option<Node> {
        self.device("dev/char", dev)
    }

    fn device(&self, class: &str, dev: u64) -> Option<Node> {
        let name = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        Node::at(self.root.join(class).join(name), &self.root)
    }
}

/// A folder of sysfs: a device, with links resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::disk) struct Node {
    path: PathBuf,
    root: PathBuf,
}

impl Node {
    fn at(path: PathBuf, root: &Path) -> Option<Self> {
        let path = fs::canonicalize(path).ok().filter(|path| path.starts_with(root))?;
        Some(Self { path, root: root.to_owned() })
    }

    /// A folder that is not there.
    #[cfg(test)]
    pub(in crate::disk) fn nowhere() -> Self {
        Self { path: PathBuf::new(), root: PathBuf::new() }
    }

    /// The kernel's name of the device.
    pub(in crate::disk) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// This folder and those around it, the innermost first.
    pub(in crate::disk) fn ancestry(&self) -> impl Iterator<Item = Self> + '_ {
        let inside = |path: &&Path| path.starts_with(&self.root) && *path != self.root;
        let ancestors = self.path.ancestors().take_while(inside);
        ancestors.map(|path| Self { path: path.to_owned(), root: self.root.clone() })
    }

    /// The folder `name` in this one; a link is followed.
    pub(in crate::disk) fn child(&self, name: &str) -> Option<Self> {
        Self::at(self.path.join(name), &self.root)
    }

    /// The folders in the folder `name`; links are followed.
    pub(in crate::disk) fn children(&self, name: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(self.path.join(name)) else { return Vec::new() };
        entries.flatten().filter_map(|entry| Self::at(entry.path(), &self.root)).collect()
    }

    /// The path that the link `name` has, which may lead nowhere.
    pub(in crate::disk) fn link(&self, name: &str) -> Option<PathBuf> {
        fs::read_link(self.path.join(name)).ok()
    }

    /// The last part of the path that the link `name` has.
    pub(in crate::disk) fn link_name(&self, name: &str) -> Option<String> {
        Some(self.link(name)?.file_name()?.to_string_lossy().into_owned())
    }

    /// The attribute `name` without blanks at its ends; none when it is empty or cannot be read.
    pub(in crate::disk) fn text(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.path.join(name)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The attribute `name` as a number, decimal or hexadecimal with `0x`.
    pub(in crate::disk) fn number(&self, name: &str) -> Option<u64> {
        let text = self.text(name)?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    }

    /// Opens the attribute `name` for reading.
    ///
    /// # Errors
    /// The error of `open(2)`.
    pub(in crate::disk) fn open(&self, name: &str) -> io::Result<KeptFile> {
        KeptFile::open(self.path.join(name))
    }

    /// Opens the attribute `name` for writing.
    ///
    /// # Errors
    /// The error of `open(2)`.
    pub(in crate::disk) fn open_for_writing(&self, name: &str) -> io::Result<File> {
        File::options().write(true).open(self.path.join(name))
    }
}

/// Trees for tests.
#[cfg(test)]
pub(in crate::disk) mod testing {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A sysfs with the devices that a test puts in it.
    #[derive(Debug)]
    pub(in crate::disk) struct Tree {
        folder: tempfile::TempDir,
    }

    impl Tree {
        pub(in crate::disk) fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        pub(in crate::disk) fn sysfs(&self) -> Sysfs {
            Sysfs::at(self.folder.path())
        }

        pub(in crate::disk) fn path(&self, path: &str) -> PathBuf {
            self.folder.path().join(path)
        }

        /// A file with this text.
        pub(in crate::disk) fn file(&self, path: &str, text: &str) -> &Self {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        /// A link from `path` to the folder `target`, both counted from the root.
        pub(in crate::disk) fn link(&self, path: &str, target: &str) -> &Self {
            let (path, target) = (self.path(path), self.path(target));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
            self
        }

        /// A folder with the device number `major:minor` in `dev/block` or `dev/char`.
        pub(in crate::disk) fn device(&self, class: &str, number: &str, path: &str) -> &Self {
            fs::create_dir_all(self.path(path)).unwrap();
            self.link(&format!("dev/{class}/{number}"), path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Tree;

    #[test]
    fn devices_are_found_by_their_number_and_have_attributes() {
        let tree = Tree::new();
        tree.device("block", "259:1", "devices/bus0/region0/block/pmem0/pmem0p1")
            .file("devices/bus0/region0/block/pmem0/pmem0p1/start", "2048\n")
            .file("devices/bus0/region0/resource", "0x100000000\n")
            .file("devices/bus0/region0/empty", " \n")
            .link("devices/bus0/region0/subsystem", "bus/nd");
        let node = tree.sysfs().block(rustix::fs::makedev(259, 1)).unwrap();
        assert_eq!((node.name().as_str(), node.number("start")), ("pmem0p1", Some(2048)));
        let region = node.ancestry().find(|node| node.name() == "region0").unwrap();
        assert_eq!(region.number("resource"), Some(1 << 32));
        assert_eq!((region.text("empty"), region.text("missing")), (None, None));
        assert_eq!(region.link_name("subsystem").as_deref(), Some("nd"));
        assert_eq!(node.ancestry().last().unwrap().name(), "devices");
        assert!(tree.sysfs().block(rustix::fs::makedev(259, 2)).is_none());
        assert!(tree.sysfs().character(rustix::fs::makedev(259, 1)).is_none());
    }

    #[test]
    fn nothing_outside_the_tree_is_reached() {
        let tree = Tree::new();
        tree.device("block", "1:1", "devices/a");
        std::os::unix::fs::symlink("/", tree.path("devices/a/out")).unwrap();
        let node = tree.sysfs().block(rustix::fs::makedev(1, 1)).unwrap();
        assert_eq!(node.child("out"), None);
        assert!(node.children("none").is_empty());
    }
}
