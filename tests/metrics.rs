//! `serve --metrics` and `--metrics-listen`: what is counted, through the socket, and what hostile readers can do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stderr)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use common::daemon::{Daemon, Place, Setup};
use common::frontend::Session;
use common::frontend::message::{GET_FEATURES, SET_VRING_NUM};
use common::frontend::request::{DISCARD, IOERR, OK, Request, WRITE_ZEROES, range};
use common::frontend::ring::Ring;
use common::frontend::wire::{Verdict, Wire};
use common::metrics::{self, Samples};
use common::{PATIENCE, wait_for};

/// What one disk has counted.
const COUNTERS: [&str; 11] = [
    "reads_total",
    "read_bytes_total",
    "writes_total",
    "written_bytes_total",
    "zeroed_bytes_total",
    "media_written_bytes_total",
    "populated_zero_bytes_total",
    "flushes_total",
    "other_requests_total",
    "failures_total",
    "broken_rings_total",
];

/// A daemon with two disks, and what it counts of them.
struct Counting(Daemon);

impl Counting {
    fn start() -> Self {
        Self(Setup::new(Place::Tmpfs).disk("size=1M").disk("size=2M,readonly=off").with_metrics().start())
    }

    fn samples(&self) -> Samples {
        metrics::read(&self.0.metrics_socket())
    }

    /// Has `act` done to the first disk, and insists that exactly these of its counters grew, each by this much,
    /// and none of the other disk's.
    fn assert_counts(&self, what: &str, act: impl FnOnce(), grown: &[(&str, f64)]) {
        let before = self.samples();
        act();
        let after = self.samples();
        for counter in COUNTERS {
            let expected = grown.iter().find(|(name, _)| *name == counter).map_or(0.0, |(_, by)| *by);
            for (disk, expected) in [("disk0", expected), ("disk1", 0.0)] {
                let name = format!("{counter}{{disk=\"{disk}\"}}");
                assert_eq!(after[&name] - before[&name], expected, "{name} after {what}");
            }
        }
    }
}

fn zeroes(sector: u64, sectors: u32) -> Request {
    Request { kind: WRITE_ZEROES, sector: 0, payload: range(sector, sectors, 0).to_vec(), writable_bytes: 0 }
}

fn discard(sector: u64, sectors: u32) -> Request {
    Request { kind: DISCARD, ..zeroes(sector, sectors) }
}

