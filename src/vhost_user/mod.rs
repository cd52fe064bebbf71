//! The control plane: front-ends and their messages (QEMU's `docs/interop/vhost-user.rst`).
//!
//! It knows messages and never copies guest data. A [`Session`] keeps what one front-end has said and gives
//! its rings to the workers; the messages themselves are read and answered by `vhost`'s `BackendReqHandler`.

mod backend_channel;
mod checker;
mod config_notifier;
mod config_record;
mod connection;
mod debug_log;
mod descriptor;
mod device_state;
mod front_ends;
mod handler;
mod listener;
mod message;
mod payload;
mod postcopy;
mod postcopy_messages;
mod rings;
mod vring;
mod writer_lock;

pub use backend_channel::Channel;
pub use checker::{ClosedByChecker, DescriptorChecker};
pub use config_record::{ConfigRecord, KnownConfig};
pub use connection::{Connection, Hangup};
pub use front_ends::FrontEnds;
pub use handler::PROTOCOL_FEATURES;
pub use listener::{AllowedUsers, DiskSocket, Listener, ListenerError, SocketAccess, Stranger};
pub(crate) use message::HEADER_BYTES;
pub(crate) use postcopy::is_possible as is_postcopy_possible;
pub use rings::{Session, SessionContext};
pub use writer_lock::{SessionId, WriterLock};
