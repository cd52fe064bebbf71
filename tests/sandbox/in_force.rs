//! What the kernel says is in force: of a running daemon, and as `--sandbox-check` prints it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use vhost_user_pmem::sandbox::ThreadKind;

use super::work;
use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::Session;
use crate::common::frontend::request::{OK, Request};
use crate::common::host::Loop;
use crate::common::process::Process;
use crate::common::wait_for;

/// As `status` of /proc calls them.
const FIELDS: [&str; 7] = ["Seccomp", "Seccomp_filters", "NoNewPrivs", "CapEff", "Uid", "Gid", "Groups"];

const NO_CAPABILITY: &str = "0000000000000000";

/// CAP_SYS_ADMIN.
const OF_ATTRIBUTES: &str = "0000000000200000";

/// Fields by name of thread or process, without the number behind it.
type Rows = BTreeMap<String, BTreeMap<&'static str, String>>;

fn base(name: &str) -> String {
    name.trim_end_matches(|letter: char| letter.is_ascii_digit()).trim_end_matches('-').to_owned()
}

/// What the check prints: the names of the columns, and a row for each thread.
fn printed(table: &str) -> Rows {
    let mut lines = table.lines().skip_while(|line| !line.starts_with("thread"));
    assert_eq!(lines.next().unwrap().split_whitespace().skip(1).collect::<Vec<_>>(), FIELDS);
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let name = base(words.next().unwrap());
        (name, FIELDS.into_iter().map(|field| (field, words.next().unwrap().to_owned())).collect())
    };
    lines.map(row).collect()
}

/// The same of all threads of a process, and of the processes that it has forked.
fn in_proc(daemon: &Daemon) -> Rows {
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let threads = threads.map(|entry| entry.unwrap().path());
    let processes = Process(daemon.pid()).descendants();
    let processes = processes.into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}")));
    let row = |folder: PathBuf| {
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let get = |field: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
            let mut words: Vec<_> = value.split_whitespace().collect();
            if ["Uid", "Gid"].contains(&field) {
                words.dedup();
            }
            if words.is_empty() { "-".to_owned() } else { words.join(",") }
        };
        Some((base(&get("Name")), FIELDS.into_iter().map(|field| (field, get(field))).collect()))
    };
    threads.chain(processes).filter_map(row).collect()
}

/// It listens before it is confined.
pub(super) fn start(setup: Setup) -> Daemon {
    let daemon = setup.start();
    daemon.wait_for_log("ready for front-ends");
    daemon
}

/// What the check prints is true of a daemon with these arguments.
fn checked(setup: impl Fn() -> Setup) -> Rows {
    let output = setup().arg("--sandbox-check").run();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = printed(&String::from_utf8(output.stdout).unwrap());
    let daemon = start(setup());
    work::run(&daemon);
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    assert_eq!(ring.run(&Request::write(0, &[1; 512])).status, OK);
    let found = in_proc(&daemon);
    for name in ["acceptor", "attributes", "descriptors", "flusher", "log", "metrics", "resize", "session"] {
        assert!(found.contains_key(name) || name == "attributes", "{name}: {:?}", found.keys());
    }
    // A filter is inherited: how many there are depends on who has started whom.
    let without_count = |fields: &BTreeMap<&'static str, String>| {
        let mut fields = fields.clone();
        fields.remove("Seccomp_filters");
        fields
    };
    for (name, fields) in &found {
        assert_eq!(printed.get(name).map(without_count), Some(without_count(fields)), "{name}");
    }
    drop((ring, session));
    daemon.stop();
    printed
}

fn own_capabilities() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim().to_owned()
}

#[test]
fn everything_is_in_force_by_default() {
    let rows = checked(work::setup);
    // Whoever writes the start message may be done; there is no control socket, and no device.
    assert!(rows.len() >= ThreadKind::ALL.len() - 3, "{:?}", rows.keys());
    for (name, fields) in rows {
        assert_eq!(fields["Seccomp"], "2", "{name}");
        assert!(fields["Seccomp_filters"].parse::<u32>().unwrap() >= 2, "{name}");
        assert_eq!(fields["NoNewPrivs"], "1", "{name}");
        assert_eq!(fields["CapEff"], NO_CAPABILITY, "{name}");
        assert_eq!(fields["Groups"], "-", "{name}");
    }
}

