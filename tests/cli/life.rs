//! A daemon's life: what it prints, when it ends, what becomes of its sockets.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::common::daemon::{Place, Setup};
use super::common::{folder, wait_for};
use super::{Running, assert_error, assert_served, is_closed, program, run};

fn connect(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).unwrap()
}

/// One disk of 1 MiB.
fn setup() -> Setup {
    Setup::new(Place::Tmpfs).disk("size=1M")
}

#[test]
fn the_start_message_says_how_to_attach_each_disk() {
    let setup = Setup::new(Place::Tmpfs).disk("size=1M,queues=1").disk("size=3M,readonly=off,name=second db");
    let daemon = setup.start();
    wait_for("the start message is there", || daemon.output().contains("second db").then_some(()));
    let [first, second] = [0, 1].map(|index| daemon.socket(index).display().to_string());
    let image = daemon.image(0).display().to_string();
    wait_for("the last line is there", || {
        daemon.output().contains(&format!("socket={second}")).then_some(())
    });
    let text = daemon.output();
    for part in [
        &format!("disk \"disk0\"\n  file        {image}: memory (tmpfs"),
        "  size        1 MiB (1048576 bytes), 512-byte blocks, read-write\n",
        "  durability  volatile",
        "  queues      1\n",
        &format!("  socket      {first}\n"),
        "qemu-system-x86_64 -smp 2 -m 4G \\\n",
        "-object memory-backend-memfd,id=mem,size=4G,share=on -numa node,memdev=mem \\\n",
        &format!("-chardev socket,id=disk0,path={first},reconnect-ms=1000 \\\n"),
        "-device vhost-user-blk-pci,chardev=disk0,num-queues=1\n",
        "cloud-hypervisor --cpus boot=2 --memory size=4G,shared=on \\\n",
        &format!("--disk vhost_user=true,socket={first},num_queues=1,queue_size=1024\n"),
        "disk \"second db\"\n",
        "  queues      64\n",
        &format!("-chardev socket,id=second_db,path={second},reconnect-ms=1000 \\\n"),
        "-device vhost-user-blk-pci,chardev=second_db,num-queues=2\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    daemon.stop();
}

#[test]
fn a_default_name_is_made_unique() {
    let folders = [(); 2].map(|()| {
        let folder = folder::in_memory();
        super::image(&folder.path().join("db.img"), 1 << 20);
        folder
    });
    let disks = folders.each_ref().map(|folder| {
        let path = folder.path().display();
        format!("path={path}/db.img,socket={path}/s")
    });
    let args = ["serve", "--disk", &disks[0], "--disk", &disks[1], "--exit-on-disconnect"];
    let mut daemon = Running::spawn(program(args));
    let socket = folders[1].path().join("s");
    drop(assert_served(wait_for("it listens", || UnixStream::connect(&socket).ok())));
    assert_eq!(daemon.wait().code(), Some(0));
    let text = daemon.output();
    assert!(text.contains("disk \"db\"\n") && text.contains("disk \"db-2\"\n"), "{text}");
}

#[test]
fn sigterm_and_sigint_end_it_with_0_and_remove_the_sockets() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut daemon = Setup::new(Place::Tmpfs).disk("size=1M").disk("size=1M").start();
        let connected = connect(&daemon.socket(0));
        let frontend = assert_served(connected.try_clone().unwrap());
        let sockets = [0, 1].map(|index| daemon.socket(index));
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "signal {signal}: {}", daemon.log());
        assert!(sockets.iter().all(|socket| !socket.exists()), "signal {signal}: a socket stayed behind");
        assert!(is_closed(&connected));
        drop(frontend);
    }
}

#[test]
fn a_socket_accepts_again_after_its_front_end_left() {
    let mut daemon = setup().start();
    for _ in 0..3 {
        drop(assert_served(connect(&daemon.socket(0))));
    }
    drop(connect(&daemon.socket(0)));
    drop(assert_served(connect(&daemon.socket(0))));
    daemon.assert_alive();
    daemon.stop();
}

#[test]
fn exit_on_disconnect_ends_it_with_0() {
    let mut daemon = setup().arg("--exit-on-disconnect").arg("--workers=1").start();
    let frontend = assert_served(connect(&daemon.socket(0)));
    daemon.assert_alive();
    drop(frontend);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    assert!(!daemon.socket(0).exists(), "the socket stayed behind");
}

#[test]
fn a_stale_socket_is_replaced() {
    let setup = setup();
    drop(UnixListener::bind(setup.socket(0)).unwrap());
    assert!(setup.socket(0).exists());
    let daemon = setup.start();
    drop(assert_served(connect(&daemon.socket(0))));
    let setup = daemon.kill();
    assert!(setup.socket(0).exists(), "the test needs a socket that is left behind");
    let daemon = setup.start();
    drop(assert_served(connect(&daemon.socket(0))));
    daemon.stop();
}

#[test]
fn lock_wait_starts_beside_the_one_that_writes() {
    let first = setup().start();
    let image = first.image(0);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let disk = |keys: &str| format!("path={},socket={},{keys}", image.display(), socket.display());
    assert_error(&run(["serve", "--disk", &disk("lock=on")]), 9, &["lock=wait"]);
    for keys in ["lock=wait", "lock=off"] {
        let mut second = Running::spawn(program(["serve", "--disk", &disk(keys), "--exit-on-disconnect"]));
        drop(assert_served(wait_for("it listens", || UnixStream::connect(&socket).ok())));
        assert_eq!(second.wait().code(), Some(0), "{keys}");
    }
    first.stop();
}

