//! Disks that come and go while the server runs, as a program does it that embeds the server.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod leaks;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::daemon::Place;
use common::frontend::Session;
use common::frontend::load::Load;
use common::frontend::request::{OK, Request};
use common::frontend::ring::Ring;
use common::{MIB, folder, pattern, wait_for};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use vhost_user_pmem::cli::configuration_of;
use vhost_user_pmem::config::{DiskConfig, SocketSource};
use vhost_user_pmem::server::{Departure, Manager, RemoveError, Resized, Server};

const DISK_BYTES: u64 = 8 * MIB;

/// A server with a disk that stays, and room for others.
struct Host {
    images: TempDir,
    sockets: TempDir,
    server: Server,
}

impl Host {
    fn start(place: Place) -> Self {
        let (images, sockets) = (place.folder(), folder::for_sockets());
        let path = |folder: &TempDir| folder.path().join("stays").display().to_string();
        let disk = format!("name=stays,path={},socket={},size={DISK_BYTES}", path(&images), path(&sockets));
        let args = ["vhost-user-pmem", "serve", "--disk", &disk].map(Into::into);
        let server = Server::start(configuration_of(args.into()).unwrap()).unwrap();
        Self { images, sockets, server }
    }

    fn manager(&self) -> Manager {
        self.server.manager()
    }

    fn image(&self, name: &str) -> PathBuf {
        self.images.path().join(name)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }

    /// A disk of this name, which is created where it is not there.
    fn config(&self, name: &str) -> DiskConfig {
        let socket = SocketSource::Path(self.socket(name));
        let mut config = DiskConfig::new(name.to_owned(), self.image(name), socket);
        config.size_bytes = Some(DISK_BYTES);
        config
    }

    fn names(&self) -> Vec<String> {
        self.server.disks().into_iter().map(|disk| disk.name).collect()
    }
}

fn assert_works(ring: &mut Ring, sector: u64) {
    let bytes = pattern(sector, 4096);
    assert_eq!(ring.run(&Request::write(sector, &bytes)).status, OK);
    let read = ring.run(&Request::read(sector, 4096));
    assert!(read.status == OK && read.data == bytes);
}

/// Removes a disk as soon as nobody is connected to it.
fn remove_once_unused(manager: &Manager, name: &str) {
    wait_for("its front-end has left", || match manager.remove(name, Departure::Unused) {
        Err(RemoveError::Connected { .. }) => None,
        Ok(()) => Some(()),
        Err(error) => panic!("{error}"),
    });
}

/// Nobody has the file open any more: its lock is free, and it is mapped nowhere.
fn assert_closed(image: &Path) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(&*image.to_string_lossy()), "it is mapped: {maps}");
}

#[test]
fn a_disk_comes_and_goes_while_another_is_used() {
    for place in Place::ALL {
        let host = Host::start(place);
        let manager = host.manager();
        let neighbour = Session::connect(&host.socket("stays"));
        let load = Load::start(neighbour.ring(0, 64), 0);
        for round in 0..3 {
            let summary = manager.add(host.config("comes")).unwrap();
            assert_eq!(
                (summary.capacity_bytes, host.names()),
                (DISK_BYTES, vec!["stays".into(), "comes".into()])
            );
            let session = Session::connect(&host.socket("comes"));
            let mut ring = session.ring(0, 64);
            if round > 0 {
                assert!(ring.run(&Request::read(8, 4096)).data == pattern(8, 4096), "what was there before");
            }
            assert_works(&mut ring, 8);
            let refused = manager.remove("comes", Departure::Unused).unwrap_err();
            assert_eq!(refused, RemoveError::Connected { disk: "comes".into(), front_ends: 1 });
            assert_works(&mut ring, 16);
            drop((ring, session));
            remove_once_unused(&manager, "comes");
            assert!(!host.socket("comes").exists() && host.names() == ["stays"]);
            assert_closed(&host.image("comes"));
            load.wait_for_progress();
        }
        load.stop();
        assert_eq!(
            manager.remove("comes", Departure::Unused),
            Err(RemoveError::NoSuchDisk("comes".to_owned()))
        );
    }
}

