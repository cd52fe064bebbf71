//! The control plane: front-ends and their messages (QEMU's `docs/interop/vhost-user.rst`).
//!
//! It knows messages and never copies guest data. A [`Session`] keeps what one front-end has said and gives
//! its rings to the workers; most messages are checked and dispatched by `vhost`'s `BackendReqHandler`.
//!
//! ```text
//! connection.rs          receives, has each message handled, replies           ─▶ message.rs, payload.rs, checker/
//!   handler.rs           what each message does: those that `vhost` dispatches ┐
//!   postcopy_messages.rs and those that it does not                            ┴▶ reply.rs
//!     session.rs         the parts of one front-end's session; they know nothing of it, nor of messages:
//!       rings.rs         when a ring is given to a worker, and taken back      ─▶ state.rs, vring.rs, writer_lock.rs
//!       front_end_config.rs   the configuration as the front-end knows it      ─▶ config_notifier.rs, config_record.rs ─▶ attribute/
//!       device_state/    the device's state, saved and loaded
//!       postcopy/        memory whose pages come later
//!     context.rs         what all sessions of one disk share
//! listener.rs            the socket that front-ends connect to
//! ```

mod attribute;
mod backend_channel;
mod checker;
mod config_notifier;
mod config_record;
mod connection;
mod context;
mod debug_log;
mod descriptor;
mod device_state;
mod error;
mod front_end_config;
mod front_ends;
mod handler;
mod listener;
mod message;
mod payload;
mod postcopy;
mod postcopy_messages;
mod reply;
mod rings;
mod session;
mod state;
mod vring;
mod writer_lock;

pub use backend_channel::BackendChannel;
pub use checker::{ClosedByChecker, DescriptorChecker};
pub use config_record::{ConfigRecord, KnownConfig};
pub use connection::{Connection, Stage};
pub use context::{SessionContext, Template};
pub use front_ends::FrontEnds;
pub use handler::PROTOCOL_FEATURES;
pub(crate) use listener::socket_remedy;
pub use listener::{AllowedUsers, DiskSocket, Listener, ListenerError, SocketAccess, Stranger};
pub(crate) use message::HEADER_BYTES;
pub(crate) use postcopy::is_possible as is_postcopy_possible;
pub use reply::Hangup;
pub use session::Session;
pub use writer_lock::{SessionId, WriterLock};
