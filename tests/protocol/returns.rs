//! A front-end that comes back after a restart of the daemon: it does not read the configuration again, nor repeat what
//! its guest has chosen (QEMU 10). It is told to read what has changed, and nothing else.

use std::fs::File;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use super::channel::CONFIG_CHANGE;
use super::{DISK_BYTES, assert_works};
use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::features::{CONFIG_WCE, FLUSH};
use crate::common::frontend::memory::Memory;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::wire::Wire;
use crate::common::frontend::{Options, SPANS, Session, assert_refused, settle};
use crate::common::host::Loop;

const WRITEBACK_OFFSET: u32 = 32;

fn daemon(place: Place) -> Daemon {
    let setup = Setup::new(place).disk("");
    File::create(setup.image(0)).unwrap().set_len(DISK_BYTES).unwrap();
    setup.start()
}

/// A front-end, its channel, and the guest behind it.
struct Machine {
    session: Session,
    channel: Wire,
    ring: Ring,
}

impl Machine {
    /// It has read the configuration, as each does when it is new, and its guest chooses a cache mode, or none.
    fn boot(daemon: &Daemon, writeback: Option<bool>) -> Self {
        let (session, channel) = super::channel::with_channel(&daemon.socket(0));
        session.config(0, 60).unwrap();
        let mut ring = session.ring(0, 64);
        if let Some(writeback) = writeback {
            write_mode(&session, writeback).unwrap();
        }
        assert_works(&mut ring, 0);
        // What is known is kept on media with what the guest writes there, not before.
        assert_eq!(ring.run(&Request::flush()).status, OK);
        Self { session, channel, ring }
    }

    /// Its connection has ended.
    fn come_back(self, daemon: &Daemon) -> Self {
        let Self { session, ring, .. } = self;
        let memory = session.memory.clone();
        drop(session);
        Self::connect_again(daemon, &memory, ring)
    }

    fn connect_again(daemon: &Daemon, memory: &Memory, mut ring: Ring) -> Self {
        let mut session = Session::open(&daemon.socket(0), &SPANS);
        session.memory = memory.clone();
        session.negotiate(&Options::default());
        let (ours, theirs) = UnixStream::pair().unwrap();
        session.ask(|control| control.set_backend_request_fd(&theirs)).unwrap();
        session.share_memory();
        session.start(&ring, 0).unwrap();
        assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
        Self { session, channel: Wire::new(ours), ring }
    }

    fn mode(&self) -> u8 {
        self.session.config(WRITEBACK_OFFSET, 1).unwrap()[0]
    }
}

fn write_mode(session: &Session, writeback: bool) -> vhost::Result<()> {
    let byte = [u8::from(writeback)];
    session.ask(|control| control.set_config(WRITEBACK_OFFSET, VhostUserConfigFlags::empty(), &byte))
}

#[test]
fn it_is_not_told_what_it_knows_and_its_guests_choice_holds() {
    for place in Place::ALL {
        for (writeback, shown) in [(Some(false), 0), (None, 1), (Some(true), 1)] {
            let mut daemon = daemon(place);
            let mut machine = Machine::boot(&daemon, writeback);
            for is_killed in [true, false, true] {
                let setup = if is_killed { daemon.kill() } else { daemon.stop() };
                daemon = setup.start();
                machine = machine.come_back(&daemon);
                settle();
                assert!(machine.channel.is_silent(), "{place:?}, {writeback:?}: nothing has changed");
                assert_eq!(machine.mode(), shown, "{place:?}, {writeback:?}");
            }
            // The connection alone has ended.
            machine = machine.come_back(&daemon);
            settle();
            assert!(machine.channel.is_silent(), "{place:?}, {writeback:?}: nothing has changed");
            assert_eq!(machine.mode(), shown);
        }
    }
}

/// What is kept at a file is written with the guest's own first bytes: reading alone writes nothing to the media.
#[test]
fn nothing_is_kept_at_a_file_before_its_guest_writes() {
    let daemon = daemon(Place::FileSystem);
    let image = daemon.image(0);
    let is_kept = || rustix::fs::getxattr(&image, "user.vhost-user-pmem", &mut [0; 64]).is_ok();
    let (session, _channel) = super::channel::with_channel(&daemon.socket(0));
    session.config(0, 60).unwrap();
    let mut ring = session.ring(0, 64);
    for request in [Request::read(0, 512), Request::flush()] {
        assert_eq!(ring.run(&request).status, OK);
        assert!(!is_kept(), "{request:?}");
    }
    assert_works(&mut ring, 0);
    assert_eq!(ring.run(&Request::flush()).status, OK);
    assert!(is_kept());
}

#[test]
fn it_is_told_of_another_size_once() {
    for place in Place::ALL {
        let mut daemon = daemon(place);
        let mut machine = Machine::boot(&daemon, Some(false));
        for times in [2, 3] {
            let setup = daemon.kill();
            let file = File::options().write(true).open(setup.image(0)).unwrap();
            file.set_len(times * DISK_BYTES).unwrap();
            daemon = setup.start();
            machine = machine.come_back(&daemon);
            assert_eq!(machine.channel.receive(), Some(CONFIG_CHANGE), "{place:?}");
            let config = machine.session.config(0, 60).unwrap();
            assert_eq!(config[..8], (times * DISK_BYTES / 512).to_le_bytes());
            assert_eq!(config[WRITEBACK_OFFSET as usize], 0, "the guest has chosen so");
            assert_works(&mut machine.ring, 0);
            settle();
            assert!(machine.channel.is_silent(), "once is enough");
            machine = machine.come_back(&daemon);
            settle();
            assert!(machine.channel.is_silent(), "it knows by now");
        }
    }
}

