//! `vhost-user-pmem serve`: any number of disks, one process.

use std::ffi::OsString;
use std::io::{self, Write};
use std::num::NonZeroU16;

use clap::Args;

use crate::cli::disk_option::{self, Defaults, DiskOption};
use crate::cli::exit::{self, Failure};
use crate::cli::{daemon, hints};
use crate::config::{DiskConfig, ServerConfig};
use crate::disk::{DeepFlush, Durability};
use crate::server::DiskSummary;

/// Serve files as disks, each on its own socket, until SIGTERM or SIGINT
///
/// Prints what it serves and how to attach it, then stays in the foreground. A socket is listened on again
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
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroU16>,

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

fn help() -> String {
    format!("{}\n{}", disk_option::help(), exit::help())
}

pub(super) fn run(args: ServeArgs) -> Result<(), Failure> {
    daemon::run(configuration(args)?, announce)
}

fn configuration(args: ServeArgs) -> Result<ServerConfig, Failure> {
    let options = args.disks.iter().map(|text| DiskOption::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let defaults = Defaults { require_durable: args.require_durable, deep_flush: args.deep_flush };
    let disks = disk_option::into_configs(options, defaults);
    warn_of_equal_serials(&disks);
    Ok(ServerConfig { disks, workers: args.workers, exit_on_disconnect: args.exit_on_disconnect })
}

/// A guest with both disks would find one of them only under `/dev/disk/by-id`.
fn warn_of_equal_serials(disks: &[DiskConfig]) {
    for (index, disk) in disks.iter().enumerate() {
        if let Some(before) = disks.iter().take(index).find(|before| before.serial == disk.serial) {
            tracing::warn!(
                "disks {:?} and {:?} have the same serial number; give each its own with serial=",
                before.name,
                disk.name
            );
        }
    }
}

fn announce(disks: &[DiskSummary]) {
    if let Err(error) = print_hints(disks) {
        // Nobody reads it: no reason not to serve.
        tracing::debug!("cannot write the start message ({error})");
    }
}

fn print_hints(disks: &[DiskSummary]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for disk in disks {
        write!(out, "{}", hints::Hints(disk))?;
    }
    out.flush()
}
