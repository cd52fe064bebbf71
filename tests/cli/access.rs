//! Who may connect: the socket's permissions, the list of users, and what is refused at its path.

// Tests may not be silent about what they could not do.
#![allow(clippy::print_stderr)]

use std::fs::{Permissions, set_permissions, symlink_metadata};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::{assert_error, assert_served, image, is_closed, run};
use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::process::as_user;

/// Users and groups that need not exist.
const USER: u32 = 54_321;
const GROUP: u32 = 54_322;

/// One disk with these keys, whose socket others can reach as far as its own permissions go.
fn setup(keys: &str) -> Setup {
    let setup = Setup::new(Place::Tmpfs).disk(&format!("size=1M{keys}"));
    set_permissions(setup.socket(0).parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    setup
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped in part: needs root to become another user");
    }
    is_root
}

/// Connects as this user with this group and no other.
fn connect_as(socket: &Path, user: u32, group: u32) -> std::io::Result<UnixStream> {
    as_user(user, group, || UnixStream::connect(socket))
}

fn permissions(daemon: &Daemon) -> (u32, u32, u32) {
    let socket = symlink_metadata(daemon.socket(0)).unwrap();
    (socket.mode() & 0o7777, socket.uid(), socket.gid())
}

#[test]
fn a_socket_has_the_permissions_that_are_said_whatever_the_umask_is() {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    for umask in ["0", "022", "0777"] {
        let shell = format!("umask {umask}; exec \"$0\" \"$@\"");
        for (keys, mode) in [("", 0o660), (",socket-mode=0600", 0o600), (",socket-mode=666", 0o666)] {
            let daemon = setup(keys).through(&["sh", "-c", &shell]).start();
            assert_eq!(permissions(&daemon), (mode, uid, gid), "umask {umask}, {keys}");
            drop(assert_served(UnixStream::connect(daemon.socket(0)).unwrap()));
            daemon.stop();
        }
    }
}

#[test]
fn whoever_has_only_the_group_of_the_socket_connects_and_nobody_else() {
    if !is_root() {
        return;
    }
    let daemon = setup(&format!(",socket-group={GROUP}")).start();
    assert_eq!(permissions(&daemon), (0o660, 0, GROUP));
    drop(assert_served(connect_as(&daemon.socket(0), USER, GROUP).unwrap()));
    let refused = connect_as(&daemon.socket(0), USER, GROUP + 1).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    daemon.stop();
    let daemon = setup(&format!(",socket-owner={USER},socket-mode=0600")).start();
    assert_eq!(permissions(&daemon), (0o600, USER, 0));
    drop(assert_served(connect_as(&daemon.socket(0), USER, GROUP).unwrap()));
    assert!(connect_as(&daemon.socket(0), USER + 1, GROUP).is_err());
    // It was left by a daemon that had the same keys.
    let daemon = daemon.kill().start();
    drop(assert_served(connect_as(&daemon.socket(0), USER, GROUP).unwrap()));
    daemon.stop();
}

