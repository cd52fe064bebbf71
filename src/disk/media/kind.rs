//! What a path is, and what that means for its bytes.

use std::fmt;
use std::fs::FileType;
use std::os::unix::fs::FileTypeExt;

use rustix::fs::StatFs;

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A block device.
    BlockDevice,
    /// A character device, device DAX among them.
    CharacterDevice,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// Nothing this program knows.
    Other,
}

impl FileKind {
    /// Whether it may be a disk by itself.
    pub(in crate::disk) const fn is_device(self) -> bool {
        matches!(self, Self::BlockDevice | Self::CharacterDevice)
    }
}

impl From<FileType> for FileKind {
    fn from(file_type: FileType) -> Self {
        match file_type {
            it if it.is_file() => Self::Regular,
            it if it.is_dir() => Self::Directory,
            it if it.is_block_device() => Self::BlockDevice,
            it if it.is_char_device() => Self::CharacterDevice,
            it if it.is_fifo() => Self::Fifo,
            it if it.is_socket() => Self::Socket,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Regular => "a regular file",
            Self::Directory => "a directory",
            Self::BlockDevice => "a block device",
            Self::CharacterDevice => "a character device",
            Self::Fifo => "a FIFO",
            Self::Socket => "a socket",
            Self::Other => "of an unknown type",
        })
    }
}

/// What the bytes of a disk lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackingKind {
    /// Memory of the kernel: tmpfs, memfd.
    Tmpfs,
    /// Huge pages.
    Hugetlbfs,
    /// Memory of the kernel, without a limit.
    Ramfs,
    /// A device-DAX node, `/dev/daxX.Y`.
    DeviceDax,
    /// A file whose pages are the media itself.
    DaxFile {
        /// Of which file system.
        file_system: FileSystem,
    },
    /// A block device of persistent memory, `/dev/pmemN`.
    PmemBlock,
    /// A block device of persistent memory whose sectors do not tear, `/dev/pmemNs`.
    SectorBlock,
    /// Any other block device.
    BlockDevice,
    /// A file behind the page cache.
    OrdinaryFile {
        /// Of which file system.
        file_system: FileSystem,
    },
}

impl BackingKind {
    /// The kind of a regular file, by its file system, without regard to DAX.
    pub(in crate::disk) fn of(statfs: &StatFs) -> Self {
        match FileSystem::of(statfs) {
            FileSystem(0x0102_1994) => Self::Tmpfs,
            FileSystem(0x9584_58F6) => Self::Hugetlbfs,
            FileSystem(0x8584_58F6) => Self::Ramfs,
            file_system => Self::OrdinaryFile { file_system },
        }
    }

    /// Whether a write is a store into a mapping of it (memory of the kernel, DAX). Such a page needs its space before that.
    pub const fn is_written_through_mapping(self) -> bool {
        match self {
            Self::Tmpfs | Self::Hugetlbfs | Self::Ramfs | Self::DeviceDax | Self::DaxFile { .. } => true,
            Self::PmemBlock | Self::SectorBlock | Self::BlockDevice | Self::OrdinaryFile { .. } => false,
        }
    }

    /// Whether it is a device and not a file of a file system.
    pub const fn is_device(self) -> bool {
        matches!(self, Self::DeviceDax | Self::PmemBlock | Self::SectorBlock | Self::BlockDevice)
    }

    /// How requests reach the bytes, in words.
    pub const fn data_path(self) -> &'static str {
        match self {
            Self::OrdinaryFile { file_system: FileSystem::FUSE | FileSystem::V9FS } => {
                "reads through the mapping, or by preadv where none can be had, writes by pwritev"
            }
            Self::OrdinaryFile { .. } => "reads through the mapping, writes by pwritev",
            Self::PmemBlock | Self::SectorBlock | Self::BlockDevice => {
                "reads and writes past the page cache (O_DIRECT), by the kernel while no thread waits (Linux AIO)"
            }
            _ => "reads and writes through the mapping",
        }
    }
}

