//! Media that hang: a file of a FUSE server that is stopped, and a block device over such a file; and where the kernel has them
//! (`other_kernel`), a device of the device-mapper that is suspended, and a file of an NFS server that is gone.

use std::fs::{DirEntry, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::daemon::{Place, Setup};
use crate::common::host::Loop;
use crate::common::process::ends_with_us;
use crate::common::{MIB, pattern, wait_for};

/// What the first disk lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    /// A file of the server's.
    File,
    /// A loop device over it.
    Device,
    /// A file of a local file system on such a device.
    Local,
    /// A device of the device-mapper.
    Suspended,
    /// A file of [`EXPORTED`], of an NFS server that is reached through a network.
    Nfs,
}

/// Where `user_mode.sh` has mounted what an NFS server exports.
const EXPORTED: &str = "/mnt/client";

impl Media {
    /// Whether a write is acknowledged only when the media has answered.
    pub(crate) fn writes_wait(self) -> bool {
        self != Self::Nfs
    }

    /// Whether it is there on any machine.
    fn is_usual(self) -> bool {
        !matches!(self, Self::Suspended | Self::Nfs)
    }
}

/// Bytes of the first disk, and what they are. One of a [local](Media::Local) file system is a quarter of that.
pub(crate) const BYTES: u64 = 16 * MIB;
pub(crate) const LOCAL_BYTES: u64 = BYTES / 4;

pub(crate) fn contents() -> Vec<u8> {
    pattern(1, BYTES as usize)
}

/// What answers, and can be made to stop.
#[derive(Debug)]
pub(crate) struct Server {
    engine: Engine,
    pub(crate) image: PathBuf,
}

#[derive(Debug)]
enum Engine {
    /// A server of FUSE, and the number of its connection.
    Process(Child, u32),
    /// The device-mapper, over a loop device, which lasts as long.
    Mapper(#[expect(dead_code, reason = "it is detached when this is dropped")] Loop),
    /// A server of NFS: the network to it is cut.
    Network,
}

/// How often a server is stopped anew that may have read a request, and not answered it.
const STOPS: usize = 20;

/// The device-mapper's device.
const MAPPED: &str = "/dev/dm-0";

impl Server {
    fn of(media: Media, folder: &Path) -> Self {
        match media {
            Media::File | Media::Device | Media::Local => Self::mount(folder),
            Media::Suspended => Self::map(folder),
            Media::Nfs => {
                let image = Path::new(EXPORTED).join("disk.img");
                std::fs::write(&image, contents()).unwrap();
                Self { engine: Engine::Network, image }
            }
        }
    }

    fn map(folder: &Path) -> Self {
        let image = folder.join("disk.img");
        std::fs::write(&image, contents()).unwrap();
        let device = Loop::over(&image, &[]).unwrap();
        let table = format!("0 {} linear {} 0", BYTES / 512, device.path().display());
        run(Command::new("dmsetup").args(["create", "hung", "--noudevsync", "--table", &table]));
        Self { engine: Engine::Mapper(device), image }
    }

    fn mount(folder: &Path) -> Self {
        let (device, mount) = (folder.join("device"), folder.join("mount"));
        File::create(&device).unwrap().set_len(64 * MIB).unwrap();
        std::fs::create_dir(&mount).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&device));
        let mut program = Command::new("fuse2fs");
        let process = ends_with_us(program.args(["-f", "-o", "rw"]).args([&device, &mount]));
        let process = process.stdout(Stdio::null()).spawn().unwrap();
        wait_for("the file system is mounted", || mount.join("lost+found").exists().then_some(()));
        let image = mount.join("disk.img");
        std::fs::write(&image, contents()).unwrap();
        // It may be there already.
        let control = ["-t", "fusectl", "fusectl", "/sys/fs/fuse/connections"];
        let _ = Command::new("mount").args(control).stderr(Stdio::null()).status();
        let connection = rustix::fs::minor(image.metadata().unwrap().dev());
        Self { engine: Engine::Process(process, connection), image }
    }

    /// Nothing of the image is in the page cache any more.
    pub(crate) fn forget(&self) {
        let image = File::open(&self.image).unwrap();
        image.sync_all().unwrap();
        rustix::fs::fadvise(&image, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    /// Nothing is answered any more, nor read: what a server has read cannot be given up (`request_wait_answer` of the kernel).
    pub(crate) fn hang(&self) {
        match &self.engine {
            Engine::Process(process, connection) => {
                stop(process);
                // While there are always requests it is stopped as it is.
                for _ in 0..STOPS {
                    if !has_requests(*connection) {
                        return;
                    }
                    kill_process(Pid::from_child(process), Signal::CONT).unwrap();
                    std::thread::sleep(Duration::from_millis(10));
                    stop(process);
                }
            }
            Engine::Mapper(_) => {
                run(Command::new("dmsetup").args(["suspend", "--nolockfs", "--noudevsync", "hung"]))
            }
            Engine::Network => run(Command::new("ip").args(["link", "set", "lo", "down"])),
        }
    }

    /// All is answered again.
    pub(crate) fn go_on(&self) {
        match &self.engine {
            Engine::Process(process, _) => kill_process(Pid::from_child(process), Signal::CONT).unwrap(),
            Engine::Mapper(_) => run(Command::new("dmsetup").args(["resume", "--noudevsync", "hung"])),
            Engine::Network => run(Command::new("ip").args(["link", "set", "lo", "up"])),
        }
    }
}

/// Whether anybody waits for an answer of a server of FUSE.
fn has_requests(connection: u32) -> bool {
    let waiting = std::fs::read_to_string(format!("/sys/fs/fuse/connections/{connection}/waiting"));
    waiting.is_ok_and(|waiting| waiting.trim() != "0")
}

fn stop(process: &Child) {
    kill_process(Pid::from_child(process), Signal::STOP).unwrap();
    let tasks = format!("/proc/{}/task", process.id());
    let is_stopped = |task: std::io::Result<DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
    };
    wait_for("the server has stopped", || std::fs::read_dir(&tasks).unwrap().all(is_stopped).then_some(()));
}

