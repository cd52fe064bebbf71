//! Workers: one thread, many rings.
//!
//! A worker *owns* its rings: nothing of the data path is shared or locked. The control plane changes a
//! ring by taking it back ([`Pool::detach`]), changing it at leisure, and handing it over again
//! ([`Pool::attach`]): the ring is quiet meanwhile, everything fetched from it is published, and it is
//! looked at once when it comes back, so no notification can be lost. Other rings never wait for that.
//!
//! A worker whose rings are empty goes on looking at them for as long as pays ([`Polling`]) before it has their
//! drivers kick and sleeps.

mod aio;
mod answer;
mod any_ring;
mod cpus;
mod mailbox;
mod notifier;
mod poll;
mod pool;
mod ring;
mod run;

pub use any_ring::AnyRing;
pub use cpus::{Cpus, NotCpus};
pub use mailbox::RingCount;
pub use notifier::Notifier;
pub(crate) use notifier::{is_eventfd, link};
pub use poll::Polling;
pub use pool::{Pool, PoolError, WorkerId};
pub use ring::{Ring, RingKey, RingParts, Served};
