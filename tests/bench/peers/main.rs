//! Our daemon side by side with other back-ends, all on files in memory, in interleaved rounds.
//!
//! `cargo bench --features stock --bench peers [-- ROUNDS RUNTIME_MS FOLDER]`, or `ci/bench peers`, which installs what is
//! missing. The client and this process have one CPU, the back-ends another one. It writes a table and plots to the folder.
//!
//! A back-end's turn is cut into many short rounds, each with a connection of its own: what disturbs the machine for a
//! while spoils a few of them, and their median and quartiles do not notice.

#![allow(unsafe_code, missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::cast_possible_truncation)]

mod bare;
#[path = "../common/mod.rs"]
mod common;
mod matrix;
#[path = "../../common/process.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod process;
mod servers;
#[path = "../../common/stock.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod stock;
mod table;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::Listener;
use vhost_user_pmem::bench::{self, Plan};
use vhost_user_pmem::disk::{self, LockMode, OpenOptions};
use vhost_user_pmem::stock::Stock;
use vhost_user_pmem::virtio::blk::{Device, Identity};
use vhost_user_pmem::worker::Cpus;

use bare::Bare;
use common::noise;
use matrix::{MATRIX, PLOTTED, Row, Show};
use process::Process;
use servers::{Server, slug, start_all};
use table::{Line, lines};

const MEDIA_BYTES: usize = 1 << 30;
/// Buffers of the largest row.
const LARGEST_BYTES: usize = 8 << 20;
const SERVER_CPU: &str = "1";
const CLIENT_CPU: &str = "0";
const IDLE: Duration = Duration::from_secs(3);
/// The unit of CPU time in `/proc/PID/stat`.
const TICKS_PER_SECOND: f64 = 100.0;
const STOCK: &str = "vhost-user-backend";
const BARE: [&str; 2] = ["bare, 4 KiB pages", "bare, 2 MiB pages"];
const IMAGE: &str = "disk.img";
/// A short round.
const SLICE: Duration = Duration::from_millis(100);

/// How much is measured.
struct Length {
    /// Turns of each back-end with each load.
    rounds: u16,
    /// Short rounds of a turn.
    slices: u16,
    slice: Duration,
}

impl Length {
    fn new(rounds: u16, runtime: Duration) -> Self {
        let slices = (runtime.as_millis() / SLICE.as_millis()).max(1) as u16;
        Self { rounds, slices, slice: runtime / u32::from(slices) }
    }

