//! Workers: one thread, many rings.
//!
//! A worker *owns* its rings: nothing of the data path is shared or locked. The control plane changes a
//! ring by taking it back ([`Pool::detach`]), changing it, and handing it over again ([`Pool::attach`]). Meanwhile no worker
//! touches the ring, and all requests that were taken from it are completed; when it comes back it is polled once, so that no
//! notification can be lost. Other rings never wait for that.
//!
//! A worker whose rings are empty goes on polling them for as long as that pays ([`Polling`]); then it asks their drivers to
//! kick, and sleeps.
//!
//! # The way of a request
//!
//! The call stack when 4 KiB are read from a mapped file, from the worker's loop to the copy. A test compares it with the
//! stack that there is (`worker/tests.rs`); a write differs in the names of the last four functions.
//!
//! 1. `Runner::run` (`worker/run.rs`): a driver's kick ends its `epoll_wait`, or the ring is polled anyway.
//! 2. `Runner::serve_polled` (`worker/run.rs`): each ring that has work gets one turn.
//! 3. `Ring::serve` (`worker/ring.rs`): one turn. It asks the driver not to kick ([`Virtqueue::park_kicks`]), and at its end
//!    orders the stores to the media ([`Disk::fence`]), publishes what is done ([`Virtqueue::publish`]: one store of the
//!    used index), and calls the driver if it wants that ([`Notifier::signal`]).
//! 4. `Ring::batch` (`worker/ring.rs`): takes up to 16 chains at once ([`Virtqueue::take_contiguous`]), which reads their
//!    descriptors and headers, translates their addresses ([`Translator`]), and prefetches their media.
//! 5. `Ring::transfer` (`worker/ring.rs`): one chain after the other, each of which becomes a [`Completion`] for the used
//!    ring ([`Virtqueue::complete`]).
//! 6. `Device::transfer` (`virtio/blk/transfer.rs`): checks the request against the disk's limits; stores its status after
//!    the copy.
//! 7. `Backing::read` (`disk/backing.rs`): which kind of disk it is.
//! 8. `MappedDisk::read` (`disk/mapped/mod.rs`): keeps away from bad blocks, has the range checked ([`Mapping`]), and says
//!    what is wrong if not all was copied.
//! 9. `Engine::load` (`copy/routines.rs`): one buffer of guest memory, or one after the other.
//! 10. `Engine::move_bytes` (`copy/routines.rs`): calls the routine of this CPU, in assembler, which needs no frame of its own
//!     (`copy/x86_64/kernels.rs`).
//!
//! A ring of a file or a block device takes another way from 3 on, since these may make one wait: `Ring::serve_pending`
//! (`worker/ring/waiting.rs`) has requests begun ([`Device::begin`], [`Device::submit`]), and publishes them in the ring's order
//! when they are done: by threads of the disk's own, or by the kernel itself (`worker/direct.rs`). Short writes of a file of a
//! local file system the worker does itself, as they most often take a microsecond; if one holds up its thread, another thread
//! goes on with the rings (`worker/relief.rs`).
//!
//! What is not a read or a write in one piece takes another way from 4 on: `Ring::pop` (`worker/ring.rs`) and
//! [`Device::execute`] (`virtio/blk/execute.rs`).
//!
//! [`Virtqueue::park_kicks`]: crate::virtio::queue::Virtqueue::park_kicks
//! [`Virtqueue::publish`]: crate::virtio::queue::Virtqueue::publish
//! [`Virtqueue::take_contiguous`]: crate::virtio::queue::Virtqueue::take_contiguous
//! [`Virtqueue::complete`]: crate::virtio::queue::Virtqueue::complete
//! [`Disk::fence`]: crate::disk::Disk::fence
//! [`Mapping`]: crate::disk::Mapping
//! [`Translator`]: crate::virtio::memory::Translator
//! [`Completion`]: crate::virtio::queue::Completion
//! [`Device::execute`]: crate::virtio::blk::Device::execute
//! [`Device::begin`]: crate::virtio::blk::Device::begin
//! [`Device::submit`]: crate::virtio::blk::Device::submit

mod aio;
mod any_ring;
mod cpus;
mod direct;
mod entry;
mod execute;
mod hold_ups;
mod mailbox;
mod notifier;
mod parts;
mod pending;
mod poll;
mod pool;
mod quick;
mod relief;
mod report;
mod ring;
mod run;
mod sharing;
mod state;
mod target;
#[cfg(test)]
mod tests;
mod throttled;
mod timer;
mod times;
mod usage;
mod watch;
mod watchdog;

pub(crate) use aio::prepare as prepare_calls;
pub use any_ring::AnyRing;
pub use cpus::{Cpus, NotCpus};
pub use hold_ups::{Counted, HoldUps};
pub use mailbox::RingCount;
pub use notifier::Notifier;
pub(crate) use notifier::{is_eventfd, link};
pub use poll::Polling;
pub use pool::{Pool, PoolError, WorkerId};
pub use report::RingReport;
pub use ring::limited::renew_limits;
pub use ring::{Ring, RingKey, RingParts, Served};
pub use times::tell_held_up;
