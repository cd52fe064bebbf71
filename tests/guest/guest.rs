//! A Linux guest that runs commands for the host (`agent.sh`).

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::folder;
use super::machine::{Kernel, Machine, PATIENCE, script};

/// The kernel's, of every guest that answers.
pub const COMMAND_LINE: &str = "console=ttyS0 no_timer_check panic=-1 lab=agent.sh";

/// What a command in the guest did.
#[derive(Debug)]
pub struct Reply {
    pub status: i32,
    pub text: String,
}

/// A guest that answers.
#[derive(Debug)]
pub struct Guest {
    machine: Machine,
    line: BufReader<UnixStream>,
    boot_id: String,
    /// Set once it has failed to answer: what comes after fails at once.
    is_lost: bool,
}

impl Guest {
    /// Boots a guest whose `/lab` holds this folder's scripts and `files`, and waits until it answers.
    pub fn boot(folder: &Path, files: &[&Path], devices: Vec<String>) -> Self {
        Self::boot_with(Kernel::Cloud, folder, files, devices, "")
    }

    /// The same with this kernel, and with more on its command line.
    pub fn boot_with(
        kernel: Kernel,
        folder: &Path,
        files: &[&Path],
        devices: Vec<String>,
        kernel_arguments: &str,
    ) -> Self {
        let initramfs = Self::initramfs_for(kernel, folder, files);
        Self::boot_kernel(kernel, &initramfs, folder, devices, kernel_arguments)
    }

    /// Makes the root file system of a guest in `folder`; any number of guests boot from it.
    pub fn initramfs(folder: &Path, files: &[&Path]) -> PathBuf {
        Self::initramfs_for(Kernel::Cloud, folder, files)
    }

    /// Boots a Linux that is a process from what [`Guest::initramfs_for`] made, on the disks behind `sockets`, if any;
    /// why it has not come up, otherwise.
    pub fn boot_user_mode(
        initramfs: &Path,
        folder: &Path,
        sockets: &[PathBuf],
        patience: Duration,
    ) -> Result<Self, String> {
        let mut args = vec![format!("initrd={}", initramfs.display()), "lab=agent.sh".to_owned()];
        // The number is that of a block device.
        args.extend(sockets.iter().map(|socket| format!("virtio_uml.device={}:2", socket.display())));
        let (stream, line) = UnixStream::pair().unwrap();
        let machine = Machine::start_user_mode(folder, line, &args);
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut guest =
            Self { machine, line: BufReader::new(stream), boot_id: String::new(), is_lost: false };
        let mut ready = String::new();
        let is_up = guest.line.read_line(&mut ready).is_ok() && ready.starts_with("READY ");
        guest.line.get_mut().set_read_timeout(Some(PATIENCE)).unwrap();
        if is_up { Ok(guest) } else { Err(guest.machine.last_words()) }
    }

    /// Makes the root file system of a guest with this kernel.
    pub fn initramfs_for(kernel: Kernel, folder: &Path, files: &[&Path]) -> PathBuf {
        let initramfs = folder.join("initramfs");
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
        let names = ["agent.sh", "filesystem.sh", "fio.sh", "partitions.sh"];
        let built = Command::new(script("initramfs"))
            .arg(&initramfs)
            .env("LAB_KERNEL", kernel.folder())
            .args(names.map(|name| scripts.join(name)))
            .args(files)
            .status();
        assert!(built.unwrap().success(), "ci/lab/initramfs failed");
        initramfs
    }

    /// Boots from what [`Guest::initramfs`] made; the machine's files go to `folder`.
    pub fn boot_from(initramfs: &Path, folder: &Path, devices: Vec<String>, kernel_arguments: &str) -> Self {
        Self::boot_kernel(Kernel::Cloud, initramfs, folder, devices, kernel_arguments)
    }

    /// Starts a machine that waits for the guest of another one (QMP's `migrate-incoming`), made as that one was.
    pub fn incoming(initramfs: &Path, folder: &Path, mut devices: Vec<String>) -> Self {
        devices.extend(["-incoming", "defer"].map(str::to_owned));
        Self::start(Kernel::Cloud, initramfs, folder, devices, "")
    }

    /// This guest has moved to `machine`, which was waiting for it; ends the machine where it was.
    pub fn moved_to(&mut self, machine: Self) {
        (self.machine, self.line) = (machine.machine, machine.line);
    }

    /// The same with this kernel.
    pub fn boot_kernel(
        kernel: Kernel,
        initramfs: &Path,
        folder: &Path,
        devices: Vec<String>,
        kernel_arguments: &str,
    ) -> Self {
        let mut guest = Self::start(kernel, initramfs, folder, devices, kernel_arguments);
        guest.boot_id = guest.await_ready();
        guest
    }

