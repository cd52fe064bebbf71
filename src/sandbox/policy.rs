//! What is to be in force in this process, and where it already is.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ThreadKind;
use super::allocator;
use super::landlock::{self, Enforced, LandlockError, Reach};
use super::part::{Part, Parts};
use super::privileges::{self, Identity, Privileges, PrivilegesError};
use super::rlimits::{self, LimitsError};
use super::seccomp::{self, Filters, Refused, SeccompError};

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Which parts.
    pub parts: Parts,
    /// Fail where one of them cannot be had, rather than to say so and to go on.
    pub required: bool,
    /// Who to become.
    pub identity: Identity,
}

/// A part that is not in force.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Privileges.
    #[error("privileges: {0}")]
    Privileges(#[from] PrivilegesError),
    /// Landlock.
    #[error("landlock: {0}")]
    Landlock(#[from] LandlockError),
    /// seccomp.
    #[error("seccomp: {0}")]
    Seccomp(#[from] SeccompError),
    /// Resource limits.
    #[error("rlimits: {0}")]
    Rlimits(#[from] LimitsError),
    /// There is one for a process.
    #[error("this process has a sandbox already")]
    Twice,
}

/// What has become of the parts.
#[derive(Debug)]
pub struct InForce {
    /// Who this process is now; none where that was not asked for.
    pub privileges: Option<Privileges>,
    /// Whether the file system is out of reach; none where that was not asked for, or cannot be had.
    pub landlock: Option<Enforced>,
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// Whether limits are set.
    pub rlimits: bool,
    /// What was asked for and cannot be had.
    pub missing: Vec<SandboxError>,
}

#[derive(Debug)]
struct Policy {
    options: Options,
    filters: Option<Filters>,
    is_entered: AtomicBool,
}

static POLICY: OnceLock<Policy> = OnceLock::new();

/// The sandbox of this process, to be entered once everything is open.
#[derive(Debug)]
pub struct Sandbox {
    policy: &'static Policy,
    missing: Vec<SandboxError>,
}

impl Sandbox {
    /// Says what is to be in force. From now on each thread of this crate is narrowed when it starts, and one that starts
    /// before [`enter`](Self::enter) is confined by itself.
    ///
    /// # Errors
    /// A part is required and cannot be had; or it is called a second time.
    pub fn prepare(options: Options) -> Result<Self, SandboxError> {
        // The crate rustix asks the kernel for it once, by a call that no thread may make afterwards.
        let _ = rustix::param::page_size();
        allocator::fix_arenas();
        let mut missing = Vec::new();
        let wants_filters = options.parts.contains(Part::Seccomp);
        // The kernel lets only those filter who cannot gain anything by it.
        let hidden = if wants_filters { seccomp::hide_clone3() } else { Ok(()) };
        let has_seccomp = wants_filters && hidden.is_ok();
        if let Err(error) = hidden {
            if options.required {
                return Err(error.into());
            }
            missing.push(error.into());
        }
        let filters = has_seccomp.then(|| Filters::new(refused()));
        let policy = Policy { options, filters, is_entered: AtomicBool::new(false) };
        POLICY.set(policy).map_err(|_| SandboxError::Twice)?;
        let policy = POLICY.get().ok_or(SandboxError::Twice)?;
        Ok(Self { policy, missing })
    }

    /// Confines this thread, and all that it starts from now on: what is not open by now, and not in `reach`, will not be. This
    /// thread's own system calls stay as they are. Where a disk offers `postcopy` migration, that takes some calls more.
    ///
    /// # Errors
    /// A part is required and cannot be had.
    pub fn enter(self, reach: &Reach, postcopy: bool) -> Result<InForce, SandboxError> {
        let Self { policy, mut missing } = self;
        let Options { parts, required, identity, .. } = policy.options;
        let mut note = |error: SandboxError| {
            if required {
                return Err(error);
            }
            missing.push(error);
            Ok(())
        };
        let mut in_force = InForce {
            privileges: None,
            landlock: None,
            seccomp: policy.filters.is_some(),
            rlimits: false,
            missing: Vec::new(),
        };
        if parts.contains(Part::Rlimits) {
            match rlimits::set() {
                Ok(()) => in_force.rlimits = true,
                Err(error) => note(error.into())?,
            }
        }
        if parts.contains(Part::Landlock) {
            match landlock::restrict(reach) {
                Ok(enforced) => in_force.landlock = Some(enforced),
                Err(error) => note(error.into())?,
            }
        }
        if parts.contains(Part::Privileges) {
            match privileges::drop_all(identity) {
                Ok(left) => in_force.privileges = Some(left),
                // Somebody wants to be served by another user than this one: by no other.
                Err(error) if identity != Identity::default() => return Err(error.into()),
                Err(error) => note(error.into())?,
            }
        }
        if let Some(filters) = &policy.filters
            && postcopy
        {
            filters.allow_postcopy();
        }
        policy.is_entered.store(true, Ordering::Release);
        in_force.missing = missing;
        Ok(in_force)
    }
}

/// Narrows this thread to what its kind does, if this process has a sandbox; and confines it, if that came before.
///
/// # Errors
/// It must not run then.
pub(crate) fn narrow(kind: ThreadKind) -> io::Result<()> {
    let Some(policy) = POLICY.get() else { return Ok(()) };
    if !policy.is_entered.load(Ordering::Acquire) {
        let Options { parts, identity, .. } = policy.options;
        // What cannot be had is said where the others enter.
        if parts.contains(Part::Landlock) {
            let _ = landlock::restrict(&Reach::default());
        }
        if kind == ThreadKind::AttributeKeeper {
            privileges::keep_one().map_err(io::Error::other)?;
        } else if parts.contains(Part::Privileges) {
            let _ = privileges::drop_all(identity);
        }
        if kind.is_process() {
            // Of this copy, and of what it forks.
            policy.is_entered.store(true, Ordering::Release);
        }
    }
    match &policy.filters {
        Some(filters) => filters.install(kind).map_err(|error| io::Error::other(format!("{kind}: {error}"))),
        None => Ok(()),
    }
}

/// Whether this process can write attributes that take a privilege, and is about to give that up.
pub(crate) fn will_give_up_attributes() -> bool {
    POLICY.get().is_some_and(|policy| {
        !policy.is_entered.load(Ordering::Acquire) && policy.options.parts.contains(Part::Privileges)
    }) && privileges::has_one()
}

/// Whether system calls of what starts from now on are filtered.
pub(crate) fn has_filters() -> bool {
    POLICY.get().is_some_and(|policy| policy.filters.is_some())
}

/// Tests want to know of each call that is not in the table.
fn refused() -> Refused {
    #[cfg(feature = "sandbox-probe")]
    if std::env::var_os("VHOST_USER_PMEM_SANDBOX_KILLS").is_some_and(|it| it == "1") {
        return Refused::Kills;
    }
    Refused::Fails
}
