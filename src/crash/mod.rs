//! Every state that a crash may leave on persistent media, under the real ring, device and copy engine.
//!
//! A history of requests goes through [`Ring`](crate::worker::Ring)s over a disk whose durability is that of
//! the cache line. Below the engine a [recorder](crate::copy::recording) logs stores, line flushes and fences,
//! and what a driver sees of its rings: a request is acknowledged when the used index says so. From the log:
//!
//! - [`media`] knows which bytes are there for certain, and which may be, at any moment;
//! - [`oracle`] knows from the requests alone what a driver may expect at that moment;
//! - [`check`] makes the states, each as an image of the disk: all of them where they are few, a sample that
//!   contains every value of every unit of 8 bytes where they are many; and holds them against the oracle.
//!
//! The model allows more than CPUs do where that is simpler: units of a line are evicted each for itself, and
//! a flush covers only what its own CPU has stored. What it takes for granted: 8 aligned bytes that are
//! stored by one instruction are not torn, and stores to the same unit arrive in order. `memcpy`, which the
//! portable engine is made of, is taken to move units whole.
//!
//! That the suite would notice is shown by [`mutations`]: each flush and each fence is taken out of the log
//! (or forgotten by the engine), and a state must be found that breaks a promise.

mod check;
mod history;
mod media;
mod mutations;
mod oracle;
mod scene;
mod states;
