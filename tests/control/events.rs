//! What happens is told to whoever follows: each kind of event, as the running daemon causes it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::common::daemon::Place;
use super::common::frontend::Session;
use super::common::frontend::load::Load;
use super::common::frontend::request::{OK, Request};
use super::common::process::{as_user, ends_with_us};
use super::common::{MIB, wait_for};
use super::http::{ask, connect};
use super::{DISK_BYTES, Host, setup};

/// Of `limits::bounds`, which this is a black box to.
const MAX_FOLLOWERS: usize = 32;
const MAX_EVENTS: u64 = 1024;

/// Somebody who follows: to HTTP/1.0 the stream is sent as it is.
pub(super) struct Follower(BufReader<UnixStream>);

impl Follower {
    /// Follows, or is answered otherwise.
    fn try_new(socket: &Path, query: &str) -> Result<Self, String> {
        let ask = format!("GET /v1/events{query} HTTP/1.0\r\n\r\n");
        let mut stream = BufReader::new(connect(socket, ask.as_bytes()));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).unwrap() != 0 {}
        match head.starts_with("HTTP/1.0 200 ") {
            true => Ok(Self(stream)),
            false => Err(head),
        }
    }

    pub(super) fn new(socket: &Path, query: &str) -> Self {
        Self::try_new(socket, query).unwrap()
    }

    /// The next one; none at the end.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        let count = self.0.read_line(&mut line).unwrap();
        (count != 0).then(|| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
    }

    /// The next of this kind; those before it are of others.
    pub(super) fn find(&mut self, event: &str) -> Value {
        loop {
            let next = self.next().unwrap_or_else(|| panic!("the stream ended before {event:?}"));
            if next["event"] == event {
                return next;
            }
        }
    }
}

#[test]
fn each_kind_is_told_as_it_happens() {
    let control = setup(Place::Tmpfs).disk("name=closed,size=1M,allow-uid=65534").disk("name=short,size=1M");
    let host = Host::start(control);
    let mut events = Follower::new(&host.control(), "");
    assert_eq!(host.add("new").status, 201);
    let added = events.find("disk-added");
    assert_eq!((&added["disk"], &added["message"]), (&"new".into(), &"added".into()));
    let size = json!({"size": 2 * DISK_BYTES});
    assert_eq!(host.ask("POST", "/v1/disks/new/resize", Some(&size)).status, 200);
    let resized = events.find("disk-resized");
    let bytes = (resized["from_bytes"].as_u64().unwrap(), resized["to_bytes"].as_u64().unwrap());
    assert_eq!((resized["disk"].as_str(), bytes), (Some("new"), (DISK_BYTES, 2 * DISK_BYTES)));
    let session = Session::connect(&host.socket("new"));
    assert_eq!(events.find("front-end-came")["disk"], "new");
    let mut ring = session.ring(0, 64);
    ring.break_it();
    let broken = events.find("ring-broken");
    assert!(broken["ring"] == 0 && broken["error"].as_str().unwrap().contains("does not end"), "{broken}");
    drop((ring, session));
    let left = events.find("front-end-left");
    assert_eq!((&left["disk"], left["session"].is_u64()), (&"new".into(), true));
    // Its place is given back a moment after that was said.
    wait_for("the disk is removed", || (host.remove("new", "").status == 204).then_some(()));
    assert_eq!(events.find("disk-removed")["disk"], "new");
    drop(UnixStream::connect(host.daemon.socket(1)).unwrap());
    assert_eq!(events.find("front-end-refused")["disk"], "closed");
    let short = File::options().write(true).open(host.daemon.image(2)).unwrap();
    short.set_len(4096).unwrap();
    let session = Session::connect(&host.daemon.socket(2));
    assert_ne!(session.ring(0, 64).run(&Request::read(512, 4096)).status, OK);
    let failed = events.find("request-failed");
    assert_eq!((&failed["disk"], &failed["operation"]), (&"short".into(), &"read".into()), "{failed}");
    // What the log's own level leaves out is told all the same.
    for level in ["off", "info"] {
        assert_eq!(host.ask("PUT", "/v1/log", Some(&json!({"level": level}))).status, 204);
        assert_eq!(events.find("log-changed")["level"], level);
        drop(Session::connect(&host.daemon.socket(0)));
        assert_eq!(events.find("front-end-left")["disk"], "stays");
    }
    assert_eq!(host.ask("POST", "/v1/reload", None).status, 200);
    let reloaded = events.find("reloaded");
    assert!(reloaded["done"].as_str().unwrap().contains("added"), "{reloaded}");
    host.daemon.signal(libc::SIGTERM);
    events.find("stopping");
    while events.next().is_some() {}
}

