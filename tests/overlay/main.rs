//! Private disks over a base that many share (`overlay=`), through their sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
mod kept;
mod template;

use std::fs;

use common::daemon::{Daemon, Place, Setup};
use common::frontend::request::{DISCARD, IOERR, OK, Request, WRITE_ZEROES, range};
use common::frontend::ring::Ring;
use common::frontend::{Options, Session};
use common::{Random, SECTOR_BYTES, pattern};

const BYTES: usize = 2 << 20;
const SECTORS: u64 = (BYTES / SECTOR_BYTES) as u64;

/// Disks over one base, whose bytes are a pattern; their paths are names of the same file.
fn over_one_base(place: Place, disks: usize, options: &str) -> Setup {
    let mut setup = Setup::new(place);
    for _ in 0..disks {
        setup = setup.disk(&format!("overlay=memory{options}"));
    }
    fs::write(setup.image(0), base()).unwrap();
    for disk in 1..disks {
        fs::hard_link(setup.image(0), setup.image(disk)).unwrap();
    }
    setup
}

fn base() -> Vec<u8> {
    pattern(77, BYTES)
}

fn all(ring: &mut Ring) -> Vec<u8> {
    const PART: usize = 4096;
    (0..BYTES / PART)
        .flat_map(|part| {
            let read = ring.run(&Request::read((part * PART / SECTOR_BYTES) as u64, PART as u32));
            assert_eq!(read.status, OK);
            read.data
        })
        .collect()
}

fn change(kind: u32, sector: u64, sectors: u32) -> Request {
    Request { kind, sector: 0, payload: range(sector, sectors, 0).to_vec(), writable_bytes: 0 }
}

/// A random write, zeroing or discard, done to the model as well.
fn change_at_random(ring: &mut Ring, model: &mut [u8], random: &mut Random) {
    let most = if random.below(4) == 0 { 120 } else { 9 };
    let sectors = 1 + random.below(most);
    let sector = random.below(SECTORS - sectors);
    let (start, len) = (sector as usize * SECTOR_BYTES, sectors as usize * SECTOR_BYTES);
    match random.below(5) {
        0 => {
            assert_eq!(ring.run(&change(WRITE_ZEROES, sector, sectors as u32)).status, OK);
            model[start..start + len].fill(0);
        }
        1 => {
            assert_eq!(ring.run(&change(DISCARD, sector, sectors as u32)).status, OK);
            let (first, last) = (start.next_multiple_of(4096), (start + len) / 4096 * 4096);
            if first < last {
                model[first..last].fill(0);
            }
        }
        _ => {
            let len = len.min(4096);
            let bytes = pattern(random.below(256), len);
            assert_eq!(ring.run(&Request::write(sector, &bytes)).status, OK);
            model[start..start + len].copy_from_slice(&bytes);
        }
    }
}

/// Each sees the base and its own changes, and nothing of the others'; the base stays as it is.
#[test]
fn disks_over_one_base_are_private() {
    for place in Place::ALL {
        let daemon = over_one_base(place, 3, "").start();
        for (number, options) in (0..).zip(Options::both_kinds()) {
            let mut random = Random::new(number);
            let sessions: Vec<_> =
                (0..3).map(|disk| Session::connect_with(&daemon.socket(disk), &options)).collect();
            let mut rings: Vec<_> = sessions.iter().map(|session| session.ring(0, 64)).collect();
            let mut models: Vec<_> = rings.iter_mut().map(all).collect();
            if number == 0 {
                assert!(models.iter().all(|model| *model == base()), "{place:?}: at first");
            }
            for _ in 0..150 {
                let disk = random.below(2) as usize;
                change_at_random(&mut rings[disk], &mut models[disk], &mut random);
            }
            for (ring, model) in rings.iter_mut().zip(&models) {
                assert!(all(ring) == *model, "{place:?}");
            }
            assert!(models[2] == base(), "{place:?}: nobody has written to this one");
        }
        let setup = daemon.stop();
        assert!(fs::read(setup.image(0)).unwrap() == base(), "{place:?}: the base");
    }
}

/// What is written is lost with the process: then its guest gets errors and never what the base has in its place, and a guest that
/// begins anew has the base.
#[test]
fn a_guest_whose_writes_are_lost_gets_errors() {
    for options in Options::both_kinds() {
        let daemon = over_one_base(Place::Tmpfs, 1, "").start();
        let session = Session::connect_with(&daemon.socket(0), &options);
        let mut ring = session.ring(0, 64);
        assert_eq!(ring.run(&Request::write(8, &[9; 512])).status, OK);
        // A front-end that comes back to the same process finds it.
        let (session, mut ring) = come_back(&daemon, session, ring, &options);
        assert_eq!(ring.run(&Request::read(8, 512)).data, [9; 512]);
        let daemon = daemon.kill().start();
        let (session, mut ring) = come_back(&daemon, session, ring, &options);
        for request in
            [Request::read(8, 512), Request::read(4096, 512), Request::write(8, &[7; 512]), Request::flush()]
        {
            assert_eq!(ring.run(&request).status, IOERR, "{request:?}");
        }
        daemon.wait_for_log("what this guest has written is lost");
        session.stop(&ring);
        let mut ring = session.ring(0, 64);
        assert!(all(&mut ring) == base());
        assert_eq!(ring.run(&Request::flush()).status, OK);
        daemon.stop();
    }
}

