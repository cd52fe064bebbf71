//! The real binary as a child process, with its images and sockets in folders that vanish afterwards.
//!
//! ```ignore
//! let setup = Setup::new(Place::Tmpfs).disk("size=64M,serial=db0");   // path= and socket= are added
//! let daemon = setup.start();                                         // ready: the sockets listen
//! connect(&daemon.socket(0)); std::fs::read(daemon.image(0));
//! let setup = daemon.stop();                                          // SIGTERM, exit code 0 or panic
//! let daemon = setup.start();                                         // again on the same image and socket
//! ```

use std::fmt::Debug;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Process, ends_with_us};
use super::{folder, wait_for, wait_long_for};

/// Longest life of a daemon, unless a test says otherwise. Some clients wait for an answer without a limit; its end
/// releases them.
const LIFETIME: Duration = Duration::from_secs(300);

/// Which kind of file system the images are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `/dev/shm`.
    Tmpfs,
    /// Where cargo builds: an ordinary file system.
    FileSystem,
}

impl Place {
    /// Both kinds, for tests that must hold on either.
    pub const ALL: [Self; 2] = [Self::Tmpfs, Self::FileSystem];

    /// A new folder there.
    pub fn folder(self) -> TempDir {
        match self {
            Self::Tmpfs => folder::in_memory(),
            Self::FileSystem => folder::on_files(),
        }
    }
}

/// What is served and how, before it is served.
#[derive(Debug)]
pub struct Setup {
    /// What is mounted over the folder of the images: goes before it.
    mounts: Vec<Box<dyn Debug>>,
    images: TempDir,
    /// Apart from the images: a socket's path must be shorter than 108 bytes.
    sockets: TempDir,
    disks: Vec<String>,
    args: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
    program: PathBuf,
    /// What starts the program: a command that takes another one's words.
    through: Vec<String>,
    /// Where the log is also kept, one life of the daemon after the other.
    log_file: Option<PathBuf>,
    lifetime: Duration,
}

impl Setup {
    /// No disk yet; images will be on `place`.
    pub fn new(place: Place) -> Self {
        let program = env!("CARGO_BIN_EXE_vhost-user-pmem").into();
        let (images, sockets, mounts) = (place.folder(), folder::for_sockets(), Vec::new());
        let (disks, args, environment, through) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (log_file, lifetime) = (None, LIFETIME);
        Self { mounts, images, sockets, disks, args, environment, program, through, log_file, lifetime }
    }

    /// Adds a disk with these `--disk` options; `path=` and `socket=` are filled in.
    pub fn disk(mut self, options: &str) -> Self {
        self.disks.push(options.to_owned());
        self
    }

