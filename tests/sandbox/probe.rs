//! From inside the running daemon: what each kind of thread tries, and how it goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use tempfile::{NamedTempFile, TempDir};
use vhost_user_pmem::sandbox::ThreadKind;

use super::work;
use crate::common::daemon::{Place, Setup};
use crate::common::host::Loop;
use crate::common::process::ends_with_us;

/// What is tried.
const ATTEMPTS: [&str; 16] = [
    "open",
    "create",
    "remove",
    "rename",
    "socket",
    "connect",
    "bind",
    "exec",
    "ptrace",
    "process_vm_writev",
    "mount",
    "mmap executable",
    "mprotect executable",
    "kill",
    "unshare",
    "setuid",
];

/// Sockets are removed at the end: by a call, which Landlock refuses elsewhere than in their folders.
const BY_LANDLOCK: &str = "remove";

/// How each attempt went, by kind of thread: the number of its error, 0 if it was allowed.
type Outcomes = BTreeMap<String, Vec<BTreeMap<String, i32>>>;

/// Where the daemon writes to, a file beside it, and a process that is not its own.
struct Probe {
    folder: TempDir,
    stranger: Child,
}

impl Probe {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["probe", "probe-kept"] {
            File::create(folder.path().join(name)).unwrap();
        }
        let stranger = ends_with_us(Command::new("sleep").arg("infinity")).spawn().unwrap();
        Self { folder, stranger }
    }

    fn has_killed(&mut self) -> bool {
        self.stranger.try_wait().unwrap().is_some()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Has the daemon write to it, and go on after what is refused.
    fn of(&self, setup: Setup) -> Setup {
        let path: &'static str = self.path("probe").display().to_string().leak();
        let stranger: &'static str = self.stranger.id().to_string().leak();
        let setup = setup.env("VHOST_USER_PMEM_SANDBOX_STRANGER", stranger);
        setup.env("VHOST_USER_PMEM_SANDBOX_PROBE", path).env("VHOST_USER_PMEM_SANDBOX_KILLS", "0")
    }

    fn outcomes(&self) -> Outcomes {
        let file = File::open(self.path("probe")).unwrap();
        let mut len = [0; 8];
        file.read_exact_at(&mut len, 0).unwrap();
        let mut text = vec![0; usize::from_ne_bytes(len)];
        file.read_exact_at(&mut text, 8).unwrap();
        let mut outcomes = Outcomes::new();
        // One that is being written is not looked at yet.
        for line in String::from_utf8(text).unwrap().lines().filter(|line| !line.contains('\0')) {
            let mut cells = line.split('\t');
            let kind = cells.next().unwrap().to_owned();
            let attempts = cells.map(|cell| {
                let (name, error) = cell.split_once('=').unwrap();
                (name.to_owned(), error.parse().unwrap())
            });
            outcomes.entry(kind).or_default().push(attempts.collect());
        }
        outcomes
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.stranger.kill();
        let _ = self.stranger.wait();
    }
}

fn assert_refused(outcomes: &Outcomes) {
    for (kind, threads) in outcomes {
        for attempts in threads {
            assert_eq!(attempts.keys().map(String::as_str).collect::<BTreeSet<_>>(), ATTEMPTS.into());
            for (name, error) in attempts {
                let is_refused = match *error {
                    libc::EPERM => true,
                    libc::EACCES => name == BY_LANDLOCK,
                    _ => false,
                };
                assert!(is_refused, "{kind}: {name}: error {error}");
            }
        }
    }
}

fn names(kinds: impl IntoIterator<Item = ThreadKind>) -> BTreeSet<String> {
    kinds.into_iter().map(|kind| kind.name().to_owned()).collect()
}

/// The kinds of threads and processes that serve a disk on this file or device, as `--sandbox-check` starts all of them.
fn checked(probe: &Probe, path: &Path, args: &[&str]) -> Outcomes {
    let setup = args.iter().fold(Setup::new(Place::Tmpfs).disk(""), |setup, arg| setup.arg(arg));
    std::os::unix::fs::symlink(path, setup.image(0)).unwrap();
    let output = probe.of(setup).with_metrics().arg("--sandbox-check").run();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    probe.outcomes()
}

