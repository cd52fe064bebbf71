//! From exec to the first answer: our daemon and `qemu-storage-daemon` on the same files, in turns.
//!
//! `cargo bench --bench start [-- ROUNDS] [PART OF A NAME]`, or `ci/bench start`, which installs what is missing. A program is ready when
//! a connection to each of its sockets succeeds, and it answers when GET_FEATURES has come back on each; both are counted
//! from before the fork. Times are medians with the lowest and the highest; the rest is of the last round.

#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/process.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod process;

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use process::Process;

const MIB: u64 = 1 << 20;
const QSD: &str = "qemu-storage-daemon";

/// How long a start may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two tries to connect.
const PAUSE: Duration = Duration::from_micros(50);

/// Disks of a kind, in one process.
struct Case {
    name: &'static str,
    /// Where the files are.
    folder: TempDir,
    disks: usize,
    options: &'static str,
}

impl Case {
    /// Makes the files: `full` ones have their space.
    fn new(name: &'static str, parent: &str, disks: usize, bytes: u64, full: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("start-").tempdir_in(parent).unwrap();
        let options = if full { "" } else { ",sparse=on" };
        let case = Self { name, folder, disks, options };
        for disk in 0..disks {
            let file = File::create(case.image(disk)).unwrap();
            file.set_len(bytes).unwrap();
            if full {
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
            }
        }
        case
    }

    fn image(&self, disk: usize) -> PathBuf {
        self.folder.path().join(format!("{disk}.img"))
    }

    fn ours(&self, sockets: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
        command.args(["--log", "warn", "serve"]);
        for disk in 0..self.disks {
            let (image, socket) = (self.image(disk), socket(sockets, disk));
            let words = format!("path={},socket={}{}", image.display(), socket.display(), self.options);
            command.args(["--disk", &words]);
        }
        command
    }

    fn qsd(&self, sockets: &Path) -> Command {
        let mut command = Command::new(QSD);
        for disk in 0..self.disks {
            let (image, socket) = (self.image(disk), socket(sockets, disk));
            let node = format!("driver=file,node-name=n{disk},filename={}", image.display());
            let export = format!(
                "type=vhost-user-blk,id=e{disk},node-name=n{disk},addr.type=unix,addr.path={},writable=on",
                socket.display()
            );
            command.args(["--blockdev", &node, "--export", &export]);
        }
        command
    }
}

fn socket(folder: &Path, disk: usize) -> PathBuf {
    folder.join(disk.to_string())
}

/// What a start has cost.
#[derive(Clone, Copy)]
struct Start {
    ready_ms: f64,
    answer_ms: f64,
    /// Half a second later.
    resident_bytes: u64,
    threads: usize,
    fds: usize,
}

fn main() {
    // `cargo bench` adds --bench; `cargo test --benches` does not, and starts nothing.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if !words.iter().any(|word| word == "--bench") {
        return;
    }
    let rounds = words.iter().find_map(|word| word.parse().ok()).unwrap_or(15);
    let here = env!("CARGO_TARGET_TMPDIR");
    let cases = [
        Case::new("1 TiB, sparse, tmpfs", "/dev/shm", 1, 1 << 40, false),
        Case::new("1 TiB, sparse, where cargo builds", here, 1, 1 << 40, false),
        Case::new("1 GiB, full, tmpfs", "/dev/shm", 1, 1 << 30, true),
        Case::new("1000 disks of 1 MiB, tmpfs", "/dev/shm", 1000, MIB, true),
    ];
    let has_qsd = Command::new(QSD).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has_qsd {
        eprintln!("{QSD} is not installed: it is left out");
    }
    println!(
        "| disks | program | ready, ms | first answer, ms | resident besides disks, MiB | threads | descriptors |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    );
    let is_asked_for = |case: &&Case| {
        words
            .iter()
            .all(|word| word.starts_with("--") || word.parse::<usize>().is_ok() || case.name.contains(word))
    };
    for case in cases.iter().filter(is_asked_for) {
        let (mut ours, mut qsd) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            eprintln!("{}: round {} of {rounds}", case.name, round + 1);
            let mut run_ours = || ours.push(start(case, Case::ours));
            if round % 2 == 0 {
                run_ours();
            }
            if has_qsd {
                qsd.push(start(case, Case::qsd));
            }
            if round % 2 == 1 {
                run_ours();
            }
        }
        report(case.name, "ours", &ours);
        report(case.name, QSD, &qsd);
    }
    println!("| nothing | `true`, to its end | {} | | | | |", spread((0..rounds).map(|_| exec_ms())));
}

/// Starts a program, waits until it answers everywhere, and ends it.
fn start(case: &Case, command: fn(&Case, &Path) -> Command) -> Start {
    // In memory, as /run is.
    let sockets = tempfile::Builder::new().prefix("start-").tempdir_in("/dev/shm").unwrap();
    let mut command = command(case, sockets.path());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let begin = Instant::now();
    let mut program = Running(command.spawn().unwrap());
    let connect = |disk| connect(&socket(sockets.path(), disk), begin, &mut program.0);
    let mut streams: Vec<UnixStream> = (0..case.disks).map(connect).collect();
    let ready_ms = begin.elapsed().as_secs_f64() * 1e3;
    streams.iter_mut().for_each(get_features);
    let answer_ms = begin.elapsed().as_secs_f64() * 1e3;
    drop(streams);
    std::thread::sleep(Duration::from_millis(500));
    let process = Process(program.0.id());
    let files = case.folder.path().to_str().unwrap();
    let resident_bytes = process.resident_bytes_except(&[files]);
    Start { ready_ms, answer_ms, resident_bytes, threads: process.threads(), fds: process.fds() }
}

/// A program; killed and reaped when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(socket: &Path, begin: Instant, program: &mut Child) -> UnixStream {
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => {
                let not_yet = [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind());
                assert!(not_yet && begin.elapsed() < PATIENCE, "{}: {error}", socket.display());
                assert!(program.try_wait().unwrap().is_none(), "the program has ended");
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Asks for the virtio features, as every front-end does first.
fn get_features(stream: &mut UnixStream) {
    const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&GET_FEATURES).unwrap();
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..8], [1, 0, 0, 0, 5, 0, 0, 0], "the answer to GET_FEATURES");
}

/// How long it takes to start and end a program that does nothing.
fn exec_ms() -> f64 {
    let begin = Instant::now();
    Command::new("true").status().unwrap();
    begin.elapsed().as_secs_f64() * 1e3
}

fn report(case: &str, program: &str, starts: &[Start]) {
    let Some(last) = starts.last() else { return };
    let of = |what: fn(&Start) -> f64| spread(starts.iter().map(what));
    println!(
        "| {case} | {program} | {} | {} | {:.1} | {} | {} |",
        of(|start| start.ready_ms),
        of(|start| start.answer_ms),
        last.resident_bytes as f64 / MIB as f64,
        last.threads,
        last.fds
    );
}

/// Median, lowest and highest.
fn spread(numbers: impl Iterator<Item = f64>) -> String {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    format!("{median:.1} ({:.1} – {:.1})", sorted[0], sorted[sorted.len() - 1])
}
