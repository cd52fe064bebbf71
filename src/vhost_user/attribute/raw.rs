//! The attribute itself, read and written by whoever may.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// Its names: the first is for files, the second for devices.
const NAMES: [&str; 2] = ["user.vhost-user-pmem", "trusted.vhost-user-pmem"];

/// Room for the longest value, in bytes.
pub(in crate::vhost_user) const MAX_BYTES: usize = 64;

/// Whether it takes a privilege: the other kind cannot even be asked for here.
pub(super) fn is_privileged(file: &File) -> bool {
    let [of_users, _] = NAMES;
    !file.metadata().is_ok_and(|it| it.is_file())
        || fgetxattr(file, of_users, &mut [0_u8; MAX_BYTES]) == Err(Errno::NOTSUP)
}

pub(super) fn read(file: &impl AsFd) -> Option<Vec<u8>> {
    NAMES.iter().find_map(|name| {
        let mut bytes = [0; MAX_BYTES];
        let len = fgetxattr(file, *name, &mut bytes).ok()?;
        bytes.get(..len).map(<[u8]>::to_vec)
    })
}

pub(super) fn write(file: &impl AsFd, value: Option<&[u8]>) -> bool {
    // What is not so any more is worse than nothing.
    NAMES.iter().for_each(|name| _ = fremovexattr(file, *name));
    let Some(value) = value else { return true };
    NAMES.iter().any(|name| fsetxattr(file, *name, value, XattrFlags::empty()).is_ok())
}
