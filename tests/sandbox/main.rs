//! What the daemon could still do if somebody else had it: what is refused from inside, and what the kernel says is in force.
//!
//! In a build with `sandbox-probe`, each thread tries what it must not ([`probe`]), and a call that is not in the table kills
//! the daemon (`VHOST_USER_PMEM_SANDBOX_KILLS`, which all tests set).

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod identity;
mod in_flight;
mod in_force;
mod missing;
mod probe;
mod processes;
mod work;
