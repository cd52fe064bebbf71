//! A server in this process with two disks: what the messages are sent to, and a bystander's. A disk that offers postcopy
//! migration is alone.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use rustix::fs::{FlockOperation, XattrFlags, flock, fremovexattr, fsetxattr};
use vhost_user_pmem::disk::{self, BackingFile, Durability, LockMode, OpenOptions, Opened};
use vhost_user_pmem::server::{ServeOptions, Server, Service};
use vhost_user_pmem::vhost_user::{ConfigRecord, DiskSocket, Listener, SocketAccess};
use vhost_user_pmem::virtio::blk::{Device, Identity};

use crate::common::frontend::Session;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::guarded::{GuardedDisk, found};
use crate::common::wait_for;

/// Size of a disk.
pub const DISK_BYTES: u64 = 8 << 20;

/// Their serial number.
pub const SERIAL: [u8; 20] = *b"fuzz0123456789abcdef";

/// Where the disk's configuration is recorded, beside its bytes.
const ATTRIBUTE: &str = "user.vhost-user-pmem";

/// It lasts from one input to the next: none leaves anything behind.
pub struct World {
    _server: Server<GuardedDisk>,
    folder: PathBuf,
    sockets: Vec<PathBuf>,
    /// What locks and records belong to, as another process has it open.
    backing: File,
    /// Nobody where the disk under test is alone.
    bystander: Option<(Session, Ring)>,
    /// Descriptors and threads when nobody but the bystander is there, or has been.
    usual: (usize, usize),
    inputs: u64,
}

impl World {
    /// Two disks.
    pub fn start() -> Self {
        Self::of_disks(&["fuzzed", "other"], false)
    }

    /// One disk, which offers postcopy migration.
    pub fn with_postcopy() -> Self {
        Self::of_disks(&["alone"], true)
    }

    /// Starts the server in a folder of its own.
    fn of_disks(names: &[&str], postcopy: bool) -> Self {
        let folder = std::env::temp_dir().join(format!("pmem-fuzz-{}-{}", names[0], std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let sockets: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
        let service = |socket: &PathBuf| {
            let disk = GuardedDisk::new(DISK_BYTES, false);
            let identity = Identity { name: socket.display().to_string(), serial: SERIAL };
            // As of a disk that another process may serve as well, which is the next to have it.
            let path = socket.with_extension("img");
            let options =
                OpenOptions { size_bytes: Some(4096), lock: LockMode::Wait, ..OpenOptions::new("fuzz") };
            let Opened { lock, .. } = disk::open(&path, &options).unwrap();
            let recorded_at = Arc::new(BackingFile::from(File::open(&path).unwrap()));
            Service {
                device: Device::new(disk, identity, 4),
                lock,
                socket: DiskSocket::Listening(Listener::bind(socket, &SocketAccess::default()).unwrap()),
                cpus: None,
                postcopy,
                config_record: ConfigRecord::load(Some(recorded_at), Durability::Page),
                template: None,
            }
        };
        let services = sockets.iter().map(service).collect();
        let backing = File::open(sockets[0].with_extension("img")).unwrap();
        let options = ServeOptions { workers: std::num::NonZeroU16::new(1), ..ServeOptions::default() };
        // As the daemon has it: who reads no more of a pipe ends nobody, and there is a log.
        ignore_sigpipe();
        write_log();
        let server = Server::serve(services, options).unwrap();
        let bystander = sockets.get(1).map(|socket| {
            let session = Session::connect(socket);
            let ring = session.ring(0, 64);
            (session, ring)
        });
        let (usual, inputs) = ((0, 0), 0);
        let mut world = Self { _server: server, folder, sockets, backing, bystander, usual, inputs };
        // The first front-end starts what later ones find.
        drop(Session::connect(&world.sockets[0]).ring(0, 64));
        world.assert_serves();
        std::thread::sleep(std::time::Duration::from_millis(200));
        world.usual = counts();
        world
    }

    /// A connection to the disk under test.
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.sockets[0]).unwrap()
    }

    /// The socket of the disk under test.
    pub fn socket(&self) -> &Path {
        &self.sockets[0]
    }

    /// Another process locks the disk under test, if nobody has it, until what is returned is dropped.
    pub fn lock_elsewhere(&self) -> LockedElsewhere<'_> {
        let locked = flock(&self.backing, FlockOperation::NonBlockingLockExclusive);
        LockedElsewhere(locked.is_ok().then_some(&self.backing))
    }

    /// Another process has left a record of the configuration, or something like it.
    pub fn record_elsewhere(&self, record: &[u8]) {
        // A file system without attributes has no records.
        let _ = fsetxattr(&self.backing, ATTRIBUTE, record, XattrFlags::empty());
    }

    /// An input is over: every so often, all is as before.
    pub fn input_is_over(&mut self) {
        self.inputs += 1;
        if self.inputs.is_multiple_of(32) {
            self.assert_serves();
            let (fds, threads) = self.usual;
            wait_for("what connections had is gone", || {
                let now = counts();
                (now.0 <= fds + 4 && now.1 <= threads + 2).then_some(())
            });
        }
    }

    /// All disks are served.
    pub fn assert_serves(&mut self) {
        let _ = fremovexattr(&self.backing, ATTRIBUTE);
        let session = Session::connect(&self.sockets[0]);
        let mut ring = session.ring(0, 64);
        for ring in [Some(&mut ring), self.bystander.as_mut().map(|it| &mut it.1)].into_iter().flatten() {
            if ring.run(&Request::read(0, 4096)).status != OK {
                found("a disk does not answer as it should");
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// It is unlocked at its end, if it was locked.
pub struct LockedElsewhere<'a>(Option<&'a File>);

impl Drop for LockedElsewhere<'_> {
    fn drop(&mut self) {
        if let Some(backing) = self.0 {
            flock(backing, FlockOperation::NonBlockingUnlock).unwrap();
        }
    }
}

/// Has every line of the log written, and thrown away.
fn write_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::sink);
        log.init();
    });
}

/// Rust's own start does that, which libFuzzer's does not.
#[allow(unsafe_code)]
fn ignore_sigpipe() {
    // SAFETY: nothing else here handles the signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Descriptors and threads of this process.
fn counts() -> (usize, usize) {
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}
