//! A machine as a child process: QEMU, or a Linux that is a program itself.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Set while guests are to run in the QEMU of Debian 13 and with its kernel (`ci/lab/newer`).
static NEWER: AtomicBool = AtomicBool::new(false);

/// Has all guests that `run` boots run in the QEMU of Debian 13's backports, with the kernel of theirs.
pub fn with_newer<T>(run: impl FnOnce() -> T) -> T {
    /// Resets it, also when `run` panics.
    struct Until;
    impl Drop for Until {
        fn drop(&mut self) {
            NEWER.store(false, Ordering::Relaxed);
        }
    }
    NEWER.store(true, Ordering::Relaxed);
    let _until = Until;
    run()
}

/// Which kernel a guest runs; `ci/lab/prepare` fetches all but the last, which `ci/soak` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's cloud kernel: small, and quick to boot.
    Cloud,
    /// Debian's generic kernel, which survives machine checks.
    Generic,
    /// Debian's User-Mode Linux, which needs no QEMU.
    UserMode,
    /// A newer cloud kernel, which knows persistent memory on CXL.
    Recent,
}

impl Kernel {
    /// Its folder in `.cache/lab`.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Cloud if NEWER.load(Ordering::Relaxed) => "kernel-debian13",
            Self::Cloud => "kernel",
            Self::Generic => "kernel-generic",
            Self::UserMode => "kernel-user-mode",
            Self::Recent => "kernel-recent",
        }
    }

    /// The file that is booted.
    pub fn image(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/lab").join(self.folder()).join("vmlinuz")
    }
}

/// The longest that a guest may take for anything: emulated, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A running machine, killed and reaped when dropped.
#[derive(Debug)]
pub struct Machine {
    process: Child,
    console: PathBuf,
    errors: PathBuf,
}

impl Machine {
    /// Starts a machine with what all guests share (`ci/lab/guest`) and `args`; its files go to `folder`.
    pub fn start(folder: &Path, args: &[String]) -> Self {
        let mut qemu = Command::new(script("guest"));
        qemu.args(["-serial", &format!("file:{}", folder.join("console").display())]);
        qemu.args(args).stdin(Stdio::null());
        if NEWER.load(Ordering::Relaxed) {
            qemu.env("LAB_NEWER", "1");
        }
        Self::spawn(folder, &mut qemu)
    }

    /// Starts a Linux that is a process (`ci/lab/user-mode`); `line` is its second serial line.
    pub fn start_user_mode(folder: &Path, line: UnixStream, args: &[String]) -> Self {
        let mut linux = Command::new(script("user-mode"));
        linux.arg(format!("uml_dir={}", folder.display())).args(args);
        linux.stdin(OwnedFd::from(line)).stdout(File::create(folder.join("console")).unwrap());
        Self::spawn(folder, &mut linux)
    }

    /// Starts a machine of another kind, whose console goes to `console` in `folder`.
    pub fn spawn(folder: &Path, command: &mut Command) -> Self {
        let (console, errors) = (folder.join("console"), folder.join("errors"));
        let process = command.stderr(File::create(&errors).unwrap()).spawn().unwrap();
        Self { process, console, errors }
    }

    /// What the first serial line has shown so far.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Types a line, where the console is the machine's standard input and output.
    pub fn type_line(&mut self, line: &str) {
        let mut keys = self.process.stdin.as_ref().expect("a machine whose standard input is a pipe");
        // One after the other: what is not yet awaited is lost.
        for key in line.bytes().chain([b'\r']) {
            keys.write_all(&[key]).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The last words, to explain a failure.
    pub fn last_words(&self) -> String {
        let errors = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let console = self.console();
        let tail: Vec<&str> = console.lines().rev().take(15).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        format!("the machine said: {}\nthe console ended with:\n{}", errors.trim(), tail.join("\n"))
    }

    /// The exit status, when the machine has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// Waits until `condition` yields a value; panics when that takes too long or the machine ends before.
    pub fn wait_for<T>(&mut self, what: &str, mut condition: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.ended();
            if let Some(value) = condition(self) {
                return value;
            }
            if let Some(status) = ended {
                panic!("the machine ended ({status}) before {what}\n{}", self.last_words());
            }
            assert!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} in vain until {what}\n{}",
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it where it stands.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Waits until the machine has ended by itself.
    pub fn wait_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "the machine does not end\n{}", self.last_words());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A script of `ci/lab`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/lab").join(name)
}

/// The QEMU arguments that attach the disk behind `socket`; `more` goes to the device.
pub fn disk_arguments(id: &str, socket: &Path, more: &str) -> Vec<String> {
    let chardev = format!("socket,id={id},path={}", socket.display());
    let device = format!("vhost-user-blk-pci,chardev={id},{more}");
    ["-chardev".to_owned(), chardev, "-device".to_owned(), device].to_vec()
}