/// Told while it ran, or while no ring ran.
#[test]
fn growth_that_it_was_told_of_is_known() {
    let daemon = daemon(Place::Tmpfs);
    let machine = Machine::boot(&daemon, None);
    File::options().write(true).open(daemon.image(0)).unwrap().set_len(2 * DISK_BYTES).unwrap();
    assert_eq!(machine.channel.receive(), Some(CONFIG_CHANGE));
    daemon.wait_for_log("the disk has grown");
    let mut machine = machine.come_back(&daemon);
    settle();
    assert!(machine.channel.is_silent(), "it was told");

    let base = machine.session.stop(&machine.ring);
    File::options().write(true).open(daemon.image(0)).unwrap().set_len(3 * DISK_BYTES).unwrap();
    assert_eq!(machine.channel.receive(), Some(CONFIG_CHANGE));
    machine.session.start(&machine.ring, base).unwrap();
    assert_eq!(machine.channel.receive(), Some(CONFIG_CHANGE), "it took no notice");
    assert_works(&mut machine.ring, 0);
    let setup = daemon.kill();
    let daemon = setup.start();
    machine = machine.come_back(&daemon);
    settle();
    assert!(machine.channel.is_silent());
}

/// It reads the configuration, and begins with what the disk begins with.
#[test]
fn another_guest_does_not_inherit_the_cache_mode() {
    let daemon = daemon(Place::Tmpfs);
    drop(Machine::boot(&daemon, Some(false)));
    let setup = daemon.kill();
    let daemon = setup.start();
    assert_eq!(Machine::boot(&daemon, None).mode(), 1);
}

/// It has moved to another front-end, which has read the configuration before as that of a new guest.
#[test]
fn a_guest_that_moves_keeps_its_cache_mode() {
    for (writeback, told) in [(Some(false), true), (Some(true), false), (None, false)] {
        let daemon = daemon(Place::Tmpfs);
        let machine = Machine::boot(&daemon, writeback);
        let (mut session, channel) = super::channel::with_channel(&daemon.socket(0));
        assert_eq!(session.config(WRITEBACK_OFFSET, 1).unwrap(), [1], "as for a new guest");
        session.memory = machine.session.memory.clone();
        session.share_memory();
        let base = machine.session.stop(&machine.ring);
        assert_ne!(base, 0);
        session.start(&machine.ring, base).unwrap();
        let mut moved = Machine { session, channel, ring: machine.ring };
        assert_works(&mut moved.ring, 0);
        if told {
            assert_eq!(moved.channel.receive(), Some(CONFIG_CHANGE), "it has read another byte");
        }
        settle();
        assert!(moved.channel.is_silent(), "{writeback:?}");
        assert_eq!(moved.mode(), u8::from(writeback != Some(false)));
    }
}

/// The node of a device has no attributes for users, but some for root.
#[test]
fn a_device_is_known_again() {
    let setup = Setup::new(Place::FileSystem).disk("");
    let below = setup.image(0).parent().unwrap().join("below");
    File::create(&below).unwrap().set_len(DISK_BYTES).unwrap();
    let Some(device) = Loop::over(&below, &[]) else { return };
    std::os::unix::fs::symlink(device.path(), setup.image(0)).unwrap();
    let daemon = setup.start();
    let machine = Machine::boot(&daemon, Some(false));
    let setup = daemon.kill();
    let daemon = setup.start();
    let machine = machine.come_back(&daemon);
    settle();
    assert!(machine.channel.is_silent());
    assert_eq!(machine.mode(), 0);
    for name in ["user.vhost-user-pmem", "trusted.vhost-user-pmem"] {
        let _ = rustix::fs::removexattr(device.path(), name);
    }
}

/// VIRTIO 1.2 §5.2.5.2: without FLUSH nothing but write-through can be had.
#[test]
fn a_guest_that_cannot_flush_is_shown_write_through_and_nothing_else() {
    let daemon = daemon(Place::Tmpfs);
    let (mut session, channel) = super::channel::with_channel(&daemon.socket(0));
    assert_eq!(session.config(WRITEBACK_OFFSET, 1).unwrap(), [1], "nothing is acknowledged yet");
    session.set_features(session.features & !FLUSH);
    let mut ring = session.ring(0, 64);
    assert_eq!(session.config(WRITEBACK_OFFSET, 1).unwrap(), [0]);
    while !channel.is_silent() {
        assert_eq!(channel.receive(), Some(CONFIG_CHANGE), "it has read another byte before");
    }
    assert_refused("write-back", write_mode(&session, true));
    daemon.wait_for_log("it has not acknowledged FLUSH");
    assert_eq!(session.config(WRITEBACK_OFFSET, 1).unwrap(), [0]);
    write_mode(&session, false).unwrap();
    assert_works(&mut ring, 0);
    // A driver that cannot choose has no such byte.
    let (mut other, _channel) = super::channel::with_channel(&daemon.socket(0));
    other.set_features(other.features & !(FLUSH | CONFIG_WCE));
    assert_eq!(other.config(WRITEBACK_OFFSET, 1).unwrap(), [1]);
}
