//! `vhost-user-pmem top` against the running daemon, also in a real terminal, which tmux is.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Host;
use super::common::daemon::Place;
use super::common::frontend::Session;
use super::common::frontend::load::Load;
use super::common::{folder, wait_for};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vhost-user-pmem");

fn top(socket: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("top").arg("--control").arg(socket).args(["--interval", "0.2"]);
    command
}

fn done(output: &Output) -> String {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn one_table_and_one_document_tell_what_disks_do() {
    for place in Place::ALL {
        let host = Host::new(place);
        let session = Session::connect(&host.daemon.socket(0));
        let load = Load::start(session.ring(0, 64), 0);
        load.wait_for_progress();
        let table = done(&top(&host.control()).arg("--once").output().unwrap());
        let lines: Vec<_> = table.lines().collect();
        assert!(lines.len() == 2 && lines[0].starts_with("NAME") && lines[1].starts_with("stays"), "{table}");
        let rings = done(&top(&host.control()).args(["--once", "--rings=stays"]).output().unwrap());
        assert!(rings.lines().count() == 2 && rings.contains(" split "), "{rings}");
        assert_eq!(
            done(&top(&host.control()).args(["--once", "--filter=x"]).output().unwrap()).lines().count(),
            1
        );

        let document = done(&top(&host.control()).args(["--once", "--json"]).output().unwrap());
        let document: Value = serde_json::from_str(&document).unwrap();
        let (disk, ring) = (&document["disks"][0], &document["rings"][0]);
        for rate in ["reads_per_second", "written_bytes_per_second"] {
            assert!(disk[rate].as_f64().unwrap() > 0.0 && ring[rate].as_f64().unwrap() > 0.0, "{document}");
        }
        assert!(disk["depth"].as_u64().unwrap() <= 64, "{document}");
        assert!(disk["write_amplification"].as_f64().is_some_and(|it| it >= 1.0), "{document}");
        assert!(document["worker_cpu_percent"].as_array().is_some_and(|it| !it.is_empty()), "{document}");
        drop((load.stop(), session));
        host.daemon.stop();
    }
}

/// A line for each interval, also while the server is away; and after its restart, with counters that begin anew.
#[test]
fn a_stream_goes_on_over_a_restart() {
    let host = Host::new(Place::Tmpfs);
    let mut process =
        top(&host.control()).arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["disks"][0]["reads_per_second"], 0.0);
    let setup = host.daemon.stop();
    wait_for("it is said to be away", || next()["error"].as_str().map(ToOwned::to_owned));
    let daemon = setup.start();
    wait_for("it is there again", || next()["disks"][0]["name"].as_str().map(ToOwned::to_owned));
    drop(lines);
    // Nobody reads any more.
    assert!(process.wait().unwrap().success());
    daemon.stop();
}

#[test]
fn what_cannot_be_shown_is_refused_with_a_remedy() {
    let host = Host::new(Place::Tmpfs);
    let failed = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.stdout.is_empty(), "{output:?}");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = failed(&mut top(&host.control()));
    assert!(code == 2 && text.contains("no terminal; use --once"), "{text}");
    let (code, text) = failed(Command::new(PROGRAM).arg("top").env_remove("VHOST_USER_PMEM_CONTROL"));
    assert!(code == 2 && text.contains("--control is missing"), "{text}");
    let (code, text) = failed(top(&host.socket("nothing")).arg("--once"));
    assert!(code == 12 && text.contains("cannot reach the server"), "{text}");
    for interval in ["0", "-1", "nan", "1e9", "x"] {
        let (code, text) = failed(Command::new(PROGRAM).args([
            "top",
            "--once",
            "--control=x",
            &format!("--interval={interval}"),
        ]));
        assert!(code == 2 && text.contains("from 0.1 to 3600"), "{interval}: {text}");
    }
}

/// Whoever listens on a socket may say what it likes: a terminal is not told it.
#[test]
fn a_hostile_server_has_no_say_in_the_terminal() {
    let folder = folder::for_sockets();
    let socket = folder.path().join("hostile");
    let listener = UnixListener::bind(&socket).unwrap();
    let name = "\u{1b}[2Jx\u{202e}\u{7}";
    let ring = json!([{"disk": name, "state": "\u{1b}c", "size": 65535, "available": 1, "shown": 2}]);
    let disks = json!([{"name": name, "state": {"reads": u64::MAX, "oldest_request_seconds": 1e300}}]);
    let odd = json!({"name": name, name: [name]});
    let answers = [disks.clone(), ring.clone(), disks, ring, json!({"not": "a list"}), odd];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1000]).unwrap();
            write!(stream, "HTTP/1.1 200 OK\r\nServer: vhost-user-pmem/0.1.0\r\n\r\n{answer}").unwrap();
        }
    });
    let table = done(&top(&socket).arg("--once").output().unwrap());
    assert!(table.contains("\\u{1b}[2Jx\\u{202e}\\u{7}"), "{table}");
    assert!(table.chars().all(|letter| letter == '\n' || !letter.is_control()), "{table:?}");
    let output = top(&socket).arg("--once").output().unwrap();
    assert!(output.status.code() == Some(12), "{output:?}");
    let shown =
        done(&Command::new(PROGRAM).args(["ctl", "show", "x", "--control"]).arg(&socket).output().unwrap());
    assert!(shown.matches("\\u{1b}[2J").count() == 3 && !shown.contains('\u{1b}'), "{shown:?}");
    server.join().unwrap();
}

