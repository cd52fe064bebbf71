//! The socket of a disk: what is at its path before, who is to have it, and what is inherited instead. Who listens has what was
//! asked for, and nothing that belongs to another is replaced.

use std::fs::Metadata;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Unstructured};
use rustix::process::{getegid, geteuid};
use vhost_user_pmem::disk::Symlinks;
use vhost_user_pmem::vhost_user::{AllowedUsers, DiskSocket, Listener, ListenerError, SocketAccess};

use crate::common::guarded::found;

/// What is at the path before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
enum Before {
    Nothing,
    Stale,
    StaleOf(u32),
    Living,
    LivingAndFull,
    Datagram,
    File,
    Folder,
    Link,
    DanglingLink,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Inherited {
    Listening,
    Connected,
    Unconnected,
    Datagram,
    Tcp,
    File,
    Pipe,
}

#[derive(Debug, Arbitrary)]
struct Input {
    before: Before,
    mode: u16,
    owner: Option<u32>,
    group: Option<u32>,
    refuses_links: bool,
    /// The folder is reached through a link.
    is_behind_link: bool,
    name: Option<Vec<u8>>,
    allowed: Option<Vec<u32>>,
    allows_us: bool,
    keeps: bool,
    inherited: Inherited,
}

/// A folder with a link to itself, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("pmem-sockets-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("in")).unwrap();
        std::os::unix::fs::symlink("in", path.join("link")).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Binds a path, and inherits a descriptor.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    inherit(input.inherited);
    let folder = Folder::new();
    let name = input.name.as_deref().and_then(|name| std::str::from_utf8(name).ok());
    let name =
        name.filter(|name| !name.is_empty() && !name.contains(['/', '\0']) && ![".", ".."].contains(name));
    let inside = folder.0.join("in").join(name.unwrap_or("socket"));
    let asked_for =
        folder.0.join(if input.is_behind_link { "link" } else { "in" }).join(name.unwrap_or("socket"));
    let Some(_kept) = put(input.before, &inside) else { return };
    let before = std::fs::symlink_metadata(&inside).ok();
    let access = SocketAccess {
        mode: u32::from(input.mode) & 0o777,
        // The last number is none: chown(2) takes it for "as it is".
        owner: input.owner.filter(|user| *user != u32::MAX),
        group: input.group.filter(|group| *group != u32::MAX),
        symlinks: if input.refuses_links { Symlinks::Refuse } else { Symlinks::Follow },
    };
    match Listener::bind(&asked_for, &access) {
        Ok(listener) => listens(&input, listener, &inside, &access),
        Err(error) => is_untouched(&input, &error, before.as_ref(), &inside),
    }
}

/// Puts there what is to be there; none where that cannot be.
fn put(before: Before, path: &Path) -> Option<Vec<OwnedFd>> {
    let mut kept: Vec<OwnedFd> = Vec::new();
    match before {
        Before::Nothing => {}
        Before::Stale => drop(UnixListener::bind(path).ok()?),
        Before::StaleOf(u32::MAX) => return None,
        Before::StaleOf(user) => {
            drop(UnixListener::bind(path).ok()?);
            std::os::unix::fs::chown(path, Some(user), None).ok()?;
        }
        Before::Living => kept.push(UnixListener::bind(path).ok()?.into()),
        Before::LivingAndFull => {
            let listener = UnixListener::bind(path).ok()?;
            rustix::net::listen(&listener, 0).unwrap();
            kept.push(UnixStream::connect(path).unwrap().into());
            kept.push(listener.into());
        }
        Before::Datagram => kept.push(UnixDatagram::bind(path).ok()?.into()),
        Before::File => std::fs::write(path, "precious").ok()?,
        Before::Folder => std::fs::create_dir(path).ok()?,
        Before::Link => {
            std::fs::write(path.with_file_name("precious"), "precious").ok()?;
            std::os::unix::fs::symlink("precious", path).ok()?;
        }
        Before::DanglingLink => std::os::unix::fs::symlink("nothing", path).ok()?,
    }
    Some(kept)
}

