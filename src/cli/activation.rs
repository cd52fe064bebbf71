//! Sockets that outlive the process: passed by a service manager (systemd's `LISTEN_FDS`), or kept by it from one
//! run to the next (its file descriptor store). Front-ends that connect while no daemon runs wait in them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::net::SocketAddrUnix;

use crate::cli::inherited::{self, InheritedError};
use crate::cli::notify::ServiceManager;
use crate::config::{DiskConfig, SocketSource};
use crate::vhost_user::Listener;

/// The first descriptor that a service manager passes.
const FIRST: RawFd = 3;

/// A descriptor that was passed and cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActivationError {
    #[error("LISTEN_FDS={0:?}: not a number of descriptors; the service manager has to set it")]
    Count(String),
    #[error("descriptor {fd} of LISTEN_FDS cannot be used ({source}); pass Unix stream sockets")]
    Descriptor { fd: RawFd, source: InheritedError },
    #[error(
        "descriptor {fd} of LISTEN_FDS ({name:?}, bound to {path:?}): no disk without a socket yet has that name or \
         that socket=; give it the name of its disk with FileDescriptorName="
    )]
    NoDisk { fd: RawFd, name: String, path: PathBuf },
}

/// A socket that the service manager is to keep.
#[derive(Debug)]
pub(super) struct StoredSocket {
    disk: String,
    socket: OwnedFd,
}

/// Gives each disk the socket that was passed for it: that of its name, or that which is bound to its `socket=`.
pub(super) fn take_passed(disks: &mut [DiskConfig]) -> Result<(), ActivationError> {
    let own = std::process::id().to_string();
    if std::env::var_os("LISTEN_PID").is_none_or(|pid| pid != own.as_str()) {
        return Ok(()); // none, or for another process
    }
    let count = std::env::var_os("LISTEN_FDS").unwrap_or_default();
    let count = count.to_string_lossy();
    let count: u16 = count.parse().map_err(|_| ActivationError::Count(count.into_owned()))?;
    let names = std::env::var_os("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.as_bytes().split(|byte| *byte == b':').map(String::from_utf8_lossy);
    for fd in (FIRST..).take(usize::from(count)) {
        let name = names.next().unwrap_or_default().into_owned();
        let socket = inherited::take(fd).map_err(|source| ActivationError::Descriptor { fd, source })?;
        let path = bound_path(&socket).unwrap_or_default();
        let is_free = |disk: &&mut DiskConfig| disk.socket.path().is_some();
        let by_name = disks.iter_mut().filter(is_free).find(|disk| disk.name == name);
        let found = match by_name {
            Some(disk) => Some(disk),
            None => disks.iter_mut().filter(is_free).find(|disk| disk.socket.path() == Some(&path)),
        };
        let Some(disk) = found else { return Err(ActivationError::NoDisk { fd, name, path }) };
        tracing::info!(disk = disk.name, fd, "listening on a socket that was passed");
        disk.socket = SocketSource::Fd(socket);
    }
    Ok(())
}

fn bound_path(socket: &OwnedFd) -> Option<PathBuf> {
    let address = SocketAddrUnix::try_from(rustix::net::getsockname(socket).ok()?).ok()?;
    Some(Path::new(OsStr::from_bytes(address.path_bytes()?)).to_owned())
}

/// Binds the sockets of the other disks so that their paths stay when the process ends, if the service manager
/// keeps descriptors. What cannot be bound is left to the server, which says why.
pub(super) fn bind_stored(disks: &mut [DiskConfig], manager: Option<&ServiceManager>) -> Vec<StoredSocket> {
    let Some(manager) = manager.filter(|manager| manager.stores_descriptors()) else { return Vec::new() };
    let mut stored = Vec::new();
    for disk in disks.iter_mut().filter(|disk| manager.can_name(&disk.name)) {
        let bound = disk.socket.path().and_then(|path| Listener::bind(path, &disk.access).ok());
        let Some(Ok((socket, duplicate))) = bound.map(duplicated) else { continue };
        disk.socket = SocketSource::Fd(socket);
        stored.push(StoredSocket { disk: disk.name.clone(), socket: duplicate });
    }
    stored
}

fn duplicated(listener: Listener) -> io::Result<(OwnedFd, OwnedFd)> {
    let socket = listener.keep()?;
    let duplicate = socket.try_clone()?;
    Ok((socket, duplicate))
}

/// Everything listens: says so, and hands over what is to be kept.
pub(super) fn notify_ready(manager: Option<&ServiceManager>, stored: Vec<StoredSocket>) {
    let Some(manager) = manager else { return };
    for StoredSocket { disk, socket } in stored {
        if let Err(error) = manager.store(&disk, socket.as_fd()) {
            tracing::warn!(disk, %error, "the service manager does not keep the socket");
            if error.kind() == io::ErrorKind::WouldBlock {
                // It takes nothing at all: the others need not wait for it as well.
                break;
            }
        }
    }
    if let Err(error) = manager.ready() {
        tracing::warn!(%error, "the service manager cannot be told that the disks are served");
    }
}
