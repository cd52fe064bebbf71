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

pub mod copy;
pub mod disk;
pub mod vhost_user;
pub mod virtio;
pub mod worker;

#[cfg(feature = "daemon")]
pub mod api;
#[cfg(feature = "daemon")]
pub mod cli;
pub mod config;
pub mod server;

mod failpoint;
pub mod limits;
mod log;
mod sandbox;

mod tools;
#[cfg(feature = "bench")]
pub use tools::bench;
#[cfg(feature = "stock")]
pub use tools::stock;
