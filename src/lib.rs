//! A persistent-memory file, served to virtual machines as a disk over vhost-user.
//!
//! A virtual machine monitor (the *front-end*) connects to a Unix socket, hands over guest RAM and
//! virtqueues, and from then on every disk request is one copy between guest RAM and the mapped backing:
//!
//! ```text
//! kick ─▶ worker ─▶ queue ─▶ blk::Request ─▶ Disk ─▶ copy ─▶ Completion ─▶ queue (used) ─▶ call
//!                   pop      parse, check    where    how     status, len    one publish     if wanted
//! ```
//!
//! The folders follow that path, and each knows only its own subject:
//!
//! | module | knows | does not know |
//! | --- | --- | --- |
//! | [`vhost_user`] | the messages of a front-end: the control plane | guest data |
//! | [`worker`] | threads, kicks, mailboxes: the rings it owns | messages |
//! | [`virtio`] | guest memory, rings, block requests | vhost-user |
//! | [`disk`] | bytes, media and their durability | virtio |
//! | [`copy`] | how bytes move | where they come from |
//!
//! [`server`] ties disks, sessions and workers together; [`config`] is what it is told to do, and `api` says what
//! it has done. [`virtio::queue::Gatherer`] is the door for programs that have queues of their own, and `stock` (with the
//! feature of that name) goes through it: the disk for daemons built on the crate `vhost-user-backend`.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

#[cfg(feature = "daemon")]
pub mod api;
#[cfg(feature = "bench")]
pub mod bench;
pub mod budget;
#[cfg(feature = "daemon")]
pub mod cli;
pub mod config;
pub mod copy;
pub mod cpus;
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod crash;
pub mod disk;
mod headroom;
mod log_limit;
#[cfg(feature = "daemon")]
mod log_queue;
mod sandbox;
pub mod server;
#[cfg(feature = "stock")]
pub mod stock;
mod stop_point;
mod thread;
pub mod vhost_user;
pub mod virtio;
pub mod worker;