#[test]
fn readers_share_a_file() {
    let folder = folder::in_memory();
    let image = folder.path().join("db.img");
    super::image(&image, 1 << 20);
    let daemons: Vec<_> = ["a", "b"]
        .into_iter()
        .map(|name| {
            let socket = folder.path().join(name);
            let disk = format!("path={},socket={},readonly", image.display(), socket.display());
            let daemon = Running::spawn(program(["serve", "--disk", &disk, "--exit-on-disconnect"]));
            let frontend = assert_served(wait_for("it listens", || UnixStream::connect(&socket).ok()));
            (daemon, frontend)
        })
        .collect();
    for (mut daemon, frontend) in daemons {
        drop(frontend);
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

#[test]
fn a_closed_standard_output_is_no_reason_not_to_serve() {
    let setup = setup().arg("--exit-on-disconnect");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut daemon = Running(setup.command().stdout(writer).stderr(Stdio::null()).spawn().unwrap());
    let socket = setup.socket(0);
    let frontend = assert_served(wait_for("it listens", || UnixStream::connect(&socket).ok()));
    drop(frontend);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_closed_standard_error_does_not_end_it() {
    let setup = setup();
    let mut daemon = Running(setup.command().stderr(Stdio::piped()).spawn().unwrap());
    let socket = setup.socket(0);
    drop(assert_served(wait_for("it listens", || UnixStream::connect(&socket).ok())));
    drop(daemon.0.stderr.take());
    for _ in 0..3 {
        // Each of them is logged when it comes and when it leaves.
        drop(assert_served(UnixStream::connect(&socket).unwrap()));
    }
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(!socket.exists(), "the socket stayed behind");
}

/// Has nothing more go into a pipe before somebody reads it.
pub(super) fn fill(mut writer: &PipeWriter) {
    rustix::io::ioctl_fionbio(writer, true).unwrap();
    while writer.write(&[b' '; 4096]).is_ok() {}
    while writer.write(b" ").is_ok() {}
    rustix::io::ioctl_fionbio(writer, false).unwrap();
}

#[test]
fn a_standard_output_that_nobody_reads_delays_neither_start_nor_end() {
    let setup = setup();
    let (reader, writer) = std::io::pipe().unwrap();
    fill(&writer);
    let mut daemon = Running(setup.command().stdout(writer).stderr(Stdio::null()).spawn().unwrap());
    let socket = setup.socket(0);
    drop(assert_served(wait_for("it listens", || UnixStream::connect(&socket).ok())));
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(!socket.exists(), "the socket stayed behind");
    drop(reader);
}

/// A daemon whose end takes long: it was told to stop, but its standard output is full and not read.
fn stopped_but_blocked(setup: &Setup, signal: Signal) -> (Running, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    fill(&writer);
    let mut daemon = Running(setup.command().stdout(writer).stderr(Stdio::piped()).spawn().unwrap());
    let socket = setup.socket(0);
    drop(assert_served(wait_for("it listens", || UnixStream::connect(&socket).ok())));
    let log = BufReader::new(daemon.0.stderr.take().unwrap());
    daemon.signal(signal);
    let stopping = log.lines().map(Result::unwrap).any(|line| line.contains("stopping on SIG"));
    assert!(stopping, "the daemon ended");
    daemon.signal(signal);
    (daemon, reader)
}

#[test]
fn a_second_sigint_does_not_wait() {
    let setup = setup();
    // Its end takes a second; that is not always enough on a busy machine.
    let does_not_wait = |_| {
        let (mut daemon, _unread) = stopped_but_blocked(&setup, Signal::INT);
        daemon.wait().signal() == Some(libc::SIGINT)
    };
    assert!((0..10).any(does_not_wait));
}

#[test]
fn a_second_sigterm_does_no_harm() {
    let setup = setup();
    let (mut daemon, mut output) = stopped_but_blocked(&setup, Signal::TERM);
    output.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!setup.socket(0).exists());
}

/// Media that takes long to enter into the page tables: the start message does not wait for it, and the end neither.
#[test]
fn populating_slow_media_holds_nothing_up() {
    const DELAY: Duration = Duration::from_secs(15);
    let delayed = format!("inject=madvise:delay_enter={}:when=10+", DELAY.as_micros());
    // Counted by thread: no other one gives so much advice.
    let slow = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=madvise", "-e", &delayed];
    let mut daemon = Setup::new(Place::Tmpfs).disk("size=128M").through(&slow).start();
    daemon.wait_for_log("ready for front-ends");
    assert!(!daemon.log().contains("populated"));
    let process = super::common::process::Process(daemon.pid());
    wait_for("it populates", || (process.threads_named("populate").len() == 1).then_some(()));
    drop(assert_served(connect(&daemon.socket(0))));
    std::thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    daemon.signal(libc::SIGTERM);
    // The one that is delayed is all that is left of it then.
    wait_for("it has ended", || process.has_ended().then_some(()));
    assert!(start.elapsed() < DELAY / 2, "SIGTERM was obeyed after {:?}", start.elapsed());
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}

/// Space in memory takes long to allocate.
#[test]
fn a_signal_ends_a_start_that_takes_long() {
    use std::os::unix::fs::MetadataExt as _;
    for signal in [Signal::TERM, Signal::INT] {
        let setup = Setup::new(Place::Tmpfs).disk("size=1M").disk("size=2G");
        let mut child = setup.command().spawn().unwrap();
        wait_for("it allocates", || setup.image(1).metadata().is_ok_and(|it| it.blocks() > 0).then_some(()));
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let status = wait_for("it ends", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{signal:?}");
        let output = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(output.contains("stopped by a signal while it started"), "{output}");
        assert!(!output.contains("ready for front-ends"), "{output}");
        for index in 0..2 {
            assert!(!setup.image(index).exists() && !setup.socket(index).exists(), "of disk {index}");
        }
    }
}
