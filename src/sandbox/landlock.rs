//! Landlock: nothing on the file system can be opened, made or changed any more, but that sockets are removed at the end, and
//! what a control socket is to serve later; and
//! no process outside can be signalled, or connected to by an abstract address. What is open stays open.

use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus,
    Scope,
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

/// What stays in reach of this process.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Folders from which files can be removed: those of sockets.
    pub removable: Vec<PathBuf>,
    /// Folders, with what is below them, in which files can be opened, made and changed, and sockets made: for disks that come
    /// later.
    pub served: Vec<PathBuf>,
    /// Files, and folders with what is below them, that can be read.
    pub readable: Vec<PathBuf>,
}

/// What is done with the files of disks, and their sockets.
fn of_disks() -> BitFlags<AccessFs> {
    use AccessFs::{IoctlDev, MakeReg, MakeSock, ReadDir, ReadFile, RemoveFile, Truncate, WriteFile};
    ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeSock | RemoveFile | IoctlDev
}

/// Restricts this thread, and all that it starts from now on, to what stays in reach.
///
/// # Errors
/// Nothing is restricted then.
pub(super) fn restrict(reach: &Reach) -> Result<Enforced, LandlockError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    for (paths, access) in [
        (&reach.removable, AccessFs::RemoveFile.into()),
        (&reach.served, of_disks()),
        (&reach.readable, reading),
    ] {
        for path in paths {
            let fd =
                PathFd::new(path).map_err(|source| LandlockError::Folder { path: path.clone(), source })?;
            // What is for folders only is nothing to ask for of a file.
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(KNOWN) };
            ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
        }
    }
    let status = ruleset.restrict_self()?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Ok(Enforced::Fully),
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { .. }) => Ok(Enforced::Partly),
        _ => Err(LandlockError::Missing),
    }
}
