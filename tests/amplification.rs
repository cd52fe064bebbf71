//! Write amplification on an ordinary file system, measured by the counters of the device below it: random
//! 4 KiB writes, each followed by a flush, through the daemon and, for comparison, by stores into a shared
//! mapping and `fdatasync`. And what random reads cost that are not in the page cache, one by one and many at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr, clippy::print_stdout)]
#![allow(unsafe_code, missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::driver::{Driver, Options, Request};
use common::ext4::{self, Ext4};
use common::folder;
use common::{Random, pattern, wait_for};
use tempfile::TempDir;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

const IMAGE_BYTES: u64 = 128 << 20;
const BLOCK_BYTES: u64 = 4096;
const DAEMON_WRITES: u64 = 256;
const NAIVE_WRITES: u64 = 48;
const READS: usize = 512;

/// What the daemon may cost: device bytes for each byte of the guest.
const MOST: f64 = 1.2;

/// A file system of its own, mounted for this thread and its children.
struct FileSystem {
    ext4: Ext4,
    folder: TempDir,
}

impl FileSystem {
    /// # Errors
    /// Why there cannot be one here.
    fn new() -> Result<Self, String> {
        // SAFETY: it concerns this thread only, which ends with the test.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return Err("mounting needs root".to_owned());
        }
        ext4::run("mount", &["--make-rprivate", "/"])?;
        let folder = folder::on_files();
        let ext4 = Ext4::mount(folder.path(), 4 * IMAGE_BYTES)?;
        Ok(Self { ext4, folder })
    }

    fn mount(&self) -> &Path {
        self.folder.path()
    }

    /// Device bytes for each byte that `write` was told to write.
    fn amplification(&self, count: u64, write: impl FnOnce()) -> f64 {
        // SAFETY: it has no operands.
        unsafe { libc::sync() };
        let before = self.ext4.written_bytes();
        write();
        (self.ext4.written_bytes() - before) as f64 / (count * BLOCK_BYTES) as f64
    }
}

/// A file all of whose blocks were written, as those of a disk in use are.
fn filled(path: &Path) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let chunk = pattern(1, 1 << 20);
    for index in 0..IMAGE_BYTES / chunk.len() as u64 {
        file.write_all_at(&chunk, index * chunk.len() as u64).unwrap();
    }
    file.sync_all().unwrap();
    file
}

fn offsets(seed: u64) -> impl Iterator<Item = u64> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(move || random.below(IMAGE_BYTES / BLOCK_BYTES) * BLOCK_BYTES)
}

/// A daemon and the folder of its socket.
struct Daemon(Child, TempDir);

