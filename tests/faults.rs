//! Memory that goes away under the daemon: the requests that need it fail, and nothing else does.
//! (Only where the copies have fix-ups.)

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::single_range_in_vec_init
)]

mod common;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use common::daemon::{Daemon, Place, Setup};
use common::ext4::Ext4;
use common::frontend::load::Load;
use common::frontend::memory::{Memory, Span};
use common::frontend::request::{IN, IOERR, OK, OUT, Request, WRITE_ZEROES, header, range};
use common::frontend::ring::{Ring, WRITE};
use common::frontend::{Options, Session};
use common::host::{HugePages, Loop, Mounted};
use common::process::Process;
use common::{Random, SECTOR_BYTES, pattern, wait_for};

const DISK_BYTES: u64 = 16 << 20;

/// The first sector that is not there any more after the file was cut in half.
const HALF_SECTOR: u64 = DISK_BYTES / 2 / SECTOR_BYTES as u64;

/// Requests that fail in a row: more than lines of log are written about them.
const FAILURES: usize = 300;

/// Ring memory first; what is behind it can be cut off.
const SPANS: [Span; 2] =
    [Span { guest_start: 0, bytes: 4 << 20 }, Span { guest_start: 1 << 32, bytes: 1 << 20 }];

/// Two disks; the second one is busy while the first one suffers.
struct Pair {
    daemon: Daemon,
    suffering: Session,
    _busy: Session,
    load: Load,
}

impl Pair {
    fn start(setup: Setup) -> Self {
        Self::start_with(setup, Memory::new(&SPANS))
    }

    /// The memory is that of the front-end that suffers.
    fn start_with(setup: Setup, memory: Memory) -> Self {
        let daemon = setup.start();
        let options = Options::default();
        let mut suffering = Session::open(&daemon.socket(0), &SPANS);
        suffering.memory = memory;
        suffering.negotiate(&options);
        suffering.share_memory();
        let busy = Session::connect(&daemon.socket(1));
        let load = Load::start(busy.ring(0, 64), 0);
        load.wait_for_progress();
        Self { daemon, suffering, _busy: busy, load }
    }

    /// The other disk has not noticed; the daemon ends as it should.
    fn finish(mut self) -> String {
        self.load.stop();
        self.daemon.assert_alive();
        let log = self.daemon.stop_for_log();
        assert!(!log.contains("disk=\"disk1\" operation"), "the other disk had an error:\n{log}");
        log
    }
}

fn two_disks(place: Place) -> Setup {
    let setup = Setup::new(place).disk("").disk("");
    for index in 0..2 {
        File::create(setup.image(index)).unwrap().set_len(DISK_BYTES).unwrap();
    }
    setup
}

/// The lines about failed requests: some, but not one for each, and each with all that is to be known.
fn assert_log(log: &str, words: &[&str]) {
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("request failed")).collect();
    assert!(!lines.is_empty() && lines.len() < FAILURES / 2, "{} lines", lines.len());
    for word in words {
        assert!(lines.iter().all(|line| line.contains(word)), "{word:?} is not in each of {lines:#?}");
    }
}

#[test]
fn a_truncated_file_fails_the_requests_behind_its_end() {
    for place in Place::ALL {
        let pair = Pair::start(two_disks(place));
        let mut ring = pair.suffering.ring(0, 16);
        let kept = pattern(1, 4096);
        assert_eq!(ring.run(&Request::write(HALF_SECTOR - 8, &kept)).status, OK);

        let image = pair.daemon.image(0);
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(DISK_BYTES / 2).unwrap();
        for index in 0..FAILURES as u64 {
            let answer = ring.run(&Request::read(HALF_SECTOR + index, 512));
            assert_eq!(answer.status, IOERR, "{place:?}");
        }
        assert_eq!(ring.run(&Request::read(HALF_SECTOR - 8, 8192)).status, IOERR, "half of it is there");
        let answer = ring.run(&Request::read(HALF_SECTOR - 8, 4096));
        assert!(
            (answer.status, answer.data) == (OK, kept),
            "{place:?}: what is before the end is not touched"
        );
        assert_eq!(ring.run(&Request::write(HALF_SECTOR + 8, &[1; 512])).status, IOERR);
        let zeroes = Request { kind: WRITE_ZEROES, ..Request::write(0, &range(HALF_SECTOR + 8, 8, 0)) };
        assert_eq!(ring.run(&zeroes).status, IOERR, "{place:?}");
        assert_eq!(
            image.metadata().unwrap().len(),
            DISK_BYTES / 2,
            "{place:?}: a write has made it long again"
        );

        // Made longer again, it works again.
        file.set_len(DISK_BYTES).unwrap();
        let answer = ring.run(&Request::read(HALF_SECTOR, 512));
        assert!((answer.status, answer.data) == (OK, vec![0; 512]), "{place:?}");
        assert_eq!(ring.run(&Request::write(HALF_SECTOR, &[7; 512])).status, OK);

        let log = pair.finish();
        let file = image.to_str().unwrap();
        assert_log(&log, &["disk=\"disk0\"", file, "the file was truncated to 8388608 bytes"]);
    }
}