/// One that was refused is told with its reason.
#[test]
fn a_reload_that_fails_is_told() {
    let host = super::reload::Host::start("", &[("a", MIB, "")]);
    let mut events = Follower::new(&host.control(), "");
    host.write("", &[("a", MIB, "serial = 'other'")]);
    assert_eq!(host.reload().status, 409);
    let failed = events.find("reload-failed");
    assert!(failed["message"].as_str().unwrap().contains("nothing has changed"), "{failed}");
}

/// Numbers go up by one, whoever comes back goes on where it was, and of what is lost there is a count.
#[test]
fn whoever_comes_back_goes_on_behind_its_last_event() {
    let host = Host::new(Place::Tmpfs);
    let change = |level: &str| {
        assert_eq!(host.ask("PUT", "/v1/log", Some(&json!({"level": level}))).status, 204);
    };
    let numbers = |query: &str| {
        let mut events = Follower::new(&host.control(), query);
        std::iter::from_fn(|| events.next()).map(|event| event["seq"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    (0..5).for_each(|_| change("info"));
    let first = numbers("?since=0&once");
    let last = *first.last().unwrap();
    assert!(first.len() >= 5 && first.iter().copied().eq(1..=last), "{first:?}");
    change("info");
    assert_eq!(numbers(&format!("?since={last}&once")), [last + 1]);
    assert_eq!(numbers(&format!("?since={}&once", last + 1)), [0_u64; 0]);
    let of_another = numbers(&format!("?since={}&once", last + 1000));
    assert_eq!(of_another.first(), Some(&1), "this process has not had so many");
    (0..MAX_EVENTS + 7).for_each(|_| change("info"));
    let mut events = Follower::new(&host.control(), &format!("?since={last}&once"));
    let lost = events.next().unwrap();
    assert_eq!((&lost["event"], &lost["count"]), (&"lost".into(), &8.into()), "{lost}");
    assert_eq!(events.next().unwrap()["seq"], lost["seq"].as_u64().unwrap() + 1);
    assert_eq!(std::iter::from_fn(|| events.next()).count() as u64, MAX_EVENTS - 1);
}

/// It holds nothing and nobody up, however much happens, and loses events. What a peer causes is limited.
#[test]
fn a_reader_that_reads_nothing_holds_up_nobody() {
    let host = Host::new(Place::Tmpfs);
    let session = Session::connect(&host.daemon.socket(0));
    let load = Load::start(session.ring(0, 64), 0);
    let mut silent = Follower::new(&host.control(), "?since=0");
    let mut quick = Follower::new(&host.control(), "");
    // More than what a socket and the log of events have room for.
    let level = format!("info,{}=info", "x".repeat(3000));
    let body = json!({"level": level}).to_string();
    for _ in 0..MAX_EVENTS + 300 {
        assert_eq!(ask(&host.control(), "PUT", "/v1/log", Some(&body)).status, 204);
        assert_eq!(quick.find("log-changed")["level"].as_str().unwrap().len(), level.len());
    }
    load.wait_for_progress();
    // Longer than anybody may take for an answer.
    std::thread::sleep(std::time::Duration::from_secs(6));
    let lost = silent.find("lost");
    assert!(lost["count"].as_u64().unwrap() > 0, "{lost}");
    for _ in 0..300 {
        drop(Session::connect(&host.daemon.socket(0)));
    }
    assert_eq!(ask(&host.control(), "PUT", "/v1/log", Some("{\"level\": \"info\"}")).status, 204);
    let mut came = 0;
    loop {
        let event = quick.next().unwrap();
        came += usize::from(event["event"] == "front-end-came");
        if event["event"] == "log-changed" {
            break;
        }
    }
    assert!(came < 300, "it is limited as the log is");
    load.stop();
}

/// As many follow as may, each is told everything, the others are told to come again, and places of those who leave are free.
#[test]
fn sixty_four_ask_to_follow() {
    let host = Host::new(Place::Tmpfs);
    let asked = (0..64).map(|_| Follower::try_new(&host.control(), ""));
    let (followers, refused): (Vec<_>, Vec<_>) = asked.partition(Result::is_ok);
    assert_eq!((followers.len(), refused.len()), (MAX_FOLLOWERS, 64 - MAX_FOLLOWERS));
    for refused in refused {
        let head = refused.err().unwrap();
        assert!(head.starts_with("HTTP/1.0 503") && head.contains("retry-after: 1"), "{head}");
    }
    // They take no places of others.
    assert_eq!(host.names(), ["stays"]);
    assert_eq!(host.add("new").status, 201);
    for follower in followers {
        assert_eq!(follower.ok().unwrap().find("disk-added")["disk"], "new");
    }
    // Nothing is said to those that have left, and they are gone all the same.
    wait_for("there is room again", || Follower::try_new(&host.control(), "").ok().map(drop));
}

/// The end is told: the stream is whole, and `ctl` ends well. When the server is killed it is not, and `ctl` says so.
#[test]
fn the_end_is_told() {
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let host = Host::new(Place::Tmpfs);
        let mut stream = connect(&host.control(), b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut ctl = ctl(&host.control(), &["events", "--follow", "--since=0", "--json"]);
        let mut ctl = ends_with_us(&mut ctl).spawn().unwrap();
        let mut lines = BufReader::new(ctl.stdout.take().unwrap()).lines();
        drop(Session::connect(&host.daemon.socket(0)));
        while !lines.next().unwrap().unwrap().contains("front-end-left") {}
        host.daemon.signal(signal);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let is_clean = signal == libc::SIGTERM;
        assert!(text.contains("content-type: application/x-ndjson"), "{text}");
        assert_eq!(text.ends_with("\r\n0\r\n\r\n"), is_clean, "{text}");
        let code = ctl.wait().unwrap().code();
        assert_eq!(code, Some(if is_clean { 0 } else { 12 }));
    }
}

fn ctl(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
    command.arg("ctl").args(args).env("VHOST_USER_PMEM_CONTROL", socket).stdout(Stdio::piped());
    command.stderr(Stdio::null());
    command
}

/// A line each for people, and JSON for scripts.
#[test]
fn people_see_a_table() {
    let host = Host::new(Place::Tmpfs);
    drop(Session::connect(&host.daemon.socket(0)));
    let shown = |args: &[&str]| {
        let output = ctl(&host.control(), args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = wait_for("it has left", || Some(shown(&["events"])).filter(|text| text.contains("left")));
    let first = text.lines().next().unwrap();
    assert!(
        first.starts_with("     1  20")
            && first.contains("  front-end-came     stays         a front-end connected session="),
        "{text}"
    );
    let json = shown(&["events", "--json", "--since=1"]);
    let second: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(second["seq"], 2);
}

/// The socket's group may read.
#[test]
fn a_reader_in_the_group_may_follow() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::new(Place::Tmpfs);
    std::fs::set_permissions(&host.sockets, std::fs::Permissions::from_mode(0o755)).unwrap();
    let control = host.control();
    let mut follower = as_user(65534, 0, || Follower::new(&control, ""));
    assert_eq!(host.add("new").status, 201);
    assert_eq!(follower.find("disk-added")["disk"], "new");
}
