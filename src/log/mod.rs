//! The log: lines that a peer can cause are limited, and nobody who logs waits for who reads it.

mod limit;
#[cfg(feature = "daemon")]
mod queue;

pub(crate) use limit::{Cause, LogLimit};
#[cfg(feature = "daemon")]
pub(crate) use queue::{LogQueue, dropped_lines};
