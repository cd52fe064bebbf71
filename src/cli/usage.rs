//! How the program can be called, for help and the manual page.

/// The name of the program.
pub(super) const NAME: &str = "vhost-user-pmem";

/// What may follow the name, a line for each way to call the program.
pub(super) const USAGE: &[&str] = &[
    "serve --disk path=FILE,socket=SOCKET[,KEY=VALUE...] [...]",
    "serve --config FILE [--check] [...]",
    "info PATH [--json]",
    "ctl --control SOCKET {list | show NAME | rings NAME | events [--follow]} [--json]",
    "ctl --control SOCKET {add KEY=VALUE,... | log LEVEL | reload} [--json]",
    "ctl --control SOCKET {remove | resize | limit | flush | disconnect} NAME [...]",
    "top --control SOCKET [--once] [--json] [...]",
    #[cfg(feature = "bench")]
    "bench --socket SOCKET [--against SOCKET] [...]",
    "{--socket-path=PATH | --fd=FDNUM} --blk-file=PATH [--read-only]",
    "--print-capabilities",
];

/// The lines of [`USAGE`] behind "Usage:"; all but the first are indented as clap does it.
pub(super) fn usage() -> String {
    USAGE.iter().map(|rest| format!("{NAME} {rest}")).collect::<Vec<_>>().join("\n       ")
}
