//! `vhost-user-pmem serve`: any number of disks, one process.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;

use crate::api::control::Reload;
use crate::cli::confine::Confinement;
use crate::cli::control::{Control, ControlArgs};
use crate::cli::daemon::Outlets;
use crate::cli::exit::{self, Failure};
use crate::cli::metrics::MetricsArgs;
use crate::cli::{check, daemon, key_help, start_message};
use crate::config::disk_text;
use crate::config::file::ConfigFile;
use crate::config::options::{self, Defaults};
use crate::config::{ConfigError, CpuChoice, DiskConfig, ServerConfig};
use crate::disk::{DeepFlush, Durability, Symlinks};
use crate::limits::bounds::{LAST_OUTPUT_TIMEOUT, MAX_POLL_US, MAX_STOP_TIMEOUT_S};
use crate::limits::thread;
use crate::sandbox::ThreadKind;
use crate::server::{DiskSummary, ServerError};
use crate::worker::Cpus;
use crate::worker::Polling;

/// Serve files as disks, each on its own socket, until SIGTERM or SIGINT
///
/// Prints what it serves and how to attach it to a guest, and stays in the foreground. When a front-end has
/// left, its socket listens for the next one.
#[derive(Debug, Args)]
#[command(after_long_help = help())]
pub(super) struct ServeArgs {
    /// A disk, described by the keys below; may be repeated
    ///
    /// The keys are separated by commas, and a comma inside a value is written twice (,,). Switches take on, off, yes,
    /// no, true and false, and a bare `readonly` is `readonly=on`.
    #[arg(long = "disk", value_name = "KEY=VALUE,...", required_unless_present_any = ["config", "control"])]
    disks: Vec<OsString>,

    /// Read a configuration file (TOML): a disk is `[[disk]]` with the keys below, and `[server]` has the other options
    ///
    /// `[server]` takes the long options of this command by their names, without the dashes; what the command line says goes
    /// before it. `include = "conf.d/*.toml"` adds the disks of other files. Relative paths begin at the folder of their file.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Say what would be served, change nothing, and exit with the code that a start would have failed with, or 0
    #[arg(long)]
    check: bool,

    /// What the configuration file says of disks.
    #[arg(skip)]
    pub(super) file: ConfigFile,

    /// What reads all of this again.
    #[arg(skip)]
    pub(super) reload: Option<Reload>,

    /// Worker threads, which process the requests [default: one per CPU]
    ///
    /// Disks with cpus= or numa= of their own get as many workers of their own.
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroU16>,

    /// Longest time in microseconds that a worker polls empty queues before it sleeps: 0 is never, `busy` is always, at the
    /// price of a CPU for each worker
    ///
    /// Polling saves the guest a kick and the worker a wake-up. How long it pays is learnt from the pauses between
    /// requests. An idle worker sleeps.
    #[arg(long, value_name = "N|busy", default_value = "50", value_parser = polling)]
    poll_max_us: Polling,

    /// CPUs that workers run on, for example 2-5 or 2-5,8 [default: any]
    #[arg(long, value_name = "LIST", conflicts_with = "numa")]
    cpus: Option<Cpus>,

    /// Run the workers of a disk on the NUMA node that its backing belongs to (`auto`), or anywhere [default: off]
    #[arg(long, value_name = "auto|off")]
    numa: Option<Numa>,

    #[command(flatten)]
    metrics: MetricsArgs,

    #[command(flatten)]
    control: ControlArgs,

    /// Refuse paths of disks and sockets that contain a symbolic link anywhere; needs Linux 5.6
    #[arg(long)]
    no_symlinks: bool,

    /// Exit when the first front-end has left, instead of listening again
    #[arg(long)]
    exit_on_disconnect: bool,

    /// How many seconds the end waits for media that do not answer
    ///
    /// After SIGTERM, requests that were begun are finished and disks are flushed. What is not done by then is given up, and
    /// named: exit code 15. So is a start that waits for a disk to be opened.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u32).range(..=MAX_STOP_TIMEOUT_S))]
    stop_timeout: u32,

    /// Refuse to start unless a write to every disk is safe: after a flush (`page`, also without a value), as soon as it
    /// has completed (`cacheline`), or even before the CPU's caches are flushed (`byte`)
    #[arg(long, value_name = "CLASS", num_args = 0..=1, require_equals = true, default_missing_value = "page")]
    require_durable: Option<Durability>,

    /// Whether a flush also empties the queues of the memory controller (deep_flush of the region): `auto` does so where
    /// the platform does not promise to save them when the power fails
    #[arg(long, value_name = "auto|never|always", default_value = "auto")]
    deep_flush: DeepFlush,
}