/// A mask of signals is inherited through exec: a fault whose signal is blocked would end the process.
#[test]
fn faults_are_contained_where_signals_were_blocked() {
    let pair = Pair::start(two_disks(Place::Tmpfs).through(&["env", "--block-signal"]));
    let mut ring = pair.suffering.ring(0, 16);
    let file = File::options().write(true).open(pair.daemon.image(0)).unwrap();
    file.set_len(DISK_BYTES / 2).unwrap();
    assert_eq!(ring.run(&Request::read(HALF_SECTOR, 512)).status, IOERR);
    assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
    pair.finish();
}

/// No load or store faults where only a part of the last page is gone.
#[test]
fn a_file_truncated_inside_its_last_page_fails_the_requests_behind_its_end() {
    for place in Place::ALL {
        let pair = Pair::start(two_disks(place));
        let mut ring = pair.suffering.ring(0, 16);
        let last = DISK_BYTES / SECTOR_BYTES as u64 - 1;
        let image = pair.daemon.image(0);
        let file = File::options().write(true).open(&image).unwrap();
        let cut = DISK_BYTES - SECTOR_BYTES as u64;
        let zeroes = |sector| Request { kind: WRITE_ZEROES, ..Request::write(0, &range(sector, 1, 0)) };
        assert_eq!(ring.run(&Request::write(last, &[7; 512])).status, OK);
        file.set_len(cut).unwrap();
        for _ in 0..FAILURES {
            assert_eq!(ring.run(&Request::read(last, 512)).status, IOERR, "{place:?}");
        }
        for request in [
            Request::read(last - 7, 4096),
            Request::write(last, &[1; 512]),
            Request::write(last - 1, &[1; 1024]),
            zeroes(last),
        ] {
            assert_eq!(ring.run(&request).status, IOERR, "{place:?} {request:?}");
        }
        assert_eq!(image.metadata().unwrap().len(), cut, "{place:?}: a write has made it long again");
        for request in [
            Request::write(last - 1, &[3; 512]),
            Request::read(last - 1, 512),
            zeroes(last - 2),
            Request::write(0, &[3; 4096]),
        ] {
            assert_eq!(ring.run(&request).status, OK, "{place:?} {request:?}");
        }
        file.set_len(DISK_BYTES).unwrap();
        let answer = ring.run(&Request::read(last, 512));
        assert!((answer.status, answer.data) == (OK, vec![0; 512]), "{place:?}");
        let log = pair.finish();
        let words = ["disk=\"disk0\"", image.to_str().unwrap(), "the file was truncated to 16776704 bytes"];
        assert_log(&log, &words);
    }
}

/// On media of each kind: mapped, written by the worker and read by threads, done by the kernel alone.
fn each_medium() -> impl Iterator<Item = Setup> {
    Place::ALL.into_iter().map(two_disks).chain(first_on_device())
}

/// The first disk is a block device.
fn first_on_device() -> Option<Setup> {
    let setup = two_disks(Place::FileSystem);
    let (image, file) = (setup.image(0), setup.image(0).with_extension("file"));
    std::fs::rename(&image, &file).unwrap();
    setup.mounted(|_| {
        let device = Loop::over(&file, &[])?;
        std::os::unix::fs::symlink(device.path(), &image).unwrap();
        Some(device)
    })
}

