//! Which file systems keep what `MAP_SYNC` promises: stores into a mapped page are found there after a power failure once
//! their cache lines are flushed, since the file system has written down which block the page is before it could be stored
//! into.
//!
//! In Linux a file system supports the flag for all of its files or none. XFS breaks the promise for blocks that files share:
//! the first store makes a copy, and where that lies is only in the log in memory until the next sync (Linux 6.1 to 7.3). A
//! file that shares nothing now may be cloned at any time. So only file systems count of which power cuts were tried
//! (`ci/soak`): ext4, and an XFS whose files cannot share blocks.

use std::fs::File;

use crate::disk::FileSystem;
use crate::disk::sys::{XfsFeatures, xfs_features};

/// An error, in words, unless the file's file system is known to keep the promise.
pub(in crate::disk) fn check(file: &File, file_system: FileSystem) -> Result<(), String> {
    match file_system {
        FileSystem::EXT4 => Ok(()),
        FileSystem::XFS => match xfs_features(file) {
            Ok(features) => check_xfs(features),
            Err(error) => Err(format!("this XFS does not say whether its files can share blocks ({error})")),
        },
        other => Err(format!("it is not known that {other} keeps what MAP_SYNC promises")),
    }
}

fn check_xfs(features: XfsFeatures) -> Result<(), String> {
    if features.shares_blocks {
        return Err("files of this XFS can share blocks (reflink=1), and MAP_SYNC does not keep the copy that a write \
                    makes of a shared one; use mkfs.xfs -m reflink=0"
            .to_owned());
    }
    if features.has_realtime_device {
        return Err("this XFS has a realtime device, and what that lies on is not known".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xfs_whose_files_can_share_blocks_does_not_keep_it() {
        let check = |shares_blocks, has_realtime_device| {
            check_xfs(XfsFeatures { shares_blocks, has_realtime_device })
        };
        assert_eq!(check(false, false), Ok(()));
        assert!(check(true, false).unwrap_err().contains("reflink=1"));
        assert!(check(false, true).unwrap_err().contains("realtime"));
    }

    /// One file of this machine is checked as if it were on each file system. Where it is not on an XFS, the ioctl that asks XFS
    /// for its features fails.
    #[test]
    fn only_file_systems_that_are_known_to_keep_it_do() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        assert_eq!(check(&file, FileSystem::EXT4), Ok(()));
        let unknown = check(&file, FileSystem::XFS).unwrap_err();
        assert!(unknown.contains("does not say whether its files can share"), "{unknown}");
        let tmpfs = FileSystem::of(&rustix::fs::statfs("/dev/shm").unwrap());
        assert!(check(&file, tmpfs).unwrap_err().contains("not known that"));
    }
}
