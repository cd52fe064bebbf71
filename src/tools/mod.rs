//! What lies beside the way of a request: nothing of it runs when the daemon serves a disk.
//!
//! | module | subject | built with |
//! | --- | --- | --- |
//! | [`bench`] | a load generator for any vhost-user-blk back-end | feature `bench` |
//! | [`stock`] | the disk for daemons that are built on the crate `vhost-user-backend` | feature `stock` |
//! | `crash` | every state that a crash may leave on the media, held against what was promised | tests |
//!
//! `crash` has no feature: it stops rings at [failpoints](crate::failpoint) and opens disks that take themselves for others,
//! and no library that is built should have either, whatever its features.

#[cfg(feature = "bench")]
pub mod bench;
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod crash;
#[cfg(feature = "stock")]
pub mod stock;