/// All that was acknowledged is in the file, and the front-end sees the end of its connection.
#[test]
fn front_ends_of_a_disk_that_is_removed_are_hung_up_on() {
    let host = Host::start(Place::Tmpfs);
    let manager = host.manager();
    manager.add(host.config("goes")).unwrap();
    let session = Session::connect(&host.socket("goes"));
    let mut ring = session.ring(0, 64);
    let idle = UnixStream::connect(host.socket("goes")).unwrap();
    for sector in (0..800).step_by(8) {
        assert_eq!(ring.run(&Request::write(sector, &pattern(sector, 4096))).status, OK);
    }
    manager.remove("goes", Departure::Within(Duration::ZERO)).unwrap();
    assert_closed(&host.image("goes"));
    assert!(session.config(0, 8).is_err(), "the connection has ended");
    assert_eq!(std::io::Read::read(&mut &idle, &mut [0; 8]).unwrap(), 0);
    let file = File::open(host.image("goes")).unwrap();
    for sector in (0..800).step_by(8) {
        let mut stored = vec![0; 4096];
        file.read_exact_at(&mut stored, sector * 512).unwrap();
        assert!(stored == pattern(sector, 4096), "sector {sector}");
    }
}

#[test]
fn a_disk_that_waits_for_its_front_ends_lets_nobody_in() {
    let host = Host::start(Place::Tmpfs);
    let manager = host.manager();
    manager.add(host.config("goes")).unwrap();
    let session = Session::connect(&host.socket("goes"));
    let mut ring = session.ring(0, 64);
    assert_works(&mut ring, 0);
    let begin = Instant::now();
    let within = Duration::from_secs(3600);
    let remover = std::thread::spawn({
        let manager = manager.clone();
        move || manager.remove("goes", Departure::Within(within))
    });
    wait_for("its socket is gone", || (!host.socket("goes").exists()).then_some(()));
    assert_eq!(manager.remove("goes", Departure::Unused), Err(RemoveError::Leaving("goes".into())));
    let taken = manager.add(host.config("goes")).unwrap_err().to_string();
    assert!(taken.contains("two disks have this name"), "{taken}");
    assert_works(&mut ring, 8);
    drop((ring, session));
    remover.join().unwrap().unwrap();
    assert!(begin.elapsed() < within);
    assert_closed(&host.image("goes"));
}

/// Its front-ends are told to go like all others; the removal comes to its end.
#[test]
fn a_server_that_stops_waits_for_no_removal() {
    let host = Host::start(Place::Tmpfs);
    let manager = host.manager();
    manager.add(host.config("goes")).unwrap();
    let session = Session::connect(&host.socket("goes"));
    let _ring = session.ring(0, 64);
    let remover = std::thread::spawn({
        let manager = manager.clone();
        move || manager.remove("goes", Departure::Within(Duration::from_secs(3600)))
    });
    wait_for("its socket is gone", || (!host.socket("goes").exists()).then_some(()));
    let Host { images, sockets, server } = host;
    server.stopper().stop();
    server.wait().unwrap();
    remover.join().unwrap().unwrap();
    assert_closed(&images.path().join("goes"));
    let name = |name: &str| {
        let socket = SocketSource::Path(sockets.path().join(name));
        DiskConfig {
            size_bytes: Some(DISK_BYTES),
            ..DiskConfig::new(name.into(), images.path().join(name), socket)
        }
    };
    let late = manager.add(name("late")).unwrap_err().to_string();
    assert!(late.contains("asked to stop"), "{late}");
    assert!(!images.path().join("late").exists() && !sockets.path().join("late").exists());
    assert_eq!(manager.remove("stays", Departure::Unused), Err(RemoveError::Stopped("stays".into())));
}

#[test]
fn what_cannot_be_added_leaves_nothing_behind() {
    let host = Host::start(Place::Tmpfs);
    let manager = host.manager();
    let refused = |config: DiskConfig, part: &str| {
        let error = manager.add(config).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(host.names(), ["stays"]);
    };
    refused(host.config("stays"), "disk \"stays\": two disks have this name");
    refused(
        DiskConfig { socket: SocketSource::Path(host.socket("stays")), ..host.config("new") },
        "its socket",
    );
    assert!(!host.image("new").exists());
    refused(
        DiskConfig { path: host.image("stays"), ..host.config("new") },
        "another disk of this process already uses it",
    );
    assert!(!host.socket("new").exists());
    refused(DiskConfig { size_bytes: None, ..host.config("new") }, "there is no such file");
    refused(DiskConfig { block_bytes: Some(3), ..host.config("new") }, "512 or 4096");
    refused(DiskConfig { postcopy: true, ..host.config("new") }, "postcopy");
    std::fs::write(host.socket("new"), "precious").unwrap();
    refused(host.config("new"), "cannot bind the socket");
    assert!(!host.image("new").exists(), "the file that was created for it");
    std::fs::remove_file(host.socket("new")).unwrap();
    manager.add(host.config("new")).unwrap();
    let session = Session::connect(&host.socket("new"));
    assert_works(&mut session.ring(0, 64), 0);
}

