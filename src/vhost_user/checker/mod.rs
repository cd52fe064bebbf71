//! The descriptor checker: a process of its own that receives descriptors, and passes on those that are harmless.
//!
//! Once a descriptor is in a process's table, that process has to close it, at its end if not before; and to close a file of
//! another user's FUSE mount is to wait for his program (`FUSE_FLUSH`), which no signal ends. The like holds for a pipe
//! whose reader is held up in the middle of a read. So whatever comes with a message is received by a process that holds
//! nothing else: what is harmless ([`Kind::is_harmless`](super::descriptor::Kind::is_harmless)) is passed on. With anything
//! else in its table the process ends, which may take as long as closing that takes; another process has taken its place
//! by then.
//!
//! ```text
//! session ── asks ─▶ checker: receives, checks ─▶ harmless: passed on
//!                                              ─▶ anything else: said what it is; spawner makes another checker; ends
//!                                              ─▶ device state: passed on is a socket to the checker, which reads or
//!                                                               writes the state itself; spawner makes another; ends
//! ```
//!
//! What cannot be closed for long costs a process for each message, and so [a bounded number](share) of each disk: at the bound
//! its front-ends wait, and others' do not.
//!
//! A message without descriptors is received by the session's thread itself.
//!
//! | file | runs in |
//! | --- | --- |
//! | `client.rs`, `turns.rs`, `share.rs`, `closing.rs` | the daemon: requests, what a disk may leave unclosed, and sockets that the checker closes |
//! | `packet.rs` | both: requests and answers |
//! | `notice.rs` | the checker and the spawner |
//! | `spawner.rs` | a fork of the daemon: forks checkers, one after the other, and counts those that are at their end |
//! | `serve.rs`, `state_relay.rs`, `unread.rs` | a checker: a fork of the spawner |

mod client;
mod closing;
mod notice;
mod packet;
mod serve;
mod share;
mod spawner;
mod state_relay;
mod turns;
mod unread;

pub use client::DescriptorChecker;
pub use closing::ClosedByChecker;
pub(super) use packet::Received;
pub(super) use state_relay::{LOAD, SAVE, StateAnswer};