/// Makes a request available whose data is in the second region, at `offset` of it. Returns where its status will be.
fn begin_far_request(ring: &mut Ring, kind: u32, offset: u64) -> u64 {
    let frame = ring.buffers(0);
    ring.memory.write(frame.header, &header(kind, 0));
    ring.memory.fill(frame.status, 1, 0xee);
    let data = SPANS[1].guest_start + offset;
    let direction = if kind == IN { WRITE } else { 0 };
    ring.chain(0, &[(frame.header, 16, 0), (data, 4096, direction), (frame.status, 1, WRITE)]);
    ring.kick.signal();
    frame.status
}

fn far_request(ring: &mut Ring, kind: u32, offset: u64) -> u8 {
    let status = begin_far_request(ring, kind, offset);
    assert_eq!(ring.wait().head, 0);
    ring.memory.read(status, 1)[0]
}

/// Whatever the media is: the copy faults, or the kernel does not find the memory.
#[test]
fn guest_memory_that_is_taken_away_ends_its_session() {
    for setup in each_medium() {
        let mut pair = Pair::start(setup);
        for (kind, offset) in [(IN, 8192), (OUT, 8192), (IN, 8192 - 512), (OUT, 8192 - 512)] {
            let session = Session::open(&pair.daemon.socket(0), &SPANS);
            let session = std::mem::replace(&mut pair.suffering, session);
            drop(session);
            pair.suffering.negotiate(&Options::default());
            pair.suffering.share_memory();
            let mut ring = pair.suffering.ring(0, 16);
            assert_eq!(far_request(&mut ring, kind, offset), OK);
            rustix::fs::ftruncate(pair.suffering.memory.fd(), SPANS[0].bytes + 8192).unwrap();
            assert_eq!(far_request(&mut ring, kind, 4096), OK, "what is there is used");
            assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
            begin_far_request(&mut ring, kind, offset);
            assert_hung_up(&pair.suffering, "memory is taken away");
            assert_eq!(ring.next_used(), None, "it is not answered");
            pair.load.wait_for_progress();
        }
        let log = pair.finish();
        let broken = |line: &&str| line.contains("broke a ring") && line.contains("disk0");
        let lines: Vec<_> = log.lines().filter(broken).collect();
        assert!(!lines.is_empty() && lines.iter().all(|it| it.contains("guest memory is lost")), "{log}");
    }
}

fn assert_hung_up(session: &Session, why: &str) {
    wait_for(&format!("the session ends: {why}"), || session.wire.receive().is_none().then_some(()));
}

/// Takes all of a guest's memory away, its ring included: the daemon hangs up on that front-end, and lives.
fn lose_ring(pair: &mut Pair, ring: &Ring) {
    rustix::fs::ftruncate(pair.suffering.memory.fd(), 0).unwrap();
    // From here on, this process must not read its ring either.
    ring.kick.signal();
    ring.err.wait("the ring is broken");
    assert_hung_up(&pair.suffering, "its ring is lost");
    pair.daemon.wait_for_log("guest memory is lost");
    pair.daemon.assert_alive();
}

/// Without its ring a session cannot go on. The next front-end of the same disk can.
#[test]
fn a_lost_ring_ends_its_session_only() {
    for packed in [false, true] {
        let mut pair = Pair::start(two_disks(Place::Tmpfs));
        // Zeroes are an empty packed ring: nothing in it says that it is lost.
        let options = Options { packed, ..Options::default() };
        let mut session = Session::open(&pair.daemon.socket(0), &SPANS);
        session.negotiate(&options);
        session.share_memory();
        pair.suffering = session;
        let mut ring = pair.suffering.ring(0, 16);
        assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
        lose_ring(&mut pair, &ring);

        let next = Session::connect(&pair.daemon.socket(0));
        let mut ring = next.ring(0, 16);
        assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
        drop(next);
        let log = pair.finish();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("guest memory is lost")).collect();
        assert!(lines.len() == 1 && lines[0].contains("disk=\"disk0\""), "{lines:#?}");
    }
}