/// A front-end with the same guest, whose ring goes on.
fn come_back(daemon: &Daemon, before: Session, ring: Ring, options: &Options) -> (Session, Ring) {
    let memory = before.memory.clone();
    drop(before);
    let mut session = Session::open(&daemon.socket(0), &options.spans);
    session.memory = memory;
    session.negotiate(options);
    session.share_memory();
    session.start(&ring, ring.available_base()).unwrap();
    (session, ring)
}

/// The write that needs more than may be taken fails, and nothing else; what the guest discards can be taken again.
#[test]
fn what_is_written_takes_no_more_memory_than_it_may() {
    let setup = over_one_base(Place::Tmpfs, 2, ",overlay-max=64K").with_metrics();
    let daemon = setup.start();
    let sessions = [0, 1].map(|disk| Session::connect(&daemon.socket(disk)));
    let mut rings = sessions.each_ref().map(|session| session.ring(0, 64));
    let page = |page: u64| Request::write(page * 8, &[page as u8; 4096]);
    for at in 0..16 {
        assert_eq!(rings[0].run(&page(at)).status, OK);
    }
    let bytes = |name: &str| value(&daemon, &format!("vhost_user_pmem_{name}{{disk=\"disk0\"}}"));
    assert_eq!(bytes("overlay_bytes"), 65_536.0);
    assert_eq!(rings[0].run(&page(16)).status, IOERR);
    daemon.wait_for_log("65536 bytes were written to the overlay");
    daemon.wait_for_log("overlay-max=");
    assert_eq!(rings[0].run(&Request::read(16 * 8, 4096)).data, base()[16 * 4096..17 * 4096]);
    assert_eq!(rings[0].run(&page(3)).status, OK, "it is there already");
    assert_eq!(rings[1].run(&page(16)).status, OK, "the other's is its own");
    assert_eq!(rings[0].run(&change(DISCARD, 0, 64)).status, OK);
    assert_eq!(bytes("overlay_bytes"), 32_768.0);
    assert_eq!(rings[0].run(&page(16)).status, OK);
    // What is zeroed takes nothing.
    assert_eq!(rings[0].run(&change(WRITE_ZEROES, 32 * 8, 2048)).status, OK);
    assert_eq!(bytes("overlay_bytes"), 36_864.0);
    daemon.stop();
}

fn value(daemon: &Daemon, sample: &str) -> f64 {
    let text = common::metrics::read_text(&daemon.metrics_socket());
    let line = text.lines().find_map(|line| line.strip_prefix(sample));
    line.unwrap_or_else(|| panic!("{sample}: {text}")).trim().parse().unwrap()
}

/// What cannot be is said before anything is served.
#[test]
fn what_a_private_disk_cannot_be_is_refused() {
    for (options, code, message) in [
        (
            "overlay=memory,readonly=on",
            2,
            "overlay and readonly contradict each other; leave one of them out",
        ),
        ("overlay-max=1M", 2, "overlay-max needs overlay; add it, or leave overlay-max out"),
        ("overlay=disk", 2, "overlay=disk: write memory, off, or the path of a file"),
        ("overlay=memory,require-durable=page", 13, "in the memory of this process (overlay=memory)"),
        ("overlay=memory,size=64M", 6, "the file has only 2097152 bytes"),
    ] {
        let setup = over_one_base(Place::Tmpfs, 0, "").disk(options);
        let output = setup.run();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(message), "{options}: {error}");
        assert_eq!(output.status.code(), Some(code), "{options}: {error}");
    }
    let missing = Setup::new(Place::Tmpfs).disk("overlay=memory,size=8M");
    let output = missing.run();
    assert!(!output.status.success() && !missing.image(0).exists(), "{output:?}");
}

/// A base cannot be written to while it is one, nor be one while it is written to.
#[test]
fn a_base_is_read_by_all_or_written_by_one() {
    let writer = Setup::new(Place::Tmpfs).disk("size=8M").start();
    let reader = Setup::new(Place::Tmpfs).disk("overlay=memory");
    fs::hard_link(writer.image(0), reader.image(0)).unwrap();
    let output = reader.run();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(9), "{error}");
    let written = writer.stop();
    let reader = reader.start();
    let output = written.run();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(9), "{error}");
    reader.stop();
}

/// A base that becomes longer is served as it was.
#[test]
fn a_private_disk_keeps_its_size() {
    let daemon = over_one_base(Place::Tmpfs, 1, "").start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    fs::File::options().write(true).open(daemon.image(0)).unwrap().set_len(2 * BYTES as u64).unwrap();
    daemon.signal(libc::SIGHUP);
    assert!(all(&mut ring) == base());
    assert_eq!(session.config(0, 8).unwrap(), SECTORS.to_le_bytes());
    assert_eq!(ring.run(&Request::read(SECTORS, 512)).status, IOERR);
    daemon.stop();
}
