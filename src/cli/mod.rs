//! The command line of the `vhost-user-pmem` program. Nothing outside this module knows clap.
//!
//! | module | subject |
//! | --- | --- |
//! | `serve`, `backend`, `info`, `bench`, `man`, `completions`, `reference` | one way to call the program each; `usage` lists them |
//! | `inherited` | a descriptor that the command line names, checked and typed |
//! | `daemon`, `signals`, `logging`, `start_message`, `activation`, `notify` | a server's life in the foreground |
//! | `metrics`, `control` | where metrics are served, and the control socket |
//! | `ctl`, `top`, `ctl_client` | what asks for something there |
//! | `config_file`, `check` | `--config` joins the command line; `--check` says what would be served |
//! | `printable` | text of others on a terminal |
//! | `key_help` | the keys of a disk, as help shows them |
//! | `exit` | every way to end, one code a cause |

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

mod activation;
mod backend;
#[cfg(feature = "bench")]
mod bench;
mod check;
mod completions;
mod config_file;
mod confine;
mod control;
mod ctl;
mod ctl_client;
mod ctl_events;
mod daemon;
mod exit;
mod info;
mod inherited;
mod key_help;
mod limits;
mod logging;
mod man;
mod metrics;
mod notify;
mod printable;
mod reference;
mod serve;
mod signals;
mod start_message;
mod top;
mod usage;

use crate::api::control::{Reload, Wanted};
use crate::config::ServerConfig;
use crate::config::file::{ConfigFile, FileError};
use crate::config::keys::Key;
use confine::Confinement;
use exit::{Exit, Failure};
use logging::{Log, LogArgs};
use usage::{NAME, usage};

/// Serve a persistent-memory file to virtual machines as a disk
///
/// A virtual machine monitor (QEMU, Cloud Hypervisor, Firecracker) connects to a Unix socket, hands over
/// its guest's memory and queues over the vhost-user protocol, and its guest sees an ordinary
/// virtio-blk disk whose bytes are those of the file.
///
/// Use `serve` to start it by hand or from a service manager; `serve --help` lists the properties of a disk.
/// The options of the section "Back-end program" follow the conventions of QEMU's vhost-user specification,
/// for management software that starts one process for each disk. `vhost-user-pmem man` prints the manual page.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    override_usage = usage(),
    arg_required_else_help = true,
    disable_help_subcommand = true,
    subcommand_negates_reqs = true,
    after_long_help = exit::help(),
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    backend: backend::BackendArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    sandbox: confine::SandboxArgs,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of them, on the stack of the start")]
enum Command {
    Serve(serve::ServeArgs),
    Info(info::InfoArgs),
    Ctl(ctl::CtlArgs),
    Top(top::TopArgs),
    #[cfg(feature = "bench")]
    Bench(bench::BenchArgs),
    /// Print the manual page vhost-user-pmem(1), or that of a command, in roff
    #[command(hide = true)]
    Man(man::ManArgs),
    /// Print what a shell needs to complete the command line
    #[command(hide = true)]
    Completions(completions::CompletionsArgs),
    /// Print the tables of the README in Markdown
    #[command(hide = true)]
    Reference,
}

/// Runs the program with its arguments, the first of which is its name, and says how it ended.
///
/// It writes to standard output and error, and takes over SIGTERM, SIGINT and SIGHUP while it serves. Call it once.
pub fn run(args: Vec<OsString>) -> ExitCode {
    // The specification wants every other argument ignored, so clap is not asked.
    if args.iter().skip(1).any(|arg| arg == "--print-capabilities") {
        return backend::print_capabilities().into();
    }
    match parse(args) {
        Ok(cli) => execute(cli).into(),
        Err(Refused::ByFile(failure, log_args)) => {
            let (json, log) = (log_args.is_json(), log_args.init());
            report(&failure, json, &log).into()
        }
        Err(Refused::ByLine(error)) => match error.print() {
            // Where standard error is closed, the exit code is all that can be said.
            _ if error.use_stderr() => Exit::Usage.into(),
            printed => exit::written(printed).into(),
        },
    }
}

/// The configuration that `serve` makes of these arguments, the first of which is the program's name. No file is touched, but for
/// that of `--config`, which is read: this is for tests of the command line.
///
/// # Errors
/// The message that a person would read.
#[doc(hidden)]
pub fn configuration_of(args: Vec<OsString>) -> Result<ServerConfig, String> {
    match parse(args).map_err(|error| error.to_string())?.command {
        Some(Command::Serve(args)) => {
            let lets_disks_come = args.lets_disks_come();
            let config =
                serve::configuration(args, lets_disks_come).map_err(|failure| failure.to_string())?;
            config.check().map_err(|error| error.to_string())?;
            Ok(config)
        }
        _ => Err("nothing is served".to_owned()),
    }
}

/// The keys of `--disk`: this is for tests which make command lines up.
#[doc(hidden)]
pub fn disk_keys() -> Vec<&'static str> {
    Key::all().map(Key::name).collect()
}

/// The long options of `serve`, of which some take no value: for the same.
#[doc(hidden)]
pub fn serve_options() -> Vec<String> {
    let mut command = Cli::command();
    command.build();
    let serve = command.find_subcommand("serve").into_iter().flat_map(clap::Command::get_arguments);
    serve.filter_map(|arg| arg.get_long()).map(ToOwned::to_owned).collect()
}