impl Daemon {
    fn start(image: &Path) -> Self {
        let sockets = folder::for_sockets();
        let socket = sockets.path().join("s");
        let child = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"))
            .args(["serve", "--require-durable", "--disk"])
            .arg(format!("path={},socket={}", image.display(), socket.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Self(child, sockets);
        wait_for("the daemon listens", || UnixStream::connect(&socket).ok());
        daemon
    }

    fn connect(&self) -> Driver {
        Driver::connect(&self.1.path().join("s"), Options::default())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn through_the_daemon(file_system: &FileSystem) -> f64 {
    let image = file_system.mount().join("daemon.img");
    filled(&image);
    let daemon = Daemon::start(&image);
    let mut driver = daemon.connect();
    let queue = driver.queue();
    queue.run(&Request::Flush).unwrap();
    let data = pattern(2, BLOCK_BYTES as usize);
    let amplification = file_system.amplification(DAEMON_WRITES, || {
        for offset in offsets(3).take(DAEMON_WRITES as usize) {
            queue.write(offset, &data).unwrap();
            queue.run(&Request::Flush).unwrap();
        }
    });
    let mut back = vec![0; BLOCK_BYTES as usize];
    File::open(&image).unwrap().read_exact_at(&mut back, offsets(3).next().unwrap()).unwrap();
    assert!(back == data, "the writes were real");
    amplification
}

/// From the start of a daemon to its end: no time stamp is written, and nothing beside the disk.
fn reading_through_the_daemon(file_system: &FileSystem) -> f64 {
    let image = file_system.mount().join("read.img");
    filled(&image);
    let amplification = file_system.amplification(1, || {
        let daemon = Daemon::start(&image);
        let mut driver = daemon.connect();
        for offset in (0..IMAGE_BYTES).step_by(1 << 20) {
            assert_eq!(driver.queue().read(offset, 1 << 20).unwrap(), pattern(1, 1 << 20));
            driver.queue().run(&Request::Flush).unwrap();
        }
        drop(driver);
        drop(daemon);
        // SAFETY: it has no operands.
        unsafe { libc::sync() };
    });
    std::fs::remove_file(image).unwrap();
    amplification
}

/// Device bytes for each byte that is read at random, so many blocks at a time.
fn random_reads(file_system: &FileSystem, depth: usize) -> f64 {
    let image = file_system.mount().join("random.img");
    let file = filled(&image);
    let daemon = Daemon::start(&image);
    let mut driver = daemon.connect();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    // Where each block is, is known already.
    file.read_exact_at(&mut [0], 0).unwrap();
    // No block twice, and not in order.
    let mut known = BTreeSet::new();
    let places: Vec<u64> = offsets(5).filter(|offset| known.insert(*offset)).take(READS).collect();
    let before = file_system.ext4.read_bytes();
    for some in places.chunks(depth) {
        for (number, &offset) in some.iter().enumerate() {
            let place = number * BLOCK_BYTES as usize;
            let into = vec![place..place + BLOCK_BYTES as usize];
            assert!(driver.queue().submit(&Request::Read { offset, into }, number as u64));
        }
        driver.queue().kick();
        let mut done = 0;
        while done < some.len() {
            let answers = driver.queue().wait();
            assert!(answers.iter().all(|(_, outcome)| *outcome == Ok(())), "{answers:?}");
            done += answers.len();
        }
    }
    let read = file_system.ext4.read_bytes() - before;
    std::fs::remove_file(image).unwrap();
    read as f64 / (places.len() as u64 * BLOCK_BYTES) as f64
}

#[test]
fn a_random_read_costs_the_device_little_more_than_itself() {
    let test = || match FileSystem::new() {
        Err(reason) => eprintln!("skipped: {reason}"),
        Ok(file_system) => {
            for depth in [1, 32] {
                let read = random_reads(&file_system, depth);
                println!("device bytes for each byte read at random, {depth} at a time: {read:.2}");
                assert!(
                    (0.9..=MOST).contains(&read),
                    "{read:.2} at depth {depth}, at most {MOST} is allowed"
                );
            }
        }
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}

fn through_a_mapping(file_system: &FileSystem) -> f64 {
    let file = filled(&file_system.mount().join("naive.img"));
    let mapping =
        MmapRegion::<()>::from_file(FileOffset::new(file.try_clone().unwrap(), 0), IMAGE_BYTES as usize)
            .unwrap();
    let data = pattern(2, BLOCK_BYTES as usize);
    file_system.amplification(NAIVE_WRITES, || {
        for offset in offsets(3).take(NAIVE_WRITES as usize) {
            mapping.as_volatile_slice().write_slice(&data, offset as usize).unwrap();
            file.sync_data().unwrap();
        }
    })
}

#[test]
fn a_flushed_write_costs_the_device_little_more_than_itself() {
    let test = || match FileSystem::new() {
        Err(reason) => eprintln!("skipped: {reason}"),
        Ok(file_system) => {
            let only_reads = reading_through_the_daemon(&file_system);
            assert_eq!(only_reads, 0.0, "opening and reading has written to the device");
            let daemon = through_the_daemon(&file_system);
            let naive = through_a_mapping(&file_system);
            println!("device bytes for each guest byte: daemon {daemon:.2}, naive mapping {naive:.2}");
            assert!(
                (1.0..=MOST).contains(&daemon),
                "the daemon costs {daemon:.2}, at most {MOST} is allowed"
            );
        }
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}