fn listens(input: &Input, listener: Listener, path: &Path, access: &SocketAccess) {
    let us = geteuid().as_raw();
    let is_ours = |user| user == us || access.owner == Some(user);
    match input.before {
        Before::Nothing | Before::Stale => {}
        Before::StaleOf(user) if is_ours(user) => {}
        other => found(&format!("{other:?} is replaced")),
    }
    if input.refuses_links && input.is_behind_link {
        found("a link is followed");
    }
    let there = std::fs::symlink_metadata(path).unwrap();
    let expected = (access.mode, access.owner.unwrap_or(us), access.group.unwrap_or(getegid().as_raw()));
    let got = (there.permissions().mode() & 0o7777, there.uid(), there.gid());
    if got != expected {
        found(&format!("mode, owner and group are {got:?} instead of {expected:?}"));
    }
    let mut allowed = input.allowed.clone().unwrap_or_default();
    allowed.extend(input.allows_us.then_some(us));
    let is_allowed = input.allowed.is_none() || allowed.contains(&us);
    let listener = match &input.allowed {
        Some(_) => listener.allowing(AllowedUsers::only(allowed)),
        None => listener,
    };
    // Whoever may not write to it cannot connect; root always can.
    if let Ok(client) = UnixStream::connect(path) {
        let accepted = listener.accept().unwrap();
        if listener.check(accepted.as_fd()).is_ok() != is_allowed {
            found("who may connect is another than was said");
        }
        drop(client);
    }
    if !matches!(Listener::bind(path, &SocketAccess::default()), Err(ListenerError::InUse(_))) {
        found("a socket that is listened on is taken over");
    }
    if input.keeps {
        let kept = listener.keep().unwrap();
        if !path.exists() {
            found("a socket that is kept loses its path");
        }
        drop(kept);
        std::fs::remove_file(path).unwrap();
    } else {
        drop(listener);
        if path.exists() {
            found("a socket is left behind");
        }
    }
}

fn is_untouched(input: &Input, error: &ListenerError, before: Option<&Metadata>, path: &Path) {
    if error.to_string().is_empty() {
        found("no reason is given");
    }
    let what = |it: &Metadata| (it.ino(), it.mode(), it.uid(), it.gid(), it.len());
    let now = std::fs::symlink_metadata(path).ok();
    // A stale one of ours may be gone: what was to follow it failed.
    if now.as_ref().map(what) != before.map(what)
        && !matches!(input.before, Before::Stale | Before::StaleOf(_))
    {
        found(&format!("{:?} is not as it was: {error}", input.before));
    }
    let is_plain = input.owner.is_none() && input.group.is_none() && input.name.is_none();
    let is_link_refused = input.refuses_links && input.is_behind_link;
    if matches!(input.before, Before::Nothing | Before::Stale) && is_plain && !is_link_refused {
        found(&format!("refused for no reason: {error}"));
    }
}

fn inherit(what: Inherited) {
    let (descriptor, expected): (OwnedFd, Option<bool>) = match what {
        Inherited::Listening => {
            let address = SocketAddr::from_abstract_name(format!("fuzz-{}", std::process::id()));
            (UnixListener::bind_addr(&address.unwrap()).unwrap().into(), Some(true))
        }
        Inherited::Connected => {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            (ours.into(), Some(false))
        }
        Inherited::Unconnected => {
            use rustix::net::{AddressFamily, SocketType, socket};
            (socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap(), None)
        }
        Inherited::Datagram => (UnixDatagram::unbound().unwrap().into(), None),
        Inherited::Tcp => (TcpListener::bind("127.0.0.1:0").unwrap().into(), None),
        Inherited::File => (std::fs::File::open("/dev/null").unwrap().into(), None),
        Inherited::Pipe => (std::io::pipe().unwrap().0.into(), None),
    };
    let got = match Listener::inherit(descriptor) {
        Ok(DiskSocket::Listening(_)) => Some(true),
        Ok(DiskSocket::Connected(_)) => Some(false),
        Err(_) => None,
    };
    if got != expected {
        found(&format!("{what:?} is taken as {got:?}"));
    }
}
