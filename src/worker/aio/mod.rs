//! Linux AIO (`io_submit(2)`): what the kernel does, and says that it has done, while no thread of ours waits.

mod context;
mod signal;
mod transfers;

pub(crate) use signal::prepare;
pub(super) use signal::{OwnContext, signal};
pub(super) use transfers::{Direct, Transfers};
