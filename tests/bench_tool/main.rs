//! `vhost-user-pmem bench` against the daemon: its numbers are coherent, it notices wrong data, and it says what is wrong.

#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "stock")]
#[path = "../common/stock.rs"]
#[allow(dead_code, reason = "others use more of it")]
mod embedded;
#[cfg(feature = "stock")]
mod others;

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use common::daemon::{Place, Setup};
use common::process::Process;

const BLOCK_BYTES: u64 = 4096;

/// The tool on this socket.
fn command(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
    command.arg("bench").arg("--socket").arg(socket).args(args).env_remove("VHOST_USER_PMEM_LOG");
    command.stdin(Stdio::null());
    command
}

fn bench(socket: &Path, args: &[&str]) -> Output {
    command(socket, args).output().unwrap()
}

/// The JSON object of a run that succeeds.
#[track_caller]
fn measured(socket: &Path, args: &[&str]) -> Value {
    let output = bench(socket, &[args, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Insists on this exit code and one `error:` line with all `parts`.
#[track_caller]
fn assert_error(output: &Output, code: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty(), "standard output of a failure");
    let error = text.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{text}"));
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no whole number"))
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The only depth of the back-end of this index.
fn point(report: &Value, peer: usize) -> &Value {
    let depths = report["peers"][peer]["depths"].as_array().unwrap();
    assert_eq!(depths.len(), 1);
    &depths[0]
}

#[track_caller]
fn assert_coherent(point: &Value, block_bytes: u64) {
    let requests = number(&point["requests"]);
    assert!(requests > 0, "{point}");
    assert_eq!(number(&point["bytes"]), requests * block_bytes);
    assert_eq!(number(&point["reads"]) + number(&point["writes"]), requests);
    let latency = &point["latency_ns"];
    assert_eq!(number(&latency["count"]), requests);
    let steps = ["min", "p50", "p99", "p99_9", "max"].map(|name| number(&latency[name]));
    assert!(steps[0] > 0 && steps.is_sorted(), "{latency}");
    let rounds = point["rounds"].as_array().unwrap();
    assert_eq!(rounds.iter().map(|round| number(&round["requests"])).sum::<u64>(), requests);
    for round in rounds {
        assert!(float(&round["client_cpu_ns_per_request"]) > 0.0, "{round}");
        let iops = number(&round["requests"]) as f64 / float(&round["seconds"]);
        assert!((float(&round["iops"]) / iops - 1.0).abs() < 1e-9, "{round}");
    }
    for what in ["kicks", "calls"] {
        let each = number(&point[what]) as f64 / requests as f64;
        assert!((float(&point[format!("{what}_per_request")]) - each).abs() < 1e-9, "{point}");
    }
    assert!(float(&point["client_cpu_ns_per_request"]) > 0.0, "{point}");
}

#[test]
fn its_numbers_are_coherent() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=16M").start();
    let pid = daemon.pid().to_string();
    let args = ["--runtime", "300ms", "--iodepth", "4", "--rounds", "2", "--server-pid", &pid];
    let report = measured(&daemon.socket(0), &args);
    let point = point(&report, 0);
    assert_coherent(point, BLOCK_BYTES);
    assert_eq!((number(&point["writes"]), number(&point["iodepth"])), (0, 4));
    assert_eq!(point["rounds"].as_array().unwrap().len(), 2);
    assert!(float(&point["server_cpu_ns_per_request"]) > 0.0, "{point}");
    assert_eq!(number(&report["peers"][0]["capacity_bytes"]), 16 << 20);
    assert_eq!(report["ratios"].as_array().unwrap().len(), 0);
    daemon.stop();
}

#[test]
fn a_sleeping_client_is_called_on_every_queue_and_a_polling_one_is_not() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=16M").start();
    let load = ["--runtime", "300ms", "--rw", "randrw", "--bs", "1k", "--numqueues", "2", "--iodepth", "1"];
    let sleeping = measured(&daemon.socket(0), &[&load[..], &["--event"]].concat());
    let polling = measured(&daemon.socket(0), &load);
    let (sleeping, polling) = (point(&sleeping, 0), point(&polling, 0));
    for point in [sleeping, polling] {
        assert_coherent(point, 1024);
        assert!(number(&point["reads"]) > 0 && number(&point["writes"]) > 0, "{point}");
    }
    assert!(number(&sleeping["calls"]) >= 2, "{sleeping}");
    // One each when the used index passes the parked event index.
    assert!(number(&polling["calls"]) <= number(&polling["requests"]) / 1000 + 2, "{polling}");
    daemon.stop();
}

#[test]
fn packed_rings_go_on_when_the_count_of_their_descriptors_wraps() {
    const REQUESTS: u64 = u16::MAX as u64 / 3 + 1;
    let daemon = Setup::new(Place::Tmpfs).disk("size=16M").start();
    for mode in ["--poll", "--event"] {
        let load = ["--packed", "--rw", "randrw", "--verify", "--iodepth", "32", mode, "--runtime"];
        let enough = ["1", "10", "100"].into_iter().find_map(|runtime| {
            let report = measured(&daemon.socket(0), &[&load[..], &[runtime]].concat());
            assert_eq!((&report["packed"], report["waiting"].as_str()), (&true.into(), Some(&mode[2..])));
            let point = point(&report, 0);
            assert_coherent(point, BLOCK_BYTES);
            assert!(number(&report["peers"][0]["blocks_read_back"]) > 0, "{report}");
            (number(&point["requests"]) > REQUESTS).then_some(())
        });
        enough.unwrap_or_else(|| panic!("fewer than {REQUESTS} requests in 100 s"));
    }
    daemon.stop();
}

#[test]
fn two_back_ends_are_compared_in_turns() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=16M").disk("size=8M").start();
    let (a, b) = (daemon.socket(0), daemon.socket(1));
    let args = ["--against", b.to_str().unwrap(), "--runtime", "100ms", "--rounds", "3", "--iodepth", "2"];
    let report = measured(&a, &args);
    let ratio = &report["ratios"][0]["iops"];
    let rounds =
        |peer| point(&report, peer)["rounds"].as_array().unwrap().iter().map(|round| float(&round["iops"]));
    let mut quotients: Vec<f64> = rounds(0).zip(rounds(1)).map(|(a, b)| a / b).collect();
    quotients.sort_by(f64::total_cmp);
    let found = ["min", "median", "max"].map(|name| float(&ratio[name]));
    for (found, expected) in found.iter().zip(&quotients) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found:?} {quotients:?}");
    }
    (0..2).for_each(|peer| assert_coherent(point(&report, peer), BLOCK_BYTES));

    let output = bench(&a, &args);
    let (table, progress) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    for part in ["A / B", "IOPS", "p99.9", a.to_str().unwrap(), b.to_str().unwrap()] {
        assert!(table.contains(part), "{part} is not in:\n{table}");
    }
    let turns: Vec<_> = progress.lines().map(|line| line.contains(a.to_str().unwrap())).collect();
    assert_eq!(turns, [true, false, true, false, true, false], "{progress}");
    daemon.stop();
}

