//! How the process ends: one code a cause. Help, the manual page and the README show this table.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use crate::api::EndpointError;
use crate::api::control::ControlError;
use crate::cli::activation::ActivationError;
use crate::cli::ctl_client::CtlError;
use crate::cli::inherited::InheritedError;
use crate::cli::limits::TooFewFiles;
use crate::cli::top::TopError;
use crate::config::ConfigError;
use crate::config::disk_text::{DiskTextCause, DiskTextError};
use crate::config::file::{FileCause, FileError};
use crate::config::options::OptionError;
use crate::disk::OpenError;
use crate::sandbox::SandboxError;
use crate::server::ServerError;

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    Success = 0,
    Other = 1,
    Usage = 2,
    Missing = 3,
    NotRegular = 4,
    BadSize = 5,
    TooSmall = 6,
    NoSpace = 7,
    SocketInUse = 8,
    Locked = 9,
    Permission = 10,
    UnknownKey = 11,
    Socket = 12,
    NotDurable = 13,
    Sandbox = 14,
    GivenUp = 15,
}

impl Exit {
    pub(super) const ALL: [Self; 16] = [
        Self::Success,
        Self::Other,
        Self::Usage,
        Self::Missing,
        Self::NotRegular,
        Self::BadSize,
        Self::TooSmall,
        Self::NoSpace,
        Self::SocketInUse,
        Self::Locked,
        Self::Permission,
        Self::UnknownKey,
        Self::Socket,
        Self::NotDurable,
        Self::Sandbox,
        Self::GivenUp,
    ];

    pub(super) const fn code(self) -> u8 {
        self as u8
    }

    pub(super) const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "success, also of a server that was ended by SIGTERM or SIGINT",
            Self::Other => "any other failure",
            Self::Usage => "the command line or the configuration file is wrong",
            Self::Missing => "the path does not exist, and there is no size= to create it with",
            Self::NotRegular => "the path is not a file or device that can be served",
            Self::BadSize => {
                "the size is zero, not a multiple of the block size, or too large for the file system"
            }
            Self::TooSmall => "the file is smaller than size= says",
            Self::NoSpace => "the file system has no space for the file",
            Self::SocketInUse => "another daemon listens on the socket path or port",
            Self::Locked => "another process serves the file or uses the device",
            Self::Permission => "permission to use the file, the socket or the configuration file is denied",
            Self::UnknownKey => "--disk or the configuration file has an unknown key",
            Self::Socket => "any other failure of a socket or an inherited descriptor",
            Self::NotDurable => "the disk is less durable than --require-durable asks for",
            Self::Sandbox => "a part of the sandbox that is asked for is missing",
            Self::GivenUp => {
                "media, or a session, did not end in time (--stop-timeout), and requests were given up"
            }
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The table as help shows it.
pub(super) fn help() -> String {
    let style = clap::builder::Styles::styled();
    let header = style.get_header();
    let mut text = format!("{header}Exit codes:{header:#}\n");
    for exit in Exit::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:>2}  {}", exit.code(), exit.meaning());
    }
    text
}

/// How the program ends that has written to standard output, without a log.
pub(super) fn written(result: io::Result<()>) -> Exit {
    let Err(error) = result else { return Exit::Success };
    let failure = Failure::Output(error);
    // Ignored: where standard error is closed too, the exit code is all that can be said.
    let _ = writeln!(io::stderr(), "error: {failure}");
    failure.exit()
}

/// Why the program did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    DiskText(#[from] DiskTextError),
    #[error(transparent)]
    ConfigFile(#[from] FileError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Limits(#[from] TooFewFiles),
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    #[error(transparent)]
    Activation(#[from] ActivationError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Metrics(#[from] EndpointError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Ctl(#[from] CtlError),
    #[error(transparent)]
    Top(#[from] TopError),
    #[error(transparent)]
    Describe(#[from] OpenError),
    #[cfg(feature = "bench")]
    #[error(transparent)]
    Bench(#[from] crate::tools::bench::BenchError),
    /// The exit code is that of the first.
    #[error("{}", lines(.0))]
    Several(Vec<Failure>),
    /// Of a command line that has no keys of `--disk`.
    #[error("{}", in_backend_options(.0))]
    Backend(Box<Failure>),
    #[error("cannot take over SIGTERM, SIGINT and SIGHUP ({0}); nothing is served")]
    Signals(io::Error),
    #[error("{0}; choose what it can have with --sandbox=, or mend the cause")]
    Sandbox(#[from] SandboxError),
    #[error("{0}; choose what it can have with --sandbox=")]
    Narrow(io::Error),
    #[error(
        "a part of the sandbox is missing, as the log says; mend the cause, or choose the others with --sandbox="
    )]
    NotConfined,
    #[error("cannot write to standard output ({0}); check where it is redirected to")]
    Output(io::Error),
}

impl Failure {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::DiskText(DiskTextError {
                cause: DiskTextCause::Option(OptionError::UnknownKey { .. }),
                ..
            }) => Exit::UnknownKey,
            Self::DiskText(_) | Self::Config(_) => Exit::Usage,
            Self::ConfigFile(error) => of_file(error),
            Self::Several(failures) => failures.first().map_or(Exit::Other, Self::exit),
            Self::Inherited(_) | Self::Activation(_) => Exit::Socket,
            Self::Server(error) => of_server(error),
            Self::Metrics(error) => of_metrics(error),
            Self::Control(error) => of_control(error),
            Self::Ctl(error) => of_ctl(error),
            Self::Top(TopError::NotATerminal | TopError::Dumb(_)) => Exit::Usage,
            Self::Top(TopError::Terminal(_)) => Exit::Other,
            Self::Describe(error) => of_open(error),
            Self::Backend(failure) => failure.exit(),
            #[cfg(feature = "bench")]
            Self::Bench(error) => of_bench(error),
            Self::Sandbox(_) | Self::Narrow(_) | Self::NotConfined => Exit::Sandbox,
            Self::Limits(_) | Self::Signals(_) | Self::Output(_) => Exit::Other,
        }
    }
}

/// Each on a line of its own, which begins as the first will.
fn lines(failures: &[Failure]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: ")
}

fn of_file(error: &FileError) -> Exit {
    match error {
        FileError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Exit::Permission
        }
        FileError::Read { .. } => Exit::Usage,
        FileError::At { cause, .. } => match &**cause {
            FileCause::Disk(OptionError::UnknownKey { .. })
            | FileCause::UnknownPart { .. }
            | FileCause::UnknownOption { .. } => Exit::UnknownKey,
            _ => Exit::Usage,
        },
    }
}

