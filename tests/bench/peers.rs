//! Our daemon side by side with other back-ends, all on files in memory, in interleaved rounds.
//!
//! `cargo bench --bench peers [-- ROUNDS RUNTIME_MS FOLDER]`, or `ci/bench peers`, which installs what is missing. The
//! client and this process have one CPU, the back-ends another one. It writes a table and plots to the folder.

#![allow(unsafe_code, missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "peers/bare.rs"]
mod bare;
mod common;
#[path = "../common/process.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod process;
#[path = "../common/stock.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod stock;

use std::fmt::Write as _;
use std::fs;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::Listener;
use vhost_user_pmem::bench::{self, Peer, Plan, Report, Rw, Waiting, Work};
use vhost_user_pmem::cpus::Cpus;
use vhost_user_pmem::disk::{self, LockMode, OpenOptions};
use vhost_user_pmem::stock::Stock;
use vhost_user_pmem::virtio::blk::{Device, Identity};

use bare::Bare;
use process::Process;

const MEDIA_BYTES: u64 = 1 << 30;
/// Buffers of the largest row.
const LARGEST_BYTES: usize = 8 << 20;
const SERVER_CPU: &str = "1";
const CLIENT_CPU: &str = "0";
const IDLE: Duration = Duration::from_secs(3);
/// The unit of CPU time in `/proc/PID/stat`.
const TICKS_PER_SECOND: f64 = 100.0;
const STOCK: &str = "vhost-user-backend";
const IMAGE: &str = "disk.img";

/// What is measured: name, order and direction, block, depth, how completions are waited for, how it is shown.
const MATRIX: [(&str, Rw, u32, u16, Waiting, Show); 8] = [
    ("4 KiB random read, depth 1, polling client, p50 µs", Rw::RandRead, 4096, 1, Waiting::Poll, Show::P50),
    ("4 KiB random read, depth 32", Rw::RandRead, 4096, 32, Waiting::Poll, Show::Rate),
    ("4 KiB random write, depth 32", Rw::RandWrite, 4096, 32, Waiting::Poll, Show::Rate),
    ("512 B random read, depth 32", Rw::RandRead, 512, 32, Waiting::Poll, Show::Rate),
    ("1 MiB read, depth 8, GB/s", Rw::Read, 1 << 20, 8, Waiting::Poll, Show::Bandwidth),
    ("1 MiB write, depth 8, GB/s", Rw::Write, 1 << 20, 8, Waiting::Poll, Show::Bandwidth),
    (
        "4 KiB random read, depth 1, event-driven client, p50 µs",
        Rw::RandRead,
        4096,
        1,
        Waiting::Event,
        Show::P50,
    ),
    (
        "4 KiB random read, depth 32, event-driven, µs of the back-end's CPU a request",
        Rw::RandRead,
        4096,
        32,
        Waiting::Event,
        Show::Cpu,
    ),
];

#[derive(Clone, Copy)]
enum Show {
    P50,
    /// Thousand requests a second.
    Rate,
    /// 10⁹ bytes a second.
    Bandwidth,
    Cpu,
}

/// A back-end under test; killed and reaped when dropped.
struct Server {
    name: String,
    peer: Peer,
    child: Option<Child>,
    start_ms: Option<f64>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn main() {
    // `cargo bench` adds --bench; `cargo test --benches` does not, and starts nothing.
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench").peekable();
    if words.peek().is_some_and(|word| word == "stock") {
        let paths: Vec<_> = words.skip(1).map(PathBuf::from).collect();
        return serve_stock(&paths[0], &paths[1]);
    }
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let mut number = |default: u16| words.next().map_or(default, |word| word.parse().unwrap());
    let (rounds, runtime) = (number(5), Duration::from_millis(u64::from(number(2000))));
    let folder = PathBuf::from(words.next().unwrap_or("target/bench".to_owned()));
    fs::create_dir_all(&folder).unwrap();
    CLIENT_CPU.parse::<Cpus>().unwrap().pin_this_thread().unwrap();

    let scratch = tempfile::Builder::new().prefix("peers-").tempdir_in("/dev/shm").unwrap();
    let image = scratch.path().join(IMAGE);
    let file = fs::File::create(&image).unwrap();
    // Space that is missing is not measured.
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, MEDIA_BYTES).unwrap();
    let servers = start_all(scratch.path(), &image.display().to_string());
    let mut bare = Bare::new(&image, LARGEST_BYTES);
    let found = measure(&servers, &mut bare, rounds, runtime);
    let mut text = table(&servers, &found, rounds, runtime);
    text += &idle(&servers);
    println!("\n{text}");
    fs::write(folder.join("peers.md"), text).unwrap();
    plots(&servers, rounds, runtime, &folder);
    println!("table and plots are in {}", folder.display());
}