    fn turn(&self) -> Duration {
        self.slice * u32::from(self.slices)
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
    let length = Length::new(number(5), Duration::from_millis(u64::from(number(2000))));
    let folder = PathBuf::from(words.next().unwrap_or("target/bench".to_owned()));
    fs::create_dir_all(&folder).unwrap();
    CLIENT_CPU.parse::<Cpus>().unwrap().pin_this_thread().unwrap();

    let scratch = tempfile::Builder::new().prefix("peers-").tempdir_in("/dev/shm").unwrap();
    let image = scratch.path().join(IMAGE);
    let file = fs::File::options().read(true).write(true).create_new(true).open(&image).unwrap();
    file.set_len(MEDIA_BYTES as u64).unwrap();
    // Space that is missing is not measured, nor are copies of zeroes.
    noise(&file, MEDIA_BYTES);
    let servers = start_all(scratch.path(), &image.display().to_string());
    let mut bare = [false, true].map(|in_huge_pages| Bare::new(&image, LARGEST_BYTES, in_huge_pages));
    let found = measure(&servers, &mut bare, &length);
    let text = report(&servers, &found, &length);
    println!("\n{text}");
    fs::write(folder.join("peers.md"), text).unwrap();
    plots(&servers, &length, &folder);
    println!("table (peers.md) and plots are in {}", std::path::absolute(&folder).unwrap().display());
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

/// Every load on every back-end and on the bare loops, in turns.
fn measure(servers: &[Server], bare: &mut [Bare], length: &Length) -> Vec<Vec<Line>> {
    let mut found = lines(servers.len() + bare.len());
    for round in 0..length.rounds {
        for (row, lines) in MATRIX.iter().zip(&mut found) {
            eprintln!("round {} of {}: {}", round + 1, length.rounds, row.name);
            for turn in 0..servers.len() {
                // Nobody always runs behind the same one.
                let column = (turn + usize::from(round)) % servers.len();
                for (line, numbers) in lines.iter_mut().zip(turn_of(&servers[column], row, length)) {
                    line.columns[column].push(numbers);
                }
            }
            for (line, show) in lines.iter_mut().zip(row.shows) {
                for (bare, column) in bare.iter_mut().zip(&mut line.columns[servers.len()..]) {
                    column.push(bare_turn(bare, row, *show, length));
                }
            }
        }
    }
    found
}

/// For each number of the load, those of the short rounds; none where the back-end fails.
fn turn_of(server: &Server, row: &Row, length: &Length) -> Vec<Vec<f64>> {
    let plan = row.plan(vec![server.peer.clone()], length.slices, length.slice);
    match bench::run(&plan) {
        Ok(report) => {
            let rounds = &report.peers[0].depths[0].rounds;
            let of =
                |show: &Show| rounds.iter().filter_map(|it| show.of_round(it, row.block_bytes)).collect();
            row.shows.iter().map(of).collect()
        }
        Err(error) => {
            eprintln!("{}: {error}", server.name);
            vec![Vec::new(); row.shows.len()]
        }
    }
}

/// The same of what is left when there is nothing but copies, or nothing but a wake-up each way, or both.
fn bare_turn(bare: &mut Bare, row: &Row, show: Show, length: &Length) -> Vec<f64> {
    let [client, server]: [Cpus; 2] = [CLIENT_CPU, SERVER_CPU].map(|cpu| cpu.parse().unwrap());
    let (bytes, depth) = (row.block_bytes as usize, usize::from(row.depth));
    let mut one = |_| match (row.is_event_driven(), show) {
        (false, Show::Rate | Show::Bandwidth) => {
            // Where the back-ends are: the one CPU may have other neighbours than the other.
            server.pin_this_thread().unwrap();
            let rate = bare.rate(row.rw.writes(), bytes, depth, length.slice);
            client.pin_this_thread().unwrap();
            Some(show.of_rate(rate, row.block_bytes))
        }
        (true, Show::P50) => Some(bare::wake_up_us(&server, length.slice)),
        (true, Show::ServerCpu) => Some(bare.woken_cpu_us(bytes, depth, &client, &server, length.slice)),
        _ => None,
    };
    (0..length.slices).filter_map(&mut one).collect()
}

fn report(servers: &[Server], found: &[Vec<Line>], length: &Length) -> String {
    let mut names: Vec<_> = servers.iter().map(|server| server.name.as_str()).collect();
    names.extend(BARE);
    let mut text = format!(
        "{} on {}; client on CPU {CLIENT_CPU}, back-ends on CPU {SERVER_CPU}, 1 GiB in /dev/shm, one queue.\n\n\
         Thousand requests/s unless noted: median (quartiles) of {} interleaved turns × {} rounds of {:?}. Bare is a loop over \
         the same copies, with the disk in pages of 4 KiB or, as ours has it, of 2 MiB; for event-driven clients a wake-up each way, both asleep, and what it costs with the copies.\n\n",
        line_of("/proc/sys/kernel/osrelease", ""),
        line_of("/proc/cpuinfo", "model name"),
        length.rounds,
        length.slices,
        length.slice,
    );
    text += &table::head("work", &names);
    found.iter().flatten().for_each(|line| text += &line.numbers());
    text += &idle(servers);
    text += "\nHow many times better ours is: median (quartiles) over the turns.\n\n";
    text += &table::head("work", &names[1..]);
    found.iter().flatten().for_each(|line| text += &line.ratios());
    text
}

/// What follows the name in the first line that begins so.
fn line_of(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("an unknown machine");
    line.trim_start_matches(['\t', ' ', ':']).to_owned()
}

/// The last lines: what a back-end costs when nobody wants anything of it.
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
        "| idle CPU after the last request, % |{cpu} – | – |\n| resident besides the disk, MiB |{memory} – | – |\n\
         | from exec to a socket, ms |{start} – | – |\n"
    )
}

/// Ours against each other program: latencies, and throughput over depth.
fn plots(servers: &[Server], length: &Length, folder: &Path) {
    for other in servers.iter().filter(|server| !server.name.starts_with("ours")) {
        eprintln!("plot of {}", other.name);
        let peers = vec![servers[0].peer.clone(), other.peer.clone()];
        let plan = Plan { sweep: true, ..PLOTTED.plan(peers, length.rounds, length.turn()) };
        let name = slug(&other.name);
        let drawn = bench::run(&plan)
            .and_then(|report| bench::draw(&report, &folder.join(format!("ours-against-{name}.svg"))));
        if let Err(error) = drawn {
            eprintln!("{}: {error}", other.name);
        }
    }
}
