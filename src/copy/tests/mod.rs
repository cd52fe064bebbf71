//! The routines of every engine against byte loops, at every edge, and over memory that is not there.

#![allow(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a test says what it could not do")]

#[cfg(target_arch = "x86_64")]
mod contained;
mod foreign;
mod guarded;
mod persists;
mod same_bytes;

#[cfg(target_arch = "x86_64")]
use super::{Engine, Stores};

/// Engines whose faults can be mended: every kind of store and every kind of flush at least once.
#[cfg(target_arch = "x86_64")]
fn mending() -> Vec<Engine> {
    let best = Engine::best();
    let mut engines = Engine::available();
    engines.retain(|engine| {
        engine.stores() != Stores::Portable
            && (engine.stores() == best.stores() || engine.line_flush() == best.line_flush())
    });
    engines
}
