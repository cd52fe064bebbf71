//! The sandbox of the daemon, as the command line asks for it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::JoinHandle;

use clap::Args;
use rustix::fs::Access;

use crate::cli::exit::Failure;
use crate::config::identity;
use crate::limits::thread;
use crate::sandbox::{
    Enforced, Identity, InForce, Options, Parts, Reach, Reporter, Sandbox, SandboxError, ThreadKind,
    UnknownPart, narrow,
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Sandbox")]
pub(super) struct SandboxArgs {
    /// What the process gives up once all is open: everything it can (on), everything or it does not start
    /// (require), nothing (off), or a list of privileges, landlock, seccomp, rlimits
    #[arg(long, value_name = "on|require|off|LIST", default_value = "on", global = true)]
    sandbox: Choice,

    /// Serve as this user, by name or number, once all is open [default: who starts it]
    #[arg(long, value_name = "USER", value_parser = identity::user, global = true)]
    user: Option<u32>,

    /// Serve with this group, by name or number, once all is open [default: that of who starts it]
    #[arg(long, value_name = "GROUP", value_parser = identity::group, global = true)]
    group: Option<u32>,

    /// Start, print what is in force for each kind of thread as the kernel has it, and end
    #[arg(long, global = true)]
    sandbox_check: bool,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    parts: Parts,
    required: bool,
}

impl FromStr for Choice {
    type Err = UnknownPart;

    fn from_str(text: &str) -> Result<Self, UnknownPart> {
        let (parts, required) = match text {
            "on" => (Parts::ALL, false),
            "require" => (Parts::ALL, true),
            "off" => (Parts::NONE, false),
            list => (list.parse()?, true),
        };
        Ok(Self { parts, required })
    }
}

/// The sandbox before it is entered, and who is to say what is in force then.
#[derive(Debug, Default)]
pub(super) struct Confinement {
    sandbox: Option<Sandbox>,
    reporter: Option<Reporter>,
}

impl SandboxArgs {
    /// Before the first thread.
    pub(super) fn prepare(&self) -> Result<Confinement, Failure> {
        let reporter = self.sandbox_check.then(Reporter::start).transpose().map_err(Failure::Output)?;
        let Choice { mut parts, required } = self.sandbox;
        let identity = Identity { user: self.user, group: self.group };
        if identity != Identity::default() && parts == Parts::NONE {
            // Who names a user means it.
            parts = Parts::PRIVILEGES;
        }
        let sandbox = match parts {
            Parts::NONE => None,
            _ => Some(Sandbox::prepare(Options { parts, required, identity })?),
        };
        Ok(Confinement { sandbox, reporter })
    }
}

/// What has been entered.
#[derive(Debug)]
pub(super) struct Confined {
    in_force: Option<InForce>,
    reporter: Option<Reporter>,
}

impl Confinement {
    /// Everything is open, and no thread is there that serves.
    /// Sockets can be removed, and what else is in reach stays so.
    pub(super) fn enter(
        self,
        sockets: &[PathBuf],
        mut reach: Reach,
        postcopy: bool,
    ) -> Result<Confined, SandboxError> {
        let Self { sandbox, reporter } = self;
        let Some(sandbox) = sandbox else {
            tracing::warn!("sandbox: off; whoever takes this process over can do all that its user can");
            return Ok(Confined { in_force: None, reporter });
        };
        let mut folders: Vec<_> = sockets.iter().map(|socket| folder_of(socket)).collect();
        folders.sort_unstable();
        folders.dedup();
        reach.removable.extend(folders.iter().map(|folder| folder.to_path_buf()));
        let in_force = sandbox.enter(&reach, postcopy)?;
        log(&in_force);
        for folder in
            folders.into_iter().filter(|folder| rustix::fs::access(*folder, Access::WRITE_OK).is_err())
        {
            tracing::warn!(
                folder = %folder.display(),
                "sockets in this folder stay behind at the end, as this user may not remove them; they are replaced by the \
                 next start"
            );
        }
        Ok(Confined { in_force: Some(in_force), reporter })
    }
}

impl Confined {
    /// Whether what is not in reach cannot be opened.
    pub(super) fn keeps_files_out_of_reach(&self) -> bool {
        self.in_force.as_ref().is_some_and(|it| it.landlock.is_some())
    }

    /// Everything has started, and this thread only waits. Answers whether this was all that was to be done.
    pub(super) fn narrow(self) -> Result<Option<bool>, Failure> {
        let kinds = if self.reporter.is_some() { one_of_each_kind() } else { Vec::new() };
        narrow(ThreadKind::Main).map_err(Failure::Narrow)?;
        #[cfg(feature = "sandbox-probe")]
        crate::sandbox::probe::run(ThreadKind::Main);
        let Some(reporter) = self.reporter else { return Ok(None) };
        reporter.report();
        for thread in &kinds {
            thread.thread().unpark();
        }
        Ok(Some(self.in_force.is_none_or(|it| it.missing.is_empty())))
    }
}

/// Threads that do nothing: those of front-ends are not there yet.
fn one_of_each_kind() -> Vec<JoinHandle<()>> {
    let kinds = [
        ThreadKind::Session,
        ThreadKind::WriterLock,
        ThreadKind::Worker,
        ThreadKind::Flusher,
        ThreadKind::Io,
        ThreadKind::Stalls,
        ThreadKind::Populate,
        ThreadKind::Media,
        ThreadKind::Prefault,
        ThreadKind::ConnectionWatcher,
    ];
    let start = |kind: ThreadKind| thread::spawn(kind, kind.name(), std::thread::park).ok();
    kinds.into_iter().filter_map(start).collect()
}

fn folder_of(socket: &Path) -> &Path {
    socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn log(in_force: &InForce) {
    let InForce { privileges, landlock, seccomp, rlimits, missing } = in_force;
    let privileges = privileges.as_ref().map_or_else(|| "off".to_owned(), ToString::to_string);
    let landlock = match landlock {
        Some(Enforced::Fully) => "on",
        Some(Enforced::Partly) => "on, as far as this kernel knows it",
        None => "off",
    };
    let switch = |on: bool| if on { "on" } else { "off" };
    tracing::info!(privileges, landlock, seccomp = switch(*seccomp), rlimits = switch(*rlimits), "sandbox");
    for error in missing {
        tracing::warn!(
            "sandbox: a part is missing, and --sandbox=require would not start without it: {error}"
        );
    }
}