/// Our disk inside a daemon on `vhost-user-backend` and `virtio-queue`: the same execution behind stock rings. One
/// front-end after another, for ever.
fn serve_stock(socket: &Path, image: &Path) {
    let options = OpenOptions { lock: LockMode::Off, ..OpenOptions::new("stock") };
    let disk = disk::open(image, &options).unwrap().disk;
    let identity = Identity { name: "stock".to_owned(), serial: [0; 20] };
    let device = Arc::new(Device::new(disk, identity, 1));
    let mut listener = Listener::new(socket, true).unwrap();
    loop {
        stock::serve_one(&mut listener, Arc::new(Stock::new(device.clone()).unwrap()));
    }
}

/// All on the same file: none of them relies on what is in it.
fn start_all(scratch: &Path, file: &str) -> Vec<Server> {
    let ours = env!("CARGO_BIN_EXE_vhost-user-pmem");
    let mut servers = Vec::new();
    for (name, poll) in [("ours", "50"), ("ours, never polling", "0"), ("ours, busy", "busy")] {
        let socket = socket_of(scratch, name);
        let disk = format!("path={file},socket={},lock=off", socket.display());
        servers.push(start(
            name,
            &socket,
            &[ours, "--log", "warn", "serve", "--workers", "1", "--poll-max-us", poll, "--disk", &disk],
        ));
    }
    let this = std::env::current_exe().unwrap().display().to_string();
    let socket = socket_of(scratch, STOCK);
    servers.push(start(STOCK, &socket, &[&this, "stock", &socket.display().to_string(), file]));
    for (name, aio, iothread) in [
        ("qsd, io_uring", "io_uring", false),
        ("qsd, threads", "threads", false),
        ("qsd, iothread", "io_uring", true),
    ] {
        let socket = socket_of(scratch, name);
        servers.extend(start_qsd(name, file, aio, iothread, &socket));
    }
    if let Some(socket) = std::env::var_os("SPDK_SOCKET") {
        let peer = Peer { socket: socket.into(), pid: None };
        servers.push(Server { name: "SPDK".to_owned(), peer, child: None, start_ms: None });
    }
    servers
}

/// Where a back-end of this name listens: plots show it.
fn socket_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{}.sock", slug(name)))
}

/// A name as a file may have it.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// Nothing where the program is not installed.
fn start_qsd(name: &str, file: &str, aio: &str, iothread: bool, socket: &Path) -> Option<Server> {
    const PROGRAM: &str = "qemu-storage-daemon";
    if Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("{PROGRAM} is not installed: {name} is left out");
        return None;
    }
    let node = format!("driver=file,node-name=disk,filename={file},aio={aio},locking=off");
    let thread = if iothread { ",iothread=io" } else { "" };
    let export = format!(
        "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,num-queues=1{thread}",
        socket.display()
    );
    let mut words = vec![PROGRAM];
    if iothread {
        words.extend(["--object", "iothread,id=io"]);
    }
    words.extend(["--blockdev", &node, "--export", &export]);
    Some(start(name, socket, &words))
}

