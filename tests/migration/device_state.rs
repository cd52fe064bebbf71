//! Snapshots in Cloud Hypervisor's order: pause, save, and on another connection load, start, resume.

use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;

use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};
use vhost::vhost_user::{VhostUserFrontend, message::VhostUserConfigFlags};

use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::memory::Memory;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::{Options, Session, assert_refused};
use crate::common::pattern;

const DISK: &str = "size=16M,serial=the-disk";

/// Where the configuration says whether the cache is in write-back mode.
const WRITEBACK: u32 = 32;

fn daemon(options: &str) -> Daemon {
    Setup::new(Place::Tmpfs).disk(options).start()
}

fn begin(session: &Session, direction: VhostTransferStateDirection, fd: OwnedFd) -> vhost::Result<()> {
    let begin = |control: &mut vhost::vhost_user::Frontend| {
        control.set_device_state_fd(direction, VhostTransferStatePhase::STOPPED, fd)
    };
    session.ask(begin).map(|file| assert!(file.is_none(), "the front-end's pipe is used"))
}

fn begin_save(session: &Session) -> vhost::Result<PipeReader> {
    let (reader, writer) = std::io::pipe().unwrap();
    begin(session, VhostTransferStateDirection::SAVE, writer.into())?;
    Ok(reader)
}

fn check(session: &Session) -> vhost::Result<()> {
    session.ask(|control| control.check_device_state())
}

fn save(session: &Session) -> Vec<u8> {
    let (mut reader, mut state) = (begin_save(session).unwrap(), Vec::new());
    reader.read_to_end(&mut state).unwrap();
    check(session).unwrap();
    state
}

fn load(session: &Session, state: &[u8]) -> vhost::Result<()> {
    let (reader, mut writer) = std::io::pipe().unwrap();
    begin(session, VhostTransferStateDirection::LOAD, reader.into())?;
    // A state that is far too long may be refused before it is read.
    let _ = writer.write_all(state);
    drop(writer);
    check(session)
}

/// A connection that has negotiated protocol features only.
fn connect(daemon: &Daemon) -> Session {
    connect_with(daemon, &Options::default())
}

fn connect_with(daemon: &Daemon, options: &Options) -> Session {
    let mut session = Session::open(&daemon.socket(0), &options.spans);
    session.negotiate_protocol(options);
    session
}

/// Goes on with a saved guest: state, features, memory, rings.
fn resume(daemon: &Daemon, state: &[u8], memory: &Memory, ring: &Ring) -> Session {
    let options = Options { packed: ring.is_packed(), ..Options::default() };
    let mut session = connect_with(daemon, &options);
    load(&session, state).unwrap();
    session.set_features(session.features);
    session.memory = memory.clone();
    session.share_memory();
    // Cloud Hypervisor sends the guest's available index, not how far we came.
    session.start_base_last(ring, ring.available_base()).unwrap();
    session
}

/// Writes, flushes and reads what was written: enough that many are under way at once.
fn requests(round: u64) -> Vec<Request> {
    let bytes = |sector: u64| pattern(round * 100 + sector, 4096);
    let sectors = || (0..16_u64).map(|number| number * 8);
    let writes = sectors().map(|sector| Request::write(sector, &bytes(sector)));
    let reads = sectors().map(|sector| Request::read(sector, 4096));
    writes.chain([Request::flush()]).chain(reads).chain([Request::flush()]).collect()
}

/// Takes the completions of `requests` from the ring, which are all there is, in order.
fn assert_done(ring: &mut Ring, requests: &[Request], heads: &[u16], round: u64) {
    for (request, head) in requests.iter().zip(heads) {
        let used = ring.wait();
        assert_eq!(used.head, *head, "round {round}: lost, done twice or out of order");
        let answer = ring.answer(request, used);
        assert_eq!(answer.status, OK, "round {round}: {request:?}");
        if request.writable_bytes == 4096 {
            assert!(answer.data == pattern(round * 100 + request.sector, 4096), "round {round}: {request:?}");
        }
    }
    assert!(ring.next_used().is_none(), "round {round}: more was done than was asked for");
}

/// The guest is paused with requests under way, ten times; it goes on at another connection, or another daemon.
fn snapshots(place: Place, restart: bool) {
    for options in Options::both_kinds() {
        snapshots_with(&options, place, restart);
    }
}

fn snapshots_with(options: &Options, place: Place, restart: bool) {
    let mut daemon = Setup::new(place).disk(DISK).start();
    let mut session = Session::connect_with(&daemon.socket(0), options);
    let memory = session.memory.clone();
    let mut ring = session.ring(0, 256);
    let mut left_undone = 0;
    for round in 0..10 {
        let requests = requests(round);
        let (early, late) = requests.split_at(requests.len() - 10);
        let mut heads: Vec<u16> = early.iter().map(|request| ring.submit(request)).collect();
        ring.kick.signal();
        session.enable(&ring, false).unwrap();
        heads.extend(late.iter().map(|request| ring.submit(request)));
        ring.kick.signal();
        assert_eq!(session.stop(&ring), ring.used_base(), "the base is how far it came");
        left_undone += ring.available_index().wrapping_sub(ring.used_index());
        let state = save(&session);
        drop(session);
        if restart {
            daemon = daemon.kill().start();
        }
        session = resume(&daemon, &state, &memory, &ring);
        assert_done(&mut ring, &requests, &heads, round);
    }
    assert!(left_undone >= 100, "{left_undone}");
}

