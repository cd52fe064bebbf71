//! `vhost-user-pmem ctl` against the running daemon.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::common::daemon::Place;
use super::common::frontend::Session;
use super::common::frontend::request::{OK, Request};
use super::common::{pattern, wait_for};
use super::{Host, assert_works};

fn ctl(socket: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
    command.arg("ctl").args(args).env("VHOST_USER_PMEM_CONTROL", socket).output().unwrap()
}

/// Standard output of what succeeds.
fn done(socket: &Path, args: &[&str]) -> String {
    let output = ctl(socket, args);
    assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The exit code and standard error of what fails.
fn failed(socket: &Path, args: &[&str]) -> (i32, String) {
    let output = ctl(socket, args);
    assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn people_and_scripts_are_served() {
    let host = Host::new(Place::Tmpfs);
    let socket = host.control();
    let disk =
        format!("path={},socket={},size=8M", host.image("new.img").display(), host.socket("new").display());
    let added = done(&socket, &["add", &disk]);
    assert!(added.contains("name                    new\n") && added.contains("capacity_bytes"), "{added}");
    done(&socket, &["add", &disk]);
    let list = done(&socket, &["list"]);
    let lines: Vec<_> = list.lines().collect();
    assert!(
        lines.len() == 3
            && lines[0].starts_with("NAME   SIZE   ACCESS      DURABILITY  FRONT-ENDS  OVERLAY  SOCKET"),
        "{list}"
    );
    assert!(lines[2].starts_with("new    8 MiB  read-write  volatile    0           -        /"), "{list}");
    let json: Value = serde_json::from_str(&done(&socket, &["list", "--json"])).unwrap();
    assert_eq!(json[1]["name"], "new");
    assert_eq!(done(&socket, &["resize", "new", "16M"]), "from 8 MiB to 16 MiB\n");
    assert_eq!(done(&socket, &["flush", "new"]), "");
    let session = Session::connect(&host.socket("new"));
    let (code, text) = failed(&socket, &["remove", "new"]);
    assert!(code == 1 && text.contains("1 of its front-ends are connected"), "{code} {text}");
    assert!(done(&socket, &["disconnect", "new"]).contains("front_ends              1"));
    drop(session);
    assert_eq!(done(&socket, &["remove", "new", "--drain=10ms"]), "");
    let session = Session::connect(&host.daemon.socket(0));
    let mut ring = session.ring(0, 64);
    // In memory one turn in 61 is timed.
    let shown = wait_for("a read is timed", || {
        assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
        Some(done(&socket, &["show", "stays"])).filter(|shown| shown.contains("p99_seconds"))
    });
    assert!(
        shown.contains("requests  ") && !shown.contains("  le  ") && !shown.contains("  count  "),
        "{shown}"
    );
    let json: Value = serde_json::from_str(&done(&socket, &["show", "stays", "--json"])).unwrap();
    assert!(json["state"]["latency"]["read"]["count"].is_array(), "{json}");
    assert!(done(&socket, &["reload"]).contains("removed                 -"));
    assert!(done(&socket, &["show", "stays"]).contains("durability              volatile"));
}

/// What is written to private disks is in the list, of a template that of all its front-ends.
#[test]
fn the_list_says_what_overlays_take() {
    let host = Host::new(Place::Tmpfs);
    let (socket, base) = (host.control(), host.image("base"));
    std::fs::write(&base, pattern(1, 65_536)).unwrap();
    let disk = format!(
        "name=farm,path={},socket={},overlay=memory,template=on",
        base.display(),
        host.socket("farm").display()
    );
    done(&socket, &["add", &disk]);
    let sessions = [0, 1].map(|_| Session::connect(&host.socket("farm")));
    sessions.iter().for_each(|session| assert_works(&mut session.ring(0, 64), 8));
    let list = done(&socket, &["list"]);
    let row = "farm   64 KiB  read-write  volatile    2           8 KiB    /";
    assert!(list.lines().any(|line| line.starts_with(row)), "{list}");
    drop(sessions);
    host.daemon.stop();
}

/// The socket is `--control`, as `serve` and `top` have it, before and behind the task; and what it was called before.
#[test]
fn the_socket_has_one_name() {
    let host = Host::new(Place::Tmpfs);
    let (control, nowhere) = (host.control(), host.socket("nowhere"));
    let list = |before: Option<&str>, behind: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
        command.arg("ctl").env("VHOST_USER_PMEM_CONTROL", &nowhere);
        before.into_iter().for_each(|option| _ = command.arg(option).arg(&control));
        command.arg("list");
        behind.into_iter().for_each(|option| _ = command.arg(option).arg(&control));
        command.output().unwrap()
    };
    for (before, behind) in [
        (Some("--control"), None),
        (None, Some("--control")),
        (Some("--socket"), None),
        (None, Some("--socket")),
    ] {
        let output = list(before, behind);
        assert!(output.status.success() && output.stderr.is_empty(), "{before:?} {behind:?}: {output:?}");
    }
    assert_eq!(list(None, None).status.code(), Some(12), "the environment counts where nothing is said");
    let program = || Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
    for task in ["ctl", "top"] {
        let help = program().args([task, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(help.contains("--control <SOCKET>") && !help.contains("--socket"), "{help}");
    }
    let missing = program().args(["ctl", "list"]).env_remove("VHOST_USER_PMEM_CONTROL").output().unwrap();
    let text = String::from_utf8(missing.stderr).unwrap();
    assert!(missing.status.code() == Some(2) && text.contains("--control is missing"), "{text}");
}

/// The log says more, or less, from then on.
#[test]
fn the_log_can_be_changed() {
    let host = Host::new(Place::Tmpfs);
    let socket = host.control();
    drop(Session::connect(&host.daemon.socket(0)));
    assert!(!host.daemon.log().contains("DEBUG"), "{}", host.daemon.log());
    assert_eq!(done(&socket, &["log", "debug"]), "");
    drop(Session::connect(&host.daemon.socket(0)));
    host.daemon.wait_for_log("DEBUG");
    assert_eq!(done(&socket, &["log", "off"]), "");
    let (code, text) = failed(&socket, &["log", "loud"]);
    assert!(code == 2 && text.contains("is no level"), "{text}");
    let before = host.daemon.log().len();
    done(&socket, &["flush", "stays"]);
    assert_eq!(host.daemon.log().len(), before, "it is off");
}

/// The exit code is that of a start which fails for the same reason.
#[test]
fn what_fails_has_the_exit_code_of_a_start() {
    let host = Host::new(Place::Tmpfs);
    let socket = host.control();
    let disk = |more: &str| format!("socket={},{more}", host.socket("new").display());
    let path = |name: &str| format!("path={}", host.image(name).display());
    let stays = format!("path={}", host.daemon.image(0).display());
    for (disk, code, what) in [
        (disk(&path("missing")), 3, "missing"),
        (disk(&format!("{},size=513", path("odd"))), 5, "cannot serve it"),
        (disk(&stays), 9, "already uses it"),
        (disk(&format!("{},siez=1", path("odd"))), 11, "did you mean \"size\"?"),
        (path("odd"), 2, "socket is missing; add socket=SOCKET"),
        (disk(&format!("{},queues=0", path("odd"))), 2, "a whole number from 1 to 256"),
        (disk(&format!("{},size=1M,require-durable", path("odd"))), 13, "cannot promise durability"),
    ] {
        let (found, text) = failed(&socket, &["add", &disk]);
        assert!(found == code && text.contains(what), "{disk}: {found} {text}");
    }
    assert_eq!(failed(&socket, &["show", "none"]).0, 1);
    assert_eq!(failed(&socket, &["remove", "stays", "--drain=soon"]).0, 2);
    assert_eq!(failed(&socket, &["resize", "stays", "1M"]).0, 5);
    let (code, text) = failed(&host.socket("nothing"), &["list"]);
    assert!(code == 12 && text.contains("cannot reach the server"), "{text}");
    let (code, text) = failed(Path::new(""), &["list"]);
    assert!(code == 12 || code == 2, "{text}");
}

/// A server of another version is understood as far as it goes, and what it does not know is said to be its version's.
#[test]
fn other_servers_are_understood_or_said_to_be_others() {
    let folder = super::common::folder::for_sockets();
    let socket = folder.path().join("other");
    let listener = UnixListener::bind(&socket).unwrap();
    let answers = [
        "HTTP/1.1 200 OK\r\nServer: vhost-user-pmem/9.9.9\r\nContent-Length: 2\r\n\r\n[]",
        "HTTP/1.1 404 Not Found\r\nServer: vhost-user-pmem/9.9.9\r\n\r\n{\"code\": \"no-such-path\", \"detail\": \"nothing there\"}",
        "HTTP/1.1 200 OK\r\nServer: other/1\r\n\r\n[]",
        "SSH-2.0-x\r\n",
    ];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1000]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    assert!(done(&socket, &["list"]).starts_with("NAME"));
    let (code, text) = failed(&socket, &["list"]);
    assert!(
        code == 1 && text.contains("the server is version 9.9.9, and this program is 0.1.0: nothing there"),
        "{text}"
    );
    for _ in 0..2 {
        let (code, text) = failed(&socket, &["list"]);
        assert!(code == 12 && text.contains("this is no control socket of vhost-user-pmem"), "{text}");
    }
    server.join().unwrap();
}

/// Whoever answers is listened to no longer than it takes to know that it is no server of ours.
#[test]
fn a_server_that_never_ends_is_left() {
    const ENOUGH_BYTES: usize = 32 << 20;
    const OK: &str = "HTTP/1.1 200 OK\r\nServer: vhost-user-pmem/0.1.0\r\nTransfer-Encoding: chunked\r\n";
    let folder = super::common::folder::for_sockets();
    let socket = folder.path().join("endless");
    let listener = UnixListener::bind(&socket).unwrap();
    let fails = OK.replace("200 OK", "404 Not Found") + "\r\n";
    let answers: [(String, &[u8]); 5] = [
        // A line of the head, its lines, a line of events, what is said of a failure, and the length of a chunk.
        (String::new(), b"x"),
        (OK.to_owned(), b"a: b\r\n"),
        (format!("{OK}\r\n7fffffff\r\n\""), b"x"),
        (fails, b"x"),
        (format!("{OK}\r\n"), b"1"),
    ];
    for (begin, more) in answers {
        let many = more.repeat((1 << 16) / more.len());
        let text = std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1000]).unwrap();
                stream.write_all(begin.as_bytes()).unwrap();
                let turns = (0..ENOUGH_BYTES / many.len()).take_while(|_| stream.write_all(&many).is_ok());
                turns.count() * many.len()
            });
            let (code, text) = failed(&socket, &["events", "--follow"]);
            assert_eq!(code, 12, "{text}");
            assert!(server.join().unwrap() < ENOUGH_BYTES, "{begin:?}: it was listened to");
            text
        });
        let is_named =
            ["no control socket of vhost-user-pmem", "is no length of a chunk"].map(|it| text.contains(it));
        assert!(text.len() < 1000 && is_named.contains(&true), "{begin:?}: {text}");
    }
}

/// A terminal in which this is shown is not told anything either, and it is the same JSON.
#[test]
fn json_of_a_hostile_server_says_nothing_to_a_terminal() {
    let folder = super::common::folder::for_sockets();
    let socket = folder.path().join("hostile");
    let listener = UnixListener::bind(&socket).unwrap();
    let hostile = serde_json::json!({"name\u{9b}2J": ["\u{1b}c\u{9b}31m\u{202e}\u{7f}", {"\u{9d}": 1}]});
    let answer = format!("HTTP/1.1 200 OK\r\nServer: vhost-user-pmem/0.1.0\r\n\r\n{hostile}");
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1000]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let json = done(&socket, &["show", "x", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), hostile);
    for shown in [json, done(&socket, &["show", "x"])] {
        let is_plain = |letter: char| letter == '\n' || !letter.is_control() && letter != '\u{202e}';
        assert!(shown.chars().all(is_plain), "{shown:?}");
    }
    server.join().unwrap();
}
