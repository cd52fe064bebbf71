//! seccomp(2): each kind of thread can make the system calls of the [table] and no others.
//!
//! What is not in the table fails with `EPERM`, and the process goes on: to kill it would give whoever finds a call that
//! nobody has thought of (a new C library, a rare kind of backing) the disks of all tenants, and to kill the thread alone
//! would leave rings that nobody serves.

mod table;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::ThreadKind;
use table::Only;
pub use table::{Call, calls_of};

/// Why a filter is not in force.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// This machine's architecture has no filters here.
    #[error("there are no filters for this architecture ({0})")]
    Architecture(&'static str),
    /// A rule that cannot be compiled.
    #[error("the filter of {kind} cannot be compiled ({source})")]
    Compile {
        /// Whose.
        kind: ThreadKind,
        /// Why.
        source: seccompiler::BackendError,
    },
    /// The kernel has none, or takes no more.
    #[error("the kernel takes no filter ({0}); it needs CONFIG_SECCOMP_FILTER")]
    Install(seccompiler::Error),
}

/// The filters of a process, each compiled when it is needed first.
#[derive(Debug)]
pub(super) struct Filters {
    postcopy: AtomicBool,
    refused: Refused,
    programs: [OnceLock<BpfProgram>; ThreadKind::ALL.len()],
}

/// What becomes of a call that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It fails with `EPERM`.
    Fails,
    /// The process is killed: whoever tests learns of it.
    #[cfg(feature = "sandbox-probe")]
    Kills,
}

impl Filters {
    pub(super) const fn new(refused: Refused) -> Self {
        Self {
            postcopy: AtomicBool::new(false),
            refused,
            programs: [const { OnceLock::new() }; ThreadKind::ALL.len()],
        }
    }

    /// Threads of front-ends that start from now on may be handed a userfaultfd.
    pub(super) fn allow_postcopy(&self) {
        self.postcopy.store(true, Ordering::Release);
    }

    /// Narrows this thread, and all that it starts.
    pub(super) fn install(&self, kind: ThreadKind) -> Result<(), SeccompError> {
        #[cfg(feature = "sandbox-probe")]
        if kind != ThreadKind::Control {
            fail(libc::SYS_openat, libc::EPERM)?;
        }
        let compile = || compile(kind, self.postcopy.load(Ordering::Acquire), self.refused);
        let slot = self.programs.get(kind as usize);
        if let Some(program) = slot.and_then(OnceLock::get) {
            return apply_filter(program).map_err(SeccompError::Install);
        }
        let program = compile()?;
        apply_filter(&program).map_err(SeccompError::Install)?;
        // A child's own copy may be about to be set, by a thread that it does not have.
        if !kind.is_process()
            && let Some(slot) = slot
        {
            let _ = slot.set(program);
        }
        Ok(())
    }
}

/// Has the C library make threads by clone(2), whose flags a filter can look at. For this thread, and all that it starts.
pub(super) fn hide_clone3() -> Result<(), SeccompError> {
    fail(libc::SYS_clone3, libc::ENOSYS)
}

/// Has a system call fail with this error.
fn fail(number: i64, error: libc::c_int) -> Result<(), SeccompError> {
    let rules = BTreeMap::from([(number, Vec::new())]);
    let answer = SeccompAction::Errno(error.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, architecture()?);
    let kind = ThreadKind::Main;
    let program =
        filter.and_then(BpfProgram::try_from).map_err(|source| SeccompError::Compile { kind, source })?;
    apply_filter(&program).map_err(SeccompError::Install)
}

fn compile(kind: ThreadKind, postcopy: bool, refused: Refused) -> Result<BpfProgram, SeccompError> {
    let refused = match refused {
        Refused::Fails => SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        #[cfg(feature = "sandbox-probe")]
        Refused::Kills => SeccompAction::KillProcess,
    };
    let failed = |source| SeccompError::Compile { kind, source };
    let rules = rules(kind, postcopy).map_err(failed)?;
    // What a tracer has answered itself has no number any more: not to be mistaken for one that was forgotten.
    #[cfg(feature = "sandbox-probe")]
    let rules = rules.into_iter().chain([(u32::MAX.into(), Vec::new())]);
    // The C library's allocator tries once whether it may overcommit, and takes no for an answer: that is no mistake.
    #[cfg(feature = "sandbox-probe")]
    let rules = rules.chain([(libc::SYS_openat, Vec::new())]).collect();
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, architecture()?);
    filter.and_then(BpfProgram::try_from).map_err(failed)
}

fn architecture() -> Result<TargetArch, SeccompError> {
    let name = std::env::consts::ARCH;
    name.try_into().map_err(|_| SeccompError::Architecture(name))
}

/// By number; no rules stand for any arguments.
fn rules(
    kind: ThreadKind,
    postcopy: bool,
) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let calls = calls_of(kind, postcopy);
    for call in &calls {
        let rules = rules.entry(call.number).or_default();
        rules.extend(rules_of(call.only)?);
    }
    // One that may be made in any way needs no other rule.
    for call in calls.iter().filter(|call| matches!(call.only, Only::All)) {
        rules.insert(call.number, Vec::new());
    }
    Ok(rules)
}

fn rules_of(only: Only) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let is = |place, mask: u64, bits| {
        // Flags of clone(2) have all bits of a register; other arguments are looked at as the kernel does, which takes 32.
        let len = if mask > u64::from(u32::MAX) { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
        let condition = SeccompCondition::new(place, len, SeccompCmpOp::MaskedEq(mask), bits)?;
        SeccompRule::new(vec![condition])
    };
    const WHOLE: u64 = u32::MAX as u64;
    match only {
        Only::All => Ok(Vec::new()),
        Only::OneOf(place, values) => values.iter().map(|value| is(place, WHOLE, *value)).collect(),
        Only::Without(place, bits) => Ok(vec![is(place, bits, 0)?]),
        Only::Bits(place, mask, bits) => Ok(vec![is(place, mask, bits)?]),
        Only::Both((first, values), (second, mask, bits)) => {
            let condition = |place, mask, bits| {
                SeccompCondition::new(place, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), bits)
            };
            let pairs = values.iter().flat_map(|value| bits.iter().map(move |bits| (*value, *bits)));
            pairs
                .map(|(value, bits)| {
                    SeccompRule::new(vec![condition(first, WHOLE, value)?, condition(second, mask, bits)?])
                })
                .collect()
        }
        Only::Own(place) => Ok(vec![is(place, WHOLE, u64::from(std::process::id()))?]),
    }
}
