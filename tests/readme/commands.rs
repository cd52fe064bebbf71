//! The commands of the README, and of the package's units, run as they stand there, each where what it needs is installed:
//! only folders, sizes and times are others.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::common::process::ends_with_us;
use super::common::wait_for;
use super::{readme, root};

/// Folders of the README, which are one folder here.
const FOLDERS: [&str; 8] = [
    "/dev/shm/",
    "/tmp/",
    "/etc/vhost-user-pmem/",
    "/run/vhost-user-pmem/",
    "/var/lib/vhost-user-pmem/",
    "/run/",
    "/srv/",
    "/mnt/pmem/",
];

/// A daemon of the README; killed when dropped.
struct Daemon(Child);

impl Daemon {
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        let status = wait_for("the daemon ends", || self.0.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shell in a folder of its own, with the program on its path.
struct Shell {
    folder: tempfile::TempDir,
    daemons: BTreeMap<String, Daemon>,
}

impl Shell {
    fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_vhost-user-pmem"), bin.join("vhost-user-pmem")).unwrap();
        Self { folder, daemons: BTreeMap::new() }
    }

    /// The command with this folder in place of others, and what would take long made short.
    fn adapted(&self, command: &str) -> String {
        let here = format!("{}/", self.folder.path().display());
        let moved = FOLDERS.iter().fold(command.to_owned(), |text, folder| text.replace(folder, &here));
        moved.replace("size=1G", "size=64M").replace("--runtime 30", "--runtime 50ms")
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        let path = format!("{}/bin:{}", self.folder.path().display(), std::env::var("PATH").unwrap());
        command.args(["-c", line]).env("PATH", path).current_dir(self.folder.path()).stdin(Stdio::null());
        ends_with_us(&mut command);
        command
    }

    fn run(&self, line: &str) -> Output {
        let output = self.command(line).output().unwrap();
        assert!(output.status.success(), "{line}\n{output:?}");
        output
    }

    /// Starts a daemon in place of those before, and waits until its sockets listen.
    fn serve(&mut self, line: &str) {
        // A path without a size is that of a file which is there already.
        for file in [values(line, "--blk-file="), values(line, "path=")].concat() {
            if !line.contains("size=") {
                std::fs::write(file, [0; 1 << 20]).unwrap();
            }
        }
        for (_, daemon) in std::mem::take(&mut self.daemons) {
            daemon.stop();
        }
        let sockets = ["socket=", "--socket-path=", "--metrics "].map(|key| values(line, key));
        self.start(line, sockets.concat());
    }

    /// Starts a daemon, and waits until these listen.
    fn start(&mut self, line: &str, sockets: Vec<String>) {
        let log = self.folder.path().join("log");
        let mut command = self.command(&format!("exec {line}"));
        let output = std::fs::File::create(&log).unwrap();
        let mut daemon = Daemon(command.stdout(Stdio::null()).stderr(output).spawn().unwrap());
        for socket in &sockets {
            wait_for(&format!("{socket} listens"), || {
                let status = daemon.0.try_wait().unwrap();
                assert_eq!(status, None, "{line}\n{}", std::fs::read_to_string(&log).unwrap());
                UnixStream::connect(socket).ok()
            });
        }
        self.daemons.insert(sockets[0].clone(), daemon);
    }

    /// A back-end on the socket, unless the README has started one.
    fn serve_at(&mut self, socket: &str) {
        if !self.daemons.contains_key(socket) {
            let line = format!("vhost-user-pmem serve --disk path={socket}.img,socket={socket},size=64M");
            self.start(&line, vec![socket.to_owned()]);
        }
    }

    fn bench(&mut self, line: &str) {
        let sockets = [values(line, "--socket "), values(line, "--against ")].concat();
        sockets.iter().for_each(|socket| self.serve_at(socket));
        let pid = self.daemons[&sockets[0]].0.id();
        let runtime = if line.contains("--runtime") { "" } else { " --runtime 50ms" };
        self.run(&(line.replace(" PID ", &format!(" {pid} ")) + runtime));
    }

    /// QEMU makes the device, which takes a negotiation with the daemon, and is told to quit.
    fn qemu(&mut self, line: &str) {
        let socket = values(line, "path=").remove(0);
        self.serve_at(&socket);
        let mut command = self.command(&format!("{line} -S -display none -serial none -monitor stdio"));
        let mut qemu =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        qemu.stdin.take().unwrap().write_all(b"info qtree\nquit\n").unwrap();
        let output = qemu.wait_with_output().unwrap();
        assert!(output.status.success(), "{line}\n{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("vhost-user-blk"), "{line}\n{output:?}");
    }
}

/// What stands behind `key` up to the next space or comma, wherever it begins a word or a key.
fn values(line: &str, key: &str) -> Vec<String> {
    let starts = line.match_indices(key).filter(|(at, _)| line[..*at].ends_with([' ', ',']));
    let end = |rest: &str| rest.find([' ', ',']).unwrap_or(rest.len());
    starts.map(|(at, _)| &line[at + key.len()..]).map(|rest| rest[..end(rest)].to_owned()).collect()
}

/// The blocks of one language, each a list of lines; continued ones are joined, comments are cut off.
fn blocks(text: &str, language: &str) -> Vec<Vec<String>> {
    let fences = text.split("```").skip(1).step_by(2);
    let bodies = fences.filter_map(|block| block.strip_prefix(&format!("{language}\n")));
    let without_comment = |line: &str| line.split(" # ").next().unwrap().trim().to_owned();
    let lines = |body: &str| {
        let body = body.replace("\\\n", " ");
        body.lines().map(without_comment).filter(|line| !line.is_empty()).collect()
    };
    bodies.map(lines).collect()
}

fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    let has = found.status.success();
    if !has {
        eprintln!("skipped: the commands of the README that need {program}, which is not installed");
    }
    has
}

/// A script of the checkout takes what it is given.
fn is_a_script(line: &str) {
    let (script, arguments) = line.split_once(' ').unwrap_or((line, ""));
    let path = root().join(script);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_ne!(path.metadata().unwrap().permissions().mode() & 0o111, 0, "{script} cannot be run");
    for argument in arguments.split_whitespace() {
        assert!(text.contains(argument), "{script} does not know {argument}");
    }
}

/// Does what the line says, as far as that can be done here.
fn follow(shell: &mut Shell, line: &str) {
    let adapted = shell.adapted(line);
    let words: Vec<_> = line.split_whitespace().collect();
    match words.as_slice() {
        ["git" | "cd", ..] => {}
        [script, ..] if script.starts_with("ci/") => is_a_script(line),
        ["cargo", "install", "--path", "."] => assert!(root().join("src/main.rs").exists()),
        ["cargo", "doc", ..] => assert_eq!(*line, *"cargo doc --all-features --open"),
        ["vhost-user-pmem", "serve", ..] => shell.serve(&adapted),
        ["vhost-user-pmem", "bench", ..] | ["taskset", .., "plot.svg"] if !cfg!(feature = "bench") => {
            eprintln!("skipped: {line}: built without it");
        }
        ["vhost-user-pmem", "bench", ..] => shell.bench(&adapted),
        ["taskset", ..] => {
            assert!(has("taskset"), "it belongs to every system");
            shell.bench(&adapted);
        }
        ["vhost-user-pmem", option, ..] if option.starts_with("--fd") => {
            eprintln!("skipped: {line}: an inherited socket is tested in tests/cli/inherited.rs");
        }
        ["vhost-user-pmem", option, ..] if option.starts_with("--socket-path") => shell.serve(&adapted),
        ["vhost-user-pmem", "man", "|", "man", ..] if !has("man") => {}
        ["vhost-user-pmem", ..] => drop(shell.run(&adapted)),
        ["qemu-system-x86_64", ..] => {
            if has("qemu-system-x86_64") {
                shell.qemu(&adapted);
            }
        }
        ["cloud-hypervisor", ..] => eprintln!("skipped: {line}: Debian has no cloud-hypervisor"),
        ["curl", ..] => {
            if has("curl") {
                let output = shell.run(&adapted);
                assert!(String::from_utf8_lossy(&output.stdout).contains("\nvhost_user_pmem_reads_total{"));
            }
        }
        _ => panic!("the test of the README does not know what to do with: {line}"),
    }
}

#[test]
fn its_commands_run() {
    let mut shell = Shell::new();
    let blocks = blocks(&readme(), "sh");
    assert!(blocks.len() >= 5, "{blocks:?}");
    for line in blocks.iter().flatten() {
        follow(&mut shell, line);
    }
}

/// The units of the package start the daemon, with its examples as their configuration.
#[test]
fn the_packages_units_start() {
    let package = root().join("ci/debian");
    for (unit, example) in
        [("vhost-user-pmem@.service", "one-disk.toml"), ("vhost-user-pmem.service", "many-disks.toml")]
    {
        let text = std::fs::read_to_string(package.join(unit)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/")).unwrap();
        let mut shell = Shell::new();
        let line = shell.adapted(&line.replace("%i", "db0"));
        let example = std::fs::read_to_string(package.join("examples").join(example)).unwrap();
        // There is no persistent memory here, and the port may be somebody's.
        let example = shell.adapted(&example).replace("\"page\"", "\"off\"").replace(":9753", ":0");
        std::fs::write(line.split(' ').next_back().unwrap(), &example).unwrap();
        let quoted = |key: &str| {
            let lines = example.lines().filter_map(|line| line.strip_prefix(&format!("{key} = \"")));
            lines.map(|rest| rest.trim_end_matches('"').to_owned()).collect::<Vec<_>>()
        };
        if !example.contains("size = ") {
            for image in quoted("path") {
                std::fs::write(image, [0; 1 << 20]).unwrap();
            }
        }
        shell.start(&line, quoted("socket"));
    }
}
