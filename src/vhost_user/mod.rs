//! The control plane: front-ends and their messages (QEMU's `docs/interop/vhost-user.rst`).
//!
//! It knows messages and never copies guest data. A [`Session`] keeps what one front-end has said and gives
//! its rings to the workers; the messages themselves are read and answered by `vhost`'s `BackendReqHandler`.

mod baton;
mod body;
mod channel;
mod connection;
mod debug_log;
mod descriptor;
mod device_state;
mod front_ends;
mod handler;
mod helper;
mod listener;
mod memo;
mod news;
mod postcopy;
mod session;
mod transfer;
mod vring;
mod wire;

pub use baton::{Baton, SessionId};
pub use channel::Channel;
pub use connection::{Connection, Hangup};
pub use front_ends::FrontEnds;
pub use handler::PROTOCOL_FEATURES;
pub use helper::{ClosedApart, Helper};
pub use listener::{Inherited, Listener, ListenerError};
pub use memo::{Known, Memo};
pub(crate) use postcopy::is_possible as is_postcopy_possible;
pub use session::{Session, SessionContext};
pub(crate) use wire::HEADER_BYTES;
