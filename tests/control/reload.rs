//! The configuration is read again: what has changed is applied as one step.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::common::daemon::{Daemon, Place, Setup};
use super::common::frontend::Session;
use super::common::frontend::load::Load;
use super::common::wait_for;
use super::http::{Answer, ask};
use super::{DISK_BYTES, assert_works, names, with_control};

/// A daemon with a configuration file.
pub(super) struct Host {
    pub(super) daemon: Daemon,
    pub(super) folder: PathBuf,
    pub(super) sockets: PathBuf,
}

/// A disk in the file.
pub(super) type Disk<'a> = (&'a str, u64, &'a str);

/// What a reload adds, grows and removes: it leads from these …
pub(super) const BEFORE: [Disk<'static>; 2] = [("a", DISK_BYTES, ""), ("b", DISK_BYTES, "")];

/// … to these.
pub(super) const AFTER: [Disk<'static>; 2] = [("a", 2 * DISK_BYTES, ""), ("c", DISK_BYTES, "queues = 2")];

pub(super) fn text(
    folder: &std::path::Path,
    sockets: &std::path::Path,
    server: &str,
    disks: &[Disk<'_>],
) -> String {
    let mut text = format!("[server]\n{server}\n");
    for (name, bytes, more) in disks {
        let (path, socket) = (folder.join(name), sockets.join(name));
        let disk = format!(
            "[[disk]]\nname = {name:?}\npath = {path:?}\nsocket = {socket:?}\nsize = {bytes}\n{more}\n"
        );
        text.write_str(&disk).unwrap();
    }
    text
}

impl Host {
    pub(super) fn start(server: &str, disks: &[Disk<'_>]) -> Self {
        let setup = Setup::new(Place::Tmpfs).disk("name=line,size=1M");
        let (folder, sockets) = (setup.folder().to_owned(), setup.socket(0).parent().unwrap().to_owned());
        let file = folder.join("main.toml");
        std::fs::write(&file, text(&folder, &sockets, server, disks)).unwrap();
        let setup = with_control(setup).arg("--config").arg(&file.display().to_string());
        let host = Self { daemon: setup.start(), folder, sockets };
        // The socket is answered once all disks are served.
        assert_eq!(host.names().len(), disks.len() + 1);
        host
    }

    pub(super) fn write(&self, server: &str, disks: &[Disk<'_>]) {
        std::fs::write(self.folder.join("main.toml"), text(&self.folder, &self.sockets, server, disks))
            .unwrap();
    }

    /// Kills the daemon, which reads the file again from [`BEFORE`] to [`AFTER`], and waits by `then` for who has asked for that: a
    /// start with the same file serves what the file says, and files are as before or as after. Goes back to how it was. Also
    /// returns whether the new disk's file was there.
    pub(super) fn kill_in_reload(self, what: &str, then: impl FnOnce()) -> (Self, bool) {
        let Self { daemon, folder, sockets } = self;
        let setup = daemon.kill();
        then();
        let bytes = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |it| it.len());
        let [a, b, c] = ["a", "b", "c"].map(bytes);
        assert!([DISK_BYTES, 2 * DISK_BYTES].contains(&a), "{what}: {a}");
        assert_eq!(b, DISK_BYTES, "{what}: a file stays when its disk is removed");
        assert!([0, DISK_BYTES].contains(&c), "{what}: {c}");
        // A start does not make a file longer: it has grown, or it has not, and the file says so.
        let now = [("a", a, ""), AFTER[1]];
        std::fs::write(folder.join("main.toml"), text(&folder, &sockets, "", &now)).unwrap();
        let host = Self { daemon: setup.start(), folder, sockets };
        assert_eq!(host.names(), ["line", "a", "c"], "{what}");
        for (name, size, _) in now {
            assert_eq!(host.disk(name)["state"]["capacity_bytes"], size, "{what}: {name}");
            assert_works(&mut Session::connect(&host.sockets.join(name)).ring(0, 64), 0);
        }
        let Self { daemon, folder, sockets } = host;
        let setup = daemon.stop();
        for name in ["a", "c"] {
            std::fs::remove_file(folder.join(name)).unwrap();
        }
        std::fs::write(folder.join("main.toml"), text(&folder, &sockets, "", &BEFORE)).unwrap();
        let host = Self { daemon: setup.start(), folder, sockets };
        // The socket is answered once all disks are served.
        assert_eq!(host.names(), ["line", "a", "b"], "{what}");
        (host, c != 0)
    }

    pub(super) fn control(&self) -> PathBuf {
        self.sockets.join("control.sock")
    }

    pub(super) fn reload(&self) -> Answer {
        ask(&self.control(), "POST", "/v1/reload", None)
    }

    /// The same by a signal: the log says what has come of it.
    pub(super) fn hang_up(&self, what: &str) {
        let before = self.daemon.log().matches(what).count();
        self.daemon.signal(libc::SIGHUP);
        wait_for(what, || (self.daemon.log().matches(what).count() > before).then_some(()));
    }

    pub(super) fn names(&self) -> Vec<String> {
        names(&self.control())
    }

    pub(super) fn disk(&self, name: &str) -> Value {
        ask(&self.control(), "GET", &format!("/v1/disks/{name}"), None).json()
    }
}

#[test]
fn what_has_changed_is_applied_as_one_step() {
    let host = Host::start("workers = 1", &[("a", DISK_BYTES, ""), ("b", DISK_BYTES, "")]);
    assert_eq!(host.names(), ["line", "a", "b"]);
    let session = Session::connect(&host.sockets.join("a"));
    let load = Load::start(session.ring(0, 64), 0);
    let nothing = host.reload();
    assert_eq!(
        nothing.json(),
        json!({"added": [], "limited": [], "removed": [], "resized": []}),
        "{nothing:?}"
    );
    host.write("workers = 1", &[("a", 2 * DISK_BYTES, ""), ("c", DISK_BYTES, "queues = 2")]);
    let done = host.reload();
    assert_eq!(
        done.json(),
        json!({"added": ["c"], "limited": [], "removed": ["b"], "resized": ["a"]}),
        "{done:?}"
    );
    assert_eq!(host.names(), ["line", "a", "c"]);
    assert_eq!(host.disk("a")["state"]["capacity_bytes"], 2 * DISK_BYTES);
    assert_works(&mut Session::connect(&host.sockets.join("c")).ring(0, 64), 0);
    load.wait_for_progress();
    load.stop();
    // What came by the socket is not the file's to remove, but the file's to have.
    let (path, socket) = (host.folder.join("d"), host.sockets.join("d"));
    let options = json!({"path": path, "socket": socket, "size": DISK_BYTES}).to_string();
    assert_eq!(ask(&host.control(), "PUT", "/v1/disks/d", Some(&options)).status, 201);
    assert_eq!(host.reload().json(), json!({"added": [], "limited": [], "removed": [], "resized": []}));
    assert_eq!(host.names(), ["line", "a", "c", "d"]);
    host.write("workers = 1", &[("a", 2 * DISK_BYTES, ""), ("d", DISK_BYTES, "")]);
    assert_eq!(host.reload().json(), json!({"added": [], "limited": [], "removed": ["c"], "resized": []}));
    host.write("workers = 1", &[("a", 2 * DISK_BYTES, "")]);
    assert_eq!(host.reload().json(), json!({"added": [], "limited": [], "removed": ["d"], "resized": []}));
    host.daemon.stop();
}

/// A signal does the same, with a control socket and without one.
#[test]
fn sighup_reads_the_configuration_again() {
    let host = Host::start("workers = 1", &[("a", DISK_BYTES, "")]);
    host.write("workers = 1", &[("a", 2 * DISK_BYTES, ""), ("b", DISK_BYTES, "")]);
    host.hang_up(r#"{"added":["b"],"limited":[],"removed":[],"resized":["a"]}"#);
    assert_eq!(host.names(), ["line", "a", "b"]);
    host.write("workers = 2", &[]);
    host.hang_up("nothing has changed: [server]: workers cannot be changed");
    assert_eq!(host.names(), ["line", "a", "b"]);
    host.daemon.stop();

    let setup = Setup::new(Place::Tmpfs).disk("name=line,size=1M");
    let (folder, sockets) = (setup.folder().to_owned(), setup.socket(0).parent().unwrap().to_owned());
    let file = folder.join("main.toml");
    std::fs::write(&file, text(&folder, &sockets, "", &[])).unwrap();
    let setup = setup.arg("--config").arg(&file.display().to_string());
    let allow = format!("--allow={}", folder.display());
    let host = Host {
        daemon: setup.arg(&allow).arg(&format!("--allow={}", sockets.display())).start(),
        folder,
        sockets,
    };
    host.daemon.wait_for_log("ready for front-ends");
    host.write("", &[("a", DISK_BYTES, "")]);
    host.hang_up(r#"{"added":["a"],"limited":[],"removed":[],"resized":[]}"#);
    assert_works(&mut Session::connect(&host.sockets.join("a")).ring(0, 64), 0);
    host.daemon.stop();
}

#[test]
fn what_cannot_be_changed_is_named_and_nothing_changes() {
    let host = Host::start("workers = 1", &[("a", DISK_BYTES, ""), ("b", DISK_BYTES, "")]);
    let _session = Session::connect(&host.sockets.join("b"));
    std::fs::write(host.folder.join("short"), [0; 4096]).unwrap();
    let (a, b, new) = (("a", DISK_BYTES, ""), ("b", DISK_BYTES, ""), ("new", DISK_BYTES, ""));
    for (server, disks, code, what) in [
        ("workers = 2", &[a, b, new][..], "bad-options", "[server]: workers cannot be changed"),
        ("", &[a, b, new], "bad-options", "[server]: workers cannot be changed"),
        (
            "workers = 1",
            &[("a", DISK_BYTES, "queues = 3\nserial = \"x\""), b, new],
            "not-changeable",
            "disk \"a\": serial, queues cannot",
        ),
        ("workers = 1", &[("a", 4096, ""), b, new], "bad-size", "a disk does not shrink"),
        ("workers = 1", &[a, new], "connected", "disk \"b\": 1 of its front-ends are connected"),
        ("workers = 1", &[a, b, new, ("short", DISK_BYTES, "")], "too-small", "short: cannot serve"),
        ("workers = 1", &[a, b, new, ("x", DISK_BYTES, "siez = 1")], "bad-options", "main.toml:"),
        ("workers = 1\nmetrics = \"m\"", &[a, b, new], "bad-options", "[server]: metrics cannot be changed"),
        ("workers = 1\n[", &[a, b, new], "bad-options", "this is not TOML"),
        ("workers = 1", &[a, b, new, new], "bad-options", "two disks have this name"),
    ] {
        host.write(server, disks);
        let answer = host.reload();
        let (found, text) = answer.problem();
        assert!(found == code && text.contains(what), "{what}: {answer:?}");
        assert_eq!(host.names(), ["line", "a", "b"], "{what}");
        assert!(!host.folder.join("new").exists() && !host.sockets.join("new").exists(), "{what}");
        assert_eq!(host.disk("a")["state"]["capacity_bytes"], DISK_BYTES, "{what}");
    }
    std::fs::remove_file(host.folder.join("main.toml")).unwrap();
    assert!(host.reload().problem().1.contains("cannot read the configuration file"));
}

/// Whoever writes a file in its place makes it empty first.
#[test]
fn a_file_that_is_empty_for_a_moment_removes_no_disk() {
    let host = Host::start("", &[("a", DISK_BYTES, "")]);
    let (main, part) = (host.folder.join("main.toml"), host.folder.join("part.toml"));
    for text in ["", "\n"] {
        std::fs::write(&main, text).unwrap();
        let (code, text) = host.reload().problem();
        assert!(code == "bad-options" && text.contains("main.toml: there is nothing in it"), "{text}");
        assert_eq!(host.names(), ["line", "a"]);
    }
    // A file of those that are included is meant, too.
    let disk = text(&host.folder, &host.sockets, "", &[("a", DISK_BYTES, "")]).replace("[server]\n", "");
    std::fs::write(&main, "include = \"part.toml\"\n").unwrap();
    std::fs::write(&part, &disk).unwrap();
    assert_eq!(host.reload().status, 200);
    std::fs::write(&part, "").unwrap();
    assert!(host.reload().problem().1.contains("part.toml: there is nothing in it"));
    assert_eq!(host.names(), ["line", "a"]);
    std::fs::write(&part, "# none\n").unwrap();
    assert_eq!(host.reload().json()["removed"], json!(["a"]));
    host.daemon.stop();
}

/// A disk that was made larger at the socket is smaller in the file: what is to be written there is said.
#[test]
fn a_growth_that_the_file_does_not_know_is_named_with_its_remedy() {
    let host = Host::start("", &[("a", DISK_BYTES, "")]);
    let size = json!({"size": 2 * DISK_BYTES}).to_string();
    assert_eq!(ask(&host.control(), "PATCH", "/v1/disks/a", Some(&size)).status, 200);
    let (code, text) = host.reload().problem();
    let remedy = format!("write size = {} in the configuration file", 2 * DISK_BYTES);
    assert!(code == "bad-size" && text.contains("does not shrink") && text.contains(&remedy), "{text}");
    host.write("", &[("a", 2 * DISK_BYTES, "")]);
    assert_eq!(host.reload().status, 200);
    host.daemon.stop();
}
