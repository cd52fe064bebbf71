//! A path becomes a socket that listens, and only those may connect who should.
//!
//! The inode is made without any permission, gets its owner, group and mode, and listens last: whatever the process's
//! umask is, there is no moment at which somebody else may connect.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{
    Access, AtFlags, FlockOperation, Gid, Mode, OFlags, Uid, chmod, chownat, fchmod, flock, fstat,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::error::ListenerError;
use crate::disk::Symlinks;
use crate::limits::bounds::SOCKET_FOLDER_TIMEOUT;

/// As many connections may wait to be let in as the machine allows (`net.core.somaxconn`).
const BACKLOG: i32 = i32::MAX;

/// Pause between two attempts to lock the folder.
const FOLDER_POLL: Duration = Duration::from_millis(5);

/// Who may connect to a socket: its inode says so (unix(7): to connect is to write).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketAccess {
    /// Its permissions, whatever the umask is: at most 0777.
    pub mode: u32,
    /// The user it belongs to; that of this process where nothing is said.
    pub owner: Option<u32>,
    /// Its group; that of this process, or of the folder (setgid), where nothing is said.
    pub group: Option<u32>,
    /// Whether the path may lead through symbolic links.
    pub symlinks: Symlinks,
}

impl Default for SocketAccess {
    /// The user and the group of this process.
    fn default() -> Self {
        Self { mode: 0o660, owner: None, group: None, symlinks: Symlinks::Follow }
    }
}

/// Listens on a path. A socket that nobody answers on, and that is ours to replace, is replaced.
pub(super) fn listening(path: &Path, access: &SocketAccess) -> Result<UnixListener, ListenerError> {
    let failed = |operation| {
        move |source| ListenerError::Io { path: path.to_owned(), operation, source: named(source) }
    };
    if access.symlinks == Symlinks::Refuse {
        let folder = OFlags::PATH | OFlags::DIRECTORY;
        access.symlinks.open(folder_of(path), folder, Mode::empty()).map_err(failed("bind"))?;
    }
    let _alone = lock_folder(path).map_err(failed("bind"))?;
    make_room(path, access)?;
    let address = address(path).map_err(failed("bind"))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| failed("make")(errno.into()))?;
    // The inode in the folder is made with what this one has (`unix_bind` of Linux).
    fchmod(&socket, Mode::empty()).map_err(|errno| failed("make")(errno.into()))?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => return Err(ListenerError::InUse(path.to_owned())),
        bound => bound.map_err(|errno| failed("bind")(errno.into()))?,
    }
    let listens = give_away(path, access)
        .map_err(failed("set the owner and the mode of"))
        .and_then(|()| listen(&socket, BACKLOG).map_err(|errno| failed("listen on")(errno.into())));
    if let Err(error) = listens {
        // Ignored: the first error is the one to report.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(socket.into())
}

/// Whether a path can be listened on, as far as that shows without a change to anything.
pub(super) fn preview(path: &Path, access: &SocketAccess) -> Result<(), ListenerError> {
    let failed = |operation| move |source| ListenerError::Io { path: path.to_owned(), operation, source };
    let folder = OFlags::PATH | OFlags::DIRECTORY;
    access.symlinks.open(folder_of(path), folder, Mode::empty()).map_err(failed("bind"))?;
    address(path).map_err(failed("bind"))?;
    rustix::fs::access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|errno| failed("bind")(errno.into()))?;
    find_room(path, access).map(drop)
}

/// Sees to it that there is nothing at the path.
fn make_room(path: &Path, access: &SocketAccess) -> Result<(), ListenerError> {
    if find_room(path, access)? {
        return Ok(());
    }
    tracing::info!(socket = %path.display(), "replacing a stale socket");
    let failed = |source| ListenerError::Io { path: path.to_owned(), operation: "replace", source };
    std::fs::remove_file(path).map_err(failed)
}

/// Whether there is nothing at the path, or a socket of ours that nobody listens on.
fn find_room(path: &Path, access: &SocketAccess) -> Result<bool, ListenerError> {
    let failed = |operation| move |source| ListenerError::Io { path: path.to_owned(), operation, source };
    let Ok(there) = std::fs::symlink_metadata(path) else { return Ok(true) };
    if !there.file_type().is_socket() {
        let taken = io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is no socket");
        return Err(failed("bind")(taken));
    }
    match has_listener(path) {
        Ok(false) => {}
        Ok(true) => return Err(ListenerError::InUse(path.to_owned())),
        // As `listening` makes it: whoever did was killed before it listened.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && there.mode() & 0o777 == 0 => {}
        Err(error) => return Err(failed("probe")(error)),
    }
    if !is_ours(&there, access) {
        let text = format!("a socket that nobody listens on is there, and belongs to user {}", there.uid());
        return Err(failed("replace")(io::Error::new(io::ErrorKind::AlreadyExists, text)));
    }
    Ok(false)
}

/// Whoever may write to a folder of ours can put a socket there; only one of our own is known to be left by us.
fn is_ours(there: &Metadata, access: &SocketAccess) -> bool {
    there.uid() == rustix::process::geteuid().as_raw() || Some(there.uid()) == access.owner
}

/// Gives a socket that was bound just now its owner, its group and its mode.
fn give_away(path: &Path, access: &SocketAccess) -> io::Result<()> {
    let node = access.symlinks.open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
    let status = fstat(&node)?;
    let is_socket = rustix::fs::FileType::from_raw_mode(status.st_mode).is_socket();
    if !is_socket || status.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("something else has taken its place"));
    }
    let owner = access.owner.filter(|owner| *owner != status.st_uid).map(Uid::from_raw);
    let group = access.group.filter(|group| *group != status.st_gid).map(Gid::from_raw);
    if owner.is_some() || group.is_some() {
        chownat(&node, "", owner, group, AtFlags::EMPTY_PATH)?;
    }
    // Linux has no fchmod(2) for such a descriptor.
    chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), Mode::from_raw_mode(access.mode))?;
    Ok(())
}

/// An error of a call that creates something at a path, or opens its folder: what is missing is the folder.
fn named(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::NotFound, "its folder does not exist"),
        _ => error,
    }
}

fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|errno| match errno {
        Errno::NAMETOOLONG => {
            let text = format!("its path has {} bytes", path.as_os_str().len());
            io::Error::new(io::ErrorKind::InvalidInput, text)
        }
        other => io::Error::from(other),
    })
}

/// Whether somebody listens on a socket, without waiting for a place among those that wait for an answer there.
fn has_listener(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, &address(path)?) {
        // EAGAIN: all places are taken.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Until it is dropped, no other daemon takes the same path: what one has found to be stale may be another's that was
/// bound since. None where the folder cannot be read, or its file system has no locks.
fn lock_folder(path: &Path) -> io::Result<Option<File>> {
    let flags = libc::O_DIRECTORY | libc::O_NONBLOCK;
    let Ok(folder) = File::options().read(true).custom_flags(flags).open(folder_of(path)) else {
        return Ok(None);
    };
    let started = Instant::now();
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(folder)),
            Err(Errno::WOULDBLOCK) if started.elapsed() < SOCKET_FOLDER_TIMEOUT => sleep(FOLDER_POLL),
            Err(Errno::WOULDBLOCK) => {
                let text = format!("another process has locked its folder for {SOCKET_FOLDER_TIMEOUT:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Err(_) => return Ok(None),
        }
    }
}
