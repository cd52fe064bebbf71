//! The log: a limit on the lines that peers can cause, and a queue, so that logging never waits for a slow reader.

mod limit;
#[cfg(feature = "daemon")]
mod queue;

pub(crate) use limit::{Cause, LogLimit};
#[cfg(feature = "daemon")]
pub(crate) use queue::{LogQueue, dropped_lines};