impl Drop for Server {
    /// With a server of FUSE, all requests fail that wait for it.
    fn drop(&mut self) {
        match &mut self.engine {
            Engine::Process(process, _) => {
                let _ = process.kill();
                let _ = process.wait();
            }
            Engine::Mapper(_) => run(Command::new("dmsetup").args(["remove", "--noudevsync", "hung"])),
            Engine::Network => {}
        }
    }
}

/// Mounts a file system on a device, whose journal is written each second. Returns a file of it.
fn mount_local(folder: &Path, device: &Path) -> PathBuf {
    let mount = folder.join("local");
    std::fs::create_dir(&mount).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(device));
    run(Command::new("mount").args(["-t", "ext4", "-o", "commit=1"]).args([device, &mount]));
    let image = mount.join("disk.img");
    std::fs::write(&image, &contents()[..LOCAL_BYTES as usize]).unwrap();
    File::open(&image).unwrap().sync_all().unwrap();
    image
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// Runs a test with one disk on such media and `others` in memory, which one worker serves, in a mount namespace that ends with
/// it; or says why it does not. Nothing is started yet.
pub(crate) fn with_disks(media: Media, others: usize, test: impl FnOnce(Setup, &Server) + Send) {
    with_disks_of(media, "", others, test);
}

/// The same, with options of the first disk.
#[allow(unsafe_code)]
pub(crate) fn with_disks_of(
    media: Media,
    options: &str,
    others: usize,
    test: impl FnOnce(Setup, &Server) + Send,
) {
    let is_there = |program: &str| {
        Command::new(program).arg("-V").stderr(Stdio::null()).stdout(Stdio::null()).status().is_ok()
    };
    let has_fuse = || Path::new("/dev/fuse").exists() && is_there("fuse2fs");
    if media.is_usual() && !(rustix::process::geteuid().is_root() && has_fuse()) {
        eprintln!("skipped: no root, no /dev/fuse, or no fuse2fs");
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let body = || {
        // SAFETY: it concerns this thread only, which ends with the test, and what it starts.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "unshare");
        run(Command::new("mount").args(["--make-rprivate", "/"]));
        let server = Server::of(media, folder.path());
        let mut setup = Setup::new(Place::Tmpfs).disk(options);
        for _ in 0..others {
            setup = setup.disk("size=4M");
        }
        let setup = setup.arg("--workers=1").with_metrics();
        // Direct: else the loop device has a page cache of its own, which answers.
        let device = match media {
            Media::File | Media::Suspended | Media::Nfs => None,
            Media::Device | Media::Local => {
                let Some(device) = Loop::over(&server.image, &["--direct-io=on"]) else { return };
                Some(device)
            }
        };
        let path = match media {
            Media::Suspended => Path::new(MAPPED),
            _ => device.as_ref().map_or(server.image.as_path(), Loop::path),
        };
        let local = (media == Media::Local).then(|| mount_local(folder.path(), path));
        let path = local.as_deref().unwrap_or(path);
        std::os::unix::fs::symlink(path, setup.image(0)).unwrap();
        test(setup, &server);
        if local.is_some() {
            run(Command::new("umount").arg("--lazy").arg(folder.path().join("local")));
        }
        drop(server);
        drop(device);
        if media.is_usual() {
            run(Command::new("umount").arg("--lazy").arg(folder.path().join("mount")));
        }
    };
    std::thread::scope(|scope| scope.spawn(body).join().unwrap());
}
