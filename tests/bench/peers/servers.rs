//! The back-ends: started on a CPU of their own, all of them on the same file.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vhost_user_pmem::bench::Peer;

use crate::{SERVER_CPU, STOCK};

/// A back-end under test; killed and reaped when dropped.
pub struct Server {
    pub name: String,
    pub peer: Peer,
    pub start_ms: Option<f64>,
    child: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// None of them relies on what is in the file.
pub fn start_all(scratch: &Path, file: &str) -> Vec<Server> {
    let ours = env!("CARGO_BIN_EXE_vhost-user-pmem");
    let mut servers = Vec::new();
    for (name, poll) in [("ours", "50"), ("ours, never polling", "0"), ("ours, busy", "busy")] {
        servers.push(start_ours(name, ours, poll, scratch, file));
    }
    if let Some(before) = std::env::var_os("OURS_BEFORE") {
        servers.push(start_ours("ours, before", &before.to_string_lossy(), "50", scratch, file));
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
    servers.extend(spdk());
    servers
}

/// A build of this project: this one, or another that it is compared with.
fn start_ours(name: &str, program: &str, poll_max_us: &str, scratch: &Path, file: &str) -> Server {
    let socket = socket_of(scratch, name);
    let disk = format!("path={file},socket={},lock=off", socket.display());
    let options = ["--log", "warn", "serve", "--workers", "1", "--poll-max-us", poll_max_us, "--disk", &disk];
    start(name, &socket, &[&[program], &options[..]].concat())
}

/// What the caller has started: on which file and CPU is its business.
fn spdk() -> Option<Server> {
    let socket = std::env::var_os("SPDK_SOCKET")?.into();
    let pid = std::env::var("SPDK_PID").ok().map(|pid| pid.parse().unwrap());
    Some(Server { name: "SPDK".to_owned(), peer: Peer { socket, pid }, start_ms: None, child: None })
}

/// Where a back-end of this name listens: plots show it.
fn socket_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{}.sock", slug(name)))
}

/// A name as a file may have it.
pub fn slug(name: &str) -> String {
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

/// Starts a program, and waits until its socket is there.
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
    Server { name: name.to_owned(), peer, start_ms, child: Some(child) }
}