impl fmt::Display for BackingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tmpfs => "memory (tmpfs or memfd)",
            Self::Hugetlbfs => "huge pages (hugetlbfs)",
            Self::Ramfs => "memory (ramfs)",
            Self::DeviceDax => "device DAX",
            Self::DaxFile { file_system } => return write!(f, "DAX file on {file_system}"),
            Self::PmemBlock => "block device of persistent memory",
            Self::SectorBlock => "block device of persistent memory with atomic sectors (BTT)",
            Self::BlockDevice => "block device",
            Self::OrdinaryFile { file_system } => return write!(f, "ordinary file on {file_system}"),
        })
    }
}

/// A file system by the magic number of `statfs(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem(u64);

impl FileSystem {
    pub(in crate::disk) const BTRFS: Self = Self(0x9123_683E);
    /// Also ext2 and ext3, whichever driver they have.
    pub(in crate::disk) const EXT4: Self = Self(0xEF53);
    pub(in crate::disk) const XFS: Self = Self(0x5846_5342);
    pub(in crate::disk) const OVERLAYFS: Self = Self(0x794C_7630);
    pub(in crate::disk) const FUSE: Self = Self(0x6573_5546);
    pub(in crate::disk) const V9FS: Self = Self(0x0102_1997);

    pub(in crate::disk) fn of(statfs: &StatFs) -> Self {
        Self(u64::try_from(statfs.f_type).unwrap_or_default())
    }

    /// Whether its calls are answered by another process or machine: FUSE, NFS, SMB (two of them), 9p, ceph.
    pub(in crate::disk) const fn has_server(self) -> bool {
        matches!(self, Self::FUSE | Self::V9FS | Self(0x6969 | 0xFF53_4D42 | 0xFE53_4D42 | 0x00C3_6400))
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0xEF53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683E => "btrfs",
            0xF2F5_2010 => "f2fs",
            0xCA45_1A4E => "bcachefs",
            0x2FC1_2FC1 => "zfs",
            0x794C_7630 => "overlayfs",
            0x6573_5546 => "FUSE",
            0x6969 => "NFS",
            0xFF53_4D42 | 0xFE53_4D42 => "SMB",
            0x0102_1997 => "9p",
            0x00C3_6400 => "ceph",
            0x4D44 => "FAT",
            0x2011_BAB0 => "exFAT",
            0x7371_7368 => "squashfs",
            0xE0F5_E1E2 => "erofs",
            0x9660 => "ISO 9660",
            magic => return write!(f, "a file system of type {magic:#x}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn kind(path: &str) -> BackingKind {
        BackingKind::of(&rustix::fs::statfs(path).unwrap())
    }

    #[test]
    fn memory_is_volatile_and_other_file_systems_have_names() {
        assert_eq!(kind("/dev/shm"), BackingKind::Tmpfs);
        assert!(BackingKind::Tmpfs.is_written_through_mapping());

        let proc = kind("/proc");
        assert_eq!(proc.to_string(), "ordinary file on a file system of type 0x9fa0");
        assert!(!proc.is_written_through_mapping());
        assert_eq!(
            BackingKind::OrdinaryFile { file_system: FileSystem(0xEF53) }.to_string(),
            "ordinary file on ext4"
        );
    }

    #[test]
    fn memfds_are_memory() {
        let memfd = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(BackingKind::of(&rustix::fs::fstatfs(&memfd).unwrap()), BackingKind::Tmpfs);
        let huge = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
        match rustix::fs::memfd_create("disk", huge) {
            Ok(memfd) => {
                let kind = BackingKind::of(&rustix::fs::fstatfs(&memfd).unwrap());
                assert_eq!(kind, BackingKind::Hugetlbfs);
            }
            Err(error) => eprintln_reason(error),
        }
    }

    /// Says on standard error what a test could not do.
    #[allow(clippy::print_stderr)]
    fn eprintln_reason(error: rustix::io::Errno) {
        eprintln!("skipped: no huge memfd here: {error}");
    }

    #[test]
    fn file_kinds() {
        let kind = |path: &str| FileKind::from(Path::new(path).metadata().unwrap().file_type());
        assert_eq!(kind("/"), FileKind::Directory);
        assert_eq!(kind("/dev/null"), FileKind::CharacterDevice);
        assert_eq!(kind("/proc/self/exe"), FileKind::Regular);
        assert_eq!(FileKind::BlockDevice.to_string(), "a block device");
    }
}
