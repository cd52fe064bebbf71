//! Messages of a front-end with descriptors of every kind, through a real socket: they harm their own connection at most.

use super::server::World;
use super::with_world;
use crate::common::Random;
use crate::common::frontend::Session;
use crate::common::frontend::wire::Wire;
use crate::common::messages::Messages;

/// What an earlier process says that the front-end knows, well-formed or not.
const RECORDS: [&str; 8] = [
    "16384 writethrough",
    "16384 writeback",
    "16384 unknown",
    "8 writethrough",
    "18446744073709551615 writeback",
    "16384",
    "\u{fffd} writeback ",
    "",
];

/// The bytes choose what is said, as far as they go.
pub fn run(data: &[u8]) {
    with_world(|world: &mut World| {
        let mut random = Random::of_bytes(data);
        let surroundings = random.below(64);
        if surroundings & 1 != 0 {
            world.record_elsewhere(RECORDS[(surroundings >> 3) as usize].as_bytes());
        }
        // The disk is another's at first: of another front-end, or of another process.
        let other = (surroundings & 2 != 0).then(|| {
            let session = Session::connect(world.socket());
            let ring = session.ring(0, 64);
            (session, ring)
        });
        let elsewhere = (surroundings & 4 != 0).then(|| world.lock_elsewhere());
        let mut front_end = Messages::new(random);
        let wire = Wire::new(world.connect());
        front_end.connection(&wire);
        drop((other, elsewhere));
        wire.hang_up();
        drop(front_end);
        world.input_is_over();
    });
}
