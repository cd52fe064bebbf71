//! The log on standard error: as text, as JSON lines, filtered.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::common::daemon::{Place, Setup};
use super::common::frontend::Session;
use super::common::frontend::request::{OK, Request};
use super::common::{metrics, wait_for};
use super::life::fill;
use super::{Running, assert_served, program, stderr, stdout};

/// Serves a disk until SIGTERM with more arguments and this value of VHOST_USER_PMEM_LOG; answers the log.
fn log_of_a_life(before: &[&str], after: &[&str], filter: Option<&str>) -> Output {
    let setup = Setup::new(Place::Tmpfs).disk("size=1M");
    let serve = setup.command();
    let mut command = program(before);
    command.args(serve.get_args()).args(after);
    if let Some(filter) = filter {
        command.env("VHOST_USER_PMEM_LOG", filter);
    }
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let socket = setup.socket(0);
    wait_for("it listens", || UnixStream::connect(&socket).ok());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    output
}

#[test]
fn json_lines_parse_wherever_the_option_stands() {
    let options = ["--log-format", "json", "--log=debug"];
    for (before, after) in [(&options[..], &[][..]), (&[], &options), (&options[..2], &options[2..])] {
        let log = stderr(&log_of_a_life(before, after, None));
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
        for line in &lines {
            assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
            assert!(line["fields"]["message"].is_string(), "{line}");
        }
        let stopping = |line: &&serde_json::Value| line["fields"]["message"] == "stopping on SIGTERM";
        assert_eq!(lines.iter().filter(stopping).count(), 1, "{log}");
    }
}

#[test]
fn text_has_no_colours_where_there_is_no_terminal() {
    let log = stderr(&log_of_a_life(&[], &[], None));
    assert!(log.contains(" INFO ") && log.contains("stopping on SIGTERM"), "{log}");
    assert!(!log.contains('\x1b'), "{log:?}");
}

#[test]
fn levels_come_from_the_option_or_else_the_environment() {
    let says_stopping = |output: &Output| stderr(output).contains("stopping on SIGTERM");
    assert!(says_stopping(&log_of_a_life(&[], &[], None)));
    assert!(!says_stopping(&log_of_a_life(&[], &[], Some("error"))));
    assert!(!says_stopping(&log_of_a_life(&["--log=off"], &[], None)));
    assert!(says_stopping(&log_of_a_life(&[], &["--log=info"], Some("error"))));
    assert!(says_stopping(&log_of_a_life(&[], &[], Some(""))));
    assert!(says_stopping(&log_of_a_life(&[], &[], Some("off,vhost_user_pmem=info"))));
}

#[test]
fn a_failure_is_a_json_line_too() {
    let args = ["serve", "--disk", "path=/no/such/file,socket=/no/such/socket"];
    let output = program(["--log-format=json"]).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let line: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((line["level"].as_str(), line["fields"]["exit_code"].as_i64()), (Some("ERROR"), Some(3)));
    assert!(
        line["fields"]["message"].as_str().unwrap().starts_with("disk \"file\": /no/such/file: "),
        "{line}"
    );

    // A filter that leaves no errors does not hide why it ended.
    let output = program(["--log-format=json", "--log=off"]).args(args).output().unwrap();
    assert!(stderr(&output).starts_with("error: disk \"file\": /no/such/file: "), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
}

/// A pipe that nobody reads takes 64 KiB; whoever writes to it then would wait for ever.
#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    const DISKS: usize = 40;
    let one = |setup: Setup, index| setup.disk(&format!("size=1M,name=disk-{index}"));
    let setup = (0..DISKS).fold(Setup::new(Place::Tmpfs).with_metrics(), one);
    let (reader, writer) = std::io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    let mut daemon = Running(setup.command().stdout(Stdio::null()).stderr(stderr).spawn().unwrap());
    wait_for("it listens", || UnixStream::connect(setup.socket(DISKS - 1)).ok());
    let session = Session::connect(&setup.socket(0));
    let mut ring = session.ring(0, 64);
    fill(&writer);
    drop(writer);
    // More than can wait to be read: each of these signals has a line for each disk.
    let dropped = wait_for("lines are dropped", || {
        daemon.signal(Signal::HUP);
        Some(metrics::read(&setup.metrics_socket())["dropped_log_lines_total{}"]).filter(|count| *count > 0.0)
    });
    assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
    drop(assert_served(UnixStream::connect(setup.socket(1)).unwrap()));
    // Where they are missing, the log says how many.
    let told = std::thread::spawn(move || {
        let lines = BufReader::new(reader).lines().map(Result::unwrap);
        let told = lines.filter_map(|line| Some(line.split_once("were dropped here")?.1.to_owned()));
        told.filter_map(|rest| rest.rsplit_once("lines=")?.1.parse::<f64>().ok()).collect::<Vec<_>>()
    });
    daemon.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(daemon.terminate().code(), Some(0));
    let told = told.join().unwrap();
    assert!(told.iter().sum::<f64>() >= dropped, "{told:?} of {dropped} or more");
}

#[test]
fn it_ends_where_nobody_reads_the_log() {
    let setup = Setup::new(Place::Tmpfs).disk("size=1M");
    let (reader, writer) = std::io::pipe().unwrap();
    fill(&writer);
    let stderr = writer.try_clone().unwrap();
    let mut daemon = Running(setup.command().stdout(Stdio::null()).stderr(stderr).spawn().unwrap());
    drop(assert_served(wait_for("it listens", || UnixStream::connect(setup.socket(0)).ok())));
    assert_eq!(daemon.terminate().code(), Some(0));
    // Nor is a start that fails held up by what it says of it.
    let mut serve = program(["serve", "--disk", "path=/no/such/file,socket=/no/such/socket"]);
    let mut serve = Running(serve.stderr(writer).spawn().unwrap());
    assert_eq!(serve.wait().code(), Some(3));
    drop(reader);
}