/// Requests of 16 buffers in the second region are under way while the file shrinks, wherever that is: the session ends, and
/// nobody else notices.
#[test]
fn memory_that_shrinks_at_any_moment_costs_its_own_session_only() {
    const ROUNDS: u64 = 30;
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut random = Random::new(seed);
    for setup in each_medium() {
        let pair = Pair::start(setup);
        let process = Process(pair.daemon.pid());
        let mut last = pair.suffering.ring(0, 16);
        assert_eq!(last.run(&Request::read(0, 4096)).status, OK);
        pair.suffering.stop(&last);
        let (fds, mappings) = (process.fds(), process.all_mappings());
        for round in 0..ROUNDS {
            shrink_under_requests(&pair, &mut random, &format!("SEED={seed}, round {round}"));
            pair.load.wait_for_progress();
        }
        wait_for("what the sessions had is gone", || {
            let (fds_now, mappings_now) = (process.fds(), process.all_mappings());
            // The C library takes some for threads. A region takes two: of each session, that would be as many as this.
            (fds_now <= fds + 4 && mappings_now < mappings + 2 * ROUNDS as usize).then_some(())
        });
        last.reset();
        pair.suffering.start(&last, 0).unwrap();
        assert_eq!(last.run(&Request::read(0, 4096)).status, OK);
        pair.finish();
    }
}

/// One session, whose memory ends before its ring, inside or behind it, or in the data, of which the last page goes in any case.
fn shrink_under_requests(pair: &Pair, random: &mut Random, round: &str) {
    const CHAINS: u64 = 16;
    let memory = Memory::new(&SPANS);
    let mut session = Session::open(&pair.daemon.socket(0), &SPANS);
    session.memory = memory.clone();
    session.negotiate(&Options { packed: random.one_in(2), ..Options::default() });
    session.share_memory();
    let mut ring = session.ring(0, 64);
    let bytes = SPANS[1].bytes / CHAINS;
    let offer = |ring: &mut Ring, chain: u64, kind: u32| {
        let frame = ring.buffers(chain as usize);
        memory.write(frame.header, &header(kind, 0));
        let flags = if kind == IN { WRITE } else { 0 };
        let data = (SPANS[1].guest_start + chain * bytes, bytes as u32, flags);
        ring.prepare(chain as u16 * 3, &[(frame.header, 16, 0), data, (frame.status, 1, WRITE)]);
    };
    (0..CHAINS).for_each(|chain| offer(&mut ring, chain, if random.one_in(2) { IN } else { OUT }));
    ring.make_available();
    ring.kick.signal();
    std::thread::sleep(Duration::from_micros(random.below(400)));
    // This process reads no more of what is cut off.
    let left = match random.below(3) {
        0 => 0,
        1 => random.below(SPANS[0].bytes / 8),
        _ => SPANS[0].bytes + random.below(SPANS[1].bytes - 4096),
    };
    rustix::fs::ftruncate(memory.fd(), left).unwrap();
    if (1..SPANS[0].bytes).contains(&left) {
        // The ring may lie before it, and all be done.
        return;
    }
    let mut used = 0;
    wait_for(&format!("{round}: the session ends"), || {
        ring.kick.signal();
        if left >= SPANS[0].bytes {
            used += std::iter::from_fn(|| ring.next_used()).count() as u64;
            if used == CHAINS {
                // All were done before: one more needs what is gone.
                offer(&mut ring, CHAINS - 1, if random.one_in(2) { IN } else { OUT });
                ring.make_available();
                used += 1;
            }
        }
        (!session.wire.is_silent()).then_some(())
    });
    assert_eq!(session.wire.receive().map(|message| message.code), None, "{round}");
}

