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

use crate::cli::disk_option::{self, Defaults, DiskOption};
use crate::cli::exit::{self, Failure};
use crate::cli::{daemon, start_message};
use crate::config::{CpuChoice, DiskConfig, ServerConfig};
use crate::disk::{DeepFlush, Durability, Symlinks};
use crate::limits::bounds::{LAST_OUTPUT_TIMEOUT, MAX_POLL_US};
use crate::limits::thread;
use crate::server::DiskSummary;
use crate::worker::Cpus;
use crate::worker::Polling;

/// Serve files as disks, each on its own socket, until SIGTERM or SIGINT
///
/// Prints what it serves and how to attach it, then stays in the foreground. A socket listens again
/// after its front-end left.
#[derive(Debug, Args)]
#[command(after_long_help = help())]
pub(super) struct ServeArgs {
    /// A disk: its file, its socket, and what else is to be said about it
    ///
    /// A list of KEY=VALUE with the keys below, separated by commas; a comma inside a value is written
    /// twice. May be repeated.
    #[arg(long = "disk", value_name = "KEY=VALUE,...", required = true)]
    disks: Vec<OsString>,

    /// Threads that carry the requests [default: one per CPU]
    ///
    /// Disks with cpus= or numa= of their own have as many besides.
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroU16>,

    /// Longest time in microseconds that a worker without requests waits for the next one awake, which saves
    /// the guest a kick and the worker a wake-up: 0 is not at all, `busy` is always
    ///
    /// Up to this limit it waits for as long as pays, which it learns from the pauses between requests; an idle
    /// worker sleeps.
    #[arg(long, value_name = "N|busy", default_value = "50", value_parser = polling)]
    poll_max_us: Polling,

    /// CPUs that workers run on, such as 2-5 or 2-5,8 [default: any]
    #[arg(long, value_name = "LIST", conflicts_with = "numa")]
    cpus: Option<Cpus>,

    /// Run the workers of a disk on the CPUs of the NUMA node that its backing belongs to (auto), or on any
    #[arg(long, value_name = "auto|off")]
    numa: Option<Numa>,

    /// Answer GET /metrics, in the text format of Prometheus, on this Unix socket
    ///
    /// A stale socket is replaced, one of a living process is not. `curl --unix-socket SOCKET
    /// http://localhost/metrics` reads them.
    #[arg(long, value_name = "SOCKET")]
    metrics: Option<PathBuf>,

    /// Refuse paths of disks and sockets in which any part is a symbolic link
    #[arg(long)]
    no_symlinks: bool,

    /// End when the first front-end has left, instead of listening again
    #[arg(long)]
    exit_on_disconnect: bool,

    /// Refuse to start unless every disk is that durable: after a flush (page, also without a value), once a
    /// write is completed (cacheline), or also without flushing caches (byte)
    #[arg(long, value_name = "CLASS", num_args = 0..=1, require_equals = true, default_missing_value = "page")]
    require_durable: Option<Durability>,

    /// Whether a flush also empties the memory controller's queues (deep_flush of the region): where the
    /// platform does not say that it saves them, never, or wherever possible
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
    format!("{}\n{}", disk_option::help(), exit::help())
}

pub(super) fn run(args: ServeArgs) -> Result<(), Failure> {
    let (metrics, symlinks) = (args.metrics.clone(), symlinks(&args));
    daemon::run(configuration(args)?, metrics.as_deref().map(|path| (path, symlinks)), announce)
}

fn symlinks(args: &ServeArgs) -> Symlinks {
    if args.no_symlinks { Symlinks::Refuse } else { Symlinks::Follow }
}

pub(super) fn configuration(args: ServeArgs) -> Result<ServerConfig, Failure> {
    let options = args.disks.iter().map(|text| DiskOption::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let symlinks = symlinks(&args);
    let cpus = match (args.cpus, args.numa) {
        (Some(cpus), _) => CpuChoice::Set(cpus),
        (None, Some(Numa::Auto)) => CpuChoice::NearBacking,
        (None, _) => CpuChoice::Any,
    };
    let defaults =
        Defaults { require_durable: args.require_durable, deep_flush: args.deep_flush, cpus, symlinks };
    let disks = disk_option::into_configs(options, defaults);
    warn_of_equal_serials(&disks);
    Ok(ServerConfig {
        disks,
        workers: args.workers,
        polling: args.poll_max_us,
        exit_on_disconnect: args.exit_on_disconnect,
        should_stop: Arc::default(),
    })
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
    let text: String = disks.iter().map(|disk| start_message::StartMessage(disk).to_string()).collect();
    let (working, done) = mpsc::channel();
    let thread = thread::spawn("start-message", move || {
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
        // It fails as soon as the thread has ended.
        let _ = self.0.recv_timeout(LAST_OUTPUT_TIMEOUT);
    }
}