fn polling(text: &str) -> Result<Polling, String> {
    match (text, text.parse()) {
        ("busy", _) => Ok(Polling::Always),
        (_, Ok(0)) => Ok(Polling::Never),
        (_, Ok(micros)) if micros <= MAX_POLL_US => Ok(Polling::UpTo(Duration::from_micros(micros))),
        _ => Err(format!("write a whole number of microseconds up to {MAX_POLL_US}, or busy")),
    }
}

/// Whether workers stay near the backing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Numa {
    Auto,
    Off,
}

fn help() -> String {
    format!("{}\n{}", key_help::help(), exit::help())
}

pub(super) fn run(mut args: ServeArgs, confinement: Confinement) -> Result<(), Failure> {
    let (symlinks, checks_only) = (symlinks(&args), args.check);
    let metrics = std::mem::take(&mut args.metrics);
    let control = Control {
        args: std::mem::take(&mut args.control),
        defaults: defaults(&args),
        config: args.config.clone(),
        reload: args.reload.take(),
    };
    let config = configuration(args, control.args.lets_disks_come())?;
    match checks_only {
        true => check::run(config, &metrics, &control, symlinks),
        false => daemon::run(config, Outlets { metrics, control }, symlinks, confinement, announce),
    }
}

fn symlinks(args: &ServeArgs) -> Symlinks {
    if args.no_symlinks { Symlinks::Refuse } else { Symlinks::Follow }
}

impl ServeArgs {
    /// Whether it may begin without a disk.
    pub(super) fn lets_disks_come(&self) -> bool {
        self.control.lets_disks_come()
    }
}

pub(super) fn configuration(args: ServeArgs, lets_disks_come: bool) -> Result<ServerConfig, Failure> {
    let defaults = defaults(&args);
    let mut disks = args.disks.iter().map(|text| disk_text::parse(text)).collect::<Result<Vec<_>, _>>()?;
    disks.extend(args.file.disks);
    if disks.is_empty() && !lets_disks_come {
        return Err(ServerError::from(ConfigError::NoDisk).into());
    }
    let disks = options::into_configs(disks, defaults);
    warn_of_equal_serials(&disks);
    Ok(ServerConfig {
        disks,
        workers: args.workers,
        polling: args.poll_max_us,
        exit_on_disconnect: args.exit_on_disconnect,
        stop_timeout: Some(Duration::from_secs(args.stop_timeout.into())),
        should_stop: Arc::default(),
    })
}

/// What holds for disks that do not say it themselves.
fn defaults(args: &ServeArgs) -> Defaults {
    let cpus = match (&args.cpus, args.numa) {
        (Some(cpus), _) => CpuChoice::Set(cpus.clone()),
        (None, Some(Numa::Auto)) => CpuChoice::NearBacking,
        (None, _) => CpuChoice::Any,
    };
    let symlinks = symlinks(args);
    Defaults { require_durable: args.require_durable, deep_flush: args.deep_flush, cpus, symlinks }
}

/// A guest with both disks would find one of them only under `/dev/disk/by-id`.
fn warn_of_equal_serials(disks: &[DiskConfig]) {
    let mut first_with = HashMap::new();
    for disk in disks {
        let first = *first_with.entry(disk.serial).or_insert(&disk.name);
        if first != &disk.name {
            tracing::warn!(
                "disks {first:?} and {:?} have the same serial number; give each its own with serial=",
                disk.name
            );
        }
    }
}

/// The start message, on a thread that nobody waits for: standard output may be a pipe that is not read.
fn announce(disks: &[DiskSummary]) -> PendingMessage {
    let mut text: String = disks.iter().map(|disk| start_message::StartMessage(disk).to_string()).collect();
    if disks.is_empty() {
        "no disk yet: they are added at the control socket, or by reading the configuration again\n"
            .clone_into(&mut text);
    }
    let (working, done) = mpsc::channel();
    let thread = thread::spawn(ThreadKind::StartMessage, "start-message", move || {
        let _working: mpsc::Sender<()> = working;
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // Nobody reads it: no reason not to serve.
            tracing::debug!("cannot write the start message ({error})");
        }
    });
    if let Err(error) = thread {
        tracing::warn!(%error, "no thread for the start message: it is not written");
    }
    PendingMessage(done)
}

/// The start message on its way. Dropping it waits until it is out, but not for long.
struct PendingMessage(mpsc::Receiver<()>);

impl Drop for PendingMessage {
    fn drop(&mut self) {
        // It fails as soon as the thread has ended, which is what is waited for.
        let _ = self.0.recv_timeout(LAST_OUTPUT_TIMEOUT);
    }
}
