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
//! # The path of a request
//!
//! The call stack of that is in [`worker`], function by function. The folders follow the path, and each knows only its own
//! subject:
//!
//! | module | knows | does not know |
//! | --- | --- | --- |
//! | [`vhost_user`] | the messages of a front-end: the control plane | guest data |
//! | [`worker`] | threads, kicks, mailboxes: the rings it owns | messages |
//! | [`virtio`] | guest memory, rings, block requests | vhost-user |
//! | [`disk`] | bytes, media and their durability | virtio |
//! | [`copy`] | how bytes move | where they come from |
//!
//! # Beside the path
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`server`] | ties disks, sessions and workers together; who lives, who stops, in which order |
//! | [`config`] | what a server is told to do, validated |
//! | `api` (feature `daemon`) | what a server has done, and what it is told while it runs: metrics and control over HTTP |
//! | `cli` (feature `daemon`) | the program: arguments, log, signals, exit codes |
//! | [`throttle`] | what guests may do a second, of a disk or a group |
//! | [`limits`] | what peers may take of this process: every bound, budgets of disks, threads |
//! | `log` | lines that peers can cause are limited; nobody who logs waits for a reader |
//! | `sandbox` | what keeps others apart from what this process holds |
//! | `failpoint` | where a test stops a ring or the growth of a disk; nothing elsewhere |
//! | `bench` (feature `bench`) | a load generator for any vhost-user-blk back-end |
//! | `stock` (feature `stock`) | the disk for daemons that are built on the crate `vhost-user-backend` |
//! | `tools::crash` (tests) | every state that a crash may leave on the media, held against what was promised |
//!
//! Programs that walk virtqueues of their own use [`virtio::queue::Gatherer`], as `stock` does.
//!
//! # Decisions
//!
//! | | what is kept to | so that |
//! | --- | --- | --- |
//! | D1 | rings, workers and sessions are our own, on `vhost`'s messages; the stock engine is the reference | a request costs some ten nanoseconds besides its copy, and all of the protocol can be answered |
//! | D2 | a ring is processed in order by one thread, and a request is finished when it leaves that thread | the used index alone says after a crash what was done |
//! | D3 | one fence a batch, before its completions are published | a guest that sees a completion sees the bytes, also those that were stored past the caches |
//! | D4 | one writer at a time | two front-ends, as in a migration, cannot both write |
//! | D5 | durability is probed, stated and enforced | nobody takes a page cache for persistent memory |
//! | D6 | faults are contained: a guest's cost a request or a ring, a front-end's its connection, a media error its request | one tenant does not hurt another |
//! | D7 | everything is bounded, and made at the start or with a ring | nothing is allocated for a request |
//! | D8 | a worker waits for nobody: no media (requests that may block are begun, and published in the ring's order when they are done; a thread that a write of a file holds up is relieved), no peer's descriptor, no reader of the log, and no request for longer than a slice | one ring does not hold up another |
//! | D9 | what a peer hands over is checked before it is used, and what it is handed reaches its own memory only | a descriptor is no weapon |
//! | D10 | promises about power failure are tried on real kernels with the power cut | a model is not believed |
//!
//! `SAFETY` comments name invariants in the same manner, with other letters (M1, Q3): each is stated once, in the
//! documentation of the type or module that keeps it, and `ci/safety` checks that.
//!
//! # Words
//!
//! Most words are those of the VIRTIO and vhost-user specifications, Linux's manual pages and libpmem2. These are ours:
//!
//! | word | meaning |
//! | --- | --- |
//! | batch | the requests that a worker takes from a ring at once, and publishes together |
//! | turn | what a worker does for one ring before it goes on to the next: at most a batch, or a slice |
//! | slice | a part of a long request that is done in one turn, so that other rings need not wait for the whole |
//! | pending | a request that is begun on media that may make one wait: unbegun, in flight, unflushed or done, and not published |
//! | held | a request that waits for a flush, or a ring that takes no other request before such a one is done, or a limit allows it |
//! | contiguous chain | a descriptor chain of three buffers, each in one memory region: header, data, status; nearly all are |
//! | flaw | what is wrong with a chain that has a place for its status: its request fails, its ring goes on |
//! | ticket | the number of a flush that was asked for; its holder polls whether the flush is done |
//! | lost | said of guest memory or a dirty log whose file was truncated, or of which a page has gone bad |
//! | engine | the routines that copy, chosen for the CPU at the start |
//! | backing | what a disk's path leads to: a file or a device, on some media |
//! | stock engine | this disk behind the crates `vhost-user-backend` and `virtio-queue`, as other daemons build theirs |
//! | session | one front-end's connection, from its first message until it leaves, and all that its messages have changed |
//! | writer lock | held by the session whose rings may run on a disk that is written to; the others wait for it |
//! | configuration record | what a disk's last front-end knows of its size and cache mode, kept as an extended attribute |
//! | descriptor checker | a process of ours that checks descriptors of a front-end before the daemon uses them, since that may block |
//! | gatherer | makes a chain of buffers whose descriptors another program has read (scatter-gather) |

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
pub mod sandbox;
pub mod throttle;

mod tools;
#[cfg(feature = "bench")]
pub use tools::bench;
#[cfg(feature = "stock")]
pub use tools::stock;