#[test]
fn no_kind_of_thread_gets_anything_new() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    File::create(&file).unwrap().set_len(8 << 20).unwrap();
    let device = Loop::over(&file, &[]);
    let path = device.as_ref().map_or(file.as_path(), Loop::path);
    let mut probe = Probe::new();
    let outcomes = checked(&probe, path, &[]);
    assert_refused(&outcomes);
    assert!(!probe.has_killed());
    let mut kinds = names(ThreadKind::ALL);
    // It is there where it is asked for, and is the only one that gets something: see below.
    kinds.remove(ThreadKind::Control.name());
    if device.is_none() || !rustix::process::geteuid().is_root() {
        // Attributes of files need nobody.
        kinds.remove(ThreadKind::AttributeKeeper.name());
    }
    assert_eq!(outcomes.into_keys().collect::<BTreeSet<_>>(), kinds);
}

#[test]
fn what_serves_guests_gets_nothing_new() {
    let mut probe = Probe::new();
    let setup = probe.of(work::setup());
    let daemon = setup.start();
    work::run(&daemon);
    daemon.stop();
    let outcomes = probe.outcomes();
    assert_refused(&outcomes);
    assert!(!probe.has_killed());
    let missing: Vec<_> = work::KINDS.iter().filter(|kind| !outcomes.contains_key(kind.name())).collect();
    assert!(missing.is_empty(), "{missing:?} did not run");
}

/// What the control socket is for: to open files where that is allowed, and sockets.
#[test]
fn the_control_socket_gets_what_is_allowed_and_nothing_else() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(8 << 20).unwrap();
    let sockets = tempfile::tempdir().unwrap();
    let control = format!("--control={}", sockets.path().join("control").display());
    let mut probe = Probe::new();
    let outcomes = checked(&probe, file.path(), &[&control]);
    for (kind, threads) in outcomes.iter().filter(|(kind, _)| *kind != ThreadKind::Control.name()) {
        assert_refused(&[(kind.clone(), threads.clone())].into());
    }
    for (name, error) in outcomes[ThreadKind::Control.name()].iter().flatten() {
        let is_expected = match name.as_str() {
            // /etc/passwd may be read; sockets are made for disks.
            "open" | "socket" => *error == 0,
            "create" | "remove" | "rename" => [libc::EACCES, libc::EPERM].contains(error),
            "connect" | "bind" => *error == libc::EBADF,
            _ => *error == libc::EPERM,
        };
        assert!(is_expected, "{name}: error {error}");
    }
    assert!(!probe.has_killed());
    assert!(probe.path("probe-kept").exists() && !probe.path("probe-missing").exists());
}

/// So that the others can fail: nothing of it is refused where there is no sandbox, and a part refuses what is its own.
#[test]
fn without_the_sandbox_the_same_is_allowed() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may do all of it");
        return;
    }
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(8 << 20).unwrap();
    let mut probe = Probe::new();
    let outcomes = checked(&probe, file.path(), &["--sandbox=off"]);
    assert!(outcomes.len() >= ThreadKind::ALL.len() - 2, "{:?}", outcomes.keys());
    for (kind, threads) in outcomes {
        for (name, error) in threads.iter().flatten() {
            assert!(![libc::EPERM, libc::EACCES].contains(error), "{kind}: {name}: error {error}");
        }
    }
    assert!(probe.has_killed());
    assert!(!probe.path("probe-kept").exists() && probe.path("probe-missing").exists());
    let probe = Probe::new();
    let outcomes = checked(&probe, file.path(), &["--sandbox=landlock"]);
    for (kind, threads) in outcomes {
        for (name, error) in threads.iter().flatten() {
            let is_refused = [libc::EPERM, libc::EACCES].contains(error);
            let expected = ["open", "create", "remove", "rename", "mount", "kill"].contains(&name.as_str());
            assert!(is_refused == expected, "{kind}: {name}: error {error}");
        }
    }
    assert!(probe.path("probe-kept").exists() && !probe.path("probe-missing").exists());
}
