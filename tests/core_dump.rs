//! What is in a core dump: nothing of a guest, and nothing of a disk.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;

use vhost::{VhostBackend as _, VhostUserDirtyLogRegion};

use common::MIB;
use common::daemon::{Place, Setup};
use common::frontend::Session;
use common::frontend::request::{OK, Request};
use common::process::Process;

/// Bytes that are nowhere else: they are not in this program as they are in memory.
fn marker(of: u8) -> Vec<u8> {
    (0..64).map(|at: u8| at.wrapping_mul(37).wrapping_add(of) ^ 0x5a).collect()
}

fn full_of(of: u8, bytes: u64) -> Vec<u8> {
    marker(of).repeat(bytes as usize / 64)
}

/// Where a dump of a process that runs in this folder is written to; none where it goes elsewhere.
fn core_file(folder: &std::path::Path, pid: u32) -> Option<PathBuf> {
    let found = [folder.join("core"), folder.join(format!("core.{pid}"))];
    found.into_iter().find(|path| path.exists())
}

#[test]
fn a_core_dump_holds_neither_guests_nor_disks() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().display();
    let dumping =
        format!("ulimit -c unlimited; cd {path}; echo 0x7f > /proc/self/coredump_filter; exec \"$@\"");
    let setup = Setup::new(Place::Tmpfs).arg("--sandbox=off").disk("").through(&["sh", "-c", &dumping, "sh"]);
    std::fs::write(setup.image(0), full_of(1, 8 * MIB)).unwrap();
    let mut daemon = setup.start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    let bytes = full_of(2, MIB);
    let start = session.memory.allocate(MIB, 4096);
    session.memory.write(start, &bytes);
    assert_eq!(ring.run(&Request::write(0, &full_of(3, 4096))).status, OK);
    let log = File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    log.write_all_at(&full_of(4, MIB), 0).unwrap();
    let region = VhostUserDirtyLogRegion {
        mmap_size: MIB,
        mmap_offset: 0,
        mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&log),
    };
    session.ask(|control| control.set_log_base(0, Some(region))).unwrap();
    // Beyond the room that there was, too.
    for (of, end) in [(5, 12 * MIB), (6, 64 * MIB)] {
        let image = File::options().write(true).open(daemon.image(0)).unwrap();
        let before = image.metadata().unwrap().len();
        image.write_all_at(&full_of(of, end - before), before).unwrap();
        daemon.signal(libc::SIGHUP);
        daemon.wait_for_log(&format!("to_bytes={end}"));
    }
    std::fs::remove_file(daemon.image(0)).unwrap();

    let process = Process(daemon.pid());
    for name in ["memfd:guest", "memfd:log", "disk0.img"] {
        let flags = process.mapping_flags(name);
        assert!(!flags.is_empty(), "{name}");
        // MADV_DONTDUMP; and the processes that receive descriptors do not have it either, MADV_DONTFORK.
        for advice in ["dd", "dc"].into_iter().filter(|advice| *advice == "dd" || !name.ends_with("log")) {
            let has = |flags: &String| flags.split(' ').any(|flag| flag == advice);
            assert!(flags.iter().all(has), "{name}: {flags:?}");
        }
    }
    // A shell in the background has SIGQUIT ignored.
    daemon.signal(libc::SIGABRT);
    let status = daemon.wait();
    assert_eq!(status.signal(), Some(libc::SIGABRT));
    let Some(core) = core_file(folder.path(), process.0).filter(|_| status.core_dumped()) else {
        eprintln!("skipped: no core dump here (kernel.core_pattern, or the hard limit of ulimit -c)");
        return;
    };
    let core = std::fs::read(core).unwrap();
    for of in 1..=6 {
        let marker = marker(of);
        let count = core.windows(64).step_by(8).filter(|window| *window == marker).count();
        // The log of what was read last may be on a stack.
        assert_eq!(count, 0, "of {} bytes; {of} is what was found", core.len());
    }
}