/// Starts a program on the servers' CPU, and waits until its socket is there.
fn start(name: &str, socket: &Path, words: &[&str]) -> Server {
    let begin = Instant::now();
    let mut command = Command::new("taskset");
    command.args(["-c", SERVER_CPU]).args(words).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    while !socket.exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{name}: no socket after a minute");
        assert!(child.try_wait().unwrap().is_none(), "{name} has ended: {words:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
    let start_ms = Some(begin.elapsed().as_secs_f64() * 1e3);
    let peer = Peer { socket: socket.to_owned(), pid: Some(child.id()) };
    Server { name: name.to_owned(), peer, child: Some(child), start_ms }
}

fn plan(row: usize, peers: Vec<Peer>, runtime: Duration) -> Plan {
    let (_, rw, block_bytes, depth, waiting, _) = MATRIX[row];
    let work = Work {
        rw,
        read_percent: 50,
        block_bytes,
        depth: NonZeroU16::new(depth).unwrap(),
        queues: NonZeroU16::MIN,
        waiting,
        packed: false,
        span_bytes: None,
        verify: false,
    };
    Plan { peers, work, runtime, rounds: NonZeroU16::MIN, sweep: false }
}

/// For each row of the matrix and each server, and the bare loop behind them, the numbers of the rounds.
fn measure(servers: &[Server], bare: &mut Bare, rounds: u16, runtime: Duration) -> Vec<Vec<Vec<f64>>> {
    let mut found = vec![vec![Vec::new(); servers.len() + 1]; MATRIX.len()];
    for round in 0..rounds {
        for (row, (name, rw, bytes, depth, _, show)) in MATRIX.iter().enumerate() {
            eprintln!("round {} of {rounds}: {name}", round + 1);
            let scale = match show {
                Show::Rate => 1e-3,
                Show::Bandwidth => f64::from(*bytes) / 1e9,
                Show::P50 | Show::Cpu => 0.0,
            };
            if scale > 0.0 {
                let rate = bare.rate(rw.writes(), *bytes as usize, usize::from(*depth), runtime);
                found[row][servers.len()].push(rate * scale);
            }
            for turn in 0..servers.len() {
                // Nobody always runs behind the same one.
                let column = (turn + usize::from(round)) % servers.len();
                match bench::run(&plan(row, vec![servers[column].peer.clone()], runtime)) {
                    Ok(report) => found[row][column].extend(value(&report, *show)),
                    Err(error) => eprintln!("{}: {error}", servers[column].name),
                }
            }
        }
    }
    found
}

fn value(report: &Report, show: Show) -> Option<f64> {
    let point = &report.peers[0].depths[0];
    match show {
        Show::P50 => Some(point.latency_ns.p50 as f64 / 1e3),
        Show::Rate => Some(point.iops.median / 1e3),
        Show::Bandwidth => Some(point.bytes_per_second.median / 1e9),
        Show::Cpu => point.server_cpu_ns_per_request.map(|ns| ns / 1e3),
    }
}

/// Median, lowest and highest.
fn spread(numbers: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some([*sorted.get(sorted.len() / 2)?, *sorted.first()?, *sorted.last()?])
}

fn table(servers: &[Server], found: &[Vec<Vec<f64>>], rounds: u16, runtime: Duration) -> String {
    let mut text = format!(
        "Thousand requests/s unless noted: median of {rounds} interleaved rounds of {runtime:?} (lowest – highest); {} on {}; \
         client on CPU {CLIENT_CPU}, back-ends on CPU {SERVER_CPU}, 1 GiB in /dev/shm, one queue.\n\n| work |",
        line_of("/proc/sys/kernel/osrelease", ""),
        line_of("/proc/cpuinfo", "model name"),
    );
    servers.iter().for_each(|server| write!(text, " {} |", server.name).unwrap());
    write!(text, " bare copy loop |\n| --- |{}\n", " --- |".repeat(servers.len() + 1)).unwrap();
    for ((name, ..), row) in MATRIX.iter().zip(found) {
        write!(text, "| {name} |").unwrap();
        for numbers in row {
            match spread(numbers) {
                Some([median, low, high]) => write!(text, " {median:.2} ({low:.2} – {high:.2}) |").unwrap(),
                None => text += " – |",
            }
        }
        text += "\n";
    }
    text
}

/// What follows the name in the first line that begins so.
fn line_of(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("an unknown machine");
    line.trim_start_matches(['\t', ' ', ':']).to_owned()
}

/// The last rows: what a back-end costs when nobody wants anything of it.
fn idle(servers: &[Server]) -> String {
    let ticks = || servers.iter().map(|server| server.peer.pid.map(|pid| Process(pid).ticks()));
    let before: Vec<_> = ticks().collect();
    std::thread::sleep(IDLE);
    let used: Vec<_> = ticks().zip(before).map(|(after, before)| after.zip(before)).collect();
    let (mut cpu, mut memory, mut start) = (String::new(), String::new(), String::new());
    for (server, used) in servers.iter().zip(used) {
        let percent = used
            .map(|(after, before)| (after - before) as f64 / TICKS_PER_SECOND / IDLE.as_secs_f64() * 100.0);
        let resident = server
            .peer
            .pid
            .map(|pid| Process(pid).resident_bytes_except(&[IMAGE]) as f64 / f64::from(1 << 20));
        for (row, value) in [(&mut cpu, percent), (&mut memory, resident), (&mut start, server.start_ms)] {
            write!(row, " {} |", value.map_or("–".to_owned(), |value| format!("{value:.1}"))).unwrap();
        }
    }
    format!(
        "| idle CPU after the last request, % |{cpu} |\n| resident besides the disk, MiB |{memory} |\n\
         | from exec to a socket, ms |{start} |\n"
    )
}

/// Ours against each other program: latencies, and throughput over depth.
fn plots(servers: &[Server], rounds: u16, runtime: Duration, folder: &Path) {
    for other in servers.iter().filter(|server| !server.name.starts_with("ours")) {
        let peers = vec![servers[0].peer.clone(), other.peer.clone()];
        let rounds = NonZeroU16::new(rounds).unwrap();
        let plan = Plan { rounds, sweep: true, ..plan(1, peers, runtime) };
        let name = slug(&other.name);
        let drawn = bench::run(&plan)
            .and_then(|report| bench::draw(&report, &folder.join(format!("ours-against-{name}.svg"))));
        if let Err(error) = drawn {
            eprintln!("{}: {error}", other.name);
        }
    }
}