    fn start(
        kernel: Kernel,
        initramfs: &Path,
        folder: &Path,
        devices: Vec<String>,
        kernel_arguments: &str,
    ) -> Self {
        let mut args = devices;
        args.extend(["-kernel".to_owned(), kernel.image().display().to_string()]);
        args.extend(["-initrd".to_owned(), initramfs.display().to_string()]);
        args.extend(["-append".to_owned(), format!("{COMMAND_LINE} {kernel_arguments}")]);
        args.extend(["-serial", "chardev:agent"].map(str::to_owned));
        Self::connect(|line| {
            args.extend(["-chardev".to_owned(), format!("socket,id=agent,path={}", line.display())]);
            Machine::start(folder, &args)
        })
    }

    /// Boots a machine that another program starts: its second serial line is to be connected to this socket.
    pub fn boot_by(start: impl FnOnce(&Path) -> Machine) -> Self {
        let mut guest = Self::connect(start);
        guest.boot_id = guest.await_ready();
        guest
    }

    fn connect(start: impl FnOnce(&Path) -> Machine) -> Self {
        let sockets = folder::for_sockets();
        let path = sockets.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut machine = start(&path);
        let stream = machine.wait_for("QEMU connects the agent's line", |_| listener.accept().ok()).0;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { machine, line: BufReader::new(stream), boot_id: String::new(), is_lost: false }
    }

    /// Runs a shell command.
    pub fn run(&mut self, command: &str) -> Reply {
        self.send(command);
        let mut text = String::new();
        loop {
            let line = self.receive(command);
            match line.split_at_checked(1) {
                Some(("|", output)) => text.push_str(&format!("{output}\n")),
                _ => match line.strip_prefix("END ").and_then(|status| status.parse().ok()) {
                    Some(status) => return Reply { status, text },
                    None => self.lose(&format!("instead of the end of {command:?} the guest said {line:?}")),
                },
            }
        }
    }

    /// Runs a shell command that must succeed; what it printed, without white space around it.
    pub fn shell(&mut self, command: &str) -> String {
        let Reply { status, text } = self.run(command);
        assert_eq!(status, 0, "in the guest, {command:?} failed: {text}");
        text.trim().to_owned()
    }

    /// Reboots the guest while QEMU lives on, and waits until the new one answers.
    pub fn reboot(&mut self) {
        self.restart("sync; reboot -f");
    }

    /// Runs what makes the guest start again, and waits until the new one answers.
    pub fn restart(&mut self, command: &str) {
        self.send(command);
        self.await_restart();
    }

    /// Waits until a guest that starts again answers.
    pub fn await_restart(&mut self) {
        let boot_id = self.await_ready();
        assert_ne!(boot_id, self.boot_id, "the guest has not started again");
        self.boot_id = boot_id;
    }

    /// Switches the guest off and insists that the machine ends well.
    pub fn power_off(mut self) {
        self.send("sync; poweroff -f");
        let status = self.machine.wait_end();
        assert!(status.success(), "the machine: {status}\n{}", self.machine.last_words());
    }

    /// Starts a shell command whose output is the agent's line itself; [`Guest::line`] reads it.
    pub fn stream(&mut self, command: &str) {
        self.send(&format!("{command} >/dev/ttyS1"));
    }

    /// The next line of what [`Guest::stream`] started.
    pub fn line(&mut self) -> String {
        self.receive("a stream")
    }

    /// Kills QEMU where it stands, as a power cut would; the lines that the guest has sent until then, whole ones only.
    pub fn cut(mut self) -> Vec<String> {
        self.machine.kill();
        let mut rest = Vec::new();
        // A connection reset by the death is an end, too.
        let _ = self.line.read_to_end(&mut rest);
        let rest = String::from_utf8_lossy(&rest);
        rest.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
    }

    /// What the kernel has said so far.
    pub fn console(&self) -> String {
        self.machine.console()
    }

    fn await_ready(&mut self) -> String {
        let line = self.receive("boot");
        match line.strip_prefix("READY ") {
            Some(boot_id) => boot_id.to_owned(),
            None => self.lose(&format!("a guest that boots said {line:?}")),
        }
    }

    fn send(&mut self, command: &str) {
        assert!(!self.is_lost, "not tried: the guest is lost");
        writeln!(self.line.get_mut(), "{command}").unwrap();
    }

    fn receive(&mut self, what: &str) -> String {
        let mut line = String::new();
        match self.line.read_line(&mut line) {
            Ok(0) => self.lose(&format!("the guest ended in the middle of {what:?}")),
            Ok(_) => line.trim_end().to_owned(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.lose(&format!("no answer within {PATIENCE:?} to {what:?}"))
            }
            Err(error) => self.lose(&format!("the agent's line: {error}")),
        }
    }

    fn lose(&mut self, why: &str) -> ! {
        self.is_lost = true;
        panic!("{why}\n{}", self.machine.last_words());
    }
}
