//! What this process could still do if somebody else had it: next to nothing.
//!
//! A daemon opens all that it serves, and then gives up what it took for that:
//!
//! | part | what is in force |
//! | --- | --- |
//! | rlimits | no core is dumped, and no limit can be raised |
//! | privileges | no capabilities, no other groups, another user if that is asked for; nobody may look into the process |
//! | landlock | nothing on the file system can be opened, made or changed, and no port used; sockets can be removed, and what a control socket is to serve later can be opened ([`Reach`]) |
//! | seccomp | each kind of thread ([`ThreadKind`]) can make the system calls of one table (`calls_of`) |
//!
//! ```text
//! Sandbox::prepare ─▶ Server::start_confined: opens disks and sockets ─▶ Sandbox::enter ─▶ threads start, each narrowed
//! ```
//!
//! A program that embeds this crate gets nothing of it unless it asks: with `Sandbox::prepare` alone, only the threads and
//! processes of this crate are confined; `Sandbox::enter` confines the thread that calls it and all that it starts from
//! then on, so a monitor calls it in a thread that is for disks only, or not at all.

#[cfg(feature = "sandbox")]
mod allocator;
mod kind;
#[cfg(feature = "sandbox")]
mod landlock;
#[cfg(feature = "sandbox")]
mod part;
#[cfg(feature = "sandbox")]
mod policy;
#[cfg(feature = "sandbox")]
mod privileges;
#[cfg(feature = "sandbox-probe")]
pub(crate) mod probe;
pub(crate) mod process;
#[cfg(feature = "sandbox")]
mod report;
#[cfg(feature = "sandbox")]
mod rlimits;
#[cfg(feature = "sandbox")]
mod seccomp;

pub use kind::ThreadKind;
#[cfg(feature = "sandbox")]
pub use landlock::{Enforced, LandlockError, Reach};
#[cfg(feature = "sandbox")]
pub use part::{Part, Parts, UnknownPart};
#[cfg(feature = "sandbox")]
pub use policy::{InForce, Options, Sandbox, SandboxError};
#[cfg(feature = "sandbox")]
pub(crate) use policy::{has_filters, narrow, will_give_up_attributes};
#[cfg(feature = "sandbox")]
pub use privileges::{Identity, Privileges, PrivilegesError};
#[cfg(feature = "sandbox")]
pub use report::Reporter;
#[cfg(feature = "sandbox")]
pub use rlimits::LimitsError;
#[cfg(feature = "sandbox")]
pub use seccomp::{Call, SeccompError, calls_of};

/// Without the sandbox there is nothing to narrow a thread to.
#[cfg(not(feature = "sandbox"))]
#[expect(clippy::unnecessary_wraps, reason = "as with the sandbox")]
pub(crate) const fn narrow(_: ThreadKind) -> std::io::Result<()> {
    Ok(())
}

/// Without the sandbox nothing is given up.
#[cfg(not(feature = "sandbox"))]
pub(crate) const fn will_give_up_attributes() -> bool {
    false
}

/// As [`will_give_up_attributes`].
#[cfg(not(feature = "sandbox"))]
pub(crate) const fn has_filters() -> bool {
    false
}
