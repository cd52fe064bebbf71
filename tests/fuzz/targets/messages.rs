//! Messages of a front-end with descriptors of every kind, through a real socket: they harm their own connection at most.

use super::server::World;
use super::with_world;
use crate::common::Random;
use crate::common::frontend::wire::Wire;
use crate::common::messages::Messages;

/// The bytes choose what is said, as far as they go.
pub fn run(data: &[u8]) {
    with_world(|world: &mut World| {
        let mut front_end = Messages::new(Random::of_bytes(data));
        let wire = Wire::new(world.connect());
        front_end.connection(&wire);
        wire.hang_up();
        drop(front_end);
        world.input_is_over();
    });
}