/// What is wrong with what the program was told.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    ByLine(#[from] clap::Error),
    #[error("{0}")]
    ByFile(Box<Failure>, LogArgs),
}

/// Reads what the program is told. With it goes what reads it again.
fn parse(args: Vec<OsString>) -> Result<Cli, Refused> {
    let (mut cli, words) = read(args.clone())?;
    if let Some(Command::Serve(serve)) = &mut cli.command {
        serve.reload = Some(Reload(Box::new(move || read_again(&args, &words))));
    }
    Ok(cli)
}

/// Reads the command line, and the configuration file that it names. Both together are read as a command line that says it all:
/// these are the words of `[server]` in it.
fn read(mut args: Vec<OsString>) -> Result<(Cli, Vec<OsString>), Refused> {
    let (cli, matches) = parse_line(args.clone())?;
    let (Some(path), Some(given)) = (cli.config(), matches.subcommand_matches("serve")) else {
        return Ok((cli, Vec::new()));
    };
    let (file, words) = match read_file(path, given) {
        Ok(read) => read,
        Err(error) => return Err(Refused::ByFile(Box::new(error.into()), cli.log)),
    };
    args.extend(words.iter().cloned());
    let (mut cli, _) = parse_line(args)?;
    if let Some(Command::Serve(args)) = &mut cli.command {
        args.file = file;
    }
    Ok((cli, words))
}

/// What is to be served by now; `before` are the words of `[server]` that the process runs with.
fn read_again(args: &[OsString], before: &[OsString]) -> Result<Wanted, String> {
    let (cli, now) = read(args.to_vec()).map_err(|error| error.to_string())?;
    let differs = now.iter().find(|word| !before.contains(word));
    if let Some(word) = differs.or_else(|| before.iter().find(|word| !now.contains(word))) {
        let word = word.to_string_lossy();
        let option = word.split('=').next().unwrap_or_default().trim_start_matches('-');
        return Err(format!(
            "[server]: {option} cannot be changed while disks are served; restart the daemon for it"
        ));
    }
    let Some(Command::Serve(serve)) = cli.command else { return Err("nothing is served".to_owned()) };
    if let Some(file) = &serve.file.blank {
        return Err(format!(
            "{}: there is nothing in it, as in one that is just being written; write it beside its place and rename it, or, if \
             nothing is meant, write a comment",
            file.display()
        ));
    }
    let config = serve::configuration(serve, true).map_err(|failure| failure.to_string())?;
    config.check().map_err(|error| error.to_string())?;
    Ok(config.disks)
}

/// A configuration file, and the words to be added to the command line for its `[server]`.
fn read_file(path: &Path, given: &ArgMatches) -> Result<(ConfigFile, Vec<OsString>), FileError> {
    let file = ConfigFile::read(path)?;
    let words = config_file::words(&file, Cli::command(), given)?;
    Ok((file, words))
}

fn parse_line(args: Vec<OsString>) -> Result<(Cli, ArgMatches), Refused> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(args)?;
    let cli = Cli::from_arg_matches(&matches)?;
    if cli.command.is_some() && cli.backend.is_used() {
        let text =
            "options of the back-end program cannot be used with a subcommand; use the keys of serve --disk";
        return Err(command.error(ErrorKind::ArgumentConflict, text).into());
    }
    if cli.command.is_none() && !cli.backend.is_used() {
        let text = "nothing to do; use serve, info, or --socket-path with --blk-file";
        return Err(command.error(ErrorKind::MissingSubcommand, text).into());
    }
    Ok((cli, matches))
}

impl Cli {
    fn config(&self) -> Option<&Path> {
        match &self.command {
            Some(Command::Serve(args)) => args.config.as_deref(),
            _ => None,
        }
    }
}

fn execute(cli: Cli) -> Exit {
    let json = cli.log.is_json();
    let serves = matches!(cli.command, Some(Command::Serve(_)) | None);
    #[cfg(feature = "sandbox-probe")]
    crate::sandbox::probe::prepare();
    // The log is the first thread.
    let confinement = serves.then(|| cli.sandbox.prepare()).transpose();
    let log = cli.log.init();
    let outcome = confinement.and_then(|confinement| run_command(cli, confinement));
    match outcome {
        Ok(()) => Exit::Success,
        Err(failure) => report(&failure, json, &log),
    }
}

fn run_command(cli: Cli, confinement: Option<Confinement>) -> Result<(), Failure> {
    match cli.command {
        Some(Command::Serve(args)) => serve::run(args, confinement.unwrap_or_default()),
        Some(Command::Info(args)) => info::run(&args),
        Some(Command::Ctl(args)) => ctl::run(&args),
        Some(Command::Top(args)) => top::run(args),
        #[cfg(feature = "bench")]
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Man(args)) => man::print(&args, Cli::command()),
        Some(Command::Completions(args)) => completions::print(&args, &Cli::command()),
        Some(Command::Reference) => reference::print(),
        None => backend::run(cli.backend, confinement.unwrap_or_default()),
    }
}

/// Tells a person, or whoever collects JSON lines, why it failed.
fn report(failure: &Failure, json: bool, log: &Log) -> Exit {
    let exit = failure.exit();
    if json && tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(exit_code = exit.code(), "{failure}");
    } else {
        log.line(&format!("error: {failure}"));
    }
    exit
}
