//! Memory that comes and goes while the dirty log is on: the log grows before a region is added and shrinks after one
//! has been removed, as QEMU does it.

use vhost::vhost_user::VhostUserFrontend;

use super::dirty_log::{connect_with, daemon, switch_on};
use super::log::{Log, PAGE, Pages, pages_of};
use crate::common::Random;
use crate::common::daemon::Place;
use crate::common::frontend::Session;
use crate::common::frontend::load::{LOAD_SECTORS, Load};
use crate::common::frontend::memory::{Memory, Span};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::{Ring, WRITE};

/// Where regions are added, behind everything that is there from the start.
const FAR: u64 = 1 << 33;

const REGION_BYTES: u64 = 1 << 20;

/// Places for regions, with a gap behind each.
const PLACES: u64 = 8;

fn plug(session: &Session, place: u64) -> Memory {
    let region = Memory::new(&[Span { guest_start: FAR + place * 2 * REGION_BYTES, bytes: REGION_BYTES }]);
    session.ask(|control| control.add_mem_region(&region.announcement()[0])).unwrap();
    region
}

fn unplug(session: &Session, region: &Memory) {
    session.ask(|control| control.remove_mem_region(&region.announcement()[0])).unwrap();
}

/// A log that ends with the region at `place`.
fn log_up_to(place: u64) -> Log {
    Log::new((FAR + place * 2 * REGION_BYTES + REGION_BYTES).div_ceil(PAGE * 8))
}

/// Has the disk write somewhere into the region: exactly these pages of all that came later are marked.
fn assert_logged(ring: &mut Ring, log: &Log, region: &Memory, random: &mut Random) {
    let bytes = 512 * (1 + random.below(32));
    let data = region.spans()[0].guest_start + random.below(REGION_BYTES - bytes);
    let frame = ring.buffers(0);
    ring.memory.write(frame.header, &Request::read(LOAD_SECTORS, bytes as u32).header());
    let parts = [(frame.header, 16, 0), (data, bytes as u32, WRITE), (frame.status, 1, WRITE)];
    ring.chain(0, &parts);
    ring.kick.signal();
    ring.wait();
    assert_eq!(ring.memory.read(frame.status, 1), [OK]);
    let marked: Pages = log.take().into_iter().filter(|page| *page >= FAR / PAGE).collect();
    assert_eq!(marked, pages_of(data, bytes).collect(), "{bytes} bytes at {data:#x}");
}

#[test]
fn memory_comes_and_goes_while_the_log_is_on() {
    for packed in [false, true] {
        let daemon = daemon(Place::Tmpfs);
        let mut session = connect_with(&daemon, u64::MAX, packed);
        let (busy, mut ring) = (session.ring(0, 64), session.ring(1, 64));
        let mut random = Random::new(9);
        // Plugged right before the migration.
        let early = plug(&session, 0);
        let mut log = log_up_to(0);
        switch_on(&mut session, &log, &[&busy, &ring]);
        let load = Load::start(busy, 0);
        assert_logged(&mut ring, &log, &early, &mut random);
        for _ in 0..8 {
            let place = 1 + random.below(PLACES);
            let longer = log_up_to(place);
            longer.announce(&session);
            let late = plug(&session, place);
            for region in [&late, &early, &late] {
                assert_logged(&mut ring, &longer, region, &mut random);
            }
            unplug(&session, &late);
            log = log_up_to(0);
            log.announce(&session);
            assert_logged(&mut ring, &log, &early, &mut random);
            load.wait_for_progress();
        }
        session.stop(&load.stop());
        session.stop(&ring);
    }
}