#[test]
fn every_counter_counts_while_its_ring_runs() {
    let counting = Counting::start();
    let session = Session::connect(&counting.0.socket(0));
    let mut ring = session.ring(0, 16);
    let mut run = |request: Request, status| assert_eq!(ring.run(&request).status, status, "{request:?}");
    counting.assert_counts(
        "a read",
        || run(Request::read(0, 1536), OK),
        &[("reads_total", 1.0), ("read_bytes_total", 1536.0)],
    );
    counting.assert_counts(
        "a write",
        || run(Request::write(3, &[7; 4096]), OK),
        &[("writes_total", 1.0), ("written_bytes_total", 4096.0), ("media_written_bytes_total", 4096.0)],
    );
    let amplification = |samples: &Samples| samples[r#"write_amplification{disk="disk0"}"#];
    assert_eq!(amplification(&counting.samples()), 1.0);
    counting.assert_counts(
        "zeroes",
        || run(zeroes(0, 16), OK),
        &[
            ("other_requests_total", 1.0),
            ("zeroed_bytes_total", 8192.0),
            ("media_written_bytes_total", 8192.0),
        ],
    );
    assert_eq!(amplification(&counting.samples()), 1.0, "what a guest zeroes it writes");
    counting.assert_counts("a flush", || run(Request::flush(), OK), &[("flushes_total", 1.0)]);
    counting.assert_counts("a discard", || run(discard(0, 8), OK), &[("other_requests_total", 1.0)]);
    counting.assert_counts(
        "the serial number",
        || run(Request::get_id(), OK),
        &[("other_requests_total", 1.0)],
    );
    counting.assert_counts(
        "a read outside",
        || run(Request::read(1 << 40, 512), IOERR),
        &[("failures_total", 1.0)],
    );
    let broken = session.ring(1, 16);
    counting.assert_counts("a broken ring", || break_ring(broken), &[("broken_rings_total", 1.0)]);
    // Nothing is lost, nor counted twice, when the rings stop and their front-end leaves.
    counting.assert_counts("the ring's stop", || assert_ne!(session.stop(&ring), 0), &[]);
    counting.assert_counts("the front-end's leave", || leave(session, &counting), &[]);
    let next = Session::connect(&counting.0.socket(0));
    let mut ring = next.ring(0, 16);
    counting.assert_counts(
        "the next front-end's read",
        || assert_eq!(ring.run(&Request::read(0, 512)).status, OK),
        &[("reads_total", 1.0), ("read_bytes_total", 512.0)],
    );
    counting.0.stop();
}

/// Of each queue the sum over all front-ends that the disk has had; those of a disk add up to what is said of the disk.
#[test]
fn queues_are_counted_each() {
    let counting = Counting::start();
    let of = |ring: u16, operation: &str| {
        let labels = format!("{{disk=\"disk0\",ring=\"{ring}\",operation=\"{operation}\"}}");
        let samples = counting.samples();
        let sample = |name: &str| samples.get(&format!("ring_{name}_total{labels}")).copied();
        (sample("requests"), sample("bytes"))
    };
    for round in [1.0, 2.0] {
        let session = Session::connect(&counting.0.socket(0));
        let (mut first, mut last) = (session.ring(0, 16), session.ring(63, 16));
        assert_eq!(first.run(&Request::read(0, 1536)).status, OK);
        assert_eq!(last.run(&Request::write(3, &[7; 4096])).status, OK);
        assert_eq!(last.run(&Request::flush()).status, OK);
        assert_eq!(last.run(&Request::get_id()).status, OK);
        let assert_all = |what: &str| {
            assert_eq!(of(0, "read"), (Some(round), Some(round * 1536.0)), "{what}");
            assert_eq!(of(0, "write"), (Some(0.0), Some(0.0)), "{what}");
            assert_eq!(of(63, "write"), (Some(round), Some(round * 4096.0)), "{what}");
            assert_eq!(
                (of(63, "flush"), of(63, "other")),
                ((Some(round), None), (Some(round), None)),
                "{what}"
            );
            assert_eq!(of(1, "read"), (None, None), "of a queue that was never used nothing is said");
        };
        assert_all("while they run");
        assert_ne!(session.stop(&first), 0);
        assert_all("when one has stopped");
        drop((first, last));
        leave(session, &counting);
        assert_all("when the front-end has left");
        assert_eq!(counting.samples()[r#"reads_total{disk="disk0"}"#], round);
    }
    counting.0.stop();
}

fn break_ring(mut ring: Ring) {
    ring.break_it();
    ring.err.wait("the ring breaks");
}

fn leave(session: Session, counting: &Counting) {
    drop(session);
    wait_for("it has left", || (counting.samples()[r#"front_ends{disk="disk0"}"#] == 0.0).then_some(()));
}

#[test]
fn what_front_ends_are_refused_is_counted() {
    const PLACES: usize = 16;
    let counting = Counting::start();
    let of = |name: &str, disk: usize| counting.samples()[&format!("{name}{{disk=\"disk{disk}\"}}")];
    let (messages, closed) = (|| of("refused_messages_total", 0), || of("closed_connections_total", 0));
    let mut sessions: Vec<_> = (0..PLACES).map(|_| Session::connect(&counting.0.socket(0))).collect();
    assert_eq!((messages(), closed()), (0.0, 0.0));
    // A ring that does not exist.
    let no_ring = [255, 255, 0, 0, 64, 0, 0, 0];
    assert_eq!(sessions[0].wire.tell(SET_VRING_NUM, &no_ring, &[]), Verdict::Nack);
    wait_for("that is counted", || (messages() == 1.0).then_some(()));
    assert!(Wire::connect(&counting.0.socket(0)).ask(GET_FEATURES, &[], &[]).is_none(), "there is no place");
    wait_for("that is counted", || (closed() == 1.0).then_some(()));
    let garbage = sessions.pop().unwrap();
    garbage.wire.send_bytes(&[0xff; 12], &[]);
    wait_for("it is hung up on, and that is counted", || (closed() == 2.0).then_some(()));
    drop(sessions);
    wait_for("all have left", || (of("front_ends", 0) == 0.0).then_some(()));
    assert_eq!((messages(), closed()), (1.0, 2.0), "to leave is no mistake");
    assert_eq!((of("refused_messages_total", 1), of("closed_connections_total", 1)), (0.0, 0.0));
    counting.0.stop();
}

#[test]
fn gauges_follow_what_is_there() {
    let setup = Setup::new(Place::Tmpfs).disk("size=1M").disk("readonly=on").with_metrics();
    std::fs::write(setup.image(1), [0; 4096]).unwrap();
    let daemon = setup.start();
    let samples = || metrics::read(&daemon.metrics_socket());
    let front_ends = |disk: &str| samples()[&format!("front_ends{{disk=\"{disk}\"}}")];
    let seen = samples();
    for (name, value) in [
        (r#"capacity_bytes{disk="disk0"}"#, 1_048_576.0),
        (r#"capacity_bytes{disk="disk1"}"#, 4096.0),
        (r#"read_only{disk="disk0"}"#, 0.0),
        (r#"read_only{disk="disk1"}"#, 1.0),
        (r#"bad_bytes{disk="disk0"}"#, 0.0),
        (concat!(r#"build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#), 1.0),
    ] {
        assert_eq!(seen.get(name), Some(&value), "{name} in {seen:#?}");
    }
    let info = seen.keys().find(|name| name.starts_with(r#"disk_info{disk="disk0""#)).unwrap();
    assert!(info.contains(r#"durability="volatile",backing="memory (tmpfs"#), "{info}");
    assert_eq!((front_ends("disk0"), front_ends("disk1")), (0.0, 0.0));
    let one = Session::connect(&daemon.socket(1));
    let two = Session::connect(&daemon.socket(1));
    assert_eq!((front_ends("disk0"), front_ends("disk1")), (0.0, 2.0));
    drop((one, two));
    wait_for("both have left", || (front_ends("disk1") == 0.0).then_some(()));
    daemon.stop();
}

#[test]
fn curl_reads_them() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=1M").with_metrics().start();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail", "--unix-socket"])
        .arg(daemon.metrics_socket())
        .arg("http://localhost/metrics");
    match curl.output() {
        Ok(output) => {
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(
                output.status.success(),
                "{}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(text.contains("\nvhost_user_pmem_reads_total{disk=\"disk0\"} 0\n"), "{text}");
        }
        Err(error) => eprintln!("skipped: no curl here ({error})"),
    }
    daemon.stop();
}

#[test]
fn nonsense_is_refused_and_holds_nobody_up() {
    let mut daemon = Setup::new(Place::Tmpfs).disk("size=1M").with_metrics().start();
    let socket = daemon.metrics_socket();
    for (request, status) in [
        (&b"\r\n\r\n"[..], "400"),
        (b"GET /other HTTP/1.1\r\n\r\n", "404"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
        (&[b'x'; 8192][..], "431"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", "505"),
    ] {
        let answer = metrics::ask(&socket, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    // One that says nothing, one that goes away in the middle, and one that does not read its answer.
    let silent = UnixStream::connect(&socket).unwrap();
    UnixStream::connect(&socket).unwrap().write_all(b"GET /met").unwrap();
    let mut deaf = UnixStream::connect(&socket).unwrap();
    deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    // The disks do not notice.
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 16);
    assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
    // The silent one is hung up on, and whoever waits gets an answer.
    assert_eq!(metrics::read(&socket)[r#"reads_total{disk="disk0"}"#], 1.0);
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!((&silent).read(&mut [0]), Ok(0)), "the silent one is still connected");
    daemon.assert_alive();
    daemon.stop();
}

/// The port that a daemon has taken for `--metrics-listen`.
fn port(daemon: &Daemon) -> SocketAddr {
    daemon.wait_for_log("/metrics");
    let log = daemon.log();
    let (_, rest) = log.split_once("metrics are at http://").unwrap();
    rest.split_once("/metrics").unwrap().0.parse().unwrap()
}

#[test]
fn a_port_tells_the_same() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        if TcpListener::bind(address).is_err() {
            eprintln!("skipped: {address} cannot be had here");
            continue;
        }
        let setup = Setup::new(Place::Tmpfs).disk("size=1M").with_metrics();
        let daemon = setup.arg("--metrics-listen").arg(address).start();
        let port = port(&daemon);
        assert!(port.ip().is_loopback() && port.port() != 0, "{port}");
        let session = Session::connect(&daemon.socket(0));
        assert_eq!(session.ring(0, 16).run(&Request::read(0, 512)).status, OK);
        let read = metrics::read_port(port);
        assert_eq!(read[r#"reads_total{disk="disk0"}"#], 1.0);
        assert_eq!(read, metrics::read(&daemon.metrics_socket()));
        assert!(metrics::ask_port(port, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        drop(session);
        daemon.stop();
        assert!(TcpStream::connect(port).is_err(), "somebody still listens on {port}");
    }
}

#[test]
fn silent_readers_make_room() {
    let setup = Setup::new(Place::Tmpfs).disk("size=1M").with_metrics();
    let mut daemon = setup.arg("--metrics-listen=127.0.0.1:0").start();
    let (socket, port) = (daemon.metrics_socket(), port(&daemon));
    // One after the other they would take longer than anybody waits.
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(port).unwrap()).collect();
    let local: Vec<_> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let deaf: Vec<_> = (0..20).map(|_| TcpStream::connect(port).unwrap()).collect();
    for mut stream in &deaf {
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    }
    assert_eq!(metrics::read_port(port)[r#"reads_total{disk="disk0"}"#], 0.0);
    assert_eq!(metrics::read(&socket)[r#"reads_total{disk="disk0"}"#], 0.0);
    silent[0].set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!matches!((&silent[0]).read(&mut [0]), Ok(1..)), "the oldest is still connected");
    daemon.assert_alive();
    // They do not hold up the end, either.
    let setup = daemon.stop();
    drop((silent, local, deaf, setup));
}

#[test]
fn a_port_is_refused_that_others_could_reach_or_have() {
    let setup = |address: &str| Setup::new(Place::Tmpfs).disk("size=1M").arg("--metrics-listen").arg(address);
    for address in ["0.0.0.0:9753", "[::]:9753", "192.0.2.1:9753", "localhost:9753", "127.0.0.1", "9753"] {
        let output = setup(address).run();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("--metrics-listen") && text.contains("write 127.0.0.1:PORT"), "{text}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for with in [&[][..], &["--check"]] {
        let setup = with.iter().fold(setup(&address), |setup, arg| setup.arg(arg));
        let output = setup.run();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(8), "{text}");
        assert!(text.contains(&format!("--metrics-listen {address}: another process listens")), "{text}");
        assert!(!setup.image(0).exists(), "it has begun to open its disks");
    }
    drop(taken);
    assert_eq!(setup(&address).arg("--check").run().status.code(), Some(0));
    setup(&address).start().stop();
}

#[test]
fn a_reader_does_not_hold_up_the_end() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=1M").with_metrics().start();
    let socket = daemon.metrics_socket();
    let silent = UnixStream::connect(&socket).unwrap();
    let setup = daemon.stop();
    assert!(!socket.exists(), "the socket is left behind");
    drop((silent, setup));
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let setup = Setup::new(Place::Tmpfs).disk("size=1M").with_metrics();
    drop(UnixListener::bind(setup.metrics_socket()).unwrap());
    let daemon = setup.start();
    assert_eq!(metrics::read(&daemon.metrics_socket())[r#"reads_total{disk="disk0"}"#], 0.0);

    let socket = daemon.metrics_socket().display().to_string();
    let other = Setup::new(Place::Tmpfs).disk("size=1M").arg("--metrics").arg(&socket);
    let output = other.run();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(8), "{text}");
    assert!(text.contains(&format!("--metrics {socket}: another process listens")), "{text}");
    assert!(!other.image(0).exists(), "it has begun to open its disks");
    daemon.stop();

    let output = Setup::new(Place::Tmpfs).disk("size=1M").arg("--metrics").arg("/no/such/folder/m").run();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(12), "{text}");
    assert!(text.contains("--metrics /no/such/folder/m: cannot bind the socket"), "{text}");
}