#[test]
fn wrong_data_are_found_and_their_place_is_named() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=1M").start();
    let socket = daemon.socket(0);
    let image = std::fs::File::options().write(true).open(daemon.image(0)).unwrap();
    let verify = |rw: &'static str| ["--rw", rw, "--verify", "--runtime", "200ms", "--iodepth", "4"];

    let untouched = bench(&socket, &verify("read"));
    assert_error(&untouched, 1, &["verification failed: at offset 0", "--rw write --verify"]);
    let written = measured(&socket, &verify("write"));
    assert!(number(&written["peers"][0]["blocks_read_back"]) > 0, "{written}");
    let mixed = measured(&socket, &[&verify("randrw")[..], &["--numqueues", "2"]].concat());
    assert!(number(&mixed["peers"][0]["blocks_read_back"]) > 0, "{mixed}");

    // The load may have been too short to write all of it.
    let fill = ["--rw", "write", "--verify", "--runtime", "1", "--bs", "64k", "--iodepth", "4"];
    assert_eq!(number(&measured(&socket, &fill)["peers"][0]["blocks_read_back"]), 16);
    measured(&socket, &verify("read"));
    measured(&socket, &verify("randread"));
    image.write_all_at(&[0x5a; 3], 700_001).unwrap();
    let found = bench(&socket, &["--rw", "read", "--verify", "--runtime", "2"]);
    assert_error(&found, 1, &[socket.to_str().unwrap(), "verification failed", "at offset 700000"]);
    daemon.stop();
}

/// The names of all elements, or a panic where they are not properly nested.
fn elements(svg: &str) -> BTreeSet<String> {
    let (mut open, mut all) = (Vec::new(), BTreeSet::new());
    for tag in svg.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').expect("each tag ends");
        assert!(!text.contains('>') && !tag.contains('&'), "{text}");
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap().to_owned();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_ref(), Some(&name), "{tag}");
        } else if !tag.ends_with('/') && !tag.starts_with(['?', '!']) {
            open.push(name.clone());
        }
        all.insert(name);
    }
    assert!(open.is_empty(), "{open:?} are left open");
    all
}