#[test]
fn a_user_that_is_not_listed_is_refused_and_counted() {
    let own = rustix::process::geteuid().as_raw();
    let keys = format!(",socket-mode=0666,allow-uid={USER},,{}", USER + 1);
    let daemon = setup(&keys).with_metrics().start();
    let stranger = UnixStream::connect(daemon.socket(0)).unwrap();
    daemon.wait_for_log(&format!("a process of user {own}, which is not in allow-uid="));
    crate::common::wait_for("it is hung up on", || is_closed(&stranger).then_some(()));
    let samples = crate::common::metrics::read(&daemon.metrics_socket());
    assert_eq!(samples[r#"refused_connections_total{disk="disk0"}"#], 1.0);
    if is_root() {
        drop(assert_served(connect_as(&daemon.socket(0), USER + 1, GROUP).unwrap()));
    }
    daemon.stop();
    let daemon = setup(&format!(",allow-uid={USER},,{own}")).start();
    drop(assert_served(UnixStream::connect(daemon.socket(0)).unwrap()));
    daemon.stop();
}

/// A daemon in a container, and front-ends outside of it: their processes have no numbers there (SO_PEERCRED says 0), but users.
#[test]
fn a_listed_user_of_another_pid_namespace_is_let_in() {
    if !is_root() {
        return;
    }
    let keys = format!(",socket-mode=0666,allow-uid={USER}");
    let daemon = setup(&keys).through(&["unshare", "--pid", "--fork", "--kill-child"]).start();
    drop(assert_served(connect_as(&daemon.socket(0), USER, GROUP).unwrap()));
    let stranger = connect_as(&daemon.socket(0), USER + 1, GROUP).unwrap();
    daemon.wait_for_log(&format!("a process of user {}, which is not in allow-uid=", USER + 1));
    crate::common::wait_for("it is hung up on", || is_closed(&stranger).then_some(()));
    daemon.kill();
}

#[test]
fn an_image_that_is_created_is_its_owners_alone() {
    let daemon = setup("").through(&["sh", "-c", "umask 0; exec \"$0\" \"$@\""]).start();
    assert_eq!(symlink_metadata(daemon.image(0)).unwrap().mode() & 0o7777, 0o600);
    daemon.stop();
}

#[test]
fn a_stale_socket_of_somebody_else_is_not_replaced() {
    if !is_root() {
        return;
    }
    let setup = setup("");
    drop(UnixListener::bind(setup.socket(0)).unwrap());
    chown(setup.socket(0), Some(USER), None).unwrap();
    let output = setup.run();
    assert_error(&output, 12, &["belongs to user 54321", "remove what is there"]);
    assert_eq!(symlink_metadata(setup.socket(0)).unwrap().uid(), USER);
}

/// Many daemons come upon the same stale socket: one of them replaces it, and no other takes it from that one.
#[test]
fn of_many_that_start_at_once_one_has_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    let start = |number: usize| {
        let file = folder.path().join(format!("{number}.img"));
        image(&file, 1 << 20);
        let disk = format!("path={},socket={}", file.display(), socket.display());
        let mut command = super::program(["serve", "--disk", &disk]);
        command.stderr(std::process::Stdio::null());
        super::Running::spawn(command)
    };
    let mut daemons: Vec<_> = (0..6).map(start).collect();
    let mut ended = 0;
    crate::common::wait_for("all but one have ended", || {
        daemons.retain_mut(|daemon| match daemon.0.try_wait().unwrap() {
            Some(status) => {
                assert_eq!(status.code(), Some(8));
                ended += 1;
                false
            }
            None => true,
        });
        (ended == 5).then_some(())
    });
    drop(assert_served(UnixStream::connect(&socket).unwrap()));
    assert_eq!(daemons[0].terminate().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn links_are_refused_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let path = |name: &str| root.join(name).display().to_string();
    std::fs::create_dir(path("real")).unwrap();
    image(Path::new(&path("real/disk")), 1 << 20);
    symlink(path("real"), path("linked")).unwrap();
    symlink(path("real/disk"), path("real/link")).unwrap();
    let serve = |disk: &str, socket: &str, arg: &str| {
        let disk = format!("path={},socket={},size=1M", path(disk), path(socket));
        run(["serve", "--disk", &disk, arg])
    };
    let refused: &[&str] = &["a part of its path is a symbolic link, and --no-symlinks refuses these"];
    for (disk, socket) in
        [("real/link", "s"), ("linked/disk", "s"), ("linked/new", "s"), ("real/disk", "linked/s")]
    {
        let output = serve(disk, socket, "--no-symlinks");
        assert_error(&output, if socket == "s" { 1 } else { 12 }, refused);
    }
    let metrics = format!("--metrics={}", path("linked/m"));
    let disk = format!("path={},socket={}", path("real/disk"), path("s"));
    assert_error(&run(["serve", "--disk", &disk, &metrics, "--no-symlinks"]), 12, refused);
    assert!(!root.join("real/s").exists() && !root.join("real/new").exists());
    for (disk, arg) in [("real/disk", "--no-symlinks"), ("linked/disk", "--workers=1")] {
        let disk = format!("path={},socket={}", path(disk), path("s"));
        let mut daemon = super::Running::spawn(super::program(["serve", "--disk", &disk, arg]));
        let socket = root.join("s");
        let stream = crate::common::wait_for("it listens", || UnixStream::connect(&socket).ok());
        drop(assert_served(stream));
        assert_eq!(daemon.terminate().code(), Some(0));
    }
}

/// What its folder is called leads elsewhere, to a socket of the same user, while a start waits for the folder.
#[test]
fn a_start_whose_folder_is_swapped_removes_nothing_elsewhere() {
    for arg in ["--no-symlinks", "--workers=1"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let stale = |name: &str| {
            std::fs::create_dir(root.join(name)).unwrap();
            drop(UnixListener::bind(root.join(name).join("s")).unwrap());
            symlink_metadata(root.join(name).join("s")).unwrap().ino()
        };
        stale("named");
        let elsewhere = stale("elsewhere");
        image(&root.join("disk"), 1 << 20);
        let lock = std::fs::File::open(root.join("named")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        let disk = format!("path={},socket={}", root.join("disk").display(), root.join("named/s").display());
        let mut daemon = super::Running::spawn(super::program(["serve", "--disk", &disk, arg]));
        let process = crate::common::process::Process(daemon.0.id());
        crate::common::wait_for("it waits for the folder", || {
            process.has_open(&root.join("named")).then_some(())
        });
        std::fs::rename(root.join("named"), root.join("away")).unwrap();
        symlink("elsewhere", root.join("named")).unwrap();
        drop(lock);
        let inode = |path: &str| symlink_metadata(root.join(path)).ok().map(|it| it.ino());
        if arg == "--no-symlinks" {
            // No link is followed, also not one that was none before.
            crate::common::wait_for("it listens", || UnixStream::connect(root.join("away/s")).ok());
            assert_eq!(daemon.terminate().code(), Some(0));
        } else {
            assert_eq!(daemon.wait().code(), Some(8), "there is a socket where the path leads now");
        }
        assert_eq!(
            inode("elsewhere/s"),
            Some(elsewhere),
            "{arg}: a socket elsewhere was replaced or removed"
        );
    }
}

/// The same of a file that a start has created, and takes back.
#[test]
fn a_start_that_fails_takes_back_nothing_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    for name in ["images", "elsewhere", "sockets"] {
        std::fs::create_dir(root.join(name)).unwrap();
    }
    std::fs::write(root.join("elsewhere/disk"), "precious").unwrap();
    std::fs::write(root.join("sockets/s"), "no socket").unwrap();
    let lock = std::fs::File::open(root.join("sockets")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let disk = format!(
        "path={},socket={},size=1M",
        root.join("images/disk").display(),
        root.join("sockets/s").display()
    );
    let mut daemon = super::Running::spawn(super::program(["serve", "--disk", &disk]));
    let process = crate::common::process::Process(daemon.0.id());
    crate::common::wait_for("it waits", || process.has_open(&root.join("sockets")).then_some(()));
    std::fs::rename(root.join("images"), root.join("away")).unwrap();
    symlink("elsewhere", root.join("images")).unwrap();
    drop(lock);
    assert_eq!(daemon.wait().code(), Some(12));
    assert_eq!(std::fs::read_to_string(root.join("elsewhere/disk")).unwrap(), "precious");
}