#[test]
fn a_disk_that_was_added_is_counted_grows_and_is_disconnected() {
    let host = Host::start(Place::FileSystem);
    let (manager, collector) = (host.manager(), host.server.collector());
    manager.add(DiskConfig { size_bytes: None, ..made(&host, "grows") }).unwrap();
    let session = Session::connect(&host.socket("grows"));
    assert_works(&mut session.ring(0, 64), 0);
    let stats =
        || collector.collect().into_iter().map(|it| (it.name, it.counters.writes)).collect::<Vec<_>>();
    assert_eq!(stats(), [("stays".into(), 0), ("grows".into(), 1)]);
    File::options().write(true).open(host.image("grows")).unwrap().set_len(2 * DISK_BYTES).unwrap();
    wait_for("it has grown", || {
        let bytes = session.config(0, 8).unwrap();
        (u64::from_le_bytes(bytes.try_into().unwrap()) * 512 == 2 * DISK_BYTES).then_some(())
    });
    assert_eq!(manager.disconnect("grows"), Ok(1));
    wait_for("its connection ends", || session.config(0, 8).is_err().then_some(()));
    let again = Session::connect(&host.socket("grows"));
    assert_works(&mut again.ring(0, 64), 8);
    assert_eq!(manager.disconnect("other"), Err(RemoveError::NoSuchDisk("other".into())));
    drop((session, again));
    remove_once_unused(&manager, "grows");
    assert_eq!(stats(), [("stays".into(), 0)]);
    // The file's next owner finds nobody who cares.
    File::options().write(true).open(host.image("grows")).unwrap().set_len(DISK_BYTES).unwrap();
}

/// The file is made longer, and a chosen size is the new one; what cannot be leaves both as they were.
#[test]
fn a_disk_is_made_larger() {
    for place in Place::ALL {
        let host = Host::start(place);
        let (manager, resizer) = (host.manager(), host.server.resizer().unwrap());
        let fixed = |name: &str| DiskConfig { block_bytes: Some(4096), ..host.config(name) };
        manager.add(fixed("chosen")).unwrap();
        manager.add(DiskConfig { size_bytes: None, ..made(&host, "follows") }).unwrap();
        for name in ["chosen", "follows"] {
            let session = Session::connect(&host.socket(name));
            let mut ring = session.ring(0, 64);
            let resized = resizer.grow(name, 2 * DISK_BYTES).unwrap();
            assert_eq!(resized, Resized { from_bytes: DISK_BYTES, to_bytes: 2 * DISK_BYTES });
            assert_works(&mut ring, 2 * DISK_BYTES / 512 - 8);
            let smaller = resizer.grow(name, DISK_BYTES).unwrap_err().to_string();
            assert!(smaller.contains("does not shrink"), "{smaller}");
            let too_large = resizer.grow(name, 1 << 62).unwrap_err().to_string();
            assert!(too_large.contains(name), "{too_large}");
            assert_eq!(host.image(name).metadata().unwrap().len(), 2 * DISK_BYTES, "{too_large}");
            assert_eq!(resizer.resize(name).unwrap().to_bytes, 2 * DISK_BYTES);
            assert_works(&mut ring, 8);
        }
        let odd = resizer.grow("chosen", 2 * DISK_BYTES + 512).unwrap_err().to_string();
        assert!(odd.contains("not a multiple of its 4096-byte blocks"), "{odd}");
        // A file that somebody else has made longer is served up to the chosen size.
        File::options().write(true).open(host.image("chosen")).unwrap().set_len(4 * DISK_BYTES).unwrap();
        assert_eq!(resizer.grow("chosen", 3 * DISK_BYTES).unwrap().to_bytes, 3 * DISK_BYTES);
        assert_eq!(host.image("chosen").metadata().unwrap().len(), 4 * DISK_BYTES);
    }
}

/// A disk whose file is there.
fn made(host: &Host, name: &str) -> DiskConfig {
    File::create(host.image(name)).unwrap().set_len(DISK_BYTES).unwrap();
    host.config(name)
}
