//! Files of the kernel that are opened when a disk is, and read again and again: nothing is looked up by a path while disks
//! are served.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

/// More than any of them has.
const MAX_BYTES: usize = 16 << 20;

/// A file whose text may be another one each time.
#[derive(Debug, Clone)]
pub(crate) struct KeptFile(Arc<File>);

impl KeptFile {
    /// # Errors
    /// That of `open(2)`.
    pub(crate) fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self(Arc::new(File::open(path)?)))
    }

    /// What it says now, from its beginning. Anybody may read it at the same time.
    ///
    /// # Errors
    /// That of `pread(2)`, or it says no text.
    pub(crate) fn text(&self) -> io::Result<String> {
        let mut bytes = vec![0; 4096];
        let mut len = 0;
        loop {
            if len == bytes.len() {
                bytes.resize(len.saturating_mul(2).min(MAX_BYTES), 0);
            }
            let place = bytes.get_mut(len..).unwrap_or_default();
            match self.0.read_at(place, u64::try_from(len).unwrap_or(u64::MAX)) {
                Ok(0) => break,
                Ok(read) => len = len.saturating_add(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(len);
        String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// The open file, shared.
    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.0)
    }
}

impl AsFd for KeptFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_anew_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attribute");
        for text in ["old", "", &"long ".repeat(5000)] {
            std::fs::write(&path, text).unwrap();
            let kept = KeptFile::open(&path).unwrap();
            assert_eq!(kept.text().unwrap(), text);
            std::fs::write(&path, "new").unwrap();
            assert_eq!(kept.text().unwrap(), "new");
        }
        // The kernel makes its text when it is read.
        let limits = KeptFile::open("/proc/self/limits").unwrap();
        assert_eq!(limits.text().unwrap(), std::fs::read_to_string("/proc/self/limits").unwrap());
        assert_eq!(limits.text().unwrap(), limits.text().unwrap());
    }
}