/// … and one part is that part.
#[test]
fn parts_are_switched_one_by_one() {
    for (arg, seccomp, privileges, core) in [
        ("--sandbox=off", false, false, false),
        ("--sandbox=seccomp", true, false, false),
        ("--sandbox=privileges,rlimits", false, true, true),
    ] {
        let rows = checked(|| work::setup().arg(arg));
        for (name, fields) in rows {
            assert_eq!(fields["Seccomp"] == "2", seccomp, "{arg}: {name}");
            let capabilities = if privileges { NO_CAPABILITY.to_owned() } else { own_capabilities() };
            assert_eq!(fields["CapEff"], capabilities, "{arg}: {name}");
        }
        let daemon = start(work::setup().arg(arg));
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
        let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let ours = fs::read_to_string("/proc/self/limits").unwrap();
        let is_zero = cores.split_whitespace().skip(4).take(2).all(|limit| limit == "0");
        assert!(is_zero == core || ours.contains(cores), "{arg}: {cores}");
        daemon.stop();
    }
}

#[test]
fn the_log_says_what_is_in_force() {
    let daemon = work::setup().start();
    daemon.wait_for_log("no capabilities, no new privileges");
    let log = daemon.stop_for_log();
    let line = log.lines().find(|line| line.contains("no capabilities")).unwrap();
    for part in ["landlock", "seccomp", "rlimits"] {
        assert!(line.contains(&format!("{part}=\"on\"")) || line.contains(&format!("{part}=on")), "{line}");
    }
    let log = work::setup().arg("--sandbox=off").start().stop_for_log();
    assert!(
        log.contains("sandbox: off; whoever takes this process over can do all that its user can"),
        "{log}"
    );
}

/// One process keeps one capability: that of the attributes of devices.
#[test]
fn attributes_of_devices_have_a_process_that_can_do_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root's daemon can keep attributes of devices");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("below");
    File::create(&below).unwrap().set_len(16 << 20).unwrap();
    let Some(device) = Loop::over(&below, &[]) else { return };
    let setup = Setup::new(Place::Tmpfs).disk("").arg("--user=54321");
    std::os::unix::fs::symlink(device.path(), setup.image(0)).unwrap();
    let daemon = start(setup);
    let kept = |daemon: &Daemon| Process(daemon.pid()).descendants();
    // A process narrows itself when it begins.
    let rows = wait_for("all three processes have begun", || {
        let rows = in_proc(&daemon);
        let has_begun = kept(&daemon).len() == 3 && rows.values().all(|fields| fields["Seccomp"] == "2");
        has_begun.then_some(rows)
    });
    for (name, fields) in &rows {
        let (capabilities, user) =
            if name == "attributes" { (OF_ATTRIBUTES, "0") } else { (NO_CAPABILITY, "54321") };
        assert_eq!((fields["CapEff"].as_str(), fields["Uid"].as_str()), (capabilities, user), "{name}");
    }
    assert!(rows.contains_key("attributes"));
    // It ends with the daemon, however that ends; and a disk of files has none.
    let processes = kept(&daemon);
    let setup = daemon.kill();
    wait_for("all its processes end", || processes.iter().all(|it| Process(*it).is_gone()).then_some(()));
    let daemon = start(setup);
    let processes = wait_for("all have begun", || Some(kept(&daemon)).filter(|it| it.len() == 3));
    daemon.stop();
    wait_for("all its processes end", || processes.iter().all(|it| Process(*it).is_gone()).then_some(()));
    let daemon = start(work::setup());
    drop(Session::connect(&daemon.socket(0)).ring(0, 64));
    assert_eq!(kept(&daemon).len(), 2);
    daemon.stop();
}

/// `PR_SET_DUMPABLE`: what is not dumpable is root's in /proc, whoever runs it, and no other process of its user may look
/// into it.
#[test]
fn nobody_of_the_same_user_looks_into_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to become another user");
        return;
    }
    for (arg, owner) in [("--sandbox=on", 0), ("--sandbox=off", super::identity::USER)] {
        let daemon = start(super::identity::setup().arg(arg));
        let memory = fs::metadata(format!("/proc/{}/mem", daemon.pid())).unwrap();
        assert_eq!(memory.uid(), owner, "{arg}");
        daemon.stop();
    }
}

/// Nobody connects or says anything meanwhile.
#[test]
fn memory_of_a_session_is_unmapped_when_it_ends() {
    let daemon = work::setup().start();
    let process = Process(daemon.pid());
    let mapped = || process.mappings("memfd:guest");
    let staying = Session::connect(&daemon.socket(0));
    let mut ring = staying.ring(0, 64);
    assert_eq!(ring.run(&Request::write(0, &[1; 512])).status, OK);
    let of_one = mapped();
    assert!(of_one > 0);
    let leaving = Session::connect(&daemon.socket(0));
    leaving.config(0, 60).unwrap();
    let waiting = leaving.ring(0, 64);
    assert_eq!(mapped(), 2 * of_one);
    drop((waiting, leaving));
    wait_for("it is unmapped", || (mapped() == of_one).then_some(()));
    let address = staying.memory.allocate(4096, 4096);
    staying.memory.write(address, &[2; 16]);
    assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
    drop((ring, staying));
    wait_for("all is unmapped", || (mapped() == 0).then_some(()));
    daemon.stop();
}
