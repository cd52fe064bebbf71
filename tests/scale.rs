//! Many disks in one process, and large ones: what they cost while nobody uses them, and when they are there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::daemon::{Daemon, Place, Setup};
use common::frontend::memory::Span;
use common::frontend::request::{OK, Request};
use common::frontend::ring::Ring;
use common::frontend::{Options, Session};
use common::process::Process;
use common::steps::Steps;
use common::strace::Trace;
use common::{pattern, wait_for};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tempfile::TempDir;

const DISKS: usize = 1000;
const DISK_BYTES: u64 = 64 << 10;
const TIB: u64 = 1 << 40;

/// Most memory besides the disks' and the guests' own: of the process, of a disk, and more for its front-end. It is what
/// the README says (Many disks, large disks), and a tenth.
const PROCESS_BYTES: u64 = (6 << 20) * 11 / 10;
const DISK_OWN_BYTES: u64 = (3 << 10) * 11 / 10;
const FRONT_END_BYTES: u64 = (58 << 10) * 11 / 10;

/// What a build without optimisation takes of it: its stacks are larger, and so is what it counts.
const BUILD_FACTOR: u64 = if cfg!(debug_assertions) { 2 } else { 1 };

const LIMIT_BYTES: u64 = (PROCESS_BYTES + DISKS as u64 * DISK_OWN_BYTES) * BUILD_FACTOR;
const CONNECTED_LIMIT_BYTES: u64 = LIMIT_BYTES + DISKS as u64 * FRONT_END_BYTES * BUILD_FACTOR;

/// Descriptors of a disk that nobody is connected to, and of everything but the disks: files of the control groups that the
/// daemon is in are kept open, up to ten of them. The limits in the README leave 64.
const FDS_OF_A_DISK: usize = 3;
const OTHER_FDS: usize = 32;

/// The main thread, one each for the log, signals, new front-ends and files that grow.
const THREADS: usize = 5;

/// Four regions, as many as a virtual machine monitor may have: all guests together have thousands.
fn spans() -> Vec<Span> {
    (0..4).map(|number| Span { guest_start: number << 32, bytes: 1 << 20 }).collect()
}

