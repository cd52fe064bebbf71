//! An extended attribute (xattr(7)) of a disk's file or device, which outlives the daemon.
//!
//! Regular files have `user.` attributes. Devices, and file systems without those, have only `trusted.` ones, which take
//! CAP_SYS_ADMIN: a daemon that gives up its privileges leaves them to a process that keeps this one ([`keeper`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, open};

use crate::disk::BackingFile;
use crate::sandbox;

mod keeper;
mod raw;

use keeper::Keeper;
use raw::{is_privileged, read, write};

#[cfg(test)]
pub(super) use raw::MAX_BYTES;

/// The attribute of a disk.
#[derive(Debug)]
pub(super) struct Attribute {
    file: Arc<BackingFile>,
    /// Who reads and writes it instead of this process, and the file's number there.
    keeper: Option<(Arc<Keeper>, u32)>,
}

impl Attribute {
    pub(super) const fn of(file: Arc<BackingFile>) -> Self {
        Self { file, keeper: None }
    }

    pub(super) fn read(&self) -> Option<Vec<u8>> {
        match &self.keeper {
            Some((keeper, number)) => keeper.read(*number),
            None => read(&self.file),
        }
    }

    /// Replaces the value; none removes it. Returns whether it could.
    pub(super) fn write(&self, value: Option<&[u8]>) -> bool {
        match &self.keeper {
            Some((keeper, number)) => keeper.write(*number, value),
            None => write(&self.file, value),
        }
    }

    /// Before this process gives up its privileges: leaves those that take it to a process that keeps it.
    ///
    /// # Errors
    /// No process or descriptor is left; or the sandbox has no filters, without which no process keeps the privilege.
    pub(super) fn outlive_privileges<'a>(all: impl Iterator<Item = &'a mut Self>) -> io::Result<()> {
        if !sandbox::will_give_up_attributes() {
            return Ok(());
        }
        let mut privileged: Vec<_> = all.filter(|it| is_privileged(&it.file)).collect();
        if privileged.is_empty() {
            return Ok(());
        }
        if !sandbox::has_filters() {
            return Err(io::Error::other(
                "system calls are not filtered, so no process keeps the privilege for it",
            ));
        }
        // With an open file description of its own: the lock is released when this process ends, not that one.
        let reopen = |it: &&mut Self| {
            let path = format!("/proc/self/fd/{}", it.file.as_fd().as_raw_fd());
            open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        };
        let files = privileged.iter().map(reopen).collect::<Result<Vec<_>, _>>()?;
        let keeper = Arc::new(Keeper::start(&files)?);
        for (attribute, number) in privileged.iter_mut().zip(0..) {
            attribute.keeper = Some((keeper.clone(), number));
        }
        Ok(())
    }
}