/// The same two losses on hugetlbfs, whose pages can only be replaced as a whole: data, then the ring itself.
#[test]
fn huge_pages_of_a_guest_are_replaced_as_a_whole() {
    const HUGE: u64 = 2 << 20;
    let spans = [Span { guest_start: 0, bytes: 2 * HUGE }, Span { bytes: 2 * HUGE, ..SPANS[1] }];
    let pages = HugePages::add(4);
    let memory = match Memory::on_huge_pages(&spans) {
        Ok(memory) => memory,
        Err(error) => {
            eprintln!("skipped: no huge pages can be had here ({error}; not root?)");
            return;
        }
    };
    let mut pair = Pair::start_with(two_disks(Place::Tmpfs), memory);
    let mut ring = pair.suffering.ring(0, 16);
    assert_eq!(far_request(&mut ring, IN, HUGE), OK);
    rustix::fs::ftruncate(pair.suffering.memory.fd(), 3 * HUGE).unwrap();
    assert_eq!(far_request(&mut ring, IN, HUGE - 4096), OK, "what is there is used");
    begin_far_request(&mut ring, IN, HUGE - 2048);
    assert_hung_up(&pair.suffering, "half of its memory is there");

    pair.suffering = Session::open(&pair.daemon.socket(0), &spans);
    pair.suffering.memory = Memory::on_huge_pages(&spans).unwrap();
    pair.suffering.negotiate(&Options::default());
    pair.suffering.share_memory();
    let mut ring = pair.suffering.ring(0, 16);
    assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
    lose_ring(&mut pair, &ring);
    pair.finish();
    drop(pages);
}

#[test]
fn a_full_tmpfs_fails_the_writes_that_need_more() {
    let setup = Setup::new(Place::Tmpfs).disk("size=64M,sparse=on").disk("size=2M");
    let image = setup.image(0);
    let Some(setup) = setup.mounted(|folder| Mounted::tmpfs(folder, "size=8M")) else { return };
    let pair = Pair::start(setup);
    let mut ring = pair.suffering.ring(0, 16);
    let write = |sector| Request::write(sector, &pattern(sector, 4096));
    let statuses: Vec<u8> = (0..2048).map(|page| ring.run(&write(page * 8)).status).collect();
    let full_at = statuses.iter().position(|status| *status == IOERR).unwrap();
    // 6 MiB are left beside the other disk.
    assert!((1500..=1536).contains(&full_at), "{full_at} pages were written");
    assert!(statuses[full_at..].iter().all(|status| *status == IOERR));
    // What was written is there, and can be written again.
    let answer = ring.run(&Request::read(full_at as u64 * 8 - 8, 4096));
    assert!((answer.status, answer.data) == (OK, pattern(full_at as u64 * 8 - 8, 4096)));
    assert_eq!(ring.run(&write(0)).status, OK);
    let log = pair.finish();
    assert_log(&log, &["disk=\"disk0\"", image.to_str().unwrap(), "no space is left on its file system"]);
}

/// A sparse file on an ordinary file system: `pwritev` finds no space.
#[test]
fn a_full_file_system_fails_the_writes_that_need_more() {
    const BYTES: u64 = 24 << 20;
    const PART: usize = 8192;
    const SECTORS: u64 = (PART / SECTOR_BYTES) as u64;
    let setup = Setup::new(Place::FileSystem).disk("size=32M,sparse=on").disk("size=2M");
    let image = setup.image(0);
    let mount = |folder: &Path| {
        let mounted = Ext4::mount(folder, BYTES);
        mounted.inspect_err(|reason| eprintln!("skipped: {reason}")).ok()
    };
    let Some(setup) = setup.mounted(mount) else { return };
    let pair = Pair::start(setup);
    let mut ring = pair.suffering.ring(0, 16);
    let write = |sector| Request::write(sector, &pattern(sector, PART));
    let statuses: Vec<u8> = (0..4096).map(|part| ring.run(&write(part * SECTORS)).status).collect();
    let full_at = statuses.iter().position(|status| *status == IOERR).unwrap() as u64;
    assert!((512..=BYTES / PART as u64).contains(&full_at), "{full_at} times 8 KiB were written");
    assert_eq!(statuses.last(), Some(&IOERR));
    // What was written is there, can be written again, and be persisted.
    let last = (full_at - 1) * SECTORS;
    let answer = ring.run(&Request::read(last, PART as u32));
    assert!((answer.status, answer.data) == (OK, pattern(last, PART)));
    assert_eq!(ring.run(&write(0)).status, OK);
    assert_eq!(ring.run(&Request::flush()).status, OK);
    let log = pair.finish();
    assert_log(&log, &["disk=\"disk0\"", image.to_str().unwrap(), "no space is left on its file system"]);
}
