//! The log: a limit on the lines that peers can cause; a queue, so that logging never waits for a slow reader; and lines that
//! are events for programs.

#[cfg(feature = "daemon")]
mod events;
pub(crate) mod kinds;
mod limit;
#[cfg(feature = "daemon")]
mod queue;

#[cfg(feature = "daemon")]
pub(crate) use events::{EventLog, Follower, Since, recorder};
#[cfg(feature = "daemon")]
pub(crate) use limit::suppressed_lines;
pub(crate) use limit::{Cause, LogLimit};
#[cfg(feature = "daemon")]
pub(crate) use queue::{LogQueue, dropped_lines};