#[test]
fn a_guest_goes_on_at_another_connection() {
    snapshots(Place::Tmpfs, false);
}

#[test]
fn a_guest_goes_on_at_another_daemon() {
    snapshots(Place::FileSystem, true);
}

#[test]
fn the_cache_mode_goes_with_the_guest() {
    let daemon = daemon(DISK);
    for writeback in [0, 1, 0] {
        let session = Session::connect(&daemon.socket(0));
        session
            .ask(|control| control.set_config(WRITEBACK, VhostUserConfigFlags::WRITABLE, &[writeback]))
            .unwrap();
        let state = save(&session);
        drop(session);
        let other = connect(&daemon);
        load(&other, &state).unwrap();
        assert_eq!(other.config(WRITEBACK, 1).unwrap(), [writeback]);
    }
}

#[test]
fn another_disk_is_refused_and_the_log_says_why() {
    let source = daemon(DISK);
    let state = save(&Session::connect(&source.socket(0)));
    assert_eq!(state.len(), 64);
    for (options, reason) in [
        ("size=16M,serial=another", r#"serial: it belongs to disk "the-disk", this is "another""#),
        ("size=15M,serial=the-disk", "size: the disk had 16777216 bytes, this one has 15728640"),
        (
            "size=16M,serial=the-disk,block-size=4096",
            "block size: the disk had blocks of 512 bytes, this one has 4096",
        ),
    ] {
        let mut destination = daemon(options);
        let mut session = connect(&destination);
        assert_refused(options, load(&session, &state));
        destination.wait_for_log(reason);
        // The front-end decides what becomes of it.
        session.set_features(session.features);
        session.share_memory();
        assert_eq!(session.ring(0, 64).run(&Request::read(0, 4096)).status, OK);
        destination.assert_alive();
    }
    let grown = daemon("size=17M,serial=the-disk");
    load(&connect(&grown), &state).unwrap();
}

#[test]
fn a_disk_that_is_read_only_here_only_is_refused() {
    let setup = Setup::new(Place::Tmpfs).disk("serial=the-disk,readonly=on");
    std::fs::File::create(setup.image(0)).unwrap().set_len(16 << 20).unwrap();
    let destination = setup.start();
    let state = save(&Session::connect(&daemon(DISK).socket(0)));
    assert_refused("read-only", load(&connect(&destination), &state));
    destination.wait_for_log("read-only: off when it was saved, on here");
}

#[test]
fn features_that_are_not_offered_are_refused() {
    let one_queue = daemon("size=16M,serial=the-disk,queues=1");
    let state = save(&Session::connect(&daemon(DISK).socket(0)));
    assert_refused("no MQ", load(&connect(&one_queue), &state));
    one_queue.wait_for_log("features: the driver uses 0x1000, which are not offered here");
}

#[test]
fn what_is_no_state_is_refused() {
    let daemon = daemon(DISK);
    let session = connect(&daemon);
    load(&session, &[]).unwrap();
    let state = save(&session);
    let changed = |at: usize| {
        let mut bytes = state.clone();
        bytes[at] ^= 2;
        bytes
    };
    for (what, bytes, reason) in [
        ("cut off", state[..63].to_vec(), "it has 63 bytes"),
        ("a byte too long", [&state[..], &[0]].concat(), "it has 65 bytes"),
        ("endless", vec![0; 1 << 16], "bytes instead of 64"),
        ("another program's", changed(0), "it is not the state of a disk"),
        ("a later version", changed(8), "its version is 3"),
    ] {
        assert_refused(what, load(&session, &bytes));
        daemon.wait_for_log(reason);
        load(&session, &state).unwrap();
    }
    assert_refused("nothing was loaded", check(&session));
}

#[test]
fn a_running_device_is_not_saved() {
    let daemon = daemon(DISK);
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    assert_refused("save", begin_save(&session));
    assert_refused("load", load(&session, &[]));
    daemon.wait_for_log("while no ring runs");
    assert_eq!(ring.run(&Request::read(0, 4096)).status, OK);
    session.stop(&ring);
    save(&session);
}

/// A front-end that does not read, or does not end, holds up its own check and nothing else.
#[test]
fn the_other_end_of_the_pipe_may_do_what_it_likes() {
    let mut daemon = daemon(DISK);
    let session = Session::connect(&daemon.socket(0));
    let (mut reader, writer) = std::io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut filled = 0;
    while let Ok(count) = (&writer).write(&[0; 4096]) {
        filled += count;
    }
    begin(&session, VhostTransferStateDirection::SAVE, writer.into()).unwrap();
    assert_eq!(session.config(0, 60).unwrap().len(), 60, "other messages are answered meanwhile");
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), filled + 64);
    check(&session).unwrap();

    drop(begin_save(&session));
    let _ = check(&session);
    let (reader, never_closed) = std::io::pipe().unwrap();
    begin(&session, VhostTransferStateDirection::LOAD, reader.into()).unwrap();
    assert_refused("no end", check(&session));
    daemon.wait_for_log("it did not end within");
    let (reader, never_closed_either) = std::io::pipe().unwrap();
    begin(&session, VhostTransferStateDirection::LOAD, reader.into()).unwrap();
    drop(session);
    daemon.wait_for_log("the front-end left");
    drop((never_closed, never_closed_either));
    save(&Session::connect(&daemon.socket(0)));
    daemon.assert_alive();
}