    /// Mounts something over the folder of the images, for as long as it is there. None where `mount` cannot.
    pub fn mounted<M: Debug + 'static>(mut self, mount: impl FnOnce(&Path) -> Option<M>) -> Option<Self> {
        let mount = mount(self.images.path())?;
        self.mounts.push(Box::new(mount));
        Some(self)
    }

    /// The folder of the images.
    pub fn folder(&self) -> &Path {
        self.images.path()
    }

    /// Adds a command-line argument after `serve`.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Starts another build of the daemon from now on.
    pub fn program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Starts it by a command that takes another one's words and becomes it, such as `env`.
    pub fn through(mut self, command: &[&str]) -> Self {
        self.through = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Appends the log of what [`Setup::start`] starts to this file, too.
    pub fn log_to(mut self, file: PathBuf) -> Self {
        self.log_file = Some(file);
        self
    }

    /// Lets a daemon live so long, if its clients are known to give up by themselves.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Where the image of the disk of this index is; write it before the start to serve what is in it.
    pub fn image(&self, index: usize) -> PathBuf {
        self.images.path().join(format!("disk{index}.img"))
    }

    /// Where the disk of this index is served.
    pub fn socket(&self, index: usize) -> PathBuf {
        self.sockets.path().join(format!("disk{index}.sock"))
    }

    /// Where metrics are read once it is started with [`Setup::with_metrics`].
    pub fn metrics_socket(&self) -> PathBuf {
        self.sockets.path().join("metrics.sock")
    }

    /// Serves metrics as well.
    pub fn with_metrics(self) -> Self {
        let socket = self.metrics_socket().display().to_string();
        self.arg("--metrics").arg(&socket)
    }

    /// The command line, for what [`Setup::start`] does not cover.
    pub fn command(&self) -> Command {
        let mut command = match self.through.split_first() {
            None => Command::new(&self.program),
            Some((first, others)) => {
                let mut command = Command::new(first);
                command.args(others).arg(&self.program);
                command
            }
        };
        // In a build with `sandbox-probe`: a system call that is not in the table is not missed.
        command.env("VHOST_USER_PMEM_SANDBOX_KILLS", "1");
        command.arg("serve").envs(self.environment.iter().copied());
        for (index, options) in self.disks.iter().enumerate() {
            let (image, socket) = (self.image(index), self.socket(index));
            let comma = if options.is_empty() { "" } else { "," };
            let disk = format!("path={},socket={}{comma}{options}", image.display(), socket.display());
            command.arg("--disk").arg(disk);
        }
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        ends_with_us(&mut command);
        command
    }

    /// Runs a daemon that is expected to end by itself.
    pub fn run(&self) -> Output {
        let mut child = self.command().spawn().unwrap();
        let stdout = Capture::new(child.stdout.take().unwrap());
        let stderr = Capture::new(child.stderr.take().unwrap());
        let child = Arc::new(Mutex::new(child));
        let _end_of_life = watch(Arc::clone(&child), self.lifetime);
        let status = loop {
            if let Some(status) = child.lock().unwrap().try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Output { status, stdout: stdout.into_bytes(), stderr: stderr.into_bytes() }
    }

    /// Starts the daemon and waits until it listens on every socket.
    pub fn start(self) -> Daemon {
        let mut daemon = self.begin();
        daemon.wait_until_ready();
        daemon
    }

    /// Starts the daemon, and waits for nothing.
    pub fn begin(self) -> Daemon {
        let mut child = self.command().spawn().unwrap();
        let stdout = Capture::new(child.stdout.take().unwrap());
        let log_file = self.log_file.as_ref();
        let log_file = log_file.map(|path| File::options().create(true).append(true).open(path).unwrap());
        let stderr = Capture::with_copy(child.stderr.take().unwrap(), log_file);
        let child = Arc::new(Mutex::new(child));
        let end_of_life = watch(Arc::clone(&child), self.lifetime);
        Daemon { setup: Some(self), child, end_of_life, stdout, stderr }
    }
}

/// A running daemon; killed and reaped when dropped.
#[derive(Debug)]
pub struct Daemon {
    /// Taken only when the daemon ends and the setup outlives it.
    setup: Option<Setup>,
    child: Arc<Mutex<Child>>,
    /// Dropped with the daemon, which ends the watch over it.
    end_of_life: mpsc::Sender<()>,
    stdout: Capture,
    stderr: Capture,
}

impl Daemon {
    /// Waits until it listens on every socket.
    pub fn wait_until_ready(&mut self) {
        wait_for("the daemon listens on its sockets", || self.is_ready().then_some(()));
    }

    /// Where the image of the disk of this index is.
    pub fn image(&self, index: usize) -> PathBuf {
        self.setup().image(index)
    }

    /// Where the disk of this index is served.
    pub fn socket(&self, index: usize) -> PathBuf {
        self.setup().socket(index)
    }

    /// Where metrics are read.
    pub fn metrics_socket(&self) -> PathBuf {
        self.setup().metrics_socket()
    }

    /// The program that runs, as the kernel names it.
    pub fn program(&self) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/exe", self.pid())).unwrap()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.stderr.text()
    }

    /// What it has printed on standard output so far.
    pub fn output(&self) -> String {
        self.stdout.text()
    }

    /// Waits until the log contains `text`.
    pub fn wait_for_log(&self, text: &str) {
        wait_for(&format!("the log says {text:?}"), || self.log().contains(text).then_some(()));
    }

    /// Panics unless the daemon is still running.
    pub fn assert_alive(&mut self) {
        let status = self.child.lock().unwrap().try_wait().unwrap();
        assert!(status.is_none(), "the daemon ended ({})", status.unwrap());
    }

    /// Asks the daemon to end and insists on exit code 0.
    pub fn stop(mut self) -> Setup {
        self.end();
        self.setup.take().unwrap()
    }

    /// The same, for all that it has logged: what it logged just now may not have been read before it has ended.
    pub fn stop_for_log(mut self) -> String {
        self.end();
        self.stderr.finish();
        self.log()
    }

    fn end(&mut self) {
        self.signal(libc::SIGTERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "exit status after SIGTERM: {status}");
    }

    /// Kills the daemon where it stands, as a crash would.
    pub fn kill(mut self) -> Setup {
        self.signal(libc::SIGKILL);
        self.wait();
        self.setup.take().unwrap()
    }

    /// Sends a signal.
    #[allow(unsafe_code)]
    pub fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.pid()).unwrap();
        // SAFETY: kill has no memory operands, and the child is not reaped yet, so the pid is its own.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "kill: {}", std::io::Error::last_os_error());
    }

    /// Waits until the daemon has ended by itself or by a signal sent before.
    ///
    /// Its end is also the end of its contexts of Linux AIO, for which the kernel waits for two RCU grace periods
    /// (`exit_aio`). They take some ms, but a minute was seen where the kernel's own thread got no processor.
    pub fn wait(&mut self) -> ExitStatus {
        wait_long_for("the daemon ends", || self.child.lock().unwrap().try_wait().unwrap())
    }

    fn setup(&self) -> &Setup {
        self.setup.as_ref().unwrap()
    }

    /// The kernel's table is asked instead of connecting: a probe would be a front-end that comes and goes.
    fn is_ready(&mut self) -> bool {
        self.assert_alive();
        let table = std::fs::read("/proc/net/unix").unwrap();
        let listening = |path: PathBuf| {
            let path = path.as_os_str().as_bytes();
            table.split(|&byte| byte == b'\n').any(|line| is_listening(line, path))
        };
        (0..self.setup().disks.len()).all(|index| listening(self.socket(index)))
    }
}