/// What a failure says, with the options of the back-end program instead of keys of `--disk`.
fn in_backend_options(failure: &Failure) -> String {
    let text = failure
        .to_string()
        .replace("readonly=on", "--read-only")
        .replace("correct path=", "correct --blk-file");
    let is_key = |key: &&str| text.contains(key);
    match ["size=", "lock=", "sparse="].iter().any(is_key) {
        true => format!("{text} (a key of `vhost-user-pmem serve --disk`)"),
        false => text,
    }
}

fn of_server(error: &ServerError) -> Exit {
    match error {
        ServerError::Open(error) => of_open(error),
        ServerError::SocketInUse { .. } => Exit::SocketInUse,
        ServerError::Socket { source, .. } => of_socket(source),
        ServerError::Fd { .. } => Exit::Socket,
        ServerError::Stopped => Exit::Success,
        ServerError::GivenUp(_) => Exit::GivenUp,
        ServerError::Config(_) | ServerError::NoCpu { .. } => Exit::Usage,
        ServerError::Copy(_) | ServerError::Faults(_) | ServerError::Threads(_) => Exit::Other,
    }
}

fn of_metrics(error: &EndpointError) -> Exit {
    match error {
        EndpointError::InUse(_) | EndpointError::PortInUse(_) => Exit::SocketInUse,
        EndpointError::Socket { source, .. } | EndpointError::Port { source, .. } => of_socket(source),
        EndpointError::Thread(_) => Exit::Other,
    }
}

fn of_control(error: &ControlError) -> Exit {
    match error {
        ControlError::InUse(_) => Exit::SocketInUse,
        ControlError::Socket { source, .. } => of_socket(source),
        ControlError::Thread(_) => Exit::Other,
    }
}

fn of_ctl(error: &CtlError) -> Exit {
    match error {
        CtlError::NoControl | CtlError::NoLimit(_) | CtlError::Missing(..) => Exit::Usage,
        CtlError::Unreachable { source, .. } => of_socket(source),
        CtlError::Stranger { .. } => Exit::Socket,
        CtlError::Problem { code, .. } => of_code(code),
        CtlError::OtherVersion { .. } => Exit::Other,
    }
}

/// As of a start that fails for the same reason.
fn of_code(code: &str) -> Exit {
    match code {
        "missing" => Exit::Missing,
        "not-regular" => Exit::NotRegular,
        "bad-size" => Exit::BadSize,
        "too-small" => Exit::TooSmall,
        "no-space" => Exit::NoSpace,
        "socket-in-use" => Exit::SocketInUse,
        "locked" => Exit::Locked,
        "permission" | "not-allowed" => Exit::Permission,
        "unknown-key" => Exit::UnknownKey,
        "not-durable" => Exit::NotDurable,
        "bad-options" | "bad-query" | "bad-request" | "not-json" => Exit::Usage,
        _ => Exit::Other,
    }
}

fn of_socket(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Exit::Permission,
        _ => Exit::Socket,
    }
}

#[cfg(feature = "bench")]
fn of_bench(error: &crate::tools::bench::BenchError) -> Exit {
    use crate::tools::bench::BenchError as Error;
    match error {
        Error::Connect { source, .. } => of_socket(source),
        Error::Protocol { .. } | Error::Silent { .. } | Error::HungUp { .. } => Exit::Socket,
        Error::BlockSize { .. }
        | Error::Depth { .. }
        | Error::Buffers { .. }
        | Error::NotPacked { .. }
        | Error::Queues { .. }
        | Error::ReadOnly { .. }
        | Error::DiskBlock { .. }
        | Error::Span { .. } => Exit::Usage,
        Error::Request { .. }
        | Error::Mismatch { .. }
        | Error::Stalled { .. }
        | Error::Local { .. }
        | Error::Cpu { .. }
        | Error::Plot { .. } => Exit::Other,
    }
}

fn of_open(error: &OpenError) -> Exit {
    match error {
        OpenError::Missing { .. } => Exit::Missing,
        OpenError::NotRegular { .. } | OpenError::Unusable { .. } => Exit::NotRegular,
        OpenError::BadSize { .. } => Exit::BadSize,
        OpenError::TooSmall { .. } => Exit::TooSmall,
        OpenError::NoSpace { .. } => Exit::NoSpace,
        OpenError::Locked { .. } | OpenError::InUse { .. } => Exit::Locked,
        OpenError::NotDurable { .. } => Exit::NotDurable,
        OpenError::Permission { .. } => Exit::Permission,
        OpenError::Io { .. } => Exit::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_once_in_order() {
        for (place, exit) in Exit::ALL.iter().enumerate() {
            assert_eq!(usize::from(exit.code()), place, "{exit:?}");
        }
    }
}
