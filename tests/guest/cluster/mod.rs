//! Disks on storage that is replicated between machines, by engines that exist. The machines are namespaces ([`node`]) or
//! guests, the engine is the real one.

pub mod drbd;
pub mod gluster;
pub mod node;
pub mod recorder;

use std::time::Duration;

/// Of a daemon: long enough for any number of rounds.
const LIFETIME: Duration = Duration::from_secs(4 * 3600);