/// Kills `child` when it has lived for `lifetime`.
fn watch(child: Arc<Mutex<Child>>, lifetime: Duration) -> mpsc::Sender<()> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        if receiver.recv_timeout(lifetime) == Err(RecvTimeoutError::Timeout) {
            eprintln!("a daemon is killed: it has lived for {lifetime:?}");
            let _ = child.lock().unwrap().kill();
        }
    });
    sender
}

/// A line is `address: references protocol flags type state inode path`.
fn is_listening(line: &[u8], path: &[u8]) -> bool {
    const ACCEPTS_CONNECTIONS: &[u8] = b"00010000";
    line.ends_with(path) && line.split(|&byte| byte == b' ').nth(3) == Some(ACCEPTS_CONNECTIONS)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let mut ended = None;
        if let Ok(mut child) = self.child.lock() {
            ended = child.try_wait().ok().flatten();
            if ended.is_none() && std::thread::panicking() {
                eprintln!("--- threads of the daemon\n{}", Process(child.id()).whereabouts());
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            self.stderr.finish();
            if let Some(status) = ended {
                eprintln!("--- the daemon had ended before: {status}");
            }
            eprintln!("--- log of the daemon\n{}---", self.log());
        }
    }
}

/// What a pipe has delivered so far, read by a thread so that the writer never blocks.
#[derive(Debug)]
struct Capture {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    fn new(pipe: impl Read + Send + 'static) -> Self {
        Self::with_copy(pipe, None)
    }

    /// The same; what is read goes to `file`, too.
    fn with_copy(mut pipe: impl Read + Send + 'static, mut file: Option<File>) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                sink.lock().unwrap().extend_from_slice(&chunk[..count]);
                if let Some(file) = &mut file {
                    file.write_all(&chunk[..count]).unwrap();
                }
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    /// All there was; only after the writer has ended.
    fn into_bytes(mut self) -> Vec<u8> {
        self.finish();
        std::mem::take(&mut self.text.lock().unwrap())
    }

    /// Reads to the end; only after the writer has ended.
    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
