//! Landlock: nothing on the file system can be opened, made or changed any more, but that sockets are removed at the end; and
//! no process outside can be signalled, or connected to by an abstract address. What is open stays open.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

/// What this program knows of: a kernel with more forbids less than it could.
const KNOWN: ABI = ABI::V6;

/// Why it is not in force.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// The kernel has none.
    #[error(
        "the kernel has no Landlock; it needs Linux 5.13 with CONFIG_SECURITY_LANDLOCK, and landlock among its lsm="
    )]
    Missing,
    /// It refused.
    #[error("the kernel refuses Landlock ({0})")]
    Ruleset(#[from] RulesetError),
    /// The folder of a socket.
    #[error("{path}: cannot be opened ({source})", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: landlock::PathFdError,
    },
}

/// Whether all that this program knows of is enforced; a kernel that is older enforces less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforced {
    /// All.
    Fully,
    /// What the kernel knows.
    Partly,
}

/// Restricts this thread, and all that it starts from now on, to remove files from these folders.
///
/// # Errors
/// Nothing is restricted then.
pub(super) fn restrict<'a>(removable: impl Iterator<Item = &'a Path>) -> Result<Enforced, LandlockError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    for path in removable {
        let folder =
            PathFd::new(path).map_err(|source| LandlockError::Folder { path: path.to_owned(), source })?;
        ruleset = ruleset.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?;
    }
    let status = ruleset.restrict_self()?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Ok(Enforced::Fully),
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { .. }) => Ok(Enforced::Partly),
        _ => Err(LandlockError::Missing),
    }
}
