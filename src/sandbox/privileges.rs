//! Who this process is once everything is open: a user without capabilities and without other groups.

use std::fmt;
use std::io;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, getegid, geteuid, getgroups, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// A user and a group to become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user; that of this process where nothing is said.
    pub user: Option<u32>,
    /// The group; that of this process where nothing is said.
    pub group: Option<u32>,
}

/// What could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} ({source})")]
pub struct PrivilegesError {
    operation: &'static str,
    source: io::Error,
}

/// What is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Privileges {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
    /// Groups besides that: who is not root cannot give them up.
    pub other_groups: usize,
}

impl fmt::Display for Privileges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, group, other_groups } = self;
        write!(f, "user {user}, group {group}, no capabilities, no new privileges")?;
        match other_groups {
            0 => Ok(()),
            count => write!(f, ", and {count} other groups that only root could give up"),
        }
    }
}

fn cannot(operation: &'static str) -> impl Fn(Errno) -> PrivilegesError {
    move |errno| PrivilegesError { operation, source: errno.into() }
}

/// Gives up what this thread, and all that it starts from now on, does not need. Nobody else may look into the process.
///
/// # Errors
/// Another identity was asked for, and may not be had; or the kernel refused.
pub(super) fn drop_all(identity: Identity) -> Result<Privileges, PrivilegesError> {
    forbid_others()?;
    become_other(identity)?;
    leave(CapabilitySet::empty())?;
    let other_groups = getgroups().map_or(0, |groups| groups.iter().filter(|it| **it != getegid()).count());
    Ok(Privileges { user: geteuid().as_raw(), group: getegid().as_raw(), other_groups })
}

/// The capability of `trusted.` attributes.
const OF_ATTRIBUTES: CapabilitySet = CapabilitySet::SYS_ADMIN;

/// Whether this thread has the capability of `trusted.` attributes.
pub(super) fn has_one() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(OF_ATTRIBUTES))
}

/// Gives up all but the capability of `trusted.` attributes, which it can only have as the user that it is.
///
/// # Errors
/// The kernel refused.
pub(super) fn keep_one() -> Result<(), PrivilegesError> {
    forbid_others()?;
    become_other(Identity::default())?;
    leave(OF_ATTRIBUTES)
}

/// No capability can be had again, and none by a program.
fn forbid_others() -> Result<(), PrivilegesError> {
    set_no_new_privs(true).map_err(cannot("give up new privileges"))?;
    // It takes a capability of its own, so it is done first; without it there is nothing that could be had again.
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    Ok(())
}

/// Gives up all other capabilities, and that others look into the process.
fn leave(capabilities: CapabilitySet) -> Result<(), PrivilegesError> {
    // Who has ambient capabilities has a kernel that knows them.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: capabilities, permitted: capabilities, inheritable: none };
    set_capabilities(None, sets).map_err(cannot("give up capabilities"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(cannot("forbid that others look into it"))
}

fn become_other(Identity { user, group }: Identity) -> Result<(), PrivilegesError> {
    let may_change = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SETGID));
    if may_change {
        // In a user namespace they may be forbidden: then they stay, and are counted.
        let _ = set_thread_groups(&[]);
    }
    if let Some(group) = group.map(Gid::from_raw).filter(|group| *group != getegid()) {
        set_thread_res_gid(group, group, group).map_err(cannot("become another group"))?;
    }
    if let Some(user) = user.map(Uid::from_raw).filter(|user| *user != geteuid()) {
        set_thread_res_uid(user, user, user).map_err(cannot("become another user"))?;
    }
    Ok(())
}
