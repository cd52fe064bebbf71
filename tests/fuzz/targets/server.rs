//! A server in this process with two disks: what the messages are sent to, and a bystander's.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vhost_user_pmem::disk::{Durability, FileLock};
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

/// It lasts from one input to the next: none leaves anything behind.
pub struct World {
    _server: Server<GuardedDisk>,
    folder: PathBuf,
    sockets: [PathBuf; 2],
    bystander: (Session, Ring),
    /// Descriptors and threads when nobody but the bystander is there, or has been.
    usual: (usize, usize),
    inputs: u64,
}

impl World {
    /// Starts the server in a folder of its own.
    pub fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("pmem-fuzz-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let sockets = ["fuzzed", "other"].map(|name| folder.join(name));
        let service = |socket: &PathBuf| {
            let disk = GuardedDisk::new(DISK_BYTES, false);
            let identity = Identity { name: socket.display().to_string(), serial: SERIAL };
            Service {
                device: Device::new(disk, identity, 4),
                lock: FileLock::none(),
                socket: DiskSocket::Listening(Listener::bind(socket, &SocketAccess::default()).unwrap()),
                cpus: None,
                postcopy: false,
                config_record: ConfigRecord::load(None, Durability::Page),
            }
        };
        let services = sockets.iter().map(service).collect();
        let options = ServeOptions { workers: std::num::NonZeroU16::new(1), ..ServeOptions::default() };
        // As the daemon has it: who reads no more of a pipe ends nobody.
        ignore_sigpipe();
        let server = Server::serve(services, options).unwrap();
        let session = Session::connect(&sockets[1]);
        let ring = session.ring(0, 64);
        let mut world =
            Self { _server: server, folder, sockets, bystander: (session, ring), usual: (0, 0), inputs: 0 };
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

    /// Both disks are served.
    pub fn assert_serves(&mut self) {
        let session = Session::connect(&self.sockets[0]);
        let mut ring = session.ring(0, 64);
        for ring in [&mut ring, &mut self.bystander.1] {
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
