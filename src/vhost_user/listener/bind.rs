//! A path becomes a socket that listens, and only those may connect who should.
//!
//! The inode is made without any permission, gets its owner, group and mode, and listens last: whatever the process's
//! umask is, there is no moment at which somebody else may connect.
//!
//! Its folder is looked up once. What is looked at, removed and given away is in that folder, whatever its path leads to
//! meanwhile: whoever may write to a folder above can have it lead to another one, with files that are not his.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{
    Access, AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Uid, chmod, chownat, fchmod, flock,
    fstat, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::error::ListenerError;
use crate::disk::{Inode, Symlinks};
use crate::limits::bounds::SOCKET_FOLDER_TIMEOUT;

/// As many connections may wait to be let in as the machine allows (`net.core.somaxconn`).
const BACKLOG: i32 = i32::MAX;

/// Pause between two attempts to lock the folder.
const FOLDER_POLL: Duration = Duration::from_millis(5);

/// Why nothing is removed, or given away.
const TAKEN: &str = "something else has taken its place";

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

/// Where a socket is to be: a name in a folder.
#[derive(Debug)]
struct Place<'a> {
    path: &'a Path,
    folder: OwnedFd,
    name: &'a OsStr,
}

/// Listens on a path. A socket that nobody answers on, and that is ours to replace, is replaced.
pub(super) fn listening(path: &Path, access: &SocketAccess) -> Result<(UnixListener, Inode), ListenerError> {
    let failed = |operation| move |source| error_at(path, operation, source);
    let place = Place::find(path, access.symlinks).map_err(failed("bind"))?;
    let _alone = place.lock().map_err(failed("bind"))?;
    place.make_room(access)?;
    // Its name for everybody (`ss -l`) is the path. One that may not lead through links is that of the folder that was found.
    let address = match access.symlinks {
        Symlinks::Follow => address(path),
        Symlinks::Refuse => address(&place.inside()),
    };
    let address = address.map_err(failed("bind"))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| failed("make")(errno.into()))?;
    // The inode in the folder is made with what this one has (`unix_bind` of Linux).
    fchmod(&socket, Mode::empty()).map_err(|errno| failed("make")(errno.into()))?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => return Err(ListenerError::InUse(path.to_owned())),
        bound => bound.map_err(|errno| failed("bind")(errno.into()))?,
    }
    let made = place.made_here().map_err(failed("bind"))?;
    let listens = place
        .give_away(&made, access)
        .map_err(failed("set the owner and the mode of"))
        .and_then(|()| listen(&socket, BACKLOG).map_err(|errno| failed("listen on")(errno.into())));
    if let Err(error) = listens {
        // Ignored: the first error is the one to report.
        let _ = place.replace(&made);
        return Err(error);
    }
    Ok((socket.into(), Inode::from(&made)))
}

/// Whether a path can be listened on, as far as that shows without a change to anything.
pub(super) fn preview(path: &Path, access: &SocketAccess) -> Result<(), ListenerError> {
    let failed = |operation| move |source| error_at(path, operation, source);
    let place = Place::find(path, access.symlinks).map_err(failed("bind"))?;
    address(path).map_err(failed("bind"))?;
    rustix::fs::access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|errno| failed("bind")(errno.into()))?;
    place.find_stale(access).map(drop)
}

impl<'a> Place<'a> {
    fn find(path: &'a Path, symlinks: Symlinks) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("the path has no name"))?;
        let folder = symlinks.open(folder_of(path), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self { path, folder, name })
    }

    /// A path that leads there, whatever the folder is called by now.
    fn inside(&self) -> PathBuf {
        Path::new(&format!("/proc/self/fd/{}", self.folder.as_raw_fd())).join(self.name)
    }

    /// What is there.
    fn status(&self) -> Result<Option<Stat>, Errno> {
        match statat(&self.folder, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Sees to it that there is nothing.
    fn make_room(&self, access: &SocketAccess) -> Result<(), ListenerError> {
        let Some(stale) = self.find_stale(access)? else { return Ok(()) };
        tracing::info!(socket = %self.path.display(), "replacing a stale socket");
        self.replace(&stale).map_err(|source| error_at(self.path, "replace", source))
    }

    /// Removes what was found to be stale, and nothing that has taken its place.
    fn replace(&self, stale: &Stat) -> io::Result<()> {
        match self.status()? {
            Some(there) if Inode::from(&there) == Inode::from(stale) => {
                Ok(unlinkat(&self.folder, self.name, AtFlags::empty())?)
            }
            Some(_) => Err(io::Error::other(TAKEN)),
            None => Ok(()),
        }
    }

    /// A socket of ours that nobody listens on; none if there is nothing.
    fn find_stale(&self, access: &SocketAccess) -> Result<Option<Stat>, ListenerError> {
        let failed = |operation| move |source| error_at(self.path, operation, source);
        // What cannot be looked at cannot be bound, which says why.
        let Ok(Some(there)) = self.status() else { return Ok(None) };
        if !FileType::from_raw_mode(there.st_mode).is_socket() {
            let taken = io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is no socket");
            return Err(failed("bind")(taken));
        }
        match has_listener(&self.inside()) {
            Ok(false) => {}
            Ok(true) => return Err(ListenerError::InUse(self.path.to_owned())),
            // As `listening` makes it: whoever did was killed before it listened.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && there.st_mode & 0o777 == 0 => {}
            Err(error) => return Err(failed("probe")(error)),
        }
        if !is_ours(&there, access) {
            let text =
                format!("a socket that nobody listens on is there, and belongs to user {}", there.st_uid);
            return Err(failed("replace")(io::Error::new(io::ErrorKind::AlreadyExists, text)));
        }
        Ok(Some(there))
    }

    /// The socket that was bound just now.
    fn made_here(&self) -> io::Result<Stat> {
        let there =
            self.status()?.ok_or_else(|| io::Error::other("its folder has been replaced meanwhile"))?;
        let is_socket = FileType::from_raw_mode(there.st_mode).is_socket();
        let is_closed = there.st_mode & 0o777 == 0;
        match is_socket && is_closed && there.st_uid == rustix::process::geteuid().as_raw() {
            true => Ok(there),
            false => Err(io::Error::other(TAKEN)),
        }
    }

    /// Gives it its owner, its group and its mode.
    fn give_away(&self, made: &Stat, access: &SocketAccess) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = openat(&self.folder, self.name, flags, Mode::empty())?;
        let status = fstat(&node)?;
        if Inode::from(&status) != Inode::from(made) {
            return Err(io::Error::other(TAKEN));
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

    /// Until it is dropped, no other daemon takes the same path: what one has found to be stale may be another's that was
    /// bound since. None where the folder cannot be read, or its file system has no locks.
    fn lock(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(folder) = openat(&self.folder, ".", flags, Mode::empty()) else { return Ok(None) };
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
}

/// Whoever may write to a folder of ours can put a socket there; only one of our own is known to be left by us.
fn is_ours(there: &Stat, access: &SocketAccess) -> bool {
    there.st_uid == rustix::process::geteuid().as_raw() || Some(there.st_uid) == access.owner
}

fn error_at(path: &Path, operation: &'static str, source: io::Error) -> ListenerError {
    ListenerError::Io { path: path.to_owned(), operation, source: named(source) }
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
