//! `vhost-user-pmem bench`: a load generator for any vhost-user-blk back-end.
//!
//! It is a front-end without a guest: the `virtio-driver` crate speaks the protocol and drives the rings, so that
//! nothing of the back-end under test is on this side of the socket.
//!
//! | module | subject |
//! | --- | --- |
//! | `plan` | what is to be done, validated |
//! | `client` | a connection, its queues and buffers |
//! | `slots` | memory slots for back-ends that have none |
//! | `load` | one queue's thread: submit, kick, wait, count |
//! | `verify` | blocks that say where and when they were written |
//! | `measure` | one round on one back-end: threads, CPU time, a back-end that hangs up or stalls |
//! | `rounds` | depths × rounds × back-ends, interleaved; progress |
//! | `report` | the numbers, for programs (JSON); `text`, `plot`: for people |
//!
//! Everything of a round is counted: a request that was begun before its end belongs to it, and the time runs
//! until the last one is back. So the bytes are the requests times the block, and the histogram has each of them.

mod client;
mod cpu;
mod error;
mod load;
mod measure;
mod plan;
mod plot;
mod progress;
mod report;
mod rounds;
mod slots;
mod text;
mod verify;

pub use error::BenchError;
pub use plan::{Peer, Plan, Rw, Waiting, Work};
pub use plot::draw;
pub use report::{Report, RoundReport};
pub use rounds::run;