#[test]
fn a_plot_shows_both_back_ends() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=16M").disk("size=16M").start();
    let (a, b) = (daemon.socket(0), daemon.socket(1));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let plot = folder.path().join("plot.svg");
    let args = ["--against", b.to_str().unwrap(), "--rounds", "2", "--runtime", "50ms", "--iodepth", "6"];
    let report = measured(&a, &[&args[..], &["--plot", plot.to_str().unwrap()]].concat());
    let depths = report["peers"][1]["depths"].as_array().unwrap().iter().map(|it| number(&it["iodepth"]));
    assert_eq!(depths.collect::<Vec<_>>(), [1, 2, 4, 6]);
    assert_eq!(report["ratios"].as_array().unwrap().len(), 4);

    let svg = std::fs::read_to_string(&plot).unwrap();
    let elements = elements(&svg);
    for element in ["svg", "text", "polyline", "circle"] {
        assert!(elements.contains(element), "{element} is not among {elements:?}");
    }
    for part in [a.to_str().unwrap(), b.to_str().unwrap(), "latency, µs", "thousand requests/s", "iodepth"] {
        assert!(svg.contains(part), "{part}");
    }

    let unwritable = folder.path().join("missing/plot.svg");
    let args = ["--runtime", "10ms", "--iodepth", "1", "--plot", unwritable.to_str().unwrap()];
    let output = bench(&a, &args);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("missing/plot.svg: cannot write the plot"));
    daemon.stop();
}

#[test]
fn a_disk_is_written_only_when_it_may_be() {
    let setup = Setup::new(Place::Tmpfs).disk("readonly=on").disk("size=1M,block-size=4096,queues=1");
    let before = common::pattern(1, 1 << 20);
    std::fs::write(setup.image(0), &before).unwrap();
    let daemon = setup.start();
    let read_only = daemon.socket(0);
    for rw in ["write", "randwrite", "randrw"] {
        let output = bench(&read_only, &["--rw", rw, "--runtime", "50ms"]);
        assert_error(&output, 2, &[read_only.to_str().unwrap(), "read-only", rw, "randread or read"]);
    }
    measured(&read_only, &["--rw", "randread", "--runtime", "50ms"]);
    assert!(std::fs::read(daemon.image(0)).unwrap() == before, "a load of reads changed the disk");

    let small = daemon.socket(1);
    assert_error(&bench(&small, &["--bs", "512"]), 2, &["blocks of 4096 bytes"]);
    assert_error(&bench(&small, &["--numqueues", "2"]), 2, &["offers 1 queues and not 2"]);
    assert_error(&bench(&small, &["--size", "2M"]), 2, &["2097152 bytes are too large"]);
    assert_error(&bench(&small, &["--bs", "2M"]), 2, &["1048576 bytes are too few"]);
    assert_error(&bench(&small, &["--iodepth", "342"]), 2, &["--iodepth: 342"]);
    assert_error(&bench(&small, &["--bs", "1000"]), 2, &["multiple of 512"]);
    assert_error(&bench(&small, &["--server-pid", "4294967295"]), 1, &["process 4294967295"]);
    daemon.stop();
}

#[test]
fn what_is_no_back_end_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let is_12 = |name: &str, text: &str| assert_error(&bench(&path(name), &[]), 12, &[name, text]);
    is_12("none", ": cannot connect (there is no such socket); start the back-end first, or name the socket");
    std::fs::write(path("file"), "").unwrap();
    for name in ["file", ""] {
        is_12(name, ": cannot connect (it is no socket); name the Unix socket of a vhost-user-blk back-end");
    }
    drop(UnixListener::bind(path("dead")).unwrap());
    is_12("dead", ": cannot connect (nobody listens on it); start the back-end");
    let listener = UnixListener::bind(path("other")).unwrap();
    let other = std::thread::spawn(move || drop(listener.accept()));
    assert_error(&bench(&path("other"), &[]), 12, &["other: cannot negotiate", "a vhost-user-blk back-end"]);
    other.join().unwrap();
}

/// A child that is killed and reaped when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_back_end_that_goes_away_ends_the_run() {
    for mode in ["--poll", "--event"] {
        let daemon = Setup::new(Place::Tmpfs).disk("size=16M").start();
        let mut command = command(&daemon.socket(0), &["--runtime", "10m", mode]);
        let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let ticks = Process(daemon.pid()).ticks();
        common::wait_for("the daemon is under load", || {
            (Process(daemon.pid()).ticks() > ticks + 20).then_some(())
        });
        daemon.kill();
        let status = common::wait_for("the tool ends", || child.0.try_wait().unwrap());
        let stderr = std::io::read_to_string(child.0.stderr.take().unwrap()).unwrap();
        assert_error(
            &Output { status, stdout: Vec::new(), stderr: stderr.into_bytes() },
            12,
            &["disk0.sock", "hung up while requests were under way"],
        );
    }
}
