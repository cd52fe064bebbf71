//! Every state that a crash may leave on the media, under the real ring, device, disk and copy engine.
//!
//! The words are those of crash-consistency testing (ALICE, CrashMonkey, pmemcheck and pmreorder): a *workload* runs and
//! leaves a *trace*; at each *crash point* of the trace there are one or more *crash states* of the disk, depending on
//! which stores have *persisted*; and an *oracle* knows which of them a driver may find.
//!
//! A [`workload`] of requests goes through [`Ring`](crate::worker::Ring)s over a disk in memory that takes itself
//! for one of each kind ([`runner::DiskKind`]): mapped media of the cache line's class, with and without a deep flush;
//! mapped media that is synced; an ordinary file; a block device. Below, a [recorder](crate::copy::recording) logs stores,
//! line flushes and fences, what the file system does to bytes (writes, zeroes, holes), when a sync begins and ends,
//! and what a driver sees of its rings: a request is acknowledged when the used index says so. Flushes that
//! take a system call run on the thread that they always run on; it goes on only when the [`scheduler`] says so, which
//! makes each run repeatable and lets anything happen in the midst of a sync, or a sync in the midst of a
//! batch. From the log:
//!
//! - [`media`] knows at each crash point which bytes have persisted, and which may have;
//! - [`oracle`] knows from the requests alone what a driver may expect there;
//! - [`check`] makes the crash states, each as an image of the disk: all of them where they are few, a sample that
//!   contains every value of every unit of 8 bytes where they are many; and holds them against the oracle.
//!
//! On files and devices many requests are under way at once ([`under_way`]): they are done in any order, each begun before, in the
//! midst of or after any sync, and answered in their ring's order.
//!
//! The model allows more than machines do where that is simpler: units of a line are evicted each for itself, a
//! flush covers only what its own CPU has stored, a sync nothing that was not fenced before it began, `msync`
//! no page whose place the file system has changed, and space that was given back may come back with what was in
//! it until everything is synced.
//!
//! What it takes for granted: 8 aligned bytes that are stored by one instruction are not torn, stores to the same unit
//! arrive in order, and with `MAP_SYNC` a page that is stored into is there to stay. (XFS does not keep that where files
//! share blocks: media of a class of its own shows what that costs.) `memcpy`, which the portable engine is made of, is
//! taken to move units whole. Syncs succeed here; what becomes of those that fail is tested in `disk`.
//!
//! What becomes of a ring whose back-end is killed, while the machine goes on, is asked in [`killed`].
//!
//! That the suite would notice is shown by [`mutations`]: each flush, each fence and each sync is taken out of
//! the log (or left out by the engine), and a crash state must be found that breaks a promise.

mod check;
mod driver;
mod killed;
mod media;
mod mutations;
mod oracle;
mod runner;
mod scheduler;
mod states;
mod under_way;
mod workload;