/// A program to be started in the daemon's place, which becomes the daemon: a line of shell before it.
fn wrapper(folder: &TempDir, first: &str, before: &str) -> std::path::PathBuf {
    let path = folder.path().join("wrapper");
    let daemon = env!("CARGO_BIN_EXE_vhost-user-pmem");
    fs::write(&path, format!("#!/bin/sh\n{first}\nexec {before} {daemon} \"$@\"\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// As many as that, with one worker for all of them.
fn disks(count: usize) -> Setup {
    let options = format!("size={DISK_BYTES}");
    let setup = (0..count).fold(Setup::new(Place::Tmpfs), |setup, _| setup.disk(&options));
    setup.arg("--workers=1")
}

/// When every disk is in the page tables nothing goes on any more.
fn wait_until_populated(daemon: &Daemon, count: usize) {
    wait_for("all disks are populated", || {
        (daemon.log().matches("mapped in huge pages").count() == count).then_some(())
    });
}

/// Resident memory without the disks' files and the guests' memory.
fn own_bytes(daemon: &Daemon) -> u64 {
    let image = daemon.image(0);
    let images = image.parent().unwrap().to_str().unwrap();
    let mut except = vec![images, "memfd:guest"];
    // A build for tests is several times as long.
    if cfg!(debug_assertions) {
        except.push(env!("CARGO_BIN_EXE_vhost-user-pmem"));
    }
    Process(daemon.pid()).resident_bytes_except(&except)
}

/// Front-ends for all disks, each with a ring that has been used once.
fn connect_all(daemon: &Daemon, count: usize) -> Vec<(Session, Ring)> {
    let options = Options { spans: spans(), ..Options::default() };
    let connect = |disk| {
        let session = Session::connect_with(&daemon.socket(disk), &options);
        let config = session.config(0, 8).unwrap();
        assert_eq!(config, (DISK_BYTES / 512).to_le_bytes(), "capacity of disk {disk}");
        let mut ring = session.ring(0, 16);
        use_ring(&mut ring);
        (session, ring)
    };
    (0..count).map(connect).collect()
}

fn use_ring(ring: &mut Ring) {
    let bytes = pattern(5, 4096);
    assert_eq!(ring.run(&Request::write(0, &bytes)).status, OK);
    assert_eq!(ring.run(&Request::read(0, 4096)).data, bytes);
}

/// This process needs descriptors for each front-end: one test at a time has so many.
fn many_files() -> MutexGuard<'static, ()> {
    const NEEDED: u64 = 16_000;
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    assert!(limit.maximum.is_none_or(|most| most >= NEEDED), "ulimit -Hn is below {NEEDED}: raise it");
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    one
}

/// Insists that the daemon comes to rest: for a while no thread wakes up, or computes anything.
fn assert_rests(process: Process) {
    let look = || (process.sleeps(), process.ticks());
    wait_for("nobody wakes up for two seconds", || {
        let before = look();
        std::thread::sleep(Duration::from_secs(2));
        (look() == before).then_some(())
    });
}

/// The daemon starts with the limit that a login shell has, which is far too low.
#[test]
fn a_thousand_disks_cost_little() {
    let _one = many_files();
    let folder = tempfile::tempdir().unwrap();
    let setup = disks(DISKS).program(&wrapper(&folder, "ulimit -Sn 256", ""));
    let daemon = setup.start();
    let process = Process(daemon.pid());
    wait_until_populated(&daemon, DISKS);
    let idle = (own_bytes(&daemon), process.threads(), process.fds());
    println!("nobody connected: {} bytes, {} threads, {} descriptors", idle.0, idle.1, idle.2);
    assert!(idle.0 < LIMIT_BYTES, "{} bytes", idle.0);
    wait_for("the thread that populates ends", || (process.threads() == THREADS).then_some(()));
    assert!(idle.2 <= DISKS * FDS_OF_A_DISK + OTHER_FDS, "{} descriptors", idle.2);

    let front_ends = connect_all(&daemon, DISKS);
    let used = (own_bytes(&daemon), process.threads(), process.fds());
    println!("all connected: {} bytes, {} threads, {} descriptors", used.0, used.1, used.2);
    assert!(used.0 < CONNECTED_LIMIT_BYTES, "{} bytes", used.0);
    assert_eq!(
        used.1,
        THREADS + 2 + DISKS,
        "one worker, one thread that watches it, and one for each front-end"
    );
    assert_rests(process);
    drop(front_ends);
    daemon.stop();
}

/// What kicks cost in a daemon of so many disks, each with a running ring.
#[derive(Debug)]
struct Cost {
    /// Voluntary context switches of all threads.
    sleeps: u64,
    /// Of the worker.
    system_calls: usize,
    /// Of the worker, for one kick.
    instructions: u64,
}

fn cost_of_kicks(count: usize, kicks: usize) -> Cost {
    // Who traces a worker holds it up.
    let daemon = disks(count).env("VHOST_USER_PMEM_HOLD_UPS", "0").start();
    wait_until_populated(&daemon, count);
    let mut front_ends = connect_all(&daemon, count);
    let ring = &mut front_ends[count / 2].1;
    let mut kick = || {
        for _ in 0..kicks {
            assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
            // The worker goes to sleep: each request needs its kick.
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let process = Process(daemon.pid());
    let sleeps = process.sleeps();
    kick();
    let sleeps = process.sleeps() - sleeps;
    let trace = Trace::start(&daemon);
    kick();
    let system_calls = trace.end().values().sum();
    let instructions = instructions_of_a_kick(&daemon, ring);
    let cost = Cost { sleeps, system_calls, instructions };
    println!("{count} disks, {kicks} kicks: {cost:?}");
    cost
}

/// On the average of a few, in user space.
fn instructions_of_a_kick(daemon: &Daemon, ring: &mut Ring) -> u64 {
    const KICKS: u64 = 4;
    let workers = Process(daemon.pid()).threads_named("worker");
    let steps = Steps::follow(workers[0]);
    let mut kick = || {
        assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
        steps.at_rest()
    };
    let before = kick();
    let after = (0..KICKS).map(|_| kick()).last().unwrap();
    steps.end(|| ring.kick.signal());
    (after - before) / KICKS
}

#[test]
fn a_kick_costs_the_same_beside_a_thousand_disks() {
    /// The trace's own begin and end.
    const SLACK: usize = 8;
    const KICKS: usize = 200;
    let _one = many_files();
    // Of one alone nobody looks how long it takes.
    let costs = [2, DISKS].map(|count| cost_of_kicks(count, KICKS));
    for Cost { sleeps, system_calls, .. } in &costs {
        assert!(*sleeps <= (KICKS + SLACK) as u64, "{sleeps} sleeps of threads for {KICKS} kicks");
        // One that sleeps, one that calls the driver.
        assert!(*system_calls <= 2 * KICKS + SLACK, "{system_calls} system calls for {KICKS} kicks");
        assert!(*system_calls >= KICKS, "nothing was traced");
    }
    let [two, among_many] = costs.map(|cost| cost.instructions as f64);
    // What reading the clock takes differs a little.
    assert!(among_many < two * 1.05, "{among_many} instructions for a kick, {two} with two disks");
}

#[test]
fn too_few_descriptors_are_said_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let setup = disks(DISKS).program(&wrapper(&folder, "ulimit -n 2000", ""));
    let output = setup.run();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("1000 disks need 3064 open files, and this process may have 2000"), "{error}");
    assert!(!setup.image(0).exists(), "nothing was begun");
}

/// `strace` holds the thread that populates at its 16th step, for longer than this test waits for anything.
#[test]
fn front_ends_do_not_wait_for_what_is_populated() {
    let folder = tempfile::tempdir().unwrap();
    // The number of a call is counted for each thread: others advise once or twice for each disk, or for
    // each region of guest memory.
    // All of the disk takes 43 steps at least.
    let held =
        "strace -D -f -qq -o /dev/null -e trace=madvise -e inject=madvise:delay_enter=120000000:when=16+";
    let program = wrapper(&folder, "", held);
    let daemon = Setup::new(Place::Tmpfs).disk("size=256M").program(&program).start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    use_ring(&mut ring);
    let last = (256 << 20) / 512 - 8;
    assert_eq!(ring.run(&Request::write(last, &pattern(1, 4096))).status, OK);
    let process = Process(daemon.pid());
    assert_eq!(process.threads_named("populate").len(), 1, "it is held");
    assert!(!daemon.log().contains("populated"), "{}", daemon.log());
    // Without whoever holds it, it goes on.
    rustix::process::kill_process(process.tracer().unwrap(), Signal::KILL).unwrap();
    daemon.wait_for_log("populated");
    daemon.stop();
}

#[test]
fn nothing_of_a_sparse_terabyte_is_touched() {
    for place in Place::ALL {
        let setup = Setup::new(place).disk("sparse=on");
        let image = setup.image(0);
        fs::File::create(&image).unwrap().set_len(TIB).unwrap();
        let blocks = image.metadata().unwrap().blocks();
        let daemon = setup.start();
        let session = Session::connect(&daemon.socket(0));
        assert_eq!(session.config(0, 8).unwrap(), (TIB / 512).to_le_bytes());
        drop(session.ring(0, 64));
        assert_eq!(image.metadata().unwrap().blocks(), blocks, "{place:?}: blocks of the file");
        let process = Process(daemon.pid());
        let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
        assert!(maps.contains(image.to_str().unwrap()), "{place:?}: it is mapped");
        let mapped = process.resident_bytes_of(image.to_str().unwrap());
        assert_eq!(mapped, 0, "{place:?}: bytes of the disk in the page tables");
        println!("{place:?}: {} bytes, page tables {}", own_bytes(&daemon), process.page_table_bytes());
        assert!(process.page_table_bytes() < 1 << 20, "{place:?}");
        assert!(!daemon.log().contains("populated"), "{}", daemon.log());
        daemon.stop();
    }
}