/// A terminal of its own, which ends with it.
struct Terminal {
    /// With the socket of its server.
    folder: TempDir,
}

impl Terminal {
    /// Runs a command of a shell in a terminal of this size; none where there is no tmux.
    fn start(size: (u32, u32), command: &str) -> Option<Self> {
        let version = Command::new("tmux").arg("-V").output();
        if !version.is_ok_and(|it| it.status.success()) {
            println!("skipped: there is no tmux here (ci/lab/prepare installs it)");
            return None;
        }
        let terminal = Self { folder: folder::for_sockets() };
        let (width, height) = (size.0.to_string(), size.1.to_string());
        // What follows keeps the screen, so that what is left of it is seen.
        let command = format!("{command}; echo ended $?; stty -a | grep -o -e '-*icanon'; exec sleep 1000");
        terminal.tmux(&["new-session", "-d", "-x", &width, "-y", &height, &command]);
        Some(terminal)
    }

    fn tmux(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.folder.path().join("tmux")).args(["-f", "/dev/null"]).args(words);
        command
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn wait_for(&self, text: &str) -> String {
        let seen = || Some(self.screen()).filter(|screen| screen.contains(text));
        wait_for(&format!("the terminal shows {text:?}"), seen)
    }

    /// The process that is shown.
    fn process(&self) -> u32 {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.trim())).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.command(&["kill-server"]).output();
    }
}

fn shown(host: &Host) -> String {
    format!("{PROGRAM} top --interval 0.2 --control {}", host.control().display())
}

#[test]
fn a_terminal_shows_disks_and_rings_and_takes_keys() {
    let host = Host::new(Place::Tmpfs);
    let Some(terminal) = Terminal::start((80, 24), &shown(&host)) else { return };
    let session = Session::connect(&host.daemon.socket(0));
    let load = Load::start(session.ring(0, 64), 0);
    let screen = terminal.wait_for("stays");
    assert!(
        screen.lines().count() == 24 && screen.contains("NAME ") && screen.contains("? help"),
        "{screen}"
    );
    let screen = terminal.wait_for(" MB/s read");
    assert!(screen.contains("CPU "), "{screen}");
    terminal.press("Enter");
    terminal.wait_for("rings of stays");
    terminal.press("Escape");
    terminal.wait_for("1 disks by iops");
    terminal.press("s");
    terminal.wait_for("by read");
    for key in ["/", "x"] {
        terminal.press(key);
    }
    terminal.wait_for("filter: x_");
    terminal.press("Escape");
    terminal.press("p");
    terminal.wait_for("PAUSED");
    terminal.press("p");
    terminal.press("?");
    terminal.wait_for("AMPL             bytes that the media took");
    terminal.press("?");
    // It becomes smaller, and larger.
    terminal.tmux(&["resize-window", "-x", "30", "-y", "8"]);
    wait_for("columns are left out", || (!terminal.screen().contains("RD-MB/S")).then_some(()));
    terminal.tmux(&["resize-window", "-x", "150", "-y", "30"]);
    terminal.wait_for("FRONT-ENDS");
    drop((load.stop(), session));
    let setup = host.daemon.stop();
    terminal.wait_for("NO ANSWER for");
    let daemon = setup.start();
    wait_for("it is there again", || (!terminal.screen().contains("NO ANSWER")).then_some(()));
    terminal.press("q");
    let left = terminal.wait_for("ended 0\nicanon");
    assert!(!left.contains("NAME"), "the screen is as it was before: {left}");
    daemon.stop();
}

#[test]
fn a_terminal_is_left_as_it_was_on_each_way_out() {
    let host = Host::new(Place::Tmpfs);
    for signal in ["C-c", "TERM", "HUP"] {
        let Some(terminal) = Terminal::start((80, 24), &shown(&host)) else { return };
        terminal.wait_for("stays");
        match signal {
            "C-c" => terminal.press("C-c"),
            signal => {
                let process = terminal.process().to_string();
                assert!(Command::new("kill").args(["-s", signal, &process]).status().unwrap().success());
            }
        }
        let left = terminal.wait_for("ended 0\nicanon");
        assert!(!left.contains("NAME"), "{signal}: {left}");
    }
    let Some(terminal) = Terminal::start((80, 24), &format!("TERM=dumb {}", shown(&host))) else { return };
    terminal.wait_for("cannot move its cursor; use --once");
    terminal.wait_for("ended 2\nicanon");
}

#[test]
fn it_ends_with_its_terminal() {
    let host = Host::new(Place::Tmpfs);
    let Some(terminal) = Terminal::start((80, 24), &shown(&host)) else { return };
    terminal.wait_for("stays");
    let process = terminal.process();
    drop(terminal);
    let stat = format!("/proc/{process}/stat");
    let is_over = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z"));
    wait_for("it ends", || is_over().then_some(()));
}
